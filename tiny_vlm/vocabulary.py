"""The tokenizer of the embedded models: the words of the question templates, with single characters as a fallback."""

from __future__ import annotations

import string

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from halfv_data.drawing import COLOURS, COLUMNS, ROWS, SHAPES

PROMPT_WORDS = (
    "user assistant system what color shape shapes number is are the at there a an how many where relative to of in "
    "yes no above below image picture this which and it answer word single question using or phrase please describe"
).split()
CHARACTERS = list(string.ascii_lowercase + string.digits + "?.,:;!'\"-()/")


def words() -> list[str]:
    """Vocabulary in order, without the special tokens of a model family."""
    plurals = [shape + ("es" if shape == "cross" else "s") for shape in SHAPES]
    scene_words = [*ROWS, *COLUMNS, "right", *COLOURS, *SHAPES, *plurals]
    continued = ["##" + c for c in string.ascii_lowercase + string.digits]
    return list(dict.fromkeys([*PROMPT_WORDS, *scene_words, *CHARACTERS, *continued]))


def build_tokenizer(special: list[str], pad: str, eos: str, named: dict[str, str]) -> PreTrainedTokenizerFast:
    """WordPiece over ``words()``, lower-casing, numbers spelled digit by digit, padding on the left.

    Parameters
    ----------
    special : list of str
        Special tokens of the family, first ids of the vocabulary.
    pad, eos : str
        Which of them pad and end an answer.
    named : dict
        Attributes that the processor reads, e.g. ``{"image_token": "<image>"}``.
    """
    vocabulary = {token: i for i, token in enumerate(["[UNK]", *special, *words()])}
    tokenizer = Tokenizer(models.WordPiece(vocab=vocabulary, unk_token="[UNK]", max_input_chars_per_word=40))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix="##", cleanup=True)
    tokenizer.add_special_tokens(special)  # else the pre-tokenizer would take them apart
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="[UNK]",
        pad_token=pad,
        eos_token=eos,
        extra_special_tokens=named,
        padding_side="left",
        model_max_length=4096,
        clean_up_tokenization_spaces=False,
    )
