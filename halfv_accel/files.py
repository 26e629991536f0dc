"""Writing files so that a failure leaves nothing half-written behind."""

from __future__ import annotations

import os
from pathlib import Path

from halfv_accel.errors import HalfVError


def check_writable(path: Path | str) -> None:
    """Fail early, before long work, if a file could not be written there.

    Raises
    ------
    HalfVError
        If the folder does not exist or is not writable, or the path is a folder, a pipe or a device.
    """
    path = Path(path)
    if path.is_dir():
        raise HalfVError(f"{path} is a folder: name a file in it, for example {path / 'profile.json'}")
    if path.exists() and not path.is_file():
        raise HalfVError(f"{path} is a pipe, a socket or a device: choose an ordinary file with --out")
    path = _behind_links(path)
    folder = path.parent
    if not folder.is_dir():
        raise HalfVError(f"the folder {folder} does not exist: make it first, mkdir -p {folder}")
    if not os.access(folder, os.W_OK) or (path.exists() and not os.access(path, os.W_OK)):
        raise HalfVError(f"{path} cannot be written: choose another place with --out, or change the permissions")


def write_atomically(path: Path | str, content: bytes) -> None:
    """Write a file in full or not at all; a symbolic link stays, and what it points to is written.

    Raises
    ------
    HalfVError
        If it cannot be written.
    """
    path = Path(path)
    check_writable(path)
    path = _behind_links(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        try:
            partial.write_bytes(content)
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise HalfVError(f"{path} cannot be written ({error.strerror}): choose another place with --out") from error


def _behind_links(path: Path) -> Path:
    """The file that a symbolic link stands for; any other path as it is."""
    if not path.is_symlink():
        return path
    target = Path(os.path.realpath(path))
    if target.is_symlink():  # links in a circle lead nowhere
        raise HalfVError(f"{path} is a symbolic link to itself: choose another place with --out")
    return target
