"""Laws of farthest points, for every way to compute them.

Triton's interpreter runs the kernel on the CPU. It is chosen by TRITON_INTERPRET when triton is first imported, for the
whole process, and then nothing can be compiled there. So the laws are collected twice: in this process for the torch
path (and for the compiled kernel, where there is CUDA), and for the interpreter in a process of its own, which
`test_the_laws_hold_in_the_interpreter` starts.
"""

import os
import subprocess
import sys
from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from halfv_accel.strategies import farthest_points as plain

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
WIDTH = 9
HALF_AND_FULL = [torch.float32, torch.bfloat16, torch.float16]
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no CUDA")
needs_triton = pytest.mark.skipif(sys.platform != "linux", reason="Triton is released for Linux only")


def torch_way(device, **constants):
    def grow(*arguments):
        with patch.multiple(plain, triton_works=lambda: False, **constants):
            return plain.farthest_points(*(each.to(device) for each in arguments)).cpu()

    return grow


def kernel_way(device, **constants):
    def grow(*arguments):
        from halfv_accel.kernels import farthest_points as kernel

        with patch.multiple(kernel, **constants):
            return kernel.farthest_points(*(each.to(device) for each in arguments)).cpu()

    return grow


class Idle:
    """In place of a kernel: does nothing."""

    def __getitem__(self, grid):
        return lambda *arguments, **options: None


TORCH = {"table": dict(SMALL=10**8), "pools": dict(SMALL=0, TABLE=0, POOL=2, ANCHORS=2), "as-it-is": {}}
KERNEL = {
    "table": dict(TABLE_BYTES=2**30),
    "tables-in-parts": dict(TABLE_BYTES=2 * 4 * WIDTH * WIDTH),
    "pools": dict(TABLE_BYTES=0, POOL=1, _grow_from_states=Idle()),  # every round makes a pick, so nothing is left
    "states": dict(TABLE_BYTES=0, ROUNDS=0, TILE=8),
    "pools-then-states": dict(TABLE_BYTES=0, ROUNDS=2, POOL=3, TILE=8),
}


def ways():
    if INTERPRETED:
        return [
            pytest.param(kernel_way("cpu", **constants), id=f"interpreter-{name}") for name, constants in KERNEL.items()
        ]
    found = [pytest.param(torch_way("cpu", **constants), id=f"torch-{name}") for name, constants in TORCH.items()]
    if not torch.cuda.is_available():
        return [*found, pytest.param(None, id="cuda", marks=needs_cuda)]
    found += [
        pytest.param(torch_way("cuda", **constants), id=f"cuda-torch-{name}") for name, constants in TORCH.items()
    ]
    return found + [
        pytest.param(kernel_way("cuda", **constants), id=f"cuda-{name}") for name, constants in KERNEL.items()
    ]


few = settings(max_examples=12 if INTERPRETED else 50)  # the interpreter is slow
every_way = pytest.mark.parametrize("way", ways())


@st.composite
def batches(draw):
    """States of entries +-1 in 4 dimensions, of at most 4 kinds; present places with gaps; anchors; a budget.

    Such states have norm 2, so that all arithmetic of farthest points is exact and ties are real ties.
    """
    rows = draw(st.integers(1, 3))
    kinds = draw(st.lists(st.lists(st.sampled_from([-1.0, 1.0]), min_size=4, max_size=4), min_size=1, max_size=4))
    states, places, anchors, budget = [], [], [], []
    for _ in range(rows):
        states.append([kinds[draw(st.integers(0, len(kinds) - 1))] for _ in range(WIDTH)])
        places.append(draw(st.lists(st.integers(0, WIDTH - 1), unique=True).map(sorted)))
        budget.append(draw(st.integers(0, len(places[-1]))))
        anchors.append(draw(st.permutations(places[-1]))[: draw(st.integers(0, budget[-1]))])
    return torch.tensor(states), places, anchors, budget


def naive_farthest(states, places, anchors, budget):
    """Eq. 5 by comparing all distances; equal distances go to the lowest index."""
    unit = states.double() / states.double().norm(dim=-1, keepdim=True)
    chosen = list(anchors) if anchors else places[: min(1, budget)]
    while len(chosen) < budget:
        rest = [i for i in places if i not in chosen]
        chosen.append(max(rest, key=lambda i: (min(float((unit[i] - unit[c]).square().sum()) for c in chosen), -i)))
    return set(chosen)


