"""What a strategy is, what it may ask for, and what it sees."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Literal, Protocol, get_args, runtime_checkable

from torch import Tensor

from halfv_accel.decoder import Decoder, Tower
from halfv_accel.errors import HalfVError

ScoredBy = Literal["previous", "own"]
Signal = Literal["attention", "keys", "features"]
Separators = Literal["score", "last"]


def check_scored_by(scored_by: object) -> None:
    """Refuse anything but the two layers whose attention may rank the tokens of a stage.

    Raises
    ------
    HalfVError
    """
    if scored_by not in get_args(ScoredBy):
        raise HalfVError(
            f"scored_by is {scored_by!r}: choose 'previous' (the layer before the stage) or 'own' (the stage's layer)"
        )


@dataclass(frozen=True)
class Needs:
    """What a strategy asks for beside the stage's own input; it is taken only where some stage asks.

    Parameters
    ----------
    vision : collection of (signal, layer)
        Signals of the vision tower, see `View.vision`, and the tower's layer that they come from: -2 is the last but
        one.
    structure : bool
        Where in the pictures the tokens are.
    before : bool
        The input of the decoder layer before the stage. A strategy that asks for it cannot act before layer 0.
    prompt : bool
        The input of decoder layer 0.
    """

    vision: Collection[tuple[Signal, int]] = ()
    structure: bool = False
    before: bool = False
    prompt: bool = False


@dataclass(frozen=True)
class Places:
    """Where visual tokens are in what they show.

    Parameters
    ----------
    picture : (B, V) long Tensor
        Which picture or video of the row, from 0; -1 where there is no token.
    part : (B, V) long Tensor
        Which crop of the picture (0 is the whole picture, where there are crops), or which frame of the video, from 0.
    row, column : (B, V) long Tensor
        In the grid of the part, from 0; -1 for separators.
    separator : (B, V) bool Tensor
        Tokens that show nothing, such as LLaVA-NeXT's line ends and Video-LLaVA's CLS.
    video : (B, V) bool Tensor
        Tokens of videos, whose parts are frames and not crops.
    """

    picture: Tensor
    part: Tensor
    row: Tensor
    column: Tensor
    separator: Tensor
    video: Tensor


class View(Protocol):
    """The visual tokens in front of a decoder layer, as a strategy sees them.

    Rows of a batch may hold different numbers of visual tokens: they are packed to the left, in the order of the
    prompt, and `present` says which places are real. The same holds of a row's text tokens.
    """

    @property
    def present(self) -> Tensor:
        """Places that hold a token: [B, V] bool."""
        ...

    @property
    def states(self) -> Tensor:
        """Hidden states of the visual tokens, input of the stage's layer: [B, V, H].

        Before layer 0 they are the projected visual features.
        """
        ...

    @property
    def text_present(self) -> Tensor:
        """Places that hold a token of text: [B, T] bool."""
        ...

    @property
    def text_states(self) -> Tensor:
        """Hidden states of the text tokens, input of the stage's layer: [B, T, H]."""
        ...

    @property
    def prompt_states(self) -> tuple[Tensor, Tensor]:
        """Inputs of decoder layer 0, of the visual tokens in play [B, V, H] and of the text [B, T, H].

        For strategies that need the prompt.
        """
        ...

    @property
    def places(self) -> Places:
        """For strategies that need the structure."""
        ...

    def last_token_scores(self, rotary: bool, scored_by: ScoredBy = "previous") -> Tensor:
        """Attention of the row's last text token among its visual tokens, mean over heads: [B, V], 0 on padding.

        The softmax is over the visual tokens alone, as in HalfV. It is taken in the layer before the stage's
        ("previous"), or in the stage's "own".
        """
        ...

    def text_attention(self, queries: Tensor | None = None, scored_by: ScoredBy = "previous") -> Tensor:
        """Attention that visual tokens receive from text tokens: [B, heads, V] float32, 0 on padding.

        The softmax is over all tokens that a query sees and layers still process; the mean is over queries.

        Parameters
        ----------
        queries : (B, T) bool Tensor, optional
            Text tokens that ask. The row's last one if left out. All zero in a row: that row is all zero.
        """
        ...

    def each_text_attention(self, queries: Tensor, scored_by: ScoredBy = "previous") -> Tensor:
        """What each of some text tokens pays to the visual ones, mean over heads: [B, T, V] float32.

        As in `text_attention`, but a row for each query. 0 on padding, and in the rows of tokens that are not asked.
        It costs a `text_attention` of all text.

        Parameters
        ----------
        queries : (B, T) bool Tensor
        """
        ...

    def visual_attention(self, scored_by: ScoredBy = "previous") -> Tensor:
        """Attention that visual tokens receive from the visual tokens, mean over these: [B, heads, V] float32.

        The softmax is as in `text_attention`. It is computed in chunks.
        """
        ...

    def keys(self, scored_by: ScoredBy = "previous", rotary: bool = True) -> tuple[Tensor, Tensor]:
        """Keys of the visual tokens [B, kv_heads, V, d], and of the text tokens [B, kv_heads, T, d]."""
        ...

    def vision(self, signal: Signal, layer: int = -2) -> Tensor:
        """A signal of the vision tower's layer, for each visual token; 0 on padding and on separators.

        Where a token stands for several patches, it is their mean.

        "attention": [B, heads, V] float32, of the CLS token to the patches, softmax over CLS and patches; where the
        tower has no CLS token, the attention that a patch receives, mean over the queries of its picture or frame.
        "keys": [B, heads, V, d]. "features": [B, V, Hv], what goes into the projector; the layer has no say.
        """
        ...


