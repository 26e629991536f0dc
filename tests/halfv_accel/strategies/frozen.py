"""A view of a real forward, copied into one of numbers: what the engine shows, for oracles that know no engine."""

from __future__ import annotations

import torch

from halfv_accel.strategies import Places, needs_of
from tests.halfv_accel.strategies.views import RandomView


class ThisLayers(RandomView):
    """A copy of what one strategy may ask for; signals of the tower are known by their layer."""

    def vision(self, signal, layer=-2):
        return self.signals["vision", signal, 0 if signal == "features" else layer]

    def row(self, index):
        plain = {name: value for name, value in self.signals.items() if name[0] != "vision"}
        one = RandomView(self.present, self.states, self.text_present, self.text_states, self.places, plain).row(index)
        many = one.present.shape[1]
        for name, value in self.signals.items():
            if name[0] == "vision":
                value = value[index : index + 1]
                one.signals[name] = value[:, :many] if name[1] == "features" else value[:, :, :many]
        return ThisLayers(**vars(one))


def copied(view, strategy):
    """Everything that the strategy may ask of a view, taken once."""
    needs, own = needs_of(strategy), getattr(strategy, "scored_by", "previous")
    signals = {}
    for signal, layer in needs.vision:
        signals["vision", signal, 0 if signal == "features" else layer] = view.vision(signal, layer)
    if needs.before or own == "own":
        rotary = getattr(strategy, "rotary", False)  # without it, as anchors are scored
        signals |= {
            "last": view.last_token_scores(rotary, own),
            "text attention": each_words_attention(view, own),
            "visual attention": view.visual_attention(own),
            "keys": view.keys(own, rotary=False),
        }
    if needs.prompt:
        signals["prompt"] = view.prompt_states
    nowhere = torch.zeros_like(view.present)
    places = view.places if needs.structure else Places(*[nowhere.long()] * 4, nowhere, nowhere)
    return ThisLayers(view.present, view.states, view.text_present, view.text_states, places, signals)


def each_words_attention(view, scored_by):
    """One question for each word, whose heads stay apart: [B, heads, T, V]."""
    order = torch.arange(view.text_present.shape[1])
    words = [view.text_attention((order == word) & view.text_present, scored_by) for word in order.tolist()]
    return torch.stack(words, dim=2)
