"""What a benchmark found: medians and spread of every quantity, and ratios of runs that stood side by side.

Machines drift, so an accelerated run is compared with the untouched run of its own round. The median of these ratios
gets a bootstrap interval; one that is too wide to conclude from says so.
"""

from __future__ import annotations

import dataclasses
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
import transformers

from halfv_accel.flops import paper_flops, prefill_flops, selection_flops
from halfv_accel.plan import Plan
from halfv_accel.plan_text import describe_plan

UNTOUCHED = "untouched"
RESAMPLES = 2000
WIDEST = 0.05  # half an interval, as a share of its ratio
FEWEST_ROUNDS = 6  # with fewer, even the smallest and the largest ratio hold the true median with less than 95 %


@dataclass(frozen=True)
class Reading:
    """One call of `generate`. None where the run or the machine has no such quantity.

    Parameters
    ----------
    vision_ms : float
        The vision encoder and what joins it to the decoder.
    prefill_ms : float
        The model's forward over the prompt without the vision encoder: decoder, selection, and what HalfV prepares.
    ttft_ms : float
        From the call of `generate` until the first token is chosen.
    decode_ms : float, optional
        Between two tokens, median; None if there was only one.
    tokens_per_s : float
        New tokens of all rows, over the whole call.
    peak_mib : float, optional
        Most memory held on a GPU, weights included.
    cache_bytes : int
        Keys and values of all layers after the last token.
    selection_ms : float
        Choosing tokens and laying out rows; a part of `prefill_ms`.
    install_ms : float
        `accelerate(...)`, putting hooks on and taking them off; a part of `prefill_ms`, and but for the last of
        `ttft_ms`. 0 where the run was made beforehand.
    """

    vision_ms: float
    prefill_ms: float
    ttft_ms: float
    decode_ms: float | None
    tokens_per_s: float
    peak_mib: float | None
    cache_bytes: int
    selection_ms: float
    install_ms: float = 0.0

    @property
    def selection_share(self) -> float:
        return self.selection_ms / self.ttft_ms


QUANTITIES = (*(field.name for field in dataclasses.fields(Reading)), "selection_share")


@dataclass(frozen=True)
class Quantity:
    """Median and interquartile range over the rounds."""

    median: float
    iqr: float

    @classmethod
    def of(cls, values: Sequence[float | None]) -> Quantity | None:
        known = [value for value in values if value is not None]
        return None if len(known) < len(values) else cls.of_all(known)

    @classmethod
    def of_all(cls, values: Sequence[float]) -> Quantity:
        low, median, high = _quantiles(torch.tensor(values, dtype=torch.float64), (0.25, 0.5, 0.75))
        return cls(median, high - low)


@dataclass(frozen=True)
class Ratio:
    """Median of the ratios of paired runs, and the bootstrap's 95 % interval of that median.

    `conclusive` is False if half the interval is more than 5 % of the ratio, or if there were fewer than 6 rounds.
    """

    median: float
    low: float
    high: float
    conclusive: bool

    @classmethod
    def of(cls, ratios: Sequence[float], seed: int = 0) -> Ratio:
        values = torch.tensor(ratios, dtype=torch.float64)
        draw = torch.randint(len(values), (RESAMPLES, len(values)), generator=torch.Generator().manual_seed(seed))
        medians = values[draw].quantile(0.5, dim=1)
        (median,), (low, high) = _quantiles(values, (0.5,)), _quantiles(medians, (0.025, 0.975))
        narrow = (high - low) / 2 <= WIDEST * median
        return cls(median, low, high, narrow and len(values) >= FEWEST_ROUNDS)

    def divided_by(self, factor: float) -> Ratio:
        return Ratio(self.median / factor, self.low / factor, self.high / factor, self.conclusive)


@dataclass(frozen=True)
class Flops:
    """Operations of the decoder's prefill, summed over the rows without their padding: see `halfv_accel.flops`."""

    exact: int
    paper: int
    selection: int

    @classmethod
    def of(cls, config: Any, visual: Sequence[int], text: Sequence[int], plan: Plan | None) -> Flops:
        rows = list(zip(visual, text, strict=True))
        return cls(
            sum(prefill_flops(config, v, t, plan) for v, t in rows),
            sum(paper_flops(config, v, t, plan) for v, t in rows),
            0 if plan is None else sum(selection_flops(config, v, plan, t) for v, t in rows),
        )