def as_mask(rows, width=WIDTH):
    mask = torch.zeros(len(rows), width, dtype=torch.bool)
    for row, places in enumerate(rows):
        mask[row, list(places)] = True
    return mask


def tensors(case, width=WIDTH):
    states, places, anchors, budget = case
    return states, as_mask(places, width), as_mask(anchors, width), torch.tensor(budget)


def naive(case, width=WIDTH):
    return as_mask([naive_farthest(*row) for row in zip(*case, strict=True)], width)


def random_case(seed, dtype=torch.float32, rows=2, width=21, hidden=11, budget=12):
    """No ties, and distances that differ by more than rounding does; every second row begins without anchors."""
    generator = torch.Generator().manual_seed(seed)
    states = torch.randn(rows, width, hidden, generator=generator).to(dtype)
    places = [
        torch.randperm(width, generator=generator)[: width - 3 * row].sort().values.tolist() for row in range(rows)
    ]
    anchors = [places[row][2:12:4] if row % 2 else [] for row in range(rows)]
    return states, places, anchors, [budget - row for row in range(rows)]


@every_way
@few
@given(case=batches(), dtype=st.sampled_from(HALF_AND_FULL))
def test_they_equal_the_naive_greedy(way, case, dtype):
    states, *rest = tensors(case)
    assert torch.equal(way(states.to(dtype), *rest), naive(case))


@every_way
@pytest.mark.parametrize("dtype", HALF_AND_FULL)
@pytest.mark.parametrize("seed", range(2))
def test_they_equal_the_naive_greedy_and_the_torch_path_on_random_states(way, seed, dtype):
    case = random_case(seed, dtype)
    chosen = way(*tensors(case, 21))
    assert torch.equal(chosen, naive(case, 21))
    assert torch.equal(chosen, plain.farthest_points(*tensors(case, 21)))


@every_way
@few
@given(case=batches(), seed=st.integers(0, 9))
def test_they_ignore_length(way, case, seed):
    """Only directions count."""
    states, *rest = tensors(case)
    lengths = 2.0 ** torch.randint(-3, 4, (*states.shape[:2], 1), generator=torch.Generator().manual_seed(seed))
    assert torch.equal(way(states * lengths, *rest), way(states, *rest))


@every_way
@few
@given(case=batches(), strange=st.sampled_from([torch.nan, torch.inf, 0.0]), place=st.integers(0, WIDTH - 1))
def test_a_strange_state_does_not_change_how_many_are_chosen(way, case, strange, place):
    states, present, anchors, budget = tensors(case)
    states[:, place, 0] = strange
    chosen = way(states, present, anchors, budget)
    assert chosen.sum(1).tolist() == budget.tolist()
    assert not (chosen & ~present).any()
    assert not (anchors & ~chosen).any()


@every_way
@pytest.mark.parametrize("dtype", HALF_AND_FULL)
def test_they_ignore_how_tensors_lie_in_memory(way, dtype):
    arguments = tensors(random_case(0, dtype), 21)
    turned = [each.transpose(0, -1).contiguous().transpose(0, -1) for each in arguments]
    assert torch.equal(way(*turned), way(*arguments))


@every_way
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_directions_are_not_rounded_to_half_precision(way, dtype):
    """Points of a grid: exact in half precision, unlike their directions, which differ by less than its rounding."""
    place = torch.arange(2.0, 32.0)
    states = torch.stack([100 + place.remainder(7), 90 + 3 * place.remainder(11)], dim=-1)[None].to(dtype)
    case = states, [list(range(30))], [[4]], [14]
    assert torch.equal(way(*tensors(case, 30)), naive(case, 30))


@every_way
@pytest.mark.parametrize("shape", [(0, 5, 4), (2, 0, 4)])
def test_nothing_is_chosen_from_nothing(way, shape):
    none = torch.zeros(shape[:2], dtype=torch.bool)
    assert torch.equal(way(torch.zeros(shape), none, none, torch.zeros(shape[0], dtype=torch.long)), none)


