"""All curves that one forward can give: spectra, attention balance and semantic maturity, sample by sample."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from halfv_accel.adapters import family_of
from halfv_accel.engine.refusals import check_evaluating
from halfv_accel.plan import Fidelity
from halfv_probe.measures.attention import watch_shares
from halfv_probe.measures.lifecycle import SampleSpectra, watch_spectra
from halfv_probe.measures.maturity import watch_maturity
from halfv_probe.measures.tokens import tokens_of

SHOWN_BY = ("sdpa", "eager")  # attention implementations whose masks can be read


@dataclass(frozen=True)
class SampleCurves:
    """One sample.

    ``attention`` is the share of the text tokens' attention that goes to visual ones, by layer (L values between 0 and
    1; empty where the attention kernel does not show its mask); ``decided`` the boundary from which on the most likely
    next token is the final one.
    """

    spectra: SampleSpectra
    attention: list[float]
    decided: int

    def to_json(self) -> dict[str, Any]:
        """Plain values; `from_json` gives the same numbers back."""
        return {"spectra": self.spectra.to_json(), "attention": self.attention, "decided": self.decided}

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> SampleCurves:
        return cls(SampleSpectra.from_json(raw["spectra"]), list(raw["attention"]), int(raw["decided"]))


@torch.no_grad()
def sample_curves(
    model: PreTrainedModel, inputs: Mapping[str, Any], fidelity: Fidelity = "paper"
) -> list[SampleCurves]:
    """Run a batch once and take all its curves.

    Parameters
    ----------
    model : PreTrainedModel
        A supported vision-language model in evaluation mode; it is left as it was.
    inputs : mapping
        What the processor returns for one or several prompts, each with a picture, padded on either side.

    Raises
    ------
    HalfVError
        If the model is not supported or in training mode.
    """
    check_evaluating(model)
    family = family_of(model)
    tokens = tokens_of(family, inputs)
    asked = tokens.text_behind
    with ExitStack() as watching:
        spectra = watching.enter_context(watch_spectra(family, inputs, fidelity))
        maturity = watching.enter_context(watch_maturity(family, tokens.last))
        shares = None
        if family.text.config._attn_implementation in SHOWN_BY:
            shares = watching.enter_context(watch_shares(family, asked, [tokens.visual]))
        model(**inputs, use_cache=False, logits_to_keep=1)
    attention: list[list[float]] = [[] for _ in asked]
    if shares is not None:
        counted = asked.cpu()
        attention = ((shares[0] * counted).sum(-1) / counted.sum(-1).clamp(min=1)).T.tolist()  # [B][L]
    decided = maturity().stable_from.tolist()
    return [SampleCurves(*each) for each in zip(spectra(), attention, decided, strict=True)]