@runtime_checkable
class Strategy(Protocol):
    """Chooses visual tokens.

    What else a strategy may have:

    - ``needs``, a `Needs`: what it asks of the view beside the stage's own input; without it the layer before;
    - ``separators``, a class attribute: "last" keeps separators only when everything else stays, and never shows them
      to the strategy; "score", the default, treats them as any other token;
    - `Counted`, `Merging`, `Adaptive`, `CountedAdaptive`.
    """

    def select(self, view: View, budget: Tensor) -> Tensor:
        """Mask of the tokens that stay.

        Parameters
        ----------
        view : View
            Tokens still in play.
        budget : (B,) long Tensor
            Tokens to keep in each row; never more than the row has.

        Returns
        -------
        (B, V) bool Tensor
            Exactly `budget` true places in each row, all of them present.
        """
        ...


@runtime_checkable
class Merging(Protocol):
    """A strategy that folds what goes into what stays."""

    def merge(self, view: View, kept: Tensor) -> Tensor:
        """States [B, V, H] of which the engine writes back those of the kept places.

        Parameters
        ----------
        kept : (B, V) bool Tensor
            What `select` chose of this view. Rows in which nothing was dropped must keep their states.
        """
        ...


@runtime_checkable
class Adaptive(Protocol):
    """A strategy that decides how many tokens a row keeps, within the stage's bounds."""

    def count(self, view: View, least: Tensor, most: Tensor) -> Tensor:
        """Tokens to keep in each row: (B,) long, from `least` to `most`, both (B,) long.

        It is asked where the bounds leave a choice in some row.
        """
        ...


@dataclass(frozen=True)
class Sizes:
    """What the cost of one row's choice depends on.

    Parameters
    ----------
    candidates, kept : int
        Visual tokens before and after.
    text : int
        Text tokens of the row.
    tower : Tower, optional
        The vision tower, where the config says what it is.
    """

    decoder: Decoder
    candidates: int
    kept: int
    text: int = 0
    tower: Tower | None = None

    def text_attention_flops(self, queries: int = 1) -> int:
        """`View.text_attention` of so many text tokens: their queries, all keys, and the products."""
        return self._attention_flops(queries)

    def visual_attention_flops(self) -> int:
        """`View.visual_attention`."""
        return self._attention_flops(self.candidates)

    def keys_flops(self) -> int:
        """`View.keys`, of visual and text tokens."""
        return 2 * self.decoder.hidden * self.decoder.kv_heads * self.decoder.head_dim * (self.candidates + self.text)

    def _attention_flops(self, queries: int) -> int:
        width = self.decoder.heads * self.decoder.head_dim
        tokens = self.candidates + self.text
        return self.keys_flops() + 2 * queries * width * (self.decoder.hidden + tokens)


@runtime_checkable
class Counted(Protocol):
    """A strategy that says what choosing costs; without this it runs, and `selection_flops` refuses to guess."""

    def flops(self, sizes: Sizes) -> int:
        """Operations of the choice and the merge of one row, beside the layers' own."""
        ...


@runtime_checkable
class CountedAdaptive(Protocol):
    """An `Adaptive` strategy that says what its `count` costs; without this it runs, and is refused like the above."""

    def count_flops(self, sizes: Sizes) -> int:
        """Operations of `count` in one row; `kept` of the sizes are the most that may stay."""
        ...


def needs_of(strategy: Any) -> Needs:
    """What a strategy asks for; one that does not say gets the layer before."""
    needs = getattr(strategy, "needs", None)
    return needs if isinstance(needs, Needs) else Needs(before=True)


def hides_separators(strategy: Any) -> bool:
    """Is a strategy not shown separators, which then stay only when everything else does?"""
    return getattr(strategy, "separators", "score") == "last"
