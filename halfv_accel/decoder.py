"""The sizes of a decoder stack, which is all that counting its operations needs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

NORMED_KEYS = ("qwen3_vl_text",)  # text models whose config says nothing of their attention's norms


@dataclass(frozen=True)
class Decoder:
    """Sizes of a decoder stack; `normed_keys` if there is a norm between a key and its projection."""

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    normed_keys: bool = False

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
            normed_keys=text.model_type in NORMED_KEYS,
        )

    def last_token_flops(self, candidates: int, rotary: bool = True) -> int:
        """Scores of the last text token: its query, the candidates' keys, and their products.

        Without position embedding, the query goes through the key projection in place of all candidates.
        """
        query = 2 * self.hidden * self.head_dim * self.heads
        if not rotary and not self.normed_keys:
            return 2 * query + 2 * self.heads * self.hidden * candidates
        keys = 2 * self.hidden * self.head_dim * self.kv_heads * candidates
        return query + keys + 2 * self.heads * self.head_dim * candidates
