"""Entropy of visual, text and all tokens at every layer boundary, sample by sample (HalfV, Section 3.2, Figure 2).

Spectra are taken while the model runs, and the states are let go: what is held is one layer's states. A sample leaves
the largest eigenvalues of each boundary and the trace. How many of them enter the entropy is decided afterwards, from
the elbow of the visual spectrum averaged over samples and boundaries.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from halfv_accel import HalfVError
from halfv_accel.adapters import Family, family_of
from halfv_accel.plan import Fidelity
from halfv_probe.measures.capture import watch_boundaries
from halfv_probe.states.cores import share_cores
from halfv_probe.states.elbow import find_elbow
from halfv_probe.states.entropy import full_entropy_bounds, participation_ratio, tail_mass, truncated_entropy
from halfv_probe.states.geometry import curvature_energy, mean_turning
from halfv_probe.states.spectra import checked, eigenvalues, group_grams

Group = Literal["visual", "text", "all"]
GROUPS: tuple[Group, ...] = ("visual", "text", "all")
REFERENCE_K = 50
HEAD = 64  # eigenvalues kept of each boundary; the public code uses 50, the paper shows 2 to 16

Curve = NDArray[np.float64]


@dataclass(frozen=True)
class SampleSpectra:
    """One sample: float64 arrays over the boundaries 0..L.

    ``values[group]`` [L + 1, HEAD] are the largest eigenvalues, descending, 0 where there are fewer; ``trace[group]``
    [L + 1] is the sum of all; ``rank[group]`` the number of eigenvalues, min(tokens, width). ``curvature`` and
    ``turning`` [L + 1] are those of the visual tokens.
    """

    values: dict[Group, Curve]
    trace: dict[Group, Curve]
    rank: dict[Group, int]
    curvature: Curve
    turning: Curve

    def to_json(self) -> dict[str, Any]:
        """Plain lists; `from_json` gives the same numbers back."""
        return {
            "values": {group: array.tolist() for group, array in self.values.items()},
            "trace": {group: array.tolist() for group, array in self.trace.items()},
            "rank": dict(self.rank),
            "curvature": self.curvature.tolist(),
            "turning": self.turning.tolist(),
        }

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> SampleSpectra:
        return cls(
            values={group: np.array(raw["values"][group]) for group in GROUPS},
            trace={group: np.array(raw["trace"][group]) for group in GROUPS},
            rank={group: int(raw["rank"][group]) for group in GROUPS},
            curvature=np.array(raw["curvature"]),
            turning=np.array(raw["turning"]),
        )


@dataclass(frozen=True)
class Lifecycle:
    """Curves over the boundaries 0..L, float64 [L + 1], means over samples.

    ``entropy[group]`` in nats, ``entropy_std[group]`` its standard deviation over samples, ``samples_entropy[group]``
    [n, L + 1] each sample's own. ``k`` eigenvalues entered; ``tail_mass[group]`` is the share of the energy behind
    them. The rest is of the visual tokens: bounds of the full entropy (Eq. 26, nats), effective rank, participation
    ratio, curvature energy (squared units of the states), turning (1 - cos), and ``spectrum`` [L + 1, HEAD],
    eigenvalues / trace.
    """

    entropy: dict[Group, Curve]
    entropy_std: dict[Group, Curve]
    samples_entropy: dict[Group, Curve]
    k: int
    k_source: Literal["elbow", "fixed", "energy"]
    samples: int
    tail_mass: dict[Group, Curve]
    full_entropy_low: Curve
    full_entropy_high: Curve
    effective_rank: Curve
    participation_ratio: Curve
    curvature: Curve
    turning: Curve
    spectrum: Curve


def measure_lifecycle(
    model: PreTrainedModel,
    prompts: Iterable[Mapping[str, Any]],
    fidelity: Fidelity = "paper",
    k: int | float | str = "elbow",
) -> Lifecycle:
    """Run the prompts and measure their entropy at every layer boundary.

    Parameters
    ----------
    model : PreTrainedModel
        In evaluation mode; it is left as it was.
    prompts : iterable of mapping
        Processor outputs of one or several prompts each, every prompt with a picture; padding on either side.
    fidelity : {"paper", "reference"}
        ``reference`` follows the public code: final norm applied, tokens centred, k = 50.
    k : "elbow", int or float
        Eigenvalues that enter the entropy: the elbow of the averaged visual spectrum (of its ``HEAD`` largest values,
        so that the noise floor of a precision has no say), a number, or as many as hold this share of its energy.

    Raises
    ------
    HalfVError
        If k does not fit.
    ValueError
        If there is no prompt.
    """
    samples = [sample for inputs in prompts for sample in boundary_spectra(model, inputs, fidelity)]
    return lifecycle_of(samples, fidelity, k)


@torch.no_grad()
def boundary_spectra(
    model: PreTrainedModel, inputs: Mapping[str, Any], fidelity: Fidelity = "paper"
) -> list[SampleSpectra]:
    """One forward: the spectra of every prompt of a batch at every boundary."""
    with watch_spectra(family_of(model), inputs, fidelity) as done:
        model(**inputs, use_cache=False, logits_to_keep=1)
    return done()


@contextmanager
def watch_spectra(
    family: Family, inputs: Mapping[str, Any], fidelity: Fidelity
) -> Iterator[Callable[[], list[SampleSpectra]]]:
    """Take the spectra of the next forward, which runs inside the block; yields what gives them afterwards."""
    ids = inputs["input_ids"]
    visual = family.visual_positions(ids)
    mask = inputs.get("attention_mask")
    real = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask.bool()
    rows = [_Row(family, v & r, r & ~v, fidelity) for v, r in zip(visual, real, strict=True)]

    def see(_boundary: int, states: Tensor) -> None:
        for row, tokens in zip(rows, states, strict=True):
            row.see(tokens)

    with watch_boundaries(family.layers, see):
        yield lambda: [row.done() for row in rows]


class _Row:
    """Gathers one prompt's spectra, boundary by boundary."""

    def __init__(self, family: Family, visual: Tensor, text: Tensor, fidelity: Fidelity) -> None:
        if not visual.any():
            raise ValueError("a prompt without a picture has no visual entropy: give every sample a picture")
        self.family, self.reference = family, fidelity == "reference"
        self.visual, self.text = visual, text
        self.values: dict[Group, list[Tensor]] = {group: [] for group in GROUPS}
        self.trace: dict[Group, list[float]] = {group: [] for group in GROUPS}
        self.rank: dict[Group, int] = {}
        self.bends: list[tuple[float, float]] = []

    def see(self, states: Tensor) -> None:
        rows = self.family.normed(states) if self.reference else states
        visual, text = (checked(rows[mask.to(rows.device)]) for mask in (self.visual, self.text))
        self.bends.append((curvature_energy(visual), mean_turning(visual)) if len(visual) > 2 else (0.0, 0.0))
        grams = dict(zip(GROUPS, group_grams(visual, text, self.reference), strict=True))
        for group, head in leading_of_each(grams).items():
            self.values[group].append(torch.nn.functional.pad(head, (0, HEAD - len(head))))
            self.trace[group].append(grams[group].trace().item())
        counts = (len(visual), len(text), len(visual) + len(text))
        self.rank = {group: min(count, states.shape[1]) for group, count in zip(GROUPS, counts, strict=True)}

    def done(self) -> SampleSpectra:
        curvature, turning = np.array(self.bends).T
        return SampleSpectra(
            values={group: torch.stack(heads).numpy() for group, heads in self.values.items()},
            trace={group: np.array(traces) for group, traces in self.trace.items()},
            rank=self.rank,
            curvature=curvature,
            turning=turning,
        )