@pytest.mark.parametrize("precision", ["high", "medium"])
def test_settings_for_fast_products_do_not_reach_the_cosines(precision):
    """Where TF32 or bfloat16 products are allowed, near neighbours would become equal."""
    backends = torch.backends.cuda.matmul, torch.backends.mkldnn.matmul
    seen, grow, before = [], plain._grow, torch.get_float32_matmul_precision()

    def watched(*arguments):
        seen.extend(backend.fp32_precision for backend in backends)
        return grow(*arguments)

    try:
        torch.set_float32_matmul_precision(precision)
        with patch.object(plain, "_grow", watched):
            plain.farthest_points(*tensors(random_case(0), 21))
        assert torch.get_float32_matmul_precision() == precision
    finally:
        torch.set_float32_matmul_precision(before)
    assert seen == ["ieee", "ieee"]


class NoLookAtValues(TorchDispatchMode):
    """Fails where the host would read a value, or a size that depends on values, from the device."""

    READS = ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal", "_unique2")

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func.overloadpacket.__name__ not in self.READS, func
        return func(*args, **(kwargs or {}))


@pytest.mark.skipif(not INTERPRETED, reason="test_the_laws_hold_in_the_interpreter runs it")
@pytest.mark.parametrize("constants", KERNEL.values(), ids=list(KERNEL))
@pytest.mark.parametrize("dtype", HALF_AND_FULL)
def test_the_host_looks_at_no_value_in_the_interpreter(constants, dtype):
    """The kernels themselves are left out: the interpreter is the host."""
    from halfv_accel.kernels import farthest_points as kernel

    case = tensors(random_case(0, dtype, width=WIDTH, budget=4))
    with patch.multiple(kernel, **{**constants, "_grow_from_rows": Idle(), "_grow_from_states": Idle()}):
        with NoLookAtValues():
            kernel.farthest_points(*case)
        with pytest.raises(AssertionError, match="_local_scalar_dense"), NoLookAtValues():
            int(case[3].max())  # it would have seen one


@needs_cuda
@pytest.mark.parametrize("constants", KERNEL.values(), ids=list(KERNEL))
def test_cuda_never_waits_and_the_kernel_is_chosen(constants):
    from halfv_accel.kernels import farthest_points as kernel

    arguments = [each.cuda() for each in tensors(random_case(0), 21)]
    with patch.multiple(kernel, **constants):
        plain.farthest_points(*arguments)  # compiles
        torch.cuda.set_sync_debug_mode("error")
        try:
            with patch.object(kernel, "farthest_points", wraps=kernel.farthest_points) as chosen:
                plain.farthest_points(*arguments)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    chosen.assert_called_once()


@needs_triton
@pytest.mark.skipif(INTERPRETED, reason="nothing can be compiled where Triton interprets")
@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
def test_the_kernels_compile(dtype, tmp_path, monkeypatch):
    """The interpreter takes more than the compiler does. No GPU is needed to compile for one (Hopper: 9.0)."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from halfv_accel.kernels import farthest_points as kernel

    counts = dict(nearest="*fp32", left="*i64", width="i32")
    rows = dict(rows="*fp32", slots="*i32", **counts, pool="i32", TABLE="constexpr", BLOCK="constexpr")
    states = dict(vectors=f"*{dtype}", scale="*fp32", **counts, first="*i64", hidden="i32")
    states |= dict(TOKENS="constexpr", COLUMNS="constexpr")
    variants = [
        (kernel._grow_from_states, states, dict(TOKENS=kernel.TILE, COLUMNS=kernel.TILE)),
        *((kernel._grow_from_rows, rows, dict(TABLE=table, BLOCK=2048)) for table in (True, False)),
    ]
    for function, signature, constants in variants:
        signature = {name: signature[name] for name in function.arg_names}
        source = ASTSource(function, signature, constants)
        assert triton.compile(source, target=GPUTarget("cuda", 90, 32), options=dict(num_warps=8)).asm["cubin"]


@needs_triton
@pytest.mark.skipif(INTERPRETED, reason="this is it")
def test_the_laws_hold_in_the_interpreter():
    command = [sys.executable, "-m", "pytest", "-k", "interpreter and not laws", "-p", "no:cacheprovider", __file__]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and "skipped" not in done.stdout, done.stdout[-4000:] + done.stderr[-2000:]
