"""Parameters that lie where a single layer cannot use them: refused before a layer runs, and the model works on."""

import copy
import math
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.tensor import Shard, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, SequenceParallel, parallelize_module
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from halfv_accel import accelerate, halfv_plan
from halfv_accel.selfcheck import selfcheck

from .miniatures import MINIATURES
from .refusing import refusal

PLAN = halfv_plan(ivr_layer=2, ivr_retention=0.5, ssr_mode="freeze", ssr_layer=4)
MINI = MINIATURES["qwen2.5-vl"]
CPU = torch.device("cpu")
LOAD = "load .*tp_plan='auto'"


@pytest.fixture(scope="module")
def mesh():
    """A group of one process, which divides as a large one does."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


@pytest.fixture
def model():
    return copy.deepcopy(MINI.model())


def layers(model):
    return model.model.language_model.layers


@pytest.fixture
def unrun(monkeypatch):
    """Make it a failure that a decoder layer runs alone."""

    def watch(model):
        for layer in layers(model):
            layer.register_forward_pre_hook(lambda *_: pytest.fail("a layer ran"))
        return model

    return watch


@torch.no_grad()
def logits(model):
    return model(**MINI.batch([MINI.prompt(0)])).logits


def fully(model, mesh, parts):
    for part in parts:
        fully_shard(part, mesh=mesh)


FSDP2 = {
    "layers and root": lambda model: [*layers(model), model],
    "layers": lambda model: list(layers(model)),
    "root": lambda model: [model],
    "core": lambda model: [model.model],
    "parts of a layer": lambda model: [layers(model)[4].self_attn, layers(model)[4].mlp],
}


@pytest.mark.parametrize("parts", FSDP2)
def test_fully_shard(model, mesh, parts):
    """The model is no worse for having been asked about."""
    wanted = logits(model)
    fully(model, mesh, FSDP2[parts](model))
    refusal(lambda: accelerate(model, PLAN), f"decoder layer [04] is sharded by FSDP.*{LOAD}")
    assert torch.equal(logits(model), wanted)


def test_a_sharded_vision_tower_is_no_matter(model, mesh):
    with accelerate(model, PLAN):
        wanted = logits(model)
    fully(model, mesh, [model.model.visual])
    with accelerate(model, PLAN):
        assert torch.equal(logits(model), wanted)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("original", [False, True], ids=["flat", "original parameters"])
def test_fully_sharded_data_parallel(model, mesh, original):
    def wrapped(module):
        return FullyShardedDataParallel(module, device_id=CPU, use_orig_params=original)

    whole = wrapped(copy.deepcopy(model))
    refusal(lambda: accelerate(whole, PLAN), "FullyShardedDataParallel is not supported.*not wrapped")
    refusal(lambda: accelerate(whole.module, PLAN), f"sharded by FSDP.*{LOAD}")
    wanted = logits(model)
    for index, layer in enumerate(layers(model)):
        layers(model)[index] = wrapped(layer)
    refusal(lambda: accelerate(model, PLAN), f"layer 0 is sharded by FSDP.*{LOAD}")
    assert torch.equal(logits(model), wanted)


def test_a_model_that_is_sharded_after_it_was_accelerated(model, mesh):
    accelerate(model, PLAN)
    fully(model, mesh, FSDP2["layers and root"](model))
    refusal(lambda: accelerate(model, PLAN), "sharded by FSDP")


def test_zero_3(model, unrun):
    """DeepSpeed leaves empty parameters with a number of their own."""
    for parameter in layers(model).parameters():
        parameter.data = torch.empty(0)
    refusal(lambda: accelerate(unrun(model), PLAN), f"layers is empty.*{LOAD}")
    for parameter in layers(model).parameters():
        parameter.ds_id = 0
    refusal(lambda: accelerate(model, PLAN), f"layer 0 is partitioned by DeepSpeed ZeRO-3.*{LOAD}")


def every_layer(model, mesh, ways):
    for layer in layers(model):
        parallelize_module(layer, mesh, ways)


HEADS = {**{f"self_attn.{name}_proj": ColwiseParallel() for name in "qkv"}, "self_attn.o_proj": RowwiseParallel()}


def test_torchs_own_tensor_parallelism_works(model, mesh):
    with accelerate(model, PLAN):
        wanted = logits(model)
    every_layer(model, mesh, HEADS)
    with accelerate(model, PLAN):
        assert torch.equal(logits(model), wanted)


def test_dtensors_of_another_kind(model, mesh, unrun):
    ring = copy.deepcopy(model)
    every_layer(ring, mesh, {**HEADS, "input_layernorm": SequenceParallel()})
    refusal(lambda: accelerate(unrun(ring), PLAN), "input_layernorm.weight of decoder layer 0.*sequence parallelism")
    part = copy.deepcopy(model)
    every_layer(part, mesh, {"self_attn.q_proj": ColwiseParallel(), "self_attn.o_proj": RowwiseParallel()})
    refusal(lambda: accelerate(unrun(part), PLAN), f"another way than by heads .*k_proj whole.*{LOAD}")
    square = copy.deepcopy(model)
    for projection in (layer.self_attn.q_proj for layer in layers(square)):
        two = init_device_mesh("cpu", (1, 1), mesh_dim_names=("dp", "tp"))
        projection.weight = nn.Parameter(distribute_tensor(projection.weight.data, two, [Shard(0), Shard(0)]))
    refusal(lambda: accelerate(unrun(square), PLAN), r"a mesh of \(1, 1\) processes.*alone")
    for projection in (layer.self_attn.q_proj for layer in layers(model)):
        projection.weight = nn.Parameter(distribute_tensor(projection.weight.data, mesh, [Shard(0)]))
    refusal(lambda: accelerate(unrun(model), PLAN), "q_proj.weight of decoder layer 0 is a DTensor, and nothing brings")


@pytest.mark.parametrize(
    ("options", "pattern"),
    [
        (dict(pp_size=2), "pipeline parallelism"),
        (dict(ep_size=2), "expert parallelism"),
        (dict(enable_sequence_parallel=True), "sequence parallelism"),
    ],
)
@pytest.mark.parametrize("kind", [dict, lambda **options: SimpleNamespace(**options)], ids=["mapping", "object"])
def test_ways_that_transformers_knows_by_name(model, unrun, options, pattern, kind):
    model.config.distributed_config = kind(**options)
    refusal(lambda: accelerate(unrun(model), PLAN), f"{pattern}.*{LOAD}")


def test_layers_of_another_process(model, unrun):
    layers(model)[4] = nn.Identity()
    refusal(lambda: accelerate(unrun(model), PLAN), f"decoder layer 4 is not in this process.*{LOAD}")


@torch.no_grad()
def test_context_parallelism(mesh, monkeypatch):
    """It replaces the kernel for the time of a block, and cuts the prompt up."""
    from torch.distributed.tensor.experimental import context_parallel

    model, inputs = MINI.model(), MINI.batch([MINI.prompt(0)])
    with accelerate(model, PLAN), context_parallel(mesh, buffers=[torch.zeros(1, 8)], buffer_seq_dims=[1]):
        refusal(lambda: model(**inputs), "context parallelism.*leave the context_parallel")
        refusal(lambda: accelerate(model, PLAN), "context parallelism")
    with accelerate(model, PLAN):
        model(**inputs)


def test_an_attention_of_another_package_in_several_processes(mesh, monkeypatch):
    def ulysses(*_):
        pytest.fail("the attention ran")

    ulysses.__module__ = "deepspeed.runtime.sequence_parallel.ulysses_sp"
    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, "sdpa", ulysses)
    monkeypatch.setattr(dist, "get_world_size", lambda group=None: 2)
    refusal(lambda: accelerate(MINI.model(), PLAN), "'sdpa' is that of deepspeed.*sequence parallelism")


def test_hooks_that_drop_masks_are_refused(model):
    """As those that accelerate's context parallelism leaves on a model."""

    def drop(module, args, kwargs):
        return args, {**kwargs, "attention_mask": None}

    for layer in layers(model):
        layer.self_attn.register_forward_pre_hook(drop, with_kwargs=True)
    refusal(lambda: accelerate(model, PLAN), "computes other queries than its attention")


