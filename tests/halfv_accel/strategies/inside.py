"""What every choice inside the language model is held to, and the counter that its FLOPs are compared with."""

from dataclasses import dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode

from halfv_accel.decoder import Decoder
from halfv_accel.strategies import Sizes
from tests.halfv_accel.strategies.views import HEADS, HIDDEN, KV_HEADS, SIZE

DECODER = Decoder(layers=4, hidden=HIDDEN, intermediate=24, heads=HEADS, kv_heads=KV_HEADS, head_dim=SIZE)


@dataclass(frozen=True)
class FreeSignals(Sizes):
    """Sizes for views whose signals are drawn and not computed."""

    def text_attention_flops(self, queries):
        return 0

    def visual_attention_flops(self):
        return 0

    def keys_flops(self):
        return 0


def shares(view, ratio):
    """Budgets of a view's rows."""
    return torch.floor(view.present.sum(1) * ratio).long()


def holds(strategy, view, budget):
    """The choice, after checks: exact, of tokens that are there, and for each row what the row alone gets."""
    chosen = strategy.select(view, budget)
    assert chosen.dtype == torch.bool
    assert chosen.sum(1).tolist() == budget.tolist()
    assert not (chosen & ~view.present).any()
    for row in range(len(budget)):
        alone = strategy.select(view.row(row), budget[row : row + 1])
        assert alone[0].tolist() == chosen[row, : alone.shape[1]].tolist()
    return chosen


def same_flops(strategy, view, kept):
    """Compare the stated operations of a view of one row with those that PyTorch counts; return them."""
    counter = FlopCounterMode(display=False)
    with counter:
        chosen = strategy.select(view, torch.tensor([kept]))
        if hasattr(strategy, "merge"):
            strategy.merge(view, chosen)
    stated = strategy.flops(FreeSignals(DECODER, view.present.shape[1], kept, view.text_present.shape[1]))
    assert stated == counter.get_total_flops()
    return stated


def top(scores, count):
    """Indices of the highest scores, the earlier of equal ones: the slow way."""
    left = list(range(len(scores)))
    chosen = []
    for _ in range(count):
        best = left[0]
        for index in left:
            if scores[index] > scores[best]:
                best = index
        chosen.append(best)
        left.remove(best)
    return chosen
