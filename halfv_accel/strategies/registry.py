"""What a strategy is, what it sees, and the names under which strategies are found."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from typing import Literal, Protocol, TypeVar, get_args, runtime_checkable

from torch import Tensor

from halfv_accel.decoder import Decoder
from halfv_accel.errors import HalfVError

Class = TypeVar("Class", bound=type)
ScoredBy = Literal["previous", "own"]


def check_scored_by(scored_by: object) -> None:
    """Refuse anything but the two layers whose attention may rank the tokens of a stage.

    Raises
    ------
    HalfVError
    """
    if scored_by not in get_args(ScoredBy):
        raise HalfVError(
            f"scored_by is {scored_by!r}: choose 'previous' (the layer before the stage) or 'own' (the stage's layer)"
        )


class View(Protocol):
    """The visual tokens in front of a decoder layer, as a strategy sees them.

    Rows of a batch may hold different numbers of visual tokens: they are packed to the left, and `present` says which
    places are real.
    """

    @property
    def present(self) -> Tensor:
        """Places that hold a token: [B, V] bool."""
        ...

    @property
    def states(self) -> Tensor:
        """Hidden states of the visual tokens, input of the stage's layer: [B, V, H]."""
        ...

    def last_token_scores(self, rotary: bool, scored_by: ScoredBy = "previous") -> Tensor:
        """Attention of the row's last text token to its visual tokens, mean over heads: [B, V], 0 on padding.

        It is taken in the layer before the stage's ("previous"), or in the stage's "own".
        """
        ...


@runtime_checkable
class Strategy(Protocol):
    """Chooses visual tokens."""

    def select(self, view: View, budget: Tensor) -> Tensor:
        """Mask of the tokens that stay.

        Parameters
        ----------
        view : View
            Tokens still in play.
        budget : (B,) long Tensor
            Tokens to keep in each row; never more than the row has.

        Returns
        -------
        (B, V) bool Tensor
            Exactly `budget` true places in each row, all of them present.
        """
        ...


@runtime_checkable
class Counted(Protocol):
    """A strategy that says what choosing costs; without this it runs, and `selection_flops` refuses to guess."""

    def flops(self, decoder: Decoder, candidates: int, kept: int) -> int:
        """Operations of choosing `kept` of the `candidates` visual tokens of one row, beside the layers' own."""
        ...


class StrategyRegistry:
    """Strategies by name. Registration validates, so that a mistake shows at import and not in the middle of a run."""

    def __init__(self) -> None:
        self._classes: dict[str, type] = {}

    def __iter__(self):
        return iter(self._classes)

    def register(self, name: str) -> Callable[[Class], Class]:
        """Decorator that adds a strategy class; all its fields have defaults, so that the name is enough to build it.

        >>> @register("mine")  # doctest: +SKIP
        ... @dataclass(frozen=True)
        ... class Mine: ...
        """

        def add(cls: Class) -> Class:
            self._check(name, cls)
            self._classes[name] = cls
            return cls

        return add

    def resolve(self, strategy: Strategy | str) -> Strategy:
        """The strategy itself, or the registered one of that name with its default parameters."""
        if isinstance(strategy, str):
            if strategy not in self._classes:
                raise HalfVError(f"there is no strategy '{strategy}': choose one of {', '.join(self._classes)}")
            return self._classes[strategy]()
        if isinstance(strategy, type) or not isinstance(strategy, Strategy):
            raise HalfVError(f"{strategy!r} is not a strategy: give an object with select(view, budget), or a name")
        return strategy

    def _check(self, name: str, cls: type) -> None:
        if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
            raise HalfVError(f"strategy name {name!r} is not snake_case: use letters, digits and underscores")
        if name in self._classes:
            raise HalfVError(f"strategy '{name}' is registered already: choose another name")
        if not dataclasses.is_dataclass(cls) or not cls.__dataclass_params__.frozen:  # type: ignore[attr-defined]
            raise HalfVError(f"strategy '{name}' is not a frozen dataclass: decorate it with @dataclass(frozen=True)")
        if not callable(getattr(cls, "select", None)):
            raise HalfVError(f"strategy '{name}' has no select(view, budget): add the method")
        missing = [
            field.name
            for field in dataclasses.fields(cls)
            if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        ]
        if missing:
            raise HalfVError(f"strategy '{name}' has no default for {', '.join(missing)}: give one")


STRATEGIES = StrategyRegistry()
register = STRATEGIES.register
resolve = STRATEGIES.resolve