PARTS = {
    "all": lambda model: model,
    "decoder": layers,
    "one projection": lambda model: layers(model)[5].mlp.up_proj,
    "vision tower": lambda model: model.model.visual,
    "head": lambda model: model.lm_head,
}


@pytest.mark.parametrize("part", PARTS)
def test_tensors_on_meta(model, part, unrun):
    PARTS[part](model).to("meta")
    refusal(lambda: accelerate(unrun(model), PLAN), r"is on the meta device.*from_pretrained")


def test_a_buffer_on_meta(model, unrun):
    model.model.language_model.rotary_emb.to("meta")
    refusal(lambda: accelerate(unrun(model), PLAN), r"rotary_emb\.inv_freq is on the meta device")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("name", "dtype"), [("llava", torch.qint8), ("qwen3-vl", torch.qint8), ("qwen2.5-vl", torch.float16)], ids=str
)
def test_dynamic_quantization_works(name, dtype):
    """Its projections have no parameters. In eight bits a row's rounding depends on the rows beside it: pruned, the
    model is about as far from the oracle as untouched; in sixteen bits both are exact."""
    mini = MINIATURES[name]
    quantized = torch.ao.quantization.quantize_dynamic(copy.deepcopy(mini.model()), {nn.Linear}, dtype=dtype)
    checks = selfcheck(quantized, mini.batch([mini.prompt(0), mini.prompt(1, 2)]))
    by_hand = next(check.error for check in checks if check.name.startswith("mask by hand"))
    for check in checks:
        rounding = 3 * by_hand
        if check.name.startswith("choice"):  # the check projects other rows together than the engine does
            rounding = 0.2 * check.effect if dtype is torch.qint8 else 0.0
        elif check.name.startswith("keep all"):
            rounding = 0.0
        assert check.error <= max(check.tolerance, rounding), check
    assert math.isfinite(by_hand)


def test_weights_in_buffers_work(model):
    """As GPTQ and AWQ keep them: packed integers, and scales."""

    class Packed(nn.Module):
        def __init__(self, linear):
            super().__init__()
            self.in_features, self.out_features, self.bias = linear.in_features, linear.out_features, linear.bias
            scale = linear.weight.detach().abs().amax(dim=1, keepdim=True) / 127
            self.register_buffer("qweight", (linear.weight.detach() / scale).round().to(torch.int8))
            self.register_buffer("scales", scale)

        def forward(self, states):
            return nn.functional.linear(states, self.qweight.to(states.dtype) * self.scales, self.bias)

    for layer in layers(model):
        for owner in (layer.self_attn, layer.mlp):
            for name, linear in list(owner.named_children()):
                if isinstance(linear, nn.Linear):
                    setattr(owner, name, Packed(linear))
    checks = selfcheck(model, MINI.batch([MINI.prompt(0), MINI.prompt(1, 2)]))
    assert all(check.ok for check in checks), [check for check in checks if not check.ok]
