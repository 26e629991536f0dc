"""What all miniatures share.

Weights are drawn wide enough that attention is not uniform: with transformers' own initialisation every visual token
scores alike, and a wrong selection would go unnoticed.
"""

from __future__ import annotations

import copy

import torch

IMAGE, VIDEO, START, END, PAD = 1, 2, 3, 4, 0
LAYERS, WIDTH, VOCABULARY = 6, 32, 64


@torch.no_grad()
def widen(model):
    """Draw all weights anew at 1 / sqrt(fan in), and biases and norms around their usual values."""
    torch.manual_seed(1)
    for parameter in model.parameters():
        if parameter.ndim >= 2:
            parameter.normal_(0, parameter[0].numel() ** -0.5)
        else:
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.get_input_embeddings().weight.normal_(0, 1)
    return model.eval()


def text_options(kv_heads):
    """Options that all language models take; `kv_heads` of 4 heads is grouped-query attention if less than 4."""
    return dict(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        intermediate_size=48,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=kv_heads,
        max_position_embeddings=512,
        eos_token_id=None,
        bos_token_id=None,
        pad_token_id=PAD,
    )


def words(draw, count):
    """Text: ids that stand for nothing visual."""
    return torch.randint(5, VOCABULARY, (count,), generator=draw).tolist()


class Miniature:
    """One family: `model(attention)`, `prompt(...)`, `batch(prompts)`."""

    name: str
    videos = False  # does the family take videos?

    def __init__(self):
        self._built = {}

    def model(self, attention="sdpa"):
        """The same weights under either attention implementation."""
        if attention not in self._built:
            base = widen(self.build()) if not self._built else copy.deepcopy(next(iter(self._built.values())))
            base.set_attn_implementation(attention)
            self._built[attention] = base
        return self._built[attention]

    def build(self):
        """The model, as transformers initialises it."""
        raise NotImplementedError

    def prompt(self, seed, pictures=1, question=6, videos=0):
        """Some text, up to two pictures, videos, and a question of that many words: `ids`, and what was drawn."""
        raise NotImplementedError

    def features(self, prompts, ids):
        """The visual arguments of the model for these prompts; `ids` are theirs, padded."""
        raise NotImplementedError

    def batch(self, prompts, side="left"):
        """Several prompts as one input, padded."""
        width = max(len(prompt["ids"]) for prompt in prompts)
        rows = [prompt["ids"] for prompt in prompts]
        left = [width - len(row) if side == "left" else 0 for row in rows]
        ids = torch.full((len(rows), width), PAD)
        mask = torch.zeros_like(ids)
        for row, tokens in enumerate(rows):
            ids[row, left[row] : left[row] + len(tokens)] = torch.tensor(tokens)
            mask[row, left[row] : left[row] + len(tokens)] = 1
        return {"input_ids": ids, "attention_mask": mask, **self.features(prompts, ids)}


def joined(prompts, name):
    """What the prompts hold under a name, one after the other: {} if there is nothing."""
    tensor = torch.cat([prompt[name] for prompt in prompts])
    return {name: tensor} if len(tensor) else {}
