"""Answers as they were written."""

from __future__ import annotations

import ast
from collections import Counter
from typing import Any

from halfv_data.errors import DataError, shown
from halfv_data.rows import is_missing


def as_text(value: Any) -> str:
    """A text as it is; a number as it was written, or without the ".0" that a table's column of numbers adds."""
    if type(value) is float and value.is_integer():
        return str(int(value))
    return str(value)


def _spelt_list(text: str) -> str | list[str]:
    """Several answers that a table holds as one text, as VLMEvalKit's do; any other text as it is."""
    try:
        answers = ast.literal_eval(text)
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return text
    return answers if answers and all(isinstance(answer, str) for answer in answers) else text


def read_answer(value: Any, where: str) -> str | None:
    """The answer in a field; of several, as VQA sets have them, the most common one (the first among equals).

    Raises
    ------
    DataError
        If it is neither a text nor a number nor a list of them.
    """
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, str) and value.startswith("["):
        value = _spelt_list(value)
    if isinstance(value, list | tuple):
        found = [item.get("answer", item) if isinstance(item, dict) else item for item in value]
        if not all(isinstance(item, str) or is_missing(item) for item in found):
            raise DataError(f"{where}: the answers are {shown(value)}: they must be texts")
        texts = [item for item in found if not is_missing(item)]
        value = Counter(texts).most_common(1)[0][0] if texts else None
    if value is None or (is_missing(value) and not isinstance(value, dict)):
        return None
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise DataError(f"{where}: the answer is {shown(value)}: it must be a text, or be left out")
    return as_text(value)
