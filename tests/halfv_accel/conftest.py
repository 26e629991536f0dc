from functools import cache

import pytest
import torch

from halfv_accel import load_model

from .hub import HUB
from .miniatures import MINIATURES


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(params=MINIATURES)
def mini(request):
    return MINIATURES[request.param]


@pytest.fixture(params=["sdpa", "eager"])
def attention(request):
    return request.param


@pytest.fixture(scope="session")
def hub(tmp_path_factory):
    """``hub(architecture)``: the folder of a tiny checkpoint in the hub's layout."""
    return cache(lambda architecture: HUB[architecture].save(tmp_path_factory.mktemp("hub") / architecture))


@pytest.fixture(scope="session", params=HUB)
def loaded(request, hub):
    """Model and processor of every family, as `load_model` gives them."""
    return load_model(hub(request.param))


@pytest.fixture(scope="session")
def wide(hub):
    """``wide(architecture)``: model and processor with limits that allow pictures of 4 to 300 visual tokens."""

    def load(name):
        model, processor = load_model(hub(name))
        images = processor.image_processor
        unit = (images.patch_size * images.merge_size) ** 2
        images.size = type(images.size)(shortest_edge=4 * unit, longest_edge=300 * unit)
        return model.eval(), processor

    loaded = {name: load(name) for name in HUB if "Qwen" in name}
    return loaded.__getitem__