@dataclass(frozen=True)
class Variant:
    """One way of running the model, in comparison with the untouched one.

    Parameters
    ----------
    plan : str
        In words.
    quantities : dict
        Name of a `Reading`'s field, or `selection_share` (of TTFT) -> median and spread, or None.
    prefill_speedup, ttft_speedup, decode_speedup : Ratio, optional
        Untouched / this variant, round by round; None for the untouched variant itself.
    efficiency : Ratio, optional
        `prefill_speedup` / (exact FLOPs untouched / exact FLOPs of this variant): 1 where every operation that is saved
        saves its share of the time.
    readings : list of Reading
        All rounds.
    """

    name: str
    plan: str
    flops: Flops
    quantities: dict[str, Quantity | None]
    prefill_speedup: Ratio | None
    ttft_speedup: Ratio | None
    decode_speedup: Ratio | None
    efficiency: Ratio | None
    readings: list[Reading]

    @property
    def doubtful(self) -> list[str]:
        """Names of the ratios whose spread is too large to conclude from."""
        ratios = {"prefill": self.prefill_speedup, "TTFT": self.ttft_speedup, "decode": self.decode_speedup}
        return [name for name, ratio in ratios.items() if ratio is not None and not ratio.conclusive]


@dataclass(frozen=True)
class Comparison:
    """All variants on one batch.

    Parameters
    ----------
    visual_tokens, text_tokens : list of int
        Of each row, as counted in the prompt.
    rounds : int
        How often each variant ran after the warm-up.
    downsampled_to : list of int, optional
        Visual tokens of each row for the variants of a plan that shrinks pictures.
    """

    visual_tokens: list[int]
    text_tokens: list[int]
    new_tokens: int
    rounds: int
    variants: list[Variant]
    downsampled_to: list[int] | None = None

    @property
    def headline(self) -> str:
        """Batch and tokens in words."""
        shrunk = "" if self.downsampled_to is None else f" (downsampled: {_span(self.downsampled_to)})"
        visual = f"{_span(self.visual_tokens)} visual{shrunk}"
        return f"batch {len(self.visual_tokens)}, {visual} + {max(self.text_tokens)} text tokens"

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def variant(
    name: str, plan: Plan | None, flops: Mapping[str, Flops], readings: Mapping[str, list[Reading]], seed: int = 0
) -> Variant:
    """Summarise one variant's readings; `flops` and `readings` are by variant, the untouched one among them."""
    own, base = readings[name], readings[UNTOUCHED]
    compared = name != UNTOUCHED

    def speedup(quantity: str) -> Ratio | None:
        pairs = [(getattr(was, quantity), getattr(now, quantity)) for was, now in zip(base, own, strict=True)]
        known = all(None not in pair for pair in pairs)
        return Ratio.of([was / now for was, now in pairs], seed) if compared and known else None

    prefill = speedup("prefill_ms")
    return Variant(
        name=name,
        plan=describe_plan(plan),
        flops=flops[name],
        quantities={what: Quantity.of([getattr(reading, what) for reading in own]) for what in QUANTITIES},
        prefill_speedup=prefill,
        ttft_speedup=speedup("ttft_ms"),
        decode_speedup=speedup("decode_ms"),
        efficiency=None if prefill is None else prefill.divided_by(flops[UNTOUCHED].exact / flops[name].exact),
        readings=own,
    )


def _span(numbers: Sequence[int]) -> str:
    low, high = min(numbers), max(numbers)
    return str(high) if low == high else f"{low} to {high}"


def provenance(model: Any, /, **settings: Any) -> dict[str, Any]:
    """Where figures come from: versions, machine, number format, date, and the settings of the run."""
    cuda = model.device.type == "cuda"
    try:
        own = version("halfv")
    except PackageNotFoundError:  # run from a folder
        own = "not installed"
    return {
        "command": "halfv bench",
        "versions": {
            "halfv": own,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "python": platform.python_version(),
        },
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "device": str(model.device),
        "machine": torch.cuda.get_device_name(model.device) if cuda else cpu_name(),
        "dtype": str(model.dtype).removeprefix("torch."),
        "attention": model.config.get_text_config()._attn_implementation,
        "threads": torch.get_num_threads(),
        "architecture": type(model).__name__,
        **settings,
    }


def cpu_name() -> str:
    """The processor's model, where the system tells it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _quantiles(values: torch.Tensor, shares: Sequence[float]) -> list[float]:
    return values.quantile(torch.tensor(shares, dtype=values.dtype)).tolist()
