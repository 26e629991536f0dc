"""What the tests of strategies that act before the language model have in common."""

from __future__ import annotations

import torch
from torch.utils.flop_counter import FlopCounterMode

from halfv_accel.architectures import middling
from halfv_accel.decoder import Decoder, Tower
from halfv_accel.strategies import Sizes
from tests.halfv_accel.strategies.views import HIDDEN, WIDTH

TOWER = Tower(hidden=WIDTH, heads=2)
COUNTS = (12, 9, 0, 16)
BUDGETS = ((4, 4, 0, 4), (1, 9, 0, 7), (11, 2, 0, 15), (0, 5, 0, 16), (12, 9, 0, 16))


def outcome(strategy, view, budget):
    """What stays, and the states that are written back."""
    chosen = strategy.select(view, torch.tensor(budget, device=view.present.device))
    states = strategy.merge(view, chosen) if hasattr(strategy, "merge") else view.states
    return chosen, states.masked_fill(~chosen[..., None], 0)


def mapped(view, change):
    """The view with all its tensors changed."""

    def of(value):
        return tuple(map(of, value)) if isinstance(value, tuple) else change(value)

    view.present, view.states, view.text_present, view.text_states = map(
        change, (view.present, view.states, view.text_present, view.text_states)
    )
    view.places = type(view.places)(*map(change, vars(view.places).values()))
    view.signals = {name: of(value) for name, value in view.signals.items()}
    return view


def tokens(mask):
    """Chosen places of each row."""
    return [row.nonzero().flatten().tolist() for row in mask]


def agrees(strategy, view, budget, oracle):
    """Select equals the oracle in each row: oracle(view of one row, its budget) gives the places, in any order."""
    chosen = strategy.select(view, torch.tensor(budget))
    assert chosen.sum(1).tolist() == list(budget)
    assert not (chosen & ~view.present).any()
    for row, kept in enumerate(budget):
        alone = view.row(row)
        assert tokens(chosen)[row] == sorted(oracle(alone, kept)), (row, kept)
        assert torch.equal(strategy.select(alone, torch.tensor([kept]))[0], chosen[row, : alone.present.shape[1]])
    return chosen


def counts_itself(strategy, view, kept):
    """`flops` is what torch counts in select and merge, beside the signals, which cost a view of numbers nothing."""
    count = view.present.shape[1]
    decoder = Decoder.of(middling())
    decoder = Decoder(**{**vars(decoder), "hidden": HIDDEN})
    with FlopCounterMode(display=False) as counter:
        chosen = strategy.select(view, torch.tensor([kept]))
        if hasattr(strategy, "merge"):
            strategy.merge(view, chosen)
    signals = sum(TOWER.attention_flops(count) for signal, _ in strategy.needs.vision if signal == "attention")
    assert strategy.flops(Sizes(decoder, count, kept, 0, TOWER)) == counter.get_total_flops() + signals


def merged_alike(strategy, view, budget, oracle):
    """Merge equals the oracle: oracle(view of one row, its kept places) gives {place: state} in float64."""
    chosen = strategy.select(view, torch.tensor(budget))
    states = strategy.merge(view, chosen)
    assert states.shape == view.states.shape and states.dtype == view.states.dtype
    for row, places in enumerate(tokens(chosen)):
        alone = view.row(row)
        one = strategy.merge(alone, chosen[row : row + 1, : alone.present.shape[1]])
        expected = oracle(alone, places)
        for place in places:
            torch.testing.assert_close(states[row, place].double(), expected[place], rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(one[0, place], states[row, place], rtol=1e-5, atol=1e-5)
        if len(places) == alone.present.shape[1]:
            assert torch.equal(states[row, places], view.states[row, places])  # nothing was dropped
