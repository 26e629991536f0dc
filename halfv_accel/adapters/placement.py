"""Are a model's parameters where HalfV can use them? Asked before a layer runs alone, since that can break a model.

HalfV projects single states through single layers. That works where a layer holds its own weights, whole or divided by
tensor parallelism, and where accelerate's hooks fetch them. FSDP gathers weights in an order that begins at the root: a
layer that runs alone believes to be the root from then on. Other ways of dividing a model, by tokens or by experts,
give a process a part of the prompt, and a choice among a part is another choice.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from halfv_accel.adapters.base import Family, heads_of
from halfv_accel.adapters.ranks import is_dtensor, ranks_of
from halfv_accel.errors import HalfVError

PLAIN = "from_pretrained(..., device_map='auto') or tp_plan='auto'"
BY_TOKENS = ("sequence_parallel", "context_parallel", "ulysses")  # in the names of modules that divide prompts
PROJECTIONS = {"q": "queries", "k": "keys", "v": "values"}


def check_placement(family: Family) -> None:
    """Refuse a model whose layers cannot be used one by one.

    Raises
    ------
    HalfVError
        Naming what divides or holds back the parameters, and how to load the model instead.
    """
    _check_fully_sharded(family)
    _check_distributed_config(family.model)
    _check_values(family)
    for index, layer in enumerate(family.layers):
        _check_stage(index, layer)
        _check_division(index, layer)


def check_whole_prompt(family: Family) -> None:
    """Refuse an attention that gathers keys from other processes, of which each has a part of the prompt.

    Raises
    ------
    HalfVError
    """
    distributed, used = torch.distributed, family.text.config._attn_implementation
    if not (distributed.is_available() and distributed.is_initialized()):
        return
    kernel = nn.functional.scaled_dot_product_attention  # which context_parallel(...) replaces
    if (getattr(kernel, "__module__", None) or "").startswith("torch.distributed."):
        raise HalfVError(
            "context parallelism gives each process a part of the prompt, and a choice among a part is another choice: "
            "leave the context_parallel(...) block, or the accelerate(...) block"
        )
    origin = getattr(ALL_ATTENTION_FUNCTIONS.get(used), "__module__", None) or ""
    if distributed.get_world_size() > 1 and any(way in origin for way in BY_TOKENS):
        raise HalfVError(
            f"attention implementation '{used}' is that of {origin}: sequence parallelism gives each process a part of "
            "the prompt, and a choice among a part is another choice: load the model without it"
        )


def _check_fully_sharded(family: Family) -> None:
    module = sys.modules.get("torch.distributed.fsdp")
    kind = () if module is None else module.FullyShardedDataParallel  # the module around; both kinds mark those inside
    for index, layer in enumerate(family.layers):
        if any(getattr(part, "_is_fsdp_managed_module", False) or isinstance(part, kind) for part in layer.modules()):
            raise HalfVError(
                f"decoder layer {index} is sharded by FSDP and has weights only while the whole model runs: "
                f"load the model with {PLAIN}"
            )
        if any(hasattr(parameter, "ds_id") for parameter in layer.parameters()):
            raise HalfVError(
                f"decoder layer {index} is partitioned by DeepSpeed ZeRO-3 and has weights only while the whole model "
                f"runs: load the model with {PLAIN}"
            )


def _check_distributed_config(model: Any) -> None:
    """Refuse other divisions than tensor parallelism that transformers knows by name."""
    config = getattr(model.config, "distributed_config", None)
    asked = config.get if isinstance(config, dict) else lambda name: getattr(config, name, None)
    ways = {
        "pipeline parallelism (pp_size)": (asked("pp_size") or 1) > 1 or hasattr(model, "_pp_stage"),
        "expert parallelism (ep_size)": (asked("ep_size") or 1) > 1,
        "sequence parallelism (enable_sequence_parallel)": bool(asked("enable_sequence_parallel")),
    }
    for way, used in ways.items():
        if used:
            raise HalfVError(f"{way} is not supported, only tensor parallelism is: load the model with tp_plan='auto'")


def _check_values(family: Family) -> None:
    """Refuse tensors on the meta device that no hook of accelerate fetches, and emptied ones."""
    modules = dict(family.model.named_modules())
    for name, tensor in _tensors(family.model):
        if tensor.is_meta and not _fetched(modules, name):
            raise HalfVError(
                f"{name} is on the meta device, where it has no values: "
                "load the model with from_pretrained, or fill it with load_state_dict(..., assign=True)"
            )
    for name, parameter in family.layers.named_parameters():
        if parameter.numel() == 0:
            raise HalfVError(
                f"{name} of the decoder layers is empty, as where weights come only while the whole model runs: "
                f"load it with {PLAIN}"
            )


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters()
    yield from model.named_buffers()


def _fetched(modules: dict[str, nn.Module], name: str) -> bool:
    """Does a hook of accelerate, on the tensor's module or on one around it, bring its values?"""
    path = name.split(".")[:-1]
    hooks = (getattr(modules[".".join(path[:end])], "_hf_hook", None) for end in range(len(path) + 1))
    return any(hook is not None and getattr(hook, "offload", True) for hook in hooks)


