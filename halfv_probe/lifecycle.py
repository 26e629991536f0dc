"""Entropy of visual, text and all tokens at every layer boundary, sample by sample (HalfV, Section 3.2, Figure 2).

Spectra are taken while the model runs, and the states are let go. How many eigenvalues enter the entropy is decided
afterwards, from the elbow of the visual spectrum averaged over samples and boundaries.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from halfv_accel.adapters import family_of
from halfv_accel.plan import Fidelity
from halfv_probe.capture import watch_boundaries
from halfv_probe.elbow import find_elbow
from halfv_probe.entropy import truncated_entropy
from halfv_probe.spectra import spectrum

Group = Literal["visual", "text", "all"]
GROUPS: tuple[Group, ...] = ("visual", "text", "all")
REFERENCE_K = 50


@dataclass(frozen=True)
class Lifecycle:
    """Entropy curves in nats; each value is the mean over samples.

    ``entropy[group]`` is float64 [L + 1], ``k`` the number of eigenvalues that entered, ``samples`` how many prompts
    were seen.
    """

    entropy: dict[Group, np.ndarray]
    k: int
    samples: int


def measure_lifecycle(
    model: PreTrainedModel, prompts: Iterable[Mapping[str, Any]], fidelity: Fidelity = "paper", k: int | None = None
) -> Lifecycle:
    """Run the prompts and measure their entropy at every layer boundary.

    Parameters
    ----------
    model : PreTrainedModel
        In evaluation mode; it is left as it was.
    prompts : iterable of mapping
        Processor outputs of one prompt each (batch size 1), with at least one picture.
    fidelity : {"paper", "reference"}
        ``reference`` follows the public code: final norm applied, tokens centred, k = 50.
    k : int, optional
        Eigenvalues that enter the entropy; by default the elbow of the averaged visual spectrum.

    Raises
    ------
    ValueError
        If there is no prompt.
    """
    spectra = [sample_spectra(model, prompt, fidelity) for prompt in prompts]
    if not spectra:
        raise ValueError("no prompt to measure: give at least one sample")
    if k is None:
        k = REFERENCE_K if fidelity == "reference" else elbow_of([sample["visual"] for sample in spectra])
    entropy = {
        group: np.mean([[truncated_entropy(row, k) for row in sample[group]] for sample in spectra], axis=0)
        for group in GROUPS
    }
    return Lifecycle(entropy, k, len(spectra))


@torch.no_grad()
def sample_spectra(model: PreTrainedModel, prompt: Mapping[str, Any], fidelity: Fidelity) -> dict[Group, list[Tensor]]:
    """Eigenvalues (float64, CPU) at each boundary, for visual, text and all tokens."""
    family = family_of(model)
    visual = family.visual_positions(prompt["input_ids"])[0]
    found: dict[Group, list[Tensor]] = {group: [] for group in GROUPS}

    def see(_boundary: int, states: Tensor) -> None:
        reference = fidelity == "reference"
        rows = family.text.norm(states[0]) if reference else states[0]
        mask = visual.to(rows.device)
        groups: dict[Group, Tensor] = {"visual": rows[mask], "text": rows[~mask], "all": rows}
        for group, tokens in groups.items():
            found[group].append(spectrum(tokens, center=reference).cpu())

    with watch_boundaries(family.layers, see):
        model(**prompt, use_cache=False, logits_to_keep=1)
    return found


def elbow_of(samples: list[list[Tensor]]) -> int:
    """Elbow of the spectrum averaged over samples and boundaries, each normalised to sum 1; at least 2."""
    rows = [row / row.sum() for sample in samples for row in sample]
    length = min(len(row) for row in rows)
    return max(2, find_elbow(torch.stack([row[:length] for row in rows]).mean(dim=0)))
