"""One exception for everything a user can cause: it says what, the value, and the next thing to do, in one line."""

from __future__ import annotations


class HalfVError(ValueError):
    """A wrong input or an unsupported use, found before anything was computed with it.

    The message is one sentence for the person who reads it, with no full stop at the end. A bug in HalfV is never
    reported this way.
    """
