"""What the calibration of a method is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any

from halfv_accel.plan import Plan
from halfv_probe.calibration.measurements import Measurements
from halfv_probe.trials.outcomes import Replied


@dataclass(frozen=True)
class Found:
    """What a calibration came to.

    Parameters
    ----------
    plan : Plan
    why : str
        How it was chosen, in one sentence.
    measured, evidence : dict
        Fields of `halfv_accel.evidence.Measured`, and of the `Evidence` around it.
    """

    plan: Plan
    why: str
    measured: dict[str, Any]
    evidence: dict[str, Any] = field(default_factory=dict)


class Calibrated(ABC):
    """A method with what was asked of its calibration; ``name`` is that of `halfv methods`."""

    name: str

    @property
    @abstractmethod
    def options(self) -> dict[str, float]:
        """What was asked, for the profile."""

    @abstractmethod
    def find(self, measure: Measurements, replied: Replied) -> Found:
        """Measure what the method needs, and choose.

        Raises
        ------
        HalfVError
            If what was asked cannot be met.
        """

    def check(self, layers: int) -> None:
        """Refuse what makes no sense for so many decoder layers, before anything is measured."""
        return
