"""Packages of others, really installed, beside the environment that runs the tests."""

import os
import subprocess
import sys

CLI = "from halfv_cli.main import run_and_exit; run_and_exit()"
PIP = "pip install --quiet --no-index --no-deps --no-build-isolation --disable-pip-version-check".split()


def install(target, *sources):
    """As pip installs these folders, with the build tools of this environment and without an index."""
    subprocess.run([sys.executable, "-m", *PIP, "--target", str(target), *map(str, sources)], check=True)


def python(target, *arguments, cwd=None):
    """Python in a process that sees what is installed there: exit status, stdout, stderr."""
    path = os.pathsep.join([str(target), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, *map(str, arguments)]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, cwd=cwd)
    return done.returncode, done.stdout, done.stderr


def halfv(target, *arguments):
    """The command line in such a process."""
    return python(target, "-c", CLI, *arguments)
