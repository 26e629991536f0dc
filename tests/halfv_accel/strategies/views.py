"""Views made of random numbers: everything a strategy may ask for, for rows of unequal length, without a model."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from halfv_accel.strategies import Places

HEADS, KV_HEADS, SIZE, HIDDEN, WIDTH = 4, 2, 8, 12, 10  # WIDTH: of the vision tower, 2 heads


@dataclass
class RandomView:
    """Everything is drawn once and handed out as it is."""

    present: Tensor
    states: Tensor
    text_present: Tensor
    text_states: Tensor
    places: Places
    signals: dict

    @property
    def prompt_states(self):
        return self.signals["prompt"]

    def last_token_scores(self, rotary, scored_by="previous"):
        return self.signals["last"]

    def text_attention(self, queries=None, scored_by="previous"):
        """Mean over the chosen queries, of numbers drawn for each of them."""
        each = self.signals["text attention"]  # [B, heads, T, V]
        if queries is None:
            order = torch.arange(self.text_present.shape[1])
            queries = order == (self.text_present.sum(1) - 1)[:, None]
        weights = queries.float() / queries.sum(1, keepdim=True).clamp(min=1)
        return (weights[:, None, :, None] * each).sum(2)  # no product that a counter of operations would see

    def each_text_attention(self, queries, scored_by="previous"):
        return self.signals["text attention"].mean(1) * queries[..., None]

    def visual_attention(self, scored_by="previous"):
        return self.signals["visual attention"]

    def keys(self, scored_by="previous", rotary=True):
        return self.signals["keys"]

    def vision(self, signal, layer=-2):
        return self.signals["vision", signal]

    def row(self, index):
        """The view of one row alone, without its padding."""
        v, t = int(self.present[index].sum()), int(self.text_present[index].sum())
        cut = {"last": lambda x: x[:, :v], "text attention": lambda x: x[:, :, :t, :v]}

        def of(name, value):
            if isinstance(value, tuple):
                return tuple(of_one(x, n, name) for x, n in zip(value, (v, t), strict=True))
            value = value[index : index + 1]
            if name in cut:
                return cut[name](value)
            if name == "visual attention" or name == ("vision", "attention"):
                return value[:, :, :v]
            return value[:, :, :v] if value.ndim == 4 else value[:, :v]

        def of_one(x, n, name):
            x = x[index : index + 1]
            return x[:, :, :n] if name == "keys" else x[:, :n]

        return RandomView(
            self.present[index : index + 1, :v],
            self.states[index : index + 1, :v],
            self.text_present[index : index + 1, :t],
            self.text_states[index : index + 1, :t],
            Places(*(x[index : index + 1, :v] for x in vars(self.places).values())),
            {name: of(name, value) for name, value in self.signals.items()},
        )


def random_view(counts=(12, 9, 0, 16), texts=(5, 3, 4, 6), seed=0, columns=4, coarse=False):
    """A view with so many visual and text tokens in each row; every row's tokens are one picture, in raster order.

    `coarse` draws all numbers from a few values, so that there are ties.
    """
    draw = torch.Generator().manual_seed(seed)

    def numbers(*shape, positive=False):
        x = torch.rand(shape, generator=draw) if positive else torch.randn(shape, generator=draw)
        return (x * 2).round() / 2 if coarse else x

    batch, v, t = len(counts), max(counts), max(texts)
    present, text_present = (torch.arange(n) < torch.tensor(many)[:, None] for n, many in ((v, counts), (t, texts)))
    index = torch.arange(v).expand(batch, -1)
    none = torch.where(present, 0, -1)
    shows = [torch.where(present, x, -1) for x in (index // columns, index % columns)]
    places = Places(none, none.clone(), *shows, torch.zeros_like(present), torch.zeros_like(present))
    visible = present[:, None].float()
    signals = {
        "last": numbers(batch, v, positive=True) * present,
        "text attention": numbers(batch, HEADS, t, v, positive=True) * visible[:, :, None],
        "visual attention": numbers(batch, HEADS, v, positive=True) * visible,
        "keys": (numbers(batch, KV_HEADS, v, SIZE), numbers(batch, KV_HEADS, t, SIZE)),
        "prompt": (numbers(batch, v, HIDDEN), numbers(batch, t, HIDDEN)),
        ("vision", "attention"): numbers(batch, 2, v, positive=True) * visible,
        ("vision", "keys"): numbers(batch, 2, v, WIDTH // 2) * visible[..., None],
        ("vision", "features"): numbers(batch, v, WIDTH) * present[..., None],
    }
    return RandomView(present, numbers(batch, v, HIDDEN), text_present, numbers(batch, t, HIDDEN), places, signals)
