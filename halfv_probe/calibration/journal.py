"""Measurements on disk as they are made, so that a calibration that was killed goes on where it was.

One JSON line for what was measured at a time (a batch), after a first line that says what is being measured. A line
holds a result for each key, and keys name samples by what is in them: whoever mends one row of the data measures that
row again, and no other. Numbers survive exactly (JSON holds Python's shortest representation of a float64), so a
resumed calibration gives the profile that an uninterrupted one gives. A last line that was cut off by the kill is
ignored, so a batch is remembered whole or not at all.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TextIO

import torch
import transformers
from transformers import PreTrainedModel

from halfv_accel import HalfVError
from halfv_accel.identity import fingerprint
from halfv_accel.settings import Settings


class Journal:
    """Results by key; kept in memory only where no path is given.

    Parameters
    ----------
    path : Path, optional
        The file; it is made with the first result.
    header : mapping, optional
        What is being measured: model, data, options. A journal of something else is not gone on with.
    resume : bool
        Go on with the file if there is one; otherwise begin anew.
    command : {"calibrate", "compare"}
        Whose work it is, for messages.

    Raises
    ------
    HalfVError
        If the file to go on with measured something else, or is no journal.
    """

    def __init__(
        self,
        path: Path | None = None,
        header: Mapping[str, Any] | None = None,
        resume: bool = False,
        command: Literal["calibrate", "compare"] = "calibrate",
    ) -> None:
        self.path, self.header, self._command = path, dict(header or {}), command
        self.found: dict[str, Any] = {}
        self._file: TextIO | None = None
        self._whole = 0  # bytes of the file up to the last complete line
        if path is not None and resume and path.exists():
            self._read(path)

    def recall(self, key: str, measure: Callable[[], Any]) -> Any:
        """The result of this key: from the journal, or measured now and written down. It must be JSON."""
        return self.recall_all([key], lambda _: [measure()])[0]

    def recall_all(self, keys: Sequence[str], measure: Callable[[list[int]], Sequence[Any]]) -> list[Any]:
        """The results of these keys; those that are missing are measured together and written down in one line.

        Parameters
        ----------
        keys : sequence of str
        measure : callable
            Given the places in `keys` of what is missing, returns the result of each; they must be JSON.
        """
        missing = [place for place, key in enumerate(keys) if key not in self.found and key not in keys[:place]]
        if missing:
            results = dict(zip((keys[place] for place in missing), measure(missing), strict=True))
            self._write({"results": results})
            self.found |= results
        return [self.found[key] for key in keys]

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if self._file is not None:
            self._whole = self._file.tell()
            self._file.close()
            self._file = None

    def remove(self) -> None:
        """The work is done: the file is of no more use."""
        self.close()
        if self.path is not None:
            self.path.unlink(missing_ok=True)

    def _read(self, path: Path) -> None:
        expected = json.loads(json.dumps(self.header))
        try:
            lines = path.read_bytes().splitlines(keepends=True)
            complete = [line for line in lines if line.endswith(b"\n")]
            if not complete:
                return
            first, *rest = [json.loads(line) for line in complete]
            names = [name for name in {**expected, **first} if first.get(name) != expected.get(name)]
            measured = {key: result for entry in rest for key, result in entry["results"].items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            raise HalfVError(
                f"{path} is not a journal of halfv {self._command}: remove it, or leave out --resume"
            ) from None
        if names:
            work = "calibration" if self._command == "calibrate" else "comparison"
            raise HalfVError(
                f"{path} is of another {work} ({', '.join(names)} differ): leave out --resume to begin anew"
            )
        self.found = measured
        self._whole = sum(map(len, complete))

    def _write(self, entry: Mapping[str, Any]) -> None:
        if self.path is None:
            return
        if self._file is None:
            self._file = self._open(self.path)
        self._file.write(json.dumps(entry) + "\n")
        self._file.flush()

    def _open(self, path: Path) -> TextIO:
        try:
            if self.found:  # go on behind the last complete line
                with path.open("r+b") as half:
                    half.truncate(self._whole)
                return path.open("a", encoding="utf-8")
            file = path.open("w", encoding="utf-8")
        except OSError as error:
            raise HalfVError(f"{path} cannot be written ({error.strerror}): choose another place with --out") from error
        file.write(json.dumps(self.header) + "\n")
        return file


def header(model: PreTrainedModel, settings: Settings, batch_size: int) -> dict[str, Any]:
    """What a calibration measures: the model, its weights (a sample of each tensor), and what the settings ask for.

    The samples are not in it: every result is kept under its own sample's fingerprint.
    """
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        digest.update(name.encode())
        if parameter.is_meta:  # offloaded: not here to be read
            continue
        digest.update(parameter.detach().flatten()[:16].double().cpu().numpy().tobytes())
    kind = {"dtype": str(model.dtype), "device": model.device.type, "attention": model.config._attn_implementation}
    asked = {**settings.measured(), "batch_size": batch_size}
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    return {
        "model": fingerprint(model),
        "weights": digest.hexdigest()[:16],
        **kind,
        **versions,
        **asked,
    }
