"""The decoder of one batch, run layer by layer, so that many what-if questions share what they have in common.

A forward of the model itself is watched once: what layer 0 receives, what else every layer is given, and what the model
adds between layers (Qwen3-VL's DeepStack does). From then on the layers are called by hand. A question that changes
layer l only (a terminated layer, a pruned prompt) costs the layers from l on; what comes before is run once and shared.

The rows, masks and selections of a changed decoder are the accelerator's own (`halfv_accel.engine.Prefill`), so what is
measured here is what `accelerate` will do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from halfv_accel import HalfVError
from halfv_accel.adapters import Family, family_of
from halfv_accel.adapters.base import beside
from halfv_accel.adapters.vision import VisionRecorder
from halfv_accel.engine import refusals
from halfv_accel.engine.masks import kernel_of
from halfv_accel.engine.prefill import Prefill
from halfv_accel.engine.rows import Rows
from halfv_accel.engine.scene import Scene, asks_of_pictures, vision_needs
from halfv_accel.engine.view import LayerInput
from halfv_accel.plan import Fidelity, Plan

REPLAY_TOLERANCE = 1e-3  # largest difference to the model's own logits, relative to their size; half precision: 5e-2


class Replay:
    """One batch's prefill.

    Parameters
    ----------
    model : PreTrainedModel
        A supported vision-language model in evaluation mode; it is left as it was.
    inputs : mapping
        Processor outputs of one or several prompts, padded on either side.
    wanted : (B, S) bool Tensor, optional
        Positions whose next-token distribution will be asked for; by default each prompt's last token.
    last : (B,) long Tensor, optional
        Where each prompt ends: the token that visual tokens are scored with. By default the last that is no padding.
    plans : sequence of Plan
        Those that will be run: what their strategies ask of the pictures is recorded.

    Attributes
    ----------
    first : (B, S, H) Tensor
        Input of layer 0.
    prefill : Prefill
        All tokens, nothing taken away: the start of every fork.
    depth : int
        Decoder layers.
    untouched : (B, n, vocabulary) Tensor
        Log-probabilities at the wanted positions in the model's own forward.

    Raises
    ------
    HalfVError
        If the architecture is not supported, or its decoder does more between layers than can be replayed.
    """

    @torch.no_grad()
    def __init__(
        self,
        model: PreTrainedModel,
        inputs: Mapping[str, Any],
        fidelity: Fidelity = "paper",
        wanted: Tensor | None = None,
        last: Tensor | None = None,
        plans: Sequence[Plan] = (),
    ) -> None:
        self.family = family_of(model)
        self.depth = len(self.family.layers)
        refusals.check_evaluating(model)
        used = self.family.text.config._attn_implementation
        kernel = kernel_of(used)
        if kernel not in ("sdpa", "eager"):
            raise HalfVError(
                f"attention implementation '{used}' cannot be measured: call model.set_attn_implementation('sdpa')"
            )
        needs = {need for plan in plans for need in vision_needs(plan)}
        asked = any(asks_of_pictures(plan) for plan in plans)
        recording = _Recording(self.family, VisionRecorder(self.family, needs) if asked else None)
        logits = recording.watch(model, self.family.core, inputs)
        self.first, self._kwargs, self._added = recording.first, recording.kwargs, recording.added
        arguments = self.family.core_arguments(*recording.arguments)
        self.prefill = Prefill.of(self.family, fidelity, kernel, arguments, scene=recording.scene)
        self.prefill.prompt = self.first
        self._check_added()
        if last is not None:
            self.prefill.end_prompts_at(last)
        ends = torch.zeros_like(self.prefill.active).scatter(1, self.prefill.last[:, None], True)
        self.wanted = ends if wanted is None else wanted
        self._head = model.get_output_embeddings()
        self._compare(self._logits(recording.output[:, -1:]), logits[:, -1:])
        self.untouched = self.log_probabilities(recording.output)

    def here(self, states: Tensor, index: int) -> LayerInput:
        """A layer's input, as the stages of a plan see it."""
        cos, sin = self._kwargs[index]["position_embeddings"]
        return LayerInput(states, (cos.to(states.device), sin.to(states.device)))

    @torch.no_grad()
    def step(self, index: int, states: Tensor, prefill: Prefill) -> Tensor:
        """Input of layer `index` [B, S, H] -> input of the next one, or output of the last.

        The last layer works only on the rows whose logits are wanted; nothing reads the others.
        """
        if index == self.depth - 1:
            prefill = prefill.fork()
            prefill.skip = frozenset()  # only wanted rows are processed here, whether the layer is skipped or not
            prefill.keep(prefill.active & self.wanted.to(prefill.active.device), "freeze")
        layer, kwargs = self.family.layers[index], self._kwargs[index]
        states = beside(layer, states)
        if prefill.layout is not None and prefill.layout.queries.index.shape[1] == 0:
            output = states
        else:
            reduced = prefill.reduce(index, self.here(states, index), (states,), kwargs)
            args, kwargs = ((states,), kwargs) if reduced is None else reduced
            output = layer(*args, **kwargs)
            scattered = prefill.leave(output)
            output = output if scattered is None else scattered
        return output + self._added[index].to(output.device) if index in self._added else output

    def run_on(self, index: int, states: Tensor, prefill: Prefill) -> Tensor:
        """From the input of layer `index` to the log-probabilities of what follows the wanted tokens."""
        for layer in range(index, self.depth):
            states = self.step(layer, states, prefill)
        return self.log_probabilities(states)

    @torch.no_grad()
    def log_probabilities(self, states: Tensor) -> Tensor:
        """Output of the last layer -> float32 [B, n, vocabulary] at the n wanted positions, packed to the left."""
        rows = Rows.packed_left(self.wanted.to(states.device))
        return self._logits(rows.gather(states)).float().log_softmax(dim=-1)

    @property
    def present(self) -> Tensor:
        """Which places of `log_probabilities` are real: [B, n] bool."""
        return Rows.packed_left(self.wanted).present()

    def verify(self) -> None:
        """Compare an untouched run, layer by layer, with the model's own forward.

        Raises
        ------
        HalfVError
            If they differ by more than rounding.
        """
        self.compare(self.run_on(0, self.first, self.prefill))

    def compare(self, log_probabilities: Tensor) -> None:
        """As `verify`, for the result of an untouched run that was made anyway."""
        present = self.present.to(log_probabilities.device)
        self._compare(log_probabilities[present], self.untouched[present.to(self.untouched.device)])

    def _logits(self, states: Tensor) -> Tensor:
        return self._head(beside(self._head, self.family.normed(states)))

    def _check_added(self) -> None:
        """What is added between layers must not depend on the states: DeepStack's features are for visual tokens."""
        text = self.prefill.active & ~self.prefill.visual
        if any(added[text.to(added.device)].any() for added in self._added.values()):
            raise HalfVError(
                f"the decoder of {type(self.family.model).__name__} could not be replayed layer by layer: "
                "it changes text tokens between its layers"
            )

    def _compare(self, mine: Tensor, theirs: Tensor) -> None:
        mine, theirs = mine.float(), theirs.float().to(mine.device)
        tolerance = REPLAY_TOLERANCE * (1 if self.first.dtype == torch.float32 else 50)
        if not torch.allclose(mine, theirs, rtol=0, atol=tolerance * float(theirs.abs().max())):
            raise HalfVError(
                f"the decoder of {type(self.family.model).__name__} could not be replayed layer by layer (logits "
                f"differ by {float((mine - theirs).abs().max()):.2g}): it does something of its own between its layers"
            )


