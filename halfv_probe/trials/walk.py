"""Many plans on one batch: each is run in full, but what two plans have in common is computed once.

Plans form a tree: two of them part at the first stage in which they differ. The walk below runs the decoder down every
branch, layer by layer, so a hundred plans that prune at layer 3 pay for layers 0 to 2 once.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from halfv_accel import HalfVError
from halfv_accel.engine.prefill import Prefill, ends_in_visual
from halfv_accel.engine.refusals import check_prompt
from halfv_accel.engine.view import LayerInput
from halfv_accel.plan import Plan, Stage
from halfv_probe.measures.redundancy import kl_divergence
from halfv_probe.measures.replay import Replay
from halfv_probe.trials.replies import Replies, with_replies


@dataclass(frozen=True)
class Outcomes:
    """What plans do to the replies of a batch.

    ``same`` is bool [plans, B]: is the whole reply unchanged? ``kl`` is float64 [plans, B]: KL(untouched || plan) of
    the next-token distribution in nats, mean over the reply's tokens. ``kept`` are the visual tokens that each stage of
    each plan left in each row: ``kept[plan][stage][row]``.
    """

    same: Tensor
    kl: Tensor
    kept: list[list[list[int]]]


@torch.no_grad()
def run_trials(
    model: PreTrainedModel,
    inputs: Mapping[str, Any],
    replies: Replies,
    plans: Sequence[Plan],
) -> Outcomes:
    """Run plans on a batch and compare with the untouched model, token by token of its reply.

    Parameters
    ----------
    inputs : mapping
        Processor outputs of one or several prompts, padded on the left.
    replies : Replies
        The untouched model's, see `greedy_replies`.
    plans : sequence of Plan
        All of one fidelity.

    Raises
    ------
    HalfVError
        If the model is not supported, a prompt ends in a visual token, or a plan shrinks pictures or names a layer that
        the model does not have.
    """
    fidelity, *others = {plan.fidelity for plan in plans} or {"paper"}
    if others:
        raise HalfVError("plans of both fidelities cannot share their layers: run them one after the other")
    if any(plan.shrinks for plan in plans):
        raise HalfVError(
            "plans share a batch, and one that shrinks pictures (downsample) needs smaller ones: make inputs with "
            "batch_inputs(..., downsample=plan.downsample), and give plan.inside"
        )
    extended, wanted, last = with_replies(inputs, replies)
    replay = Replay(model, extended, fidelity, wanted, last, plans)
    check_prompt(ends_in_visual(replay.prefill.visual, last).tolist())
    for plan in plans:
        plan.check_depth(replay.depth)
    walk = _Walk(replay, len(plans))
    # What layers skip, and which prompts are left alone, their plans cannot share.
    for skip, least in dict.fromkeys((plan.skip, plan.min_visual_tokens) for plan in plans):
        prefill = replay.prefill.fork()
        prefill.skip, prefill.min_visual_tokens = frozenset(skip), least
        alike = (index for index, plan in enumerate(plans) if (plan.skip, plan.min_visual_tokens) == (skip, least))
        walk.down(0, replay.first, None, prefill, [(index, plans[index].stages) for index in alike])
    return Outcomes(walk.same, walk.kl, walk.kept)


Branch = tuple[int, tuple[Stage, ...]]  # number of a plan, and the stages that are still before it


class _Walk:
    """Depth first through the tree of plans."""

    def __init__(self, replay: Replay, plans: int) -> None:
        self.replay = replay
        batch = len(replay.wanted)
        self.same = torch.zeros(plans, batch, dtype=torch.bool)
        self.kl = torch.zeros(plans, batch, dtype=torch.float64)
        self.kept: list[list[list[int]]] = [[] for _ in range(plans)]
        self._present = replay.present.to(replay.untouched.device)
        self._tokens = replay.untouched.argmax(dim=-1)

    def down(
        self, start: int, states: Tensor, before: LayerInput | None, prefill: Prefill, branches: list[Branch]
    ) -> None:
        """Run the branches that share `prefill` from the input of layer `start` to the end."""
        for index in range(start, self.replay.depth):
            here = self.replay.here(states, index)
            parting = defaultdict(list)
            for number, stages in branches:
                if stages and stages[0].layer == index:
                    parting[stages[0]].append((number, stages[1:]))
            for stage, others in parting.items():
                twin = prefill.fork()
                merged = twin.run(stage, before, here).states
                self.down(index, merged, before, twin, others)
            branches = [(number, stages) for number, stages in branches if not stages or stages[0].layer > index]
            if not branches:
                return
            before = here
            states = self.replay.step(index, states, prefill)
        self._judge(states, [number for number, _ in branches], prefill)

    def _judge(self, states: Tensor, numbers: list[int], prefill: Prefill) -> None:
        found = self.replay.log_probabilities(states).to(self._tokens.device)
        unchanged = (found.argmax(dim=-1) == self._tokens) | ~self._present
        divergence = kl_divergence(self.replay.untouched, found).double() * self._present
        self.same[numbers] = unchanged.all(dim=1).cpu()
        self.kl[numbers] = (divergence.sum(dim=1) / self._present.sum(dim=1)).cpu()
        for number in numbers:
            self.kept[number] = [stage.after for stage in prefill.report.stages]
