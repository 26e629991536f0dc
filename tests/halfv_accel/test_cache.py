"""A reduced cache counts for the caller as if nothing were missing, also where layer 0 itself is short."""

import copy

import pytest
import torch
from transformers import DynamicCache
from transformers.masking_utils import create_causal_mask

from halfv_accel.engine.cache import adopt, set_open
from halfv_accel.engine.rows import Rows

from .miniatures import MiniLlava

PROMPT, DEPTH = 12, 3
KEPT = torch.tensor([[0, 1, 5, 9, 10, 11], [0, 3, 4, 8, 10, 11]])


def states(length):
    return torch.randn(2, 4, length, 8)


@pytest.fixture
def short():
    """A cache of three layers that hold 6 of 12 tokens, the first one included, and two tokens behind them."""
    cache = DynamicCache()
    adopt(cache, DEPTH, 0, None)
    for index, layer in enumerate(cache.layers):
        layer.expect(Rows(KEPT, None, PROMPT), 0, PROMPT, None)
        cache.update(states(6), states(6), index)
    for index in range(DEPTH):
        cache.update(states(2), states(2), index)
    return cache


def test_every_layer_says_the_length_that_the_caller_knows(short):
    for index in range(DEPTH):
        assert short.get_seq_length(index) == PROMPT + 2
        assert short.get_mask_sizes(3, index) == (PROMPT + 5, 0)
        assert short.layers[index].keys.shape[-2] == 6 + 2
    assert short.get_query_offset() == PROMPT + 2


def test_the_models_own_mask_for_new_tokens_is_as_wide_as_the_conversation(short):
    config = copy.deepcopy(MiniLlava().model("eager").config.text_config)
    config._attn_implementation = "eager"
    mask = create_causal_mask(
        config=config,
        inputs_embeds=torch.zeros(2, 1, 32),
        attention_mask=torch.ones(2, PROMPT + 3, dtype=torch.long),
        past_key_values=short,
        position_ids=torch.full((2, 1), PROMPT + 2),
    )
    assert mask.shape == (2, 1, 1, PROMPT + 3)
    assert (mask == 0).all()


def test_what_is_done_to_a_cache_keeps_the_count(short):
    other = copy.deepcopy(short)
    other.crop(-1)
    other.batch_repeat_interleave(2)
    other.reorder_cache(torch.tensor([3, 0, 1]))
    other.batch_select_indices(torch.tensor([0, 2]))
    assert {other.get_seq_length(index) for index in range(DEPTH)} == {PROMPT + 1}
    assert torch.equal(other.layers[1].keys, short.layers[1].keys[[1, 0], :, :-1])


def test_places_that_are_padding(short):
    """Of a ragged prompt: who is real in the prefix, and then in the caller's own tail."""
    cache, valid = DynamicCache(), torch.tensor([[False, True, True], [True, True, True]])
    adopt(cache, 1, 0, None)
    cache.layers[0].expect(Rows(torch.tensor([[0, 1, 2], [3, 4, 5]]), valid, 6), 0, 6, None)
    cache.update(states(3), states(3), 0)
    cache.update(states(2), states(2), 0)
    real = torch.tensor([[True] * 7 + [False], [True] * 8])
    assert torch.equal(cache.layers[0].past_valid(real), torch.cat([valid, real[:, -2:]], dim=1))
    assert torch.equal(cache.layers[0].past_valid(None), torch.cat([valid, torch.ones(2, 2, dtype=torch.bool)], dim=1))


def test_a_closed_cache_takes_nothing(short):
    set_open(short, False)
    with pytest.raises(ValueError, match="accelerated prefill"):
        short.update(states(1), states(1), 0)
    assert short.layers[0].keys.shape[-2] == 8