class _Recording:
    """What one forward gave its layers."""

    def __init__(self, family: Family, recorder: VisionRecorder | None) -> None:
        self.family, self.layers, self.recorder = family, family.layers, recorder
        self.scene: Scene | None = None
        self._sized: dict[str, Any] = {}
        self.kwargs: list[dict[str, Any]] = []
        self.added: dict[int, Tensor] = {}
        self.arguments: tuple[tuple, dict[str, Any]] = ((), {})
        self.first: Tensor
        self.output: Tensor

    @torch.no_grad()
    def watch(self, model: PreTrainedModel, core: nn.Module, inputs: Mapping[str, Any]) -> Tensor:
        """Run the model once; returns its logits for the last place [B, 1, vocabulary]."""
        with ExitStack() as installed:
            installed.callback(core.register_forward_pre_hook(self._core, with_kwargs=True).remove)
            for layer in self.layers:
                installed.callback(layer.register_forward_pre_hook(self._before, with_kwargs=True).remove)
                installed.callback(layer.register_forward_hook(self._after).remove)
            if self.recorder is None:
                return model(**inputs, use_cache=False, logits_to_keep=1).logits
            self.recorder.install(installed)
            logits = model(**inputs, use_cache=False, logits_to_keep=1).logits
            self.scene = Scene(self.family.structure(self._sized["input_ids"], self._sized), self.recorder)
            self.scene.listen()
            self.recorder.end()
            return logits

    def _core(self, _core: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        self.arguments = args, kwargs
        if self.recorder is not None:
            self._sized = self.recorder.begin(self.family.core_arguments(args, kwargs))

    def _before(self, _layer: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        states = args[0] if args else kwargs["hidden_states"]
        if not self.kwargs:
            self.first = states.clone()
        elif not torch.equal(states, self.output.to(states.device)):
            self.added[len(self.kwargs) - 1] = states - self.output.to(states.device)
        kept = {key: value for key, value in kwargs.items() if key != "hidden_states"}
        self.kwargs.append({**kept, "past_key_values": None})

    def _after(self, _layer: nn.Module, _args: tuple, output: Tensor | tuple) -> None:
        self.output = (output if isinstance(output, Tensor) else output[0]).clone()  # DeepStack adds in place