def leading_of_each(grams: Mapping[Group, Tensor]) -> dict[Group, Tensor]:
    """The ``HEAD`` largest eigenvalues of each matrix, on the CPU; large matrices first, so that none ends up alone."""
    groups = sorted(grams, key=lambda group: len(grams[group]), reverse=True)
    matrices = [grams[group] for group in groups]
    on_cpu = matrices[0].device.type == "cpu"
    heads = share_cores(leading, matrices) if on_cpu else in_batches(leading, matrices)
    return dict(zip(groups, heads, strict=True))


def in_batches(work: Callable[[Tensor], Tensor], matrices: Sequence[Tensor]) -> list[Tensor]:
    """``work`` of each matrix, neighbours of the same size as one batch."""
    batches = [torch.stack([*same]) for _, same in groupby(matrices, key=len)]
    return [done for batch in batches for done in work(batch)]


def leading(gram: Tensor) -> Tensor:
    return eigenvalues(gram, HEAD).cpu()


def lifecycle_of(
    samples: Sequence[SampleSpectra], fidelity: Fidelity = "paper", k: int | float | str = "elbow"
) -> Lifecycle:
    """Curves from spectra; parameters and errors as `measure_lifecycle`."""
    if not samples:
        raise ValueError("no prompt to measure: give at least one sample")
    shares = np.mean([sample.values["visual"] / sample.trace["visual"][:, None] for sample in samples], axis=0)
    number, source = _eigenvalues(shares.mean(axis=0), fidelity, k)
    entropy = {
        group: np.array([[truncated_entropy(row, number) for row in sample.values[group]] for sample in samples])
        for group in GROUPS
    }
    tails = {group: np.array([_tails(sample, group, number) for sample in samples]) for group in GROUPS}
    visual = zip(samples, entropy["visual"], tails["visual"], strict=True)
    bounds = np.array([_bounds(*each, number) for each in visual]).mean(axis=0)
    participation = [[participation_ratio(row, number) for row in sample.values["visual"]] for sample in samples]
    return Lifecycle(
        entropy={group: curves.mean(axis=0) for group, curves in entropy.items()},
        entropy_std={group: curves.std(axis=0) for group, curves in entropy.items()},
        samples_entropy=entropy,
        k=number,
        k_source=source,
        samples=len(samples),
        tail_mass={group: curves.mean(axis=0) for group, curves in tails.items()},
        full_entropy_low=bounds[0],
        full_entropy_high=bounds[1],
        effective_rank=np.exp(entropy["visual"]).mean(axis=0),
        participation_ratio=np.mean(participation, axis=0),
        curvature=np.mean([sample.curvature for sample in samples], axis=0),
        turning=np.mean([sample.turning for sample in samples], axis=0),
        spectrum=shares,
    )


