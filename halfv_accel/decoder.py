"""The sizes of a decoder stack, which is all that counting its operations needs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Decoder:
    """Sizes of a decoder stack."""

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int

    @classmethod
    def of(cls, config: Any) -> Decoder:
        """From a transformers config (its text part), or a `Decoder` as it is."""
        if isinstance(config, Decoder):
            return config
        text = config.get_text_config()
        heads = text.num_attention_heads
        return cls(
            layers=text.num_hidden_layers,
            hidden=text.hidden_size,
            intermediate=text.intermediate_size,
            heads=heads,
            kv_heads=getattr(text, "num_key_value_heads", None) or heads,
            head_dim=getattr(text, "head_dim", None) or text.hidden_size // heads,
        )

    def last_token_flops(self, candidates: int) -> int:
        """Scores of the last text token: its query, the candidates' keys, and their products."""
        projections = 2 * self.hidden * self.head_dim * (self.heads + candidates * self.kv_heads)
        return projections + 2 * self.heads * self.head_dim * candidates
