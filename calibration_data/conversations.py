"""Conversations to questions and answers: LLaVA's, OpenAI's and Hugging Face's messages, the_cauldron's texts.

Pictures are among the parts of a message, between <img> tags, or in a column of their own that <image> stands for. They
come before the question in our prompts, so these placeholders are taken out of it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from halfv_data.errors import DataError, shown

COLUMNS = ("conversations", "conversation", "messages", "texts", "prompt", "body.messages")
ASKING, ANSWERING, SILENT = {"human", "user"}, {"gpt", "assistant", "model", "bot", "chatgpt"}, {"system", "tool"}
PLACEHOLDER = re.compile(r"<(image|video)>")
EDGE = re.compile(r"\A(\s*<(image|video)>)+\s*|(\s*<(image|video)>)+\s*\Z")
TAGGED = re.compile(r"(?:Picture \d+:\s*)?<img>(.*?)</img>\s*")  # Qwen-VL


@dataclass
class Turn:
    """One question, the answer to it, and what was shown with it."""

    question: str
    answer: str | None = None
    pictures: list[Any] = field(default_factory=list)
    videos: list[Any] = field(default_factory=list)
    places: int = 0  # how often <image> has stood in the conversation so far


def as_turns(value: Any) -> list[Mapping[str, Any]] | None:
    """A field as the turns of a conversation, also from JSON in a text or from one list for each key; else None."""
    if isinstance(value, str) and value.lstrip().startswith("[{"):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return None
    if isinstance(value, Mapping) and value and all(isinstance(column, list) for column in value.values()):
        value = [dict(zip(value, turn, strict=False)) for turn in zip(*value.values(), strict=False)]
    if not isinstance(value, list | tuple) or not value or not all(isinstance(turn, Mapping) for turn in value):
        return None
    return list(value) if {"from", "role", "user"} & set(value[0]) else None


def turns_of(said: Sequence[Mapping[str, Any]], where: str) -> list[Turn]:
    """The questions of a conversation with their answers, in order.

    Pictures belong to the question with which they are shown and to all later ones.

    Raises
    ------
    DataError
        If a turn is of no known form.
    """
    turns: list[Turn] = []
    pictures: list[Any] = []
    videos: list[Any] = []
    places = 0
    for role, content in _said(said, where):
        if role in ASKING:
            text, more, clips = _parts(content, where)
            pictures, videos = [*pictures, *more], [*videos, *clips]
            if turns and turns[-1].answer is None and not turns[-1].question:
                turns.pop()  # pictures in a message of their own
            places += text.count("<image>")
            turns.append(Turn(without_placeholders(text), None, pictures, videos, places))
        elif role in ANSWERING and turns and turns[-1].answer is None:
            turns[-1].answer = _parts(content, where)[0].strip() or None
    return turns


def without_placeholders(text: str, everywhere: bool = True) -> str:
    """A question without <image>; only at its ends where it may be part of what is asked."""
    if not everywhere:
        return EDGE.sub("", text).strip()
    lines = (
        re.sub(r" {2,}", " ", PLACEHOLDER.sub(" ", line)).strip() if "<" in line else line for line in text.split("\n")
    )
    return "\n".join(lines).strip()


def _said(said: Sequence[Mapping[str, Any]], where: str) -> Iterator[tuple[str, Any]]:
    """Role and content of each turn."""
    for turn in said:
        if "user" in turn:  # the_cauldron: question and answer in one
            yield "user", turn["user"]
            yield "assistant", turn.get("assistant")
            continue
        role = turn.get("from", turn.get("role"))
        if not isinstance(role, str) or role.lower() not in ASKING | ANSWERING | SILENT:
            known = "human and gpt, or user and assistant"
            raise DataError(f"{where}: a turn of a conversation is by {shown(role)}: it must be by {known}")
        yield role.lower(), turn.get("value", turn.get("content"))


def _parts(content: Any, where: str) -> tuple[str, list[Any], list[Any]]:
    """Text, pictures and videos of one message: a text, or a list of parts with types."""
    texts: list[str] = []
    pictures: list[Any] = []
    videos: list[Any] = []
    for part in [content] if isinstance(content, str | Mapping) else content or []:
        if isinstance(part, str):
            pictures += TAGGED.findall(part)
            texts.append(TAGGED.sub("", part))
            continue
        if not isinstance(part, Mapping):
            raise DataError(
                f"{where}: a part of a message is {shown(part)}: it must be a text or an object with a type"
            )
        kind = str(part.get("type") or "")
        if "text" in kind or (not kind and part.get("text") is not None):
            texts.append(str(part.get("text") or ""))
        elif "video" in kind:
            videos += _shown_in(part, ("video", "video_url", "url", "path"))
        elif "image" in kind:
            pictures += _shown_in(part, ("image", "image_url", "url", "path", "base64", "source", "data"))
    return "\n".join(text for text in texts if text.strip()), pictures, videos


def _shown_in(part: Mapping[str, Any], names: tuple[str, ...]) -> list[Any]:
    """The picture of a part; none where the part only holds its place."""
    for name in names:
        value = part.get(name)
        if isinstance(value, Mapping) and not {"bytes", "path"} & set(value):  # {"url": ...}; {"data": ...}
            return _shown_in(value, names)
        if value is not None:
            return [value]
    return []
