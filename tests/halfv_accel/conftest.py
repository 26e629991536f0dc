import pytest
import torch

from .miniatures import MiniLlava, MiniQwen

MINIATURES = {mini.name: mini for mini in (MiniLlava(), MiniQwen())}


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(params=MINIATURES)
def mini(request):
    return MINIATURES[request.param]


@pytest.fixture(params=["sdpa", "eager"])
def attention(request):
    return request.param
