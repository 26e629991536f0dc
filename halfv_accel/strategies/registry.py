"""The names under which strategies are found."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from typing import TypeVar

from halfv_accel.errors import HalfVError
from halfv_accel.strategies.protocol import Strategy

Class = TypeVar("Class", bound=type)


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
