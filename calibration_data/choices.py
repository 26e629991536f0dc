"""Multiple choice: the prompt that benchmarks ask with, and the letter of the right option.

>>> ask("What is it?", ["a cat", "a dog"], hint="It barks.").splitlines()[:4]
['It barks.', 'What is it?', 'A. a cat', 'B. a dog']

Labels are written as letters, as indices from 0 or from 1, or as the text of the option. Which of these a source uses
is seen from many of its rows, because one row often fits several.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from string import ascii_uppercase
from typing import Any, Literal

from halfv_data.rows import is_missing
from halfv_data.values import as_text

INSTRUCTION = "Answer with the option's letter from the given choices directly."
LabelForm = Literal["letter", "text", "index", "number"]  # an index counts from 0, a number from 1
ABSENT = "nan"  # how pandas spells a cell without an option where it was made a text
_COLUMN = re.compile(r"(?P<stem>|a|choice|option|opt|op)[ _-]?(?P<mark>[a-z]|\d{1,2})", re.IGNORECASE)
_MARK = re.compile(r"(?<!\w)\(?([A-Z]) ?[).:]\s*", re.IGNORECASE)  # options in one line: A. cat B. dog; a ) 3 , b ) 4
_LETTER = re.compile(r"\(?([A-Z])[).:]?", re.IGNORECASE)


def ask(question: str, options: Sequence[str], hint: str | None = None) -> str:
    """The prompt of LLaVA, lmms-eval and VLMEvalKit: hint, question, lettered options, instruction.

    A question that lists its options already is left as it is.
    """
    lines = [hint] if hint else []
    if not lists_options(question, options):
        lettered = [f"{letter}. {option}" for letter, option in _lettered(options)]
        return "\n".join([*lines, question, *lettered, INSTRUCTION])
    return "\n".join([*lines, question])


def lists_options(question: str, options: Sequence[str]) -> bool:
    """Whether every option is in the question already, behind its letter."""
    return all(re.search(rf"\b{letter}[).:]?\s*{re.escape(option)}", question) for letter, option in _lettered(options))


def _lettered(options: Sequence[str]) -> Iterator[tuple[str, str]]:
    return zip(ascii_uppercase, options, strict=False)


def option_columns(names: Sequence[str]) -> tuple[str, ...]:
    """Columns that hold one option each, in order: A..D, choice_a.., option_1.., a0..; empty if there are none."""
    stems: dict[str, dict[str, str]] = {}
    for name in names:
        if found := _COLUMN.fullmatch(name.strip()):
            stem = found["stem"].lower()
            if found["mark"].isdigit() and not stem:
                continue
            stems.setdefault(stem, {})[found["mark"].lower()] = name
    for marks in stems.values():
        for series in ("abcdefghij", "0123456789", "123456789"):
            run = [marks[mark] for mark in _unbroken(series, marks)]
            if len(run) >= 2:
                return tuple(run)
    return ()


def _unbroken(series: str, marks: dict[str, str]) -> Iterable[str]:
    for mark in series:
        if mark not in marks:
            return
        yield mark


def options_of(values: Sequence[Any]) -> list[str]:
    """The options of a row, from a list, from a list that was written as a text, or from one column each.

    Letters before them ("A. a cat") are taken off, and empty ones ("nan", as a table without that option has) dropped.
    """
    if len(values) == 1:
        values = _listed(values[0])
    options = [as_text(value).strip() for value in values if not is_missing(value)]
    options = [option for option in options if option.lower() != ABSENT]
    lettered = [re.match(rf"\(?{letter}[).:]\s*(?=\S)", option) for letter, option in _lettered(options)]
    if options and all(lettered):
        options = [option[found.end() :] for option, found in zip(options, lettered, strict=True) if found]
    return options if 1 < len(options) <= len(ascii_uppercase) else []


def _listed(value: Any) -> Sequence[Any]:
    if isinstance(value, dict) and isinstance(
        value.get("text"), list
    ):  # {"text": [...], "label": [...]}, as ARC has it
        value = value["text"]
    if isinstance(value, dict):
        return list(value.values())
    if not isinstance(value, str):
        return value if isinstance(value, list | tuple) else [value]
    for read in (json.loads, ast.literal_eval):
        try:
            parsed = read(value)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        if isinstance(parsed, list | tuple):
            return parsed
        if isinstance(parsed, dict):
            return list(parsed.values())
    marks = list(_MARK.finditer(value))
    if len(marks) > 1 and "".join(mark[1].upper() for mark in marks) == ascii_uppercase[: len(marks)]:
        ends = [mark.start() for mark in marks[1:]] + [len(value)]
        return [value[mark.end() : end].strip(" ,;\n") for mark, end in zip(marks, ends, strict=True)]
    return [line for line in value.split("\n") if line.strip()]


def no_options(value: Any) -> bool:
    """Whether a field says that a question is open: nothing, an empty list, or a list of one."""
    listed = _listed(value)
    return (
        is_missing(value)
        or str(value).lower() == ABSENT
        or (not isinstance(value, str) and len(listed) < 2)
        or not listed
    )


def label_form(rows: Iterable[tuple[Any, Sequence[str]]], by_letter: bool) -> LabelForm:
    """How a source writes its labels: the form that fits most of its rows.

    Parameters
    ----------
    rows : iterable of (label, options)
    by_letter : bool
        Whether the options are in columns called by letters, which speaks for letters where several forms fit.
    """
    forms: list[LabelForm] = ["letter", "text"] if by_letter else ["text", "letter"]
    forms += ["index", "number"]
    fits: dict[LabelForm, float] = dict.fromkeys(forms, 0.0)
    for label, options in rows:
        if isinstance(label, int | float) and not isinstance(label, bool):
            fits["index"] += 0.5  # a bare number in JSON or Parquet counts options rather than being one
            fits["number"] += 0.5
        for form in forms:
            fits[form] += right_option(label, options, form) is not None
    return max(forms, key=lambda form: fits[form])


def right_option(label: Any, options: Sequence[str], form: LabelForm) -> str | None:
    """The letter of the right option; None where the label, read in this form, is none of them."""
    text = as_text(label[0] if isinstance(label, list | tuple) and len(label) == 1 else label).strip()
    if form == "letter":
        found = _LETTER.fullmatch(text)
        place = ascii_uppercase.index(found[1].upper()) if found else -1
    elif form == "text":
        same = [number for number, option in enumerate(options) if option == text]
        same = same or [number for number, option in enumerate(options) if option.lower() == text.lower()]
        place = same[0] if len(same) == 1 else -1
    else:
        place = int(text) - (form == "number") if re.fullmatch(r"\d{1,2}", text) else -1
    return ascii_uppercase[place] if 0 <= place < len(options) else None
