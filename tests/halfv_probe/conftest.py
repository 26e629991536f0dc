"""Random models of all families, and what every measurement must leave as it found it."""

from contextlib import contextmanager

import pytest

from tests.halfv_accel.miniatures import MINIATURES


@pytest.fixture(params=MINIATURES)
def mini(request):
    return MINIATURES[request.param]


def condition(model):
    """Hooks, modes, and whether weights take gradients and have some."""
    hooks = [(len(m._forward_hooks), len(m._forward_pre_hooks), m.training) for m in model.modules()]
    return hooks, [(parameter.requires_grad, parameter.grad is None) for parameter in model.parameters()]


@pytest.fixture
def untouched():
    """``with untouched(model):`` whatever happens in the block, the model comes out as it went in."""

    @contextmanager
    def check(model):
        before = condition(model)
        yield
        assert condition(model) == before

    return check


@pytest.fixture
def breaking():
    """``with breaking(model):`` every forward raises RuntimeError("broken") in the middle of the decoder."""

    @contextmanager
    def install(model):
        def raising(*_):
            raise RuntimeError("broken")

        handle = model.model.language_model.layers[3].register_forward_hook(raising)
        try:
            yield
        finally:
            handle.remove()

    return install
