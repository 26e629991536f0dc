"""SparseVLM (Zhang et al., ICML 2025, arXiv 2410.04417): rated by the words that are about the picture.

1. Raters (Eq. 6-7): text tokens whose softmax similarity to the visual tokens, on the embeddings of the prompt and
   mean over visual tokens, is at least the mean of all text tokens.
2. Score: the mean attention of the raters, mean over heads.
3. Rank (Eq. 8): N = scale x (V - rank of the raters' attention) tokens are deleted, within the stage's bounds.
4. Recycling (Eq. 9-11): the highest-rated share tau of the deleted is clustered by density peaks, and the sum of each
   cluster is one more token. It takes the place of its highest-rated member, and counts in the budget.

The public code deletes down to fixed counts (300, 200 and 110 of 576) and never looks at the rank, keeps recycled
tokens beside those counts, takes the cluster's mean instead of the sum, breaks ties in density by noise, and renumbers
positions. Taken over from it: tau, the number of clusters (a tenth of the recycled tokens, and one), and as many
neighbours. The scale of 0.5 is our own: about what its counts come to.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from halfv_accel.budget import floor_shares
from halfv_accel.errors import HalfVError
from halfv_accel.strategies.protocol import Needs, ScoredBy, Sizes, View, check_scored_by
from halfv_accel.strategies.registry import register
from halfv_accel.strategies.shared.cosines import products, replaced, taken
from halfv_accel.strategies.shared.density_peaks import density_peaks
from halfv_accel.strategies.shared.ranking import ranks
from halfv_accel.strategies.shared.shares import check_share

Combined = Literal["sum", "mean"]


@register("sparsevlm")
@dataclass(frozen=True)
class SparseVLM:
    """Raters choose, rank decides how many, clusters of the dropped come back as one token each.

    Parameters
    ----------
    scale : float
        lambda of Eq. 8: the share that is deleted of the tokens by which their number exceeds the rank.
    tau : float
        Share of the deleted tokens that is recycled; 0 for none.
    theta : float
        Clusters for each recycled token, beside the first cluster.
    combined : {"sum", "mean"}
        What a cluster becomes: the sum (the paper) or the mean of its members (the public code).
    scored_by : {"previous", "own"}
        Whose attention: the layer's before the stage, or the stage's own layer's.
    """

    scale: float = 0.5
    tau: float = 0.3
    theta: float = 0.1
    combined: Combined = "sum"
    scored_by: ScoredBy = "previous"

    def __post_init__(self) -> None:
        for name in ("scale", "tau", "theta"):
            check_share(name, getattr(self, name))
        if self.combined not in get_args(Combined):
            raise HalfVError(f"combined is {self.combined!r}: choose 'sum' or 'mean'")
        check_scored_by(self.scored_by)

    @property
    def needs(self) -> Needs:
        return Needs(before=self.scored_by == "previous", prompt=True)

    def count(self, view: View, least: Tensor, most: Tensor) -> Tensor:
        there = view.present.sum(1)
        deleted = floor_shares(there - attention_rank(view, raters(view), self.scored_by), self.scale)
        return torch.minimum(torch.maximum(there - deleted, least), most)

    def select(self, view: View, budget: Tensor) -> Tensor:
        choice = self._choose(view, budget)
        return choice.kept | torch.zeros_like(view.present).scatter(1, choice.pool, choice.first)

    def merge(self, view: View, kept: Tensor) -> Tensor:
        choice = self._choose(view, kept.sum(1))
        members = choice.member.float()
        clusters = products(members, taken(view.states, choice.pool))
        if self.combined == "mean":
            clusters = clusters / members.sum(2, keepdim=True).clamp(min=1)
        return replaced(view.states, choice.pool, clusters, choice.first)

    def count_flops(self, sizes: Sizes) -> int:
        return 2 * sizes.decoder.hidden * sizes.candidates * sizes.text + sizes.text_attention_flops(sizes.text)

    def flops(self, sizes: Sizes) -> int:
        recycled = int(parts(torch.tensor([sizes.candidates]), torch.tensor([sizes.kept]), self.tau, self.theta)[1])
        similarities = sizes.candidates * sizes.text
        rating = 2 * sizes.decoder.hidden * (similarities + recycled**2) + sizes.text_attention_flops(sizes.text)
        return 2 * rating + 2 * sizes.decoder.hidden * recycled**2  # the merge rates once more

    def _choose(self, view: View, budget: Tensor) -> Choice:
        there, width = view.present.sum(1), view.present.shape[1]
        ranked = ranks(view.text_attention(raters(view), self.scored_by).mean(1), view.present)
        straight, recycled = parts(there, budget, self.tau, self.theta)
        most = int(recycled.max()) if recycled.numel() else 0
        index = torch.arange(most, device=ranked.device)
        places = (straight[:, None] + index) % max(width, 1)  # ranks of the pool; different ones on padding, too
        pool, there = ranked.argsort(dim=1).gather(1, places), index < recycled[:, None]
        first = density_peaks(taken(view.states, pool), there, budget - straight)
        return Choice(
            kept=(ranked < straight[:, None]) & view.present,
            pool=pool,
            first=there & (first == index),
            member=(first[:, None] == index[:, None]) & there[:, None],
        )


class Choice(NamedTuple):
    """What stays as it is, and the recycled tokens.

    ``kept`` is bool [B, V]; ``pool`` are the N recycled tokens [B, N], the highest-rated first; ``first`` says which of
    them stand for a cluster, bool [B, N]; ``member`` is bool [B, N, N]: is the second a member of the first's cluster?
    """

    kept: Tensor
    pool: Tensor
    first: Tensor
    member: Tensor


def raters(view: View) -> Tensor:
    """Text tokens that rate (Eq. 6-7): [B, T] bool."""
    visual, text = view.prompt_states
    similarity = products(visual, text.mT)
    similarity = similarity.masked_fill(~view.text_present[:, None], torch.finfo(similarity.dtype).min).softmax(dim=2)
    relevance = (similarity * view.present[..., None]).sum(1).masked_fill(~view.text_present, 0.0)
    mean = relevance.sum(1, keepdim=True) / view.text_present.sum(1, keepdim=True).clamp(min=1)
    return (relevance >= mean * (1 - 1e-6)) & view.text_present  # where all are equal, all rate


def attention_rank(view: View, asking: Tensor, scored_by: ScoredBy) -> Tensor:
    """Rank of the raters' attention, mean over heads, to the visual tokens: (B,) long."""
    if not asking.numel() or not view.present.numel():
        return torch.zeros_like(asking.sum(1))
    values = torch.linalg.svdvals(view.each_text_attention(asking, scored_by))
    size = torch.maximum(asking.sum(1), view.present.sum(1))
    smallest = values[:, :1] * size[:, None] * torch.finfo(values.dtype).eps
    return (values > smallest).sum(1)


def parts(there: Tensor, budget: Tensor, tau: float, theta: float) -> tuple[Tensor, Tensor]:
    """How many tokens stay as they are, and how many of the others are recycled: both (B,) long.

    What the budget has beside the first are clusters of the second. So many stay that there are as many clusters as
    there should be; none where the budget is smaller than even that, and nothing is recycled into no cluster.
    """
    stays = torch.arange(int(there.max()) + 1 if there.numel() else 1, device=there.device)
    recycled = floor_shares((there[:, None] - stays).clamp(min=0), tau)
    clusters = torch.minimum(floor_shares(recycled, theta) + 1, recycled)
    fits = (stays + clusters <= budget[:, None]) & (stays <= there[:, None])
    straight = (stays * fits).amax(1)
    return straight, floor_shares(there - straight, tau) * (straight < budget)
