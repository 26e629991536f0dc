"""Which column is the question, which the answer, which the picture.

Columns are known by the names that this field gives them; ``--columns`` overrules every guess. A column called ``text``
is a question in one set and a caption in the next: what is in it decides, and where that does not, the user is asked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from halfv_data.choices import LabelForm, label_form, option_columns, options_of
from halfv_data.conversations import COLUMNS as CONVERSATION
from halfv_data.conversations import as_turns
from halfv_data.errors import DataError
from halfv_data.rows import Source, brief, is_missing, listing

CAPTION = "Provide a one-sentence caption for the provided image."  # as LLaVA and lmms-eval ask for COCO's
TEXT = "text"
NAMES: dict[str, Sequence[str]] = {  # the first that a row has is taken
    "image": (
        "image file_name images img image_path picture pictures photo image_file file_names filename filepath file "
        "image_paths img_path imgs jpg jpeg png webp decoded_image image_url path"
    ).split(),
    "video": "video videos video_path video_file mp4 video_name".split(),
    "image_id": "image_id imageid img_id video_id videoid".split(),
    "conversation": CONVERSATION,
    "question": "question prompt query instruction problem user_prompt input_text".split(),
    "answer": (
        "answer answers multiple_choice_answer label_text response gt_answer ground_truth correct_choice_idx "
        "correct_answer correct_option answer_idx gpt_answer label target completion output"
    ).split(),
    "choices": "choices options multi_choice_options multiple_choices candidates answer_choices option".split(),
    "hint": "hint context".split(),
    "task": ("task",),
    "caption": "caption captions sentences txt annotations_captions blip_caption".split(),
}
ROLES = ("image", "video", "question", "answer", "choices", "hint", "task", "conversation")
ONE_EACH = ("conversation", "question", "answer", "hint")  # roles in which the first column with something counts


@dataclass(frozen=True)
class Columns:
    """Names of columns by role, in the order in which a row is searched.

    ``image`` holds groups: all columns of a group are pictures of one sample. ``choices`` is one column with a list, or
    one column for each option, whose right one is written in the form ``labels``.
    """

    image: tuple[tuple[str, ...], ...] = ()
    video: tuple[str, ...] = ()
    image_id: tuple[str, ...] = ()
    conversation: tuple[str, ...] = ()
    question: tuple[str, ...] = ()
    answer: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()
    hint: tuple[str, ...] = ()
    task: tuple[str, ...] = ()
    labels: LabelForm = "letter"
    captions: bool = False  # the answer is a caption, and `CAPTION` is asked
    given: frozenset[str] = field(default_factory=frozenset)  # roles that the user named

    def first(self, role: str, fields: Mapping[str, Any]) -> tuple[str, Any]:
        """Name and value of the first column of a role that has something in this row; else ("", None)."""
        for name in getattr(self, role):
            if not is_missing(value := get(fields, name)):
                return name, value
        return "", None


def get(fields: Mapping[str, Any], name: str) -> Any:
    """A field by name; "meta.answer" also finds the answer inside of meta."""
    if fields.get(name) is not None or "." not in name:
        return fields.get(name)
    outer, inner = name.split(".", 1)
    within = fields.get(outer)
    return get(within, inner) if isinstance(within, Mapping) else None


def guess(source: Source, given: Mapping[str, str]) -> Columns:
    """Columns of a source, as far as their names and what is in them tell, and as the user says.

    Raises
    ------
    DataError
        If a column that the user named is not there, if nothing can be the question or the picture of a data set, or
        if a column called text may be either question or caption.
    """
    names = source.columns
    asked = {role: _given(role, name, source, names) for role, name in _roles(given).items()}
    known = {_plain(name): name for name in reversed(names)}
    found: dict[str, tuple[str, ...]] = {
        role: tuple(known.get(name, name) for name in NAMES[role] if name.split(".")[0] in known) for role in NAMES
    }
    found["choices"] = found["choices"][:1] or option_columns(names)
    found["conversation"] = _conversations(source, found["conversation"])
    found |= {role: columns for role, columns in asked.items() if role != "image"}
    if "question" in asked and "conversation" not in asked:
        found["conversation"] = ()
    captions, is_caption = found.pop("caption"), False
    if (shard_text := known.get("txt")) and captions == (shard_text,) and _are_asked(shard_text, source):
        found["question"] += (shard_text,)
    if not found["question"] and not found["conversation"]:
        text = known.get(TEXT)
        if text is not None and "question" not in asked and text not in asked.get("answer", ()) and not captions:
            found["question"] = _asked_in(text, source, found["answer"])
        elif captions or asked.get("answer"):
            is_caption, found["answer"] = True, asked.get("answer") or captions
    pictures = (asked["image"],) if "image" in asked else _pictures(source, found.pop("image"), names)
    others: dict[str, Any] = {role: columns for role, columns in found.items() if role != "image"}
    columns = Columns(image=pictures, captions=is_caption, given=frozenset(asked), **others)
    _check(columns, source, names)
    return _with_labels(columns, source)


def _roles(given: Mapping[str, str]) -> Mapping[str, str]:
    unknown = [role for role in given if role not in ROLES]
    if unknown:
        raise DataError(f"--columns names the role {brief(unknown[0])!r}: the roles are {', '.join(ROLES)}")
    return given


def _given(role: str, name: str, source: Source, names: Sequence[str]) -> tuple[str, ...]:
    """Columns that the user named: one, several joined by +, or none."""
    if not name:
        return ()
    wanted = (name,) if name in names else tuple(name.split("+"))
    for column in wanted:
        if column not in names and column.split(".")[0] not in names:
            raise DataError(
                f"--columns {role}={brief(name)}: {source} has no column {brief(column)}, only {listing(names)}"
            )
    return wanted


def _plain(name: str) -> str:
    """Spelling aside: "Image Path" and "image-path" are image_path."""
    return name.strip().lower().replace(" ", "_").replace("-", "_")


def _conversations(source: Source, names: tuple[str, ...]) -> tuple[str, ...]:
    """Those columns that hold turns; a prompt is a text in one set and a list of messages in the next."""
    rows = source.peek(names, most=100) if names else []
    return tuple(name for name in names if any(as_turns(get(row, name)) is not None for row in rows))


def _pictures(source: Source, known: tuple[str, ...], names: Sequence[str]) -> tuple[tuple[str, ...], ...]:
    """Groups of picture columns: by type where the source has types, by name, and image_1, image_2, ... together."""
    numbered = [f"image{gap}{n}" for gap in ("_", "") for n in range(10) if f"image{gap}{n}" in names]
    if source.pictures:
        typed = [name for name in (*known, *source.pictures) if name in source.pictures and name not in numbered]
        known = tuple(dict.fromkeys([*typed, *known]))
        if len(source.pictures) > 1 and not numbered and _plain(typed[0]) not in NAMES["image"]:
            raise DataError(
                f"{source} has several columns of pictures, {listing(source.pictures)}: add --columns image=NAME, "
                "or image=ONE+TWO for a sample of several pictures"
            )
    groups = tuple((name,) for name in known)
    return (tuple(numbered), *groups) if numbered else groups


def _asked_in(text: str, source: Source, answer: tuple[str, ...]) -> tuple[str, ...]:
    """The column called text, if it is what is asked."""
    labelled = any(_plain(name) not in ("label", "target") for name in answer)
    if labelled or "question_id" in source.columns or _are_asked(text, source):
        return (text,)
    raise DataError(
        f"{source}: its column {text} may be what is asked or a caption, and nothing says which: add "
        f"--columns question={text}, or --columns answer={text} (then {CAPTION!r} is asked)"
    )


def _are_asked(name: str, source: Source) -> bool:
    """Whether what is in a column reads like questions, or like one instruction for many pictures."""
    texts = [str(row[name]) for row in source.peek([name]) if not is_missing(row[name])]
    questions = sum("?" in text for text in texts) * 2 > len(texts)
    return not texts or questions or (len(texts) >= 4 and len(set(texts)) * 2 <= len(texts))


def used(columns: Columns, source: Source) -> dict[str, tuple[str, ...]]:
    """The columns that are really searched with success, by role; of a conversation, the conversation."""
    rows = source.peek([name for role in ONE_EACH for name in getattr(columns, role)])
    found = {role: tuple(dict.fromkeys(columns.first(role, row)[0] for row in rows)) for role in ONE_EACH}
    roles = {role: tuple(filter(None, names)) for role, names in found.items()}
    talk = roles.pop("conversation")
    if talk:
        roles["question"] = (*talk, *roles["question"])
        roles["answer"] = (*talk, *roles["answer"])
    return roles


def _check(columns: Columns, source: Source, names: Sequence[str]) -> None:
    """A data set without a question or a picture in any row; of a list, the row will say so."""
    if source.listed or not names:
        return
    if not (columns.question or columns.conversation or columns.captions):
        raise DataError(f"{source} has {listing(names)}, and none is a question: add --columns question=NAME")
    if not (columns.image or columns.video or columns.image_id or columns.conversation):
        raise DataError(f"{source} has {listing(names)}, and none is a picture: add --columns image=NAME")


def _with_labels(columns: Columns, source: Source) -> Columns:
    """How the right options are written, seen from many rows."""
    if not columns.choices or not columns.answer:
        return columns
    labelled = []
    for row in source.peek([*columns.choices, *columns.answer]):
        options = options_of([get(row, name) for name in columns.choices])
        label = columns.first("answer", row)[1]
        if options and label is not None:
            labelled.append((label, options))
    return replace(columns, labels=label_form(labelled, by_letter=len(columns.choices) > 1))