def _tails(sample: SampleSpectra, group: Group, k: int) -> list[float]:
    pairs = zip(sample.values[group], sample.trace[group], strict=True)
    return [tail_mass(row, k, total) for row, total in pairs]


def _bounds(sample: SampleSpectra, entropy: Curve, tails: Curve, k: int) -> tuple[list[float], list[float]]:
    """Lowest and highest full entropy that Eq. 26 allows, at each boundary."""
    found = [full_entropy_bounds(h, d, k, sample.rank["visual"]) for h, d in zip(entropy, tails, strict=True)]
    return [each.low for each in found], [each.high for each in found]


def check_k(k: int | float | str) -> None:
    """Refuse what `lifecycle_of` could not use, before anything is measured.

    Raises
    ------
    HalfVError
    """
    whole = isinstance(k, int) and 1 <= k <= HEAD
    share = isinstance(k, float) and 0 < k < 1
    if not (k == "elbow" or whole or share):
        raise HalfVError(
            f"k is {k!r}: give 'elbow', a number from 1 to {HEAD}, or a share of the energy between 0 and 1"
        )


def _eigenvalues(
    shares: Curve, fidelity: Fidelity, k: int | float | str
) -> tuple[int, Literal["elbow", "fixed", "energy"]]:
    """How many eigenvalues enter the entropy, and why so many."""
    if k == "elbow" and fidelity == "reference":
        return REFERENCE_K, "fixed"
    if k == "elbow":
        return max(2, find_elbow(shares[shares > 0])), "elbow"  # the entropy of one eigenvalue is always 0
    check_k(k)
    if isinstance(k, int):
        return k, "fixed"
    held = np.cumsum(shares)
    if held[-1] < float(k):
        raise HalfVError(
            f"k is {k} of the energy, but the {HEAD} largest eigenvalues hold only {held[-1]:.3f}: give less"
        )
    return int(np.searchsorted(held, float(k)) + 1), "energy"
