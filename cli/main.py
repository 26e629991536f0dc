"""Composition root of the ``halfv`` command, and the one place where errors become a line on stderr."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence

import typer

from halfv_cli.bench import bench
from halfv_cli.calibrate import calibrate
from halfv_cli.compare import compare
from halfv_cli.data import data
from halfv_cli.methods import methods
from halfv_cli.plot_entropy import plot_entropy
from halfv_cli.report import report
from halfv_cli.run import run

app = typer.Typer(
    name="halfv",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Measure where a vision-language model stops needing its visual tokens, then make it faster.",
)
app.command("calibrate", short_help="Measure a model; write profile.json.")(calibrate)
app.command("data", short_help="Show what would be used of some data.")(data)
app.command("plot-entropy", short_help="Draw a profile's curves.")(plot_entropy)
app.command("report", short_help="Write a page about a profile.")(report)
app.command("bench", short_help="Time a model with and without a plan.")(bench)
app.command("compare", short_help="Run all methods on the same samples and budgets.")(compare)
app.command("methods", short_help="List the methods that a plan can use.")(methods)
app.command("run", short_help="Ask an accelerated model about a picture.")(run)


@app.callback()
def _options(
    debug: bool = typer.Option(False, "--debug", help="Show the traceback of an error; works after a command too."),
) -> None: ...


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code: 0, 1 (it could not be done), 2 (wrong usage), 130 (interrupted)."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    try:
        code = app(args=[word for word in words if word != "--debug"], prog_name="halfv", standalone_mode=False)
    except KeyboardInterrupt:
        return 130
    except Exception as error:  # every failure is one line; --debug shows the rest
        if debug:
            raise
        line, code = _explain(error)
        print(f"halfv: {' '.join(line.split())}", file=sys.stderr)
    return code if isinstance(code, int) else 0


def _explain(error: Exception) -> tuple[str, int]:
    """What to print for an error, and the exit code."""
    if hasattr(error, "format_message"):  # wrong usage, as Typer reports it
        context = getattr(error, "ctx", None)
        command = context.command_path if context is not None else "halfv"
        return f"{error.format_message().rstrip('.')}: see {command} --help", getattr(error, "exit_code", 2)
    own = type(error).__module__.split(".")[0] in ("halfv_accel", "halfv_data")
    if own or isinstance(error, OSError):  # what a user can cause; the message names the way out
        return str(error), 1
    if type(error).__name__ == "OutOfMemoryError":
        return "the GPU ran out of memory: give smaller batches, fewer or smaller pictures, or --device cpu", 1
    if isinstance(error, ModuleNotFoundError):
        package = "'halfv[probe]'" if error.name in ("matplotlib", "pandas", "scipy", "datasets") else error.name
        return f"{error.name} is not installed: pip install {package}", 1
    return f"unexpected {type(error).__name__}: {error}; run it again with --debug and report what it prints", 1


def _warn(message: Warning | str, *where: object, **more: object) -> None:
    """HalfV's own warnings are a line on stderr, as its errors are; others stay as Python writes them."""
    if str(message).startswith("halfv: "):
        print(" ".join(str(message).split()), file=sys.stderr)
    else:
        _PYTHONS(message, *where, **more)  # type: ignore[arg-type]


_PYTHONS = warnings.showwarning


def run_and_exit() -> None:
    """Entry point of the console script."""
    warnings.showwarning = _warn
    sys.exit(main())
