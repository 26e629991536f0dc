"""Signals inside the language model equal those that brute force takes from whole attention maps."""

import math
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
import torch.nn.functional as F

from halfv_accel import accelerate
from halfv_accel.engine import view as views
from halfv_accel.plan import Plan, Stage
from halfv_accel.strategies import Needs

from .miniatures import IMAGE, VIDEO
from .oracle import embed, rotate

LAYER = 3


@dataclass(frozen=True)
class Spy:
    """Asks for everything, keeps it, and chooses the first tokens."""

    found: ClassVar[dict] = {}
    needs: ClassVar[Needs] = Needs(before=True, prompt=True)

    def select(self, view, budget):
        odd = torch.arange(view.text_present.shape[1]) % 2 == 1
        asked = odd & view.text_present
        for by in ("previous", "own"):
            self.found[by] = {
                "last": view.text_attention(scored_by=by),
                "odd": view.text_attention(asked, by),
                "each": view.each_text_attention(asked, by),
                "visual": view.visual_attention(by),
                "keys": view.keys(by),
                "plain": view.keys(by, rotary=False),
            }
        self.found["prompt"] = view.prompt_states
        self.found["states"] = view.states, view.text_states
        return view.present & (torch.arange(view.present.shape[1]) < budget[:, None])


@torch.no_grad()
def by_hand(mini, prompt, layer):
    """Attention of everybody to everybody among all tokens [heads, S, S] by one layer, its keys, and its input."""
    model = mini.model("eager")
    text = model.model.language_model
    hidden, rotary, stacked = embed(mini, model, prompt, [])
    length = hidden.shape[1]
    for index in range(layer):
        mask = torch.full((length, length), -math.inf).triu(1)[None, None]
        hidden = text.layers[index](hidden, attention_mask=mask, position_embeddings=rotary)
        hidden = hidden + stacked[index] if index in stacked else hidden
    attention, states = text.layers[layer].self_attn, text.layers[layer].input_layernorm(hidden)[0]
    size = attention.head_dim
    queries = F.linear(states, attention.q_proj.weight, attention.q_proj.bias).view(length, -1, size)
    keys = F.linear(states, attention.k_proj.weight, attention.k_proj.bias).view(length, -1, size)
    if hasattr(attention, "q_norm"):
        queries, keys = attention.q_norm(queries), attention.k_norm(keys)
    turned = torch.stack([torch.stack([rotate(k, rotary, p) for k in heads]) for p, heads in enumerate(keys)])
    maps = torch.zeros(queries.shape[1], length, length)
    for head in range(queries.shape[1]):
        group = head * keys.shape[1] // queries.shape[1]
        for place in range(length):
            query = rotate(queries[place, head], rotary, place)
            scores = turned[: place + 1, group] @ query / math.sqrt(size)
            maps[head, place, : place + 1] = scores.softmax(dim=0)
    return maps, turned, keys, hidden[0]


@pytest.mark.parametrize("chunk", [2**24, 7])
def test_signals_equal_those_of_whole_maps(mini, chunk, monkeypatch):
    monkeypatch.setattr(views, "CHUNK", chunk)
    prompts = [mini.prompt(5, 1, 6, 0), mini.prompt(7, 1, 3, int(mini.videos))]
    with torch.no_grad(), accelerate(mini.model(), Plan((Stage("spy", LAYER, Spy(), 0.5),))):
        mini.model()(**mini.batch(prompts))
    for row, prompt in enumerate(prompts):
        ids = torch.tensor(prompt["ids"])
        visual = ((ids == IMAGE) | (ids == VIDEO)).nonzero()[:, 0]
        words = ((ids != IMAGE) & (ids != VIDEO)).nonzero()[:, 0]
        v, t = len(visual), len(words)
        for by, layer in (("previous", LAYER - 1), ("own", LAYER)):
            maps, turned, plain, states = by_hand(mini, prompt, layer)
            found = Spy.found[by]
            wanted = {
                "last": maps[:, -1, visual],
                "odd": maps[:, words[1::2]].mean(1)[:, visual],
                "visual": maps[:, visual].mean(1)[:, visual],
            }
            for name, value in wanted.items():
                torch.testing.assert_close(found[name][row, :, :v], value, rtol=0, atol=1e-5)
                assert not found[name][row, :, v:].any()
            each = found["each"][row]
            torch.testing.assert_close(each[1:t:2, :v], maps[:, words[1::2]][..., visual].mean(0), rtol=0, atol=1e-5)
            assert not each[0::2].any() and not each[t:].any() and not each[:, v:].any()
            # A plain forward counts padding in its positions, which attention does not notice, but rotated keys do.
            longest = len(ids) == max(len(each["ids"]) for each in prompts)
            for name, keys in [("plain", plain), *([("keys", turned)] if longest else [])]:
                for mine, places in zip(found[name], (visual, words), strict=True):
                    part = mine[row, :, : len(places)]
                    torch.testing.assert_close(part, keys[places].transpose(0, 1), rtol=0, atol=1e-5)
        for mine, places, limit in zip(Spy.found["states"], (visual, words), (v, t), strict=True):
            torch.testing.assert_close(mine[row, :limit], states[places], rtol=0, atol=1e-5)
        first = embed(mini, mini.model("eager"), prompt, [])[0][0]
        for mine, places in zip(Spy.found["prompt"], (visual, words), strict=True):
            torch.testing.assert_close(mine[row, : len(places)], first[places], rtol=0, atol=1e-5)
