"""Parameters that are shares."""

from __future__ import annotations

from halfv_accel.errors import HalfVError


def check_share(name: str, value: object) -> None:
    """Refuse anything but a number in [0, 1].

    Raises
    ------
    HalfVError
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
        raise HalfVError(f"{name} is {value!r}: give a number in [0, 1]")