def _check_stage(index: int, layer: nn.Module) -> None:
    if isinstance(layer, nn.Identity):  # what transformers leaves of layers that another process has
        raise HalfVError(
            f"decoder layer {index} is not in this process (pipeline parallelism): load the model with {PLAIN}"
        )


def _check_division(index: int, layer: Any) -> None:
    """Refuse any division of a layer's parameters that does not leave each process whole heads and all tokens."""
    spread = {name: parameter for name, parameter in layer.named_parameters() if is_dtensor(parameter)}
    for name, parameter in spread.items():
        mesh, what = parameter.device_mesh, f"{name} of decoder layer {index}"
        if mesh.ndim > 1:
            raise HalfVError(
                f"{what} is a DTensor on a mesh of {tuple(mesh.shape)} processes, and HalfV knows one group of tensor "
                "parallelism: load the model with tp_plan='auto' alone"
            )
        if "norm" in name:
            raise HalfVError(
                f"{what} is a DTensor, as sequence parallelism makes norms, and a process would see a part of the "
                "prompt only: leave the norms out of the plan, as tp_plan='auto' does"
            )
        module = layer.get_submodule(name.rpartition(".")[0])
        if "forward" not in vars(module) and not module._forward_pre_hooks:
            raise HalfVError(
                f"{what} is a DTensor, and nothing brings the module's input to its processes: "
                "load the model with tp_plan='auto', or divide it with parallelize_module"
            )
    if spread:
        _check_heads(index, layer)


def _check_heads(index: int, layer: Any) -> None:
    ranks = ranks_of(layer)
    size = 1 if ranks is None else ranks.size
    attention = getattr(layer, "self_attn", None)
    ways = {f"{name}_proj": _way(getattr(attention, f"{name}_proj", None)) for name in "qkvo"}
    if set(ways.values()) == {"whole"}:
        return
    if list(ways.values()) != ["by rows", "by rows", "by rows", "by columns"]:
        found = ", ".join(f"{name} {way}" for name, way in ways.items())
        raise HalfVError(
            f"the attention of decoder layer {index} is divided in another way than by heads ({found}): "
            "load the model with tp_plan='auto'"
        )
    for kind, what in PROJECTIONS.items():
        heads = heads_of(layer, kind)
        if heads % size:
            raise HalfVError(
                f"{heads} heads of {what} cannot be divided among {size} processes: start a number that divides {heads}"
            )


def _way(projection: Any) -> str:
    """How a projection's weight is divided."""
    weight = getattr(projection, "weight", None)
    if not is_dtensor(weight):
        return "whole"
    (placement,) = weight.placements
    if type(placement).__name__ != "Shard":
        return str(placement)
    return ("by rows", "by columns")[placement.dim % 2]
