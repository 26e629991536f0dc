"""How every refusal is checked."""

import pytest

from halfv_accel import HalfVError


def refusal(action, pattern):
    """The action is refused in one line, of one sentence without a full stop, that says this."""
    with pytest.raises(HalfVError, match=pattern) as caught:
        action()
    message = str(caught.value)
    assert "\n" not in message
    assert not message.endswith(".") or message.endswith("...")
