"""Who competes: plans of all methods, brought to the same budgets, and what they are to be compared with."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from halfv_accel import HalfVError
from halfv_accel.downsample import Downsample
from halfv_accel.methods import Facts, Method
from halfv_accel.plan import Plan, Stage
from halfv_accel.published import METHODS
from halfv_accel.strategies import KeepNone
from halfv_probe.compare.budgets import Match, OutOfReach, Typical, random_plan, scaled

RETENTIONS = (0.5, 0.25, 0.111)
SEEDS = (0, 1, 2)  # of the random baseline
BASELINES = ("random_choice", "downsample", "vtw")  # beside the untouched model
GIVEN = ("plan", "profile")
Refused = tuple[str, str]  # an entrant's name, and in one sentence why it does not compete


@dataclass(frozen=True)
class Entrant:
    """One plan in the comparison.

    Parameters
    ----------
    method : str
        Its name in the catalogue; "untouched", "plan" or "profile" for what is no method.
    title : str
        For people.
    budget : float or None
        The share that it was matched to; None for what has no budget.
    plan : Plan or None
        None is the untouched model.
    seed : int, optional
        Of the random baseline.
    """

    method: str
    title: str
    budget: float | None
    plan: Plan | None
    seed: int | None = None

    @property
    def name(self) -> str:
        """What tells it from all others, such as ``fastv@0.25``, ``random_choice@0.25#1`` or ``plan fastv:2:0.25``."""
        words = f"{self.method} {self.title}" if self.method in GIVEN else self.method
        budget = "" if self.budget is None else f"@{self.budget:g}"
        return words + budget + ("" if self.seed is None else f"#{self.seed}")


UNTOUCHED = Entrant("untouched", "untouched", None, None)


def all_entrants(
    typical: Typical,
    methods: Iterable[str] = tuple(METHODS),
    retentions: Sequence[float] = RETENTIONS,
    match: Match = "tokens",
    given: Iterable[Entrant] = (),
    baselines: bool = True,
) -> tuple[list[Entrant], list[Refused]]:
    """Everybody who competes, and who does not with the reason.

    Parameters
    ----------
    methods : iterable of str
        Names of the catalogue.
    retentions : sequence of float
        Budgets: shares of the visual tokens.
    match : {"tokens", "flops"}
        Of which a budget is a share; see `halfv_probe.compare.budgets`.
    given : iterable of Entrant
        Plans and profiles, which enter as they are; the same one twice enters once.
    baselines : bool
        Without them, only the untouched model is added to what was asked for.

    Raises
    ------
    HalfVError
        If a name or a share makes no sense.
    """
    check_retentions(retentions)
    names = known_methods(methods)
    shares = {f"{share:g}": share for share in retentions}.values()  # names of entrants say no more digits
    asked = [*BASELINES, *(name for name in names if name not in BASELINES)] if baselines else names
    found: list[Entrant | Refused] = [UNTOUCHED]
    for name in asked:
        found += _of_method(typical, METHODS[name], shares, match)
    found += {each.name: each for each in given}.values()
    return [each for each in found if isinstance(each, Entrant)], [each for each in found if isinstance(each, tuple)]


def known_methods(names: Iterable[str]) -> list[str]:
    """The names, each once.

    Raises
    ------
    HalfVError
        If one is in no catalogue.
    """
    names = list(dict.fromkeys(names))
    for name in names:
        if name not in METHODS:
            close = difflib.get_close_matches(name, METHODS, n=1)
            guess = f"did you mean {close[0]}? Else " if close else ""
            raise HalfVError(f"there is no method {name[:60]!r}: {guess}choose from those that `halfv methods` lists")
    return names


def check_retentions(shares: Sequence[float]) -> None:
    """Refuse budgets that are no shares.

    Raises
    ------
    HalfVError
    """
    wrong = [share for share in shares if not 0 < share <= 1]
    if wrong:
        raise HalfVError(f"a retention of {wrong[0]:g} makes no sense: give shares above 0 and up to 1, such as 0.25")


def _of_method(typical: Typical, method: Method, shares: Iterable[float], match: Match) -> Iterator[Entrant | Refused]:
    """A method at each budget; where it has none, or cannot reach one, a sentence that says why."""
    if method.name == "random_choice":
        for share in shares:
            plans = ((seed, random_plan(typical.whole(share), seed)) for seed in SEEDS)
            yield from (Entrant(method.name, method.title, share, plan, seed) for seed, plan in plans)
    elif method.name == "downsample":
        yield from _downsampled(typical, method, shares)
    else:
        yield from _with_stages(typical, method, shares, match)


def _downsampled(typical: Typical, method: Method, shares: Iterable[float]) -> Iterator[Entrant | Refused]:
    if not typical.shrinks:
        yield method.name, "the grid of this model's pictures does not follow from their size, so they cannot shrink"
        return
    for share in shares:
        plan = Plan((), downsample=Downsample(typical.whole(share)))
        yield Entrant(method.name, method.title, share, plan)


def _with_stages(
    typical: Typical, method: Method, shares: Iterable[float], match: Match
) -> Iterator[Entrant | Refused]:
    stages = method.stages(Facts.of(typical.config))
    if not stages:
        flag = f"--profile (halfv calibrate --method {method.name} writes one)" if method.calibrated else "--plan"
        yield method.name, f"{method.title} has no stages on this model by default: give a plan with {flag}"
        return
    if all(isinstance(stage.strategy, KeepNone) for stage in stages):
        yield Entrant(method.name, method.title, None, Plan(stages))
        return
    for share in shares:
        plan = scaled(typical, Plan(stages), share, match)
        if isinstance(plan, OutOfReach):
            yield f"{method.name}@{share:g}", f"{method.title} cannot go {_why(plan, stages, match)}"
        else:
            yield Entrant(method.name, method.title, share, plan)


def _why(reach: OutOfReach, stages: Sequence[Stage], match: Match) -> str:
    unit = "on average" if match == "tokens" else "of the prefill FLOPs"
    if reach.below:
        first = stages[0].layer
        counted = " and its choice of tokens is counted" if match == "flops" else ""
        why = f"it acts at layer {first}{counted}" if first else "its choice of tokens alone costs that much"
        return f"below {reach.nearest:.2f} {unit} here, as {why}"
    last = next((stage for stage in stages if isinstance(stage.strategy, KeepNone)), None)
    if last is None:
        return f"above {reach.nearest:.2f} {unit} here"
    what = "drops" if last.then == "drop" else "freezes"
    return f"above {reach.nearest:.2f} {unit} here, as it {what} all visual tokens at layer {last.layer}"
