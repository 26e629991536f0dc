"""The names under which strategies are found.

Packages of others add theirs by an entry point in the group `halfv.strategies`, whose name is the strategy's and whose
value is the class. They are looked for when a name is asked for, and not before. HalfV's own names stay HalfV's.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib.metadata import entry_points
from typing import Any, TypeVar

from halfv_accel.errors import HalfVError
from halfv_accel.strategies.protocol import Strategy, needs_of

Class = TypeVar("Class", bound=type)
GROUP = "halfv.strategies"


class StrategyRegistry:
    """Strategies by name. Registration validates, so that a mistake shows at import and not in the middle of a run."""

    def __init__(self) -> None:
        self._classes: dict[str, type] = {}
        self._reserved: set[str] = set()
        self._looked = False  # for the packages of others

    def __iter__(self) -> Iterator[str]:
        self._look()
        return iter(tuple(self._classes))

    def __contains__(self, name: object) -> bool:
        return name in tuple(self)

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

    def reserve(self, words: Iterable[str]) -> None:
        """Keep words free that mean something else where a plan is written; strategies that have them keep them."""
        self._reserved.update(set(words) - set(self._classes))

    def resolve(self, strategy: Strategy | str) -> Strategy:
        """The strategy itself, or the registered one of that name with its default parameters."""
        if isinstance(strategy, str):
            return self.build(strategy, {})
        if isinstance(strategy, type) or not isinstance(strategy, Strategy):
            raise HalfVError(f"{strategy!r} is not a strategy: give an object with select(view, budget), or a name")
        return strategy

    def build(self, name: str, parameters: Mapping[str, Any]) -> Strategy:
        """The registered strategy of a name, with some parameters.

        Raises
        ------
        HalfVError
            If there is none of that name, or it has no such parameter.
        """
        cls = self.find(name)
        fields = [field.name for field in dataclasses.fields(cls)]
        unknown = [key for key in parameters if key not in fields]
        if unknown:
            has = f"has {', '.join(fields)}" if fields else "has none"
            raise HalfVError(f"strategy '{name}' has no parameter '{unknown[0]}': it {has}")
        return cls(**parameters)

    def find(self, name: str) -> type:
        """The registered class of a name."""
        if name not in self:
            close = difflib.get_close_matches(name, self._classes, n=1)
            guess = f"did you mean {close[0]}? Else " if close else ""
            raise HalfVError(
                f"there is no strategy '{name[:60]}': {guess}choose one of {', '.join(self._classes)}, or install the "
                f"package that brings it (entry point group {GROUP})"
            )
        return self._classes[name]

    def name_of(self, strategy: Strategy) -> str | None:
        """The name under which a strategy's class is registered."""
        return next((name for name in self if self._classes[name] is type(strategy)), None)

    def _look(self) -> None:
        """Take in the strategies of other packages; a broken one costs a warning and nothing else."""
        if self._looked:
            return
        self._looked = True
        for entry in entry_points(group=GROUP):
            before = dict(self._classes)
            try:
                cls = entry.load()
                if self._classes.get(entry.name) is not cls:  # it may have registered itself
                    self._check(entry.name, cls)
                needs_of(cls())  # defaults that are refused would break every list of strategies
                self._classes[entry.name] = cls
            except (Exception, SystemExit) as error:  # whatever a stranger's import can raise
                self._classes = before
                where = f" of {entry.dist.name}" if entry.dist is not None else ""
                warnings.warn(
                    f"halfv: strategy '{entry.name}'{where} cannot be used "
                    f"({type(error).__name__}: {str(error)[:200]}): "
                    "update or remove that package; everything else works",
                    stacklevel=3,
                )

    def _check(self, name: str, cls: type) -> None:
        if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
            raise HalfVError(f"strategy name {name!r} is not snake_case: use letters, digits and underscores")
        if name in self._classes:
            raise HalfVError(f"strategy '{name}' is registered already: choose another name")
        if name in self._reserved:
            raise HalfVError(f"'{name}' means something else in a plan: choose another name")
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
