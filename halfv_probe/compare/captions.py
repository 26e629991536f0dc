"""CHAIR: objects that captions speak of and pictures do not show.

Rohrbach et al., "Object Hallucination in Image Captioning", EMNLP 2018; Eq. 5 of AdaVTP (shared as 002), which adds
recall and length. As in the public code, every mention counts, also of an object named before; recall and the sets of
objects are by caption.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Chair:
    """Shares from 0 to 1, NaN where there is nothing to count.

    Parameters
    ----------
    chair_s : float
        C_S: captions with a hallucinated object / captions.
    chair_i : float
        C_I: mentions of hallucinated objects / mentions of objects.
    recall : float
        Objects of the pictures that are mentioned / objects of the pictures.
    length : float
        Words a caption, mean.
    """

    chair_s: float
    chair_i: float
    recall: float
    length: float


def chair(captions: Sequence[str], objects: Sequence[Collection[str]], synonyms: Mapping[str, str]) -> Chair:
    """Count what captions mention.

    Parameters
    ----------
    captions : sequence of str
    objects : sequence of collection of str
        What each picture shows, in the names that `synonyms` leads to.
    synonyms : mapping
        From each word or phrase to the object that it names: the object's own name, synonyms and plurals. What is not
        in it is no object.

    Raises
    ------
    ValueError
        If there is no caption, or not one collection of objects to each.
    """
    if not captions or len(captions) != len(objects):
        raise ValueError(
            f"{len(captions)} captions and {len(objects)} lists of objects: give one to each, at least one"
        )
    named = [mentions(caption, synonyms) for caption in captions]
    shown = [set(each) for each in objects]
    pairs = list(zip(named, shown, strict=True))
    false = [sum(name not in there for name in names) for names, there in pairs]
    found = sum(len(there & set(names)) for names, there in pairs)
    return Chair(
        chair_s=sum(count > 0 for count in false) / len(captions),
        chair_i=_share(sum(false), sum(map(len, named))),
        recall=_share(found, sum(map(len, shown))),
        length=sum(len(caption.split()) for caption in captions) / len(captions),
    )


def mentions(caption: str, synonyms: Mapping[str, str]) -> list[str]:
    """The objects that a caption names, in order, each time it does; of overlapping phrases the longest counts.

    >>> mentions("A hot dog beside two dogs.", {"dog": "dog", "dogs": "dog", "hot dog": "hot dog"})
    ['hot dog', 'dog']
    """
    phrases = {phrase.casefold(): name for phrase, name in synonyms.items()}
    if not phrases:
        return []
    longest_first = sorted(phrases, key=len, reverse=True)
    pattern = rf"(?<!\w)(?:{'|'.join(map(re.escape, longest_first))})(?!\w)"
    return [phrases[match] for match in re.findall(pattern, caption.casefold())]


def _share(part: int, of: int) -> float:
    return part / of if of else float("nan")
