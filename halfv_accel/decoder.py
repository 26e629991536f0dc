"""The sizes of a decoder stack and of a vision tower, which is all that counting their operations needs."""

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


@dataclass(frozen=True)
class Tower:
    """Sizes of a vision tower.

    Parameters
    ----------
    patches_per_token : int
        Patches that one visual token stands for.
    has_cls : bool
        Is there a CLS token in front of the patches?
    """

    hidden: int
    heads: int
    patches_per_token: int = 1
    has_cls: bool = True

    @classmethod
    def of(cls, config: Any) -> Tower | None:
        """From a transformers config; None where it has no vision part of a usual form."""
        vision = getattr(config, "vision_config", None)
        heads = getattr(vision, "num_attention_heads", None) or getattr(vision, "num_heads", None)
        # Qwen2-VL calls the tower's width embed_dim, and hidden_size what leaves the merger.
        hidden = getattr(vision, "embed_dim", None) or getattr(vision, "hidden_size", None)
        if not heads or not hidden:
            return None
        merge = getattr(vision, "spatial_merge_size", None)
        return cls(hidden, heads, 1 if merge is None else merge**2, merge is None)

    def attention_flops(self, tokens: int) -> int:
        """Products behind the signal "attention", for so many visual tokens of one picture; q and k are there."""
        patches = tokens * self.patches_per_token
        return 2 * self.hidden * ((patches + 1) if self.has_cls else patches**2)
