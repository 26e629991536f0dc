"""``halfv run --input questions.jsonl --output answers.jsonl``: a row of answers for each row of questions.

The output is its own journal. Rows are appended as they come, the last one of an index counts, and at the end the file
is put in order; so an interrupted run goes on where it was, and asks again what had failed.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import typer

from halfv_cli.data_options import everything
from halfv_cli.progress import progress

if TYPE_CHECKING:
    from halfv_accel import Plan
    from halfv_accel.answer_many import Reply
    from halfv_data import Reading


@dataclass(frozen=True)
class Question:
    """One row of the input; ``label`` is the right answer where it is known."""

    index: int
    where: str
    question: str
    label: str | None
    sample: Any

    @property
    def images(self) -> Sequence[Any]:
        """Opened now: in some formats they are files until then."""
        return self.sample.images

    @property
    def video(self) -> Any:
        return None if self.sample.video is None else self.sample.video.load()


@dataclass(frozen=True)
class Unread:
    """A row of the input that is no sample; asking for its pictures says why."""

    reason: str
    video: None = None

    @property
    def images(self) -> Sequence[Any]:
        from halfv_data import DataError

        raise DataError(self.reason)


def read_questions(source: str, how: Reading) -> tuple[list[Question], str]:
    """All rows of anything that ``halfv_data`` reads, in its order; behind them, those that are broken.

    Broken rows become rows with their error, or are left out with ``--skip-bad``. Also one line on what was read.
    """
    from halfv_data import load_data

    loaded = load_data(source, everything(source), reading=replace(how, skip_bad=True))
    samples = enumerate(loaded.samples)
    questions = [
        Question(n, each.where or f"{source} row {n + 1}", each.question, each.answer, each) for n, each in samples
    ]
    broken = [] if how.skip_bad else [out for out in loaded.summary.left_out if out.bad]
    unread = enumerate(broken, len(questions))
    rows = [*questions, *(Question(n, out.where, "", None, Unread(out.reason)) for n, out in unread)]
    return rows, str(loaded.summary)


def check_output(output: Path | None, resume: bool) -> Path:
    """Where the answers go, if they may go there."""
    from halfv_accel import HalfVError
    from halfv_accel.files import check_writable

    if output is None:
        raise HalfVError("--input needs a file for the answers: add --output answers.jsonl")
    check_writable(output)
    if output.exists() and not resume:
        raise HalfVError(f"{output} exists: --resume goes on with it, or choose another --output")
    return output


def run_many(
    vlm: Any,
    processor: Any,
    plan: Plan,
    questions: Sequence[Question],
    output: Path,
    by: dict[str, Any],
    batch_size: int,
    as_json: bool,
    read: str = "",
) -> int:
    """Answer what the output does not hold yet; returns the exit code: 1 if not one question was answered.

    Parameters
    ----------
    by : dict
        What made a row, and goes into it: model, plan, dtype, max_new_tokens.
    read : str
        A line on what was read, told when answering begins: of a refusal, only the error is told.
    """
    from halfv_accel import accelerate
    from halfv_accel.answer_many import answer_many

    started = time.perf_counter()
    rows = _found(output, questions, by)
    if read:
        typer.echo(read, err=True)
    left = [each for each in questions if rows.get(each.index, {"error": ""})["error"] is not None]
    done = len(questions) - len(left)
    with _appending(output) as file, progress("questions") as show, accelerate(vlm, plan.inside) as run:
        show("answers", done, len(questions))
        replies = answer_many(run, processor, left, batch_size, by["max_new_tokens"], plan.downsample)
        todo = iter(left)
        for batch in replies:
            for reply in batch:
                asked = next(todo)
                rows[asked.index] = _row(asked, reply, by)
                file.write(json.dumps(rows[asked.index]) + "\n")
            file.flush()
            done += len(batch)
            show("answers", done, len(questions))
    _put_in_order(output, rows)
    return _summary(list(rows.values()), output, time.perf_counter() - started, as_json)


def _row(asked: Question, reply: Reply, by: dict[str, Any]) -> dict[str, Any]:
    from halfv_accel.answers import is_right

    judged = reply.text is not None and asked.label is not None
    return {
        "index": asked.index,
        "where": asked.where,
        "question": asked.question,
        "answer": reply.text,
        "label": asked.label,
        "correct": is_right(reply.text or "", asked.label or "") if judged else None,
        "visual_tokens": reply.visual_tokens,
        "downsampled_to": reply.downsampled_to,
        "visual_tokens_after": list(reply.visual_tokens_after),
        "error": reply.error,
        **by,
    }


# ------------------------------------------------------------------------------------------------------------- the file


def _found(output: Path, questions: Sequence[Question], by: dict[str, Any]) -> dict[int, dict[str, Any]]:
    """The rows of an earlier run, by index; a last line that was cut off is taken away.

    A row goes by where it came from and its question: a broken one that was mended moves the places of others. What had
    failed and is no longer there is forgotten, since it is asked again in any case.

    Raises
    ------
    HalfVError
        If the file holds anything else, or answers to other questions, or of another model or plan.
    """
    from halfv_accel import HalfVError

    if not output.exists():
        return {}
    places = {_key(each): each.index for each in reversed(questions)}
    content = output.read_bytes()
    whole = content.rfind(b"\n") + 1
    rows: dict[int, dict[str, Any]] = {}
    for number, line in enumerate(content[:whole].splitlines(), 1):
        try:
            row = json.loads(line)
            index, key, failed = row["index"], (row["where"], row["question"]), row["error"] is not None
            known = 0 <= index < len(questions)
            place = index if known and _key(questions[index]) == key else places.get(key)
            if not (known or failed or place is not None):
                raise LookupError(index)
            others = [f"{name} {row[name]}" for name in by if row[name] != by[name]]
        except (ValueError, LookupError, TypeError) as error:
            raise HalfVError(
                f"{output} line {number} is no answer to a row of this --input: choose another --output"
            ) from error
        if place is None and failed:
            continue
        if place is None or others:
            what = "answers another question" if place is None else f"is of another run ({', '.join(others)})"
            raise HalfVError(f"{output} line {number} {what}: give the same options, or choose another --output")
        rows[place] = {**row, "index": place}
    if whole < len(content):
        with output.open("r+b") as file:
            file.truncate(whole)
    return rows


def _key(asked: Question) -> tuple[str, str]:
    return asked.where, asked.question


@contextmanager
def _appending(output: Path) -> Iterator[TextIO]:
    """The file, open; after Ctrl-C it is said how to go on."""
    try:
        with output.open("a", encoding="utf-8") as file:
            yield file
    except KeyboardInterrupt:
        typer.echo(f"\ninterrupted; {output} keeps its rows: the same command with --resume goes on", err=True)
        raise


def _put_in_order(output: Path, rows: dict[int, dict[str, Any]]) -> None:
    """One row an index, unless the file is so already."""
    from halfv_accel.files import write_atomically

    content = "".join(json.dumps(rows[index]) + "\n" for index in sorted(rows)).encode()
    if content != output.read_bytes():
        write_atomically(output, content)


def _summary(rows: list[dict[str, Any]], output: Path, seconds: float, as_json: bool) -> int:
    failed = [row for row in rows if row["error"] is not None]
    judged = [row["correct"] for row in rows if row["correct"] is not None]
    if as_json:
        counts = {"rows": len(rows), "failed": len(failed), "judged": len(judged), "correct": sum(judged)}
        typer.echo(json.dumps({"output": str(output), **counts, "seconds": seconds}))
    else:
        right = f", {sum(judged)} of {len(judged)} right" if judged else ""
        typer.echo(f"wrote {output}: {len(rows) - len(failed)} answers{right}, {seconds:.1f} s")
    if failed:
        first = f"{failed[0]['where']}: {failed[0]['error']}"
        typer.echo(f"warning: {len(failed)} of {len(rows)} rows failed, the first: {first}", err=True)
    return 1 if len(failed) == len(rows) else 0
