"""``halfv bench``: how fast a model runs under a plan, beside the untouched model, in one process."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from halfv_cli.options import AUTO_DTYPE, MODEL_HELP, Device
from halfv_cli.plans import PlanText, ProfileOrPlan, plan_on, read_plan
from halfv_cli.progress import progress

if TYPE_CHECKING:
    from halfv_accel import Plan, Profile
    from halfv_accel.bench import BreakEven, Comparison
    from halfv_accel.bench.results import Quantity, Ratio

RANDOM_NAMES = (
    "llava-1.5-7b, llava-1.5-13b, llava-next-mistral-7b (or llava-next-7b), qwen2-vl-7b, qwen2.5-vl-7b, qwen3-vl-4b, "
    "mid (fits a laptop)"
)
BREAK_EVEN_SIDE = 4  # LLaVA with random weights gets pictures of 16 tokens, so that nearly every number can be had
DOUBT, FEW = "spread too large to conclude", "too few rounds to conclude"
ROWS = (
    ("vision encoder (ms)", "vision_ms", 1),
    ("LLM prefill (ms)", "prefill_ms", 1),
    ("time to first token (ms)", "ttft_ms", 1),
    ("decode per token (ms)", "decode_ms", 1),
    ("tokens/s", "tokens_per_s", 1),
    ("peak memory (MiB)", "peak_mib", 1),
    ("KV cache (MiB)", "cache_bytes", 2**20),
    ("selection (ms)", "selection_ms", 1),
    ("accelerate() (ms)", "install_ms", 1),
    ("selection (% of TTFT)", "selection_share", 0.01),
)


def bench(
    model: Annotated[str, typer.Option(help=f"{MODEL_HELP} With --random-weights: {RANDOM_NAMES}.")],
    profile: ProfileOrPlan = None,
    plan: PlanText = None,
    random_weights: Annotated[
        bool, typer.Option("--random-weights", help="Build the true size without a checkpoint: speed is the same.")
    ] = False,
    visual_tokens: Annotated[int, typer.Option(min=1, help="Of each prompt, or the nearest that can be had.")] = 2352,
    text_tokens: Annotated[int, typer.Option(min=4, help="Of each prompt.")] = 50,
    new_tokens: Annotated[int, typer.Option(min=2, help="Generated for each prompt.")] = 32,
    batch: Annotated[str, typer.Option(help="Batch sizes, such as 1,8.")] = "1",
    ragged: Annotated[
        bool, typer.Option("--ragged", help="Rows from half of the visual tokens to all of them, padded.")
    ] = False,
    repeats: Annotated[int, typer.Option(min=1, help="Rounds in which every variant runs once.")] = 20,
    break_even: Annotated[
        bool, typer.Option("--break-even", help="Find from how many visual tokens on the plan pays off.")
    ] = False,
    write_profile: Annotated[
        bool, typer.Option("--write-profile", help="With --break-even: keep that number in the profile.")
    ] = False,
    attention: Annotated[str, typer.Option(help="sdpa, eager, flash_attention_2.")] = "sdpa",
    device: Device = "auto",
    dtype: Annotated[
        str,
        typer.Option(help=f"{AUTO_DTYPE}, float32, bfloat16, float16. Random weights: auto is bfloat16 on a GPU."),
    ] = "auto",
    seed: Annotated[int, typer.Option(min=0, help="Of weights, pictures, words and bootstrap.")] = 0,
    out: Annotated[Path, typer.Option(help="Where all figures go, with their provenance.")] = Path("bench.json"),
    chart: Annotated[Path | None, typer.Option(help="Draw bars, too: .png, .pdf or .svg.", show_default=False)] = None,
) -> None:
    """Time the untouched and the accelerated model in turn, and say what the choice of tokens costs.

    Beside the plan run the same plan keeping everything (what the hooks cost), choosing by attention as FastV does, and
    choosing at random. Every speedup is a median of paired runs with a 95 % interval.
    """
    sizes = _batch_sizes(batch, break_even)
    _check_options(profile, break_even, write_profile, ragged, chart)
    from halfv_accel import Profile, accelerate
    from halfv_accel.bench import describe_plan, find_break_even, provenance
    from halfv_accel.files import check_writable
    from halfv_accel.names import PAPER

    check_writable(out)
    if chart is not None:
        from halfv_probe.views.bench_chart import check_chart_path

        check_chart_path(chart)
    asked = read_plan(profile, plan, model)
    loaded = asked if isinstance(asked, Profile) else None
    side = _side(visual_tokens, break_even)
    vlm = _open(model, loaded, random_weights, device, dtype, seed, side, attention)
    stages = plan_on(vlm, asked)
    _check_shrinking(vlm, stages, break_even)
    accelerate(vlm, stages.inside)  # says at once whether plan and model go together
    source = "Table 9" if plan == PAPER else "--plan" if profile is None else str(profile)
    settings = dict(model=model, random_weights=random_weights, seed=seed, repeats=repeats, plan_source=source)
    settings |= dict(asked_visual_tokens=visual_tokens, asked_text_tokens=text_tokens, batch=sizes, ragged=ragged)
    document = {"provenance": provenance(vlm, plan=describe_plan(stages), **settings)}
    if break_even:
        with progress("sizes") as show:
            tried = partial(show, "break-even")
            found = find_break_even(vlm, stages, visual_tokens, text_tokens, sizes[0], repeats, seed, tried)
        _save({**document, "break_even": found.as_dict()}, out)
        _print_break_even(found, model, repeats, out)
        if write_profile and loaded is not None and profile is not None:
            _keep(found, loaded, profile)
        return
    comparisons: list[Comparison] = []
    for size in sizes:
        tokens = (visual_tokens, text_tokens, new_tokens)
        comparisons.append(_compare(vlm, stages, size, tokens, ragged, repeats, seed))
        _save({**document, "comparisons": [done.as_dict() for done in comparisons]}, out)
        _print_comparison(comparisons[-1], f"{model}, {describe_plan(stages)}")
    if chart is not None:
        from halfv_probe.views.bench_chart import bench_chart

        bench_chart(comparisons, f"{model}, {describe_plan(stages)}", chart)
    typer.echo(f"wrote {out}" + ("" if chart is None else f" and {chart}"))


def _batch_sizes(text: str, break_even: bool) -> list[int]:
    from halfv_accel import HalfVError

    words = [word.strip() for word in text.split(",")]
    if not all(word.isdecimal() and 1 <= int(word) <= 4096 for word in words):
        raise HalfVError(f"--batch is {text!r}: give whole numbers of at least 1, separated by commas, such as 1,8")
    if break_even and len(words) > 1:
        raise HalfVError(f"--batch is {text!r}, and --break-even measures one batch size: give one number")
    return [int(word) for word in words]


def _check_options(
    profile: Path | None, break_even: bool, write_profile: bool, ragged: bool, chart: Path | None
) -> None:
    """Options that make sense only together, or not together."""
    from halfv_accel import HalfVError

    if write_profile and (profile is None or not break_even):
        raise HalfVError("--write-profile keeps what --break-even finds in a profile: add --break-even and --profile")
    if break_even and ragged:
        raise HalfVError("--break-even measures rows of equal length: leave --ragged out")
    if break_even and chart is not None:
        raise HalfVError("--chart draws a comparison, and --break-even makes none: leave one of them out")


def _check_shrinking(vlm: Any, plan: Plan, break_even: bool) -> None:
    from halfv_accel import HalfVError
    from halfv_accel.downsample import check_model_shrinks

    if plan.shrinks:
        check_model_shrinks(vlm)
    if plan.shrinks and break_even:
        raise HalfVError(
            "--break-even asks from how many visual tokens on choosing pays off, and downsample chooses none: "
            "leave it out of --plan"
        )


def _side(visual_tokens: int, break_even: bool) -> int:
    """Of the pictures of a LLaVA with random weights."""
    from halfv_accel.bench.prompts import best_side

    return BREAK_EVEN_SIDE if break_even else best_side(visual_tokens)


def _open(
    name: str,
    profile: Profile | None,
    random_weights: bool,
    device: str,
    dtype: str,
    seed: int,
    side: int,
    attention: str,
) -> Any:
    """The model, with or without a checkpoint, under the wanted attention."""
    import torch

    from halfv_accel import HalfVError
    from halfv_accel.bench import build
    from halfv_accel.models import find_device, find_dtype
    from halfv_cli.models import open_model

    place, precision = find_device(device), find_dtype(dtype)
    if place.type not in ("cpu", "cuda"):
        raise HalfVError(f"device '{place}' has no clock that this command can read: choose cpu or cuda")
    if random_weights:
        if not isinstance(precision, torch.dtype):
            precision = torch.bfloat16 if place.type == "cuda" else torch.float32
        vlm = build(name, place, precision, seed, side)
        _check_build(profile, vlm, name)
    else:
        vlm, _ = open_model(name, device, dtype)
        if profile is not None:
            profile.check(vlm)
    try:
        vlm.set_attn_implementation(attention)
    except (ValueError, ImportError, KeyError) as error:
        raise HalfVError(f"attention '{attention}' is not available here: choose sdpa or eager") from error
    return vlm


def _check_build(profile: Profile | None, vlm: Any, name: str) -> None:
    """A profile of the same architecture serves random weights, too; their pictures may have another size."""
    from halfv_accel import HalfVError

    text = vlm.config.get_text_config()
    there = (type(vlm).__name__, text.num_hidden_layers, text.hidden_size)
    if profile is not None:
        mine = (profile.model.architecture, profile.model.num_layers, profile.model.hidden_size)
        if mine != there:
            raise HalfVError(
                f"the profile was made for {mine[0]} with {mine[1]} layers of width {mine[2]}, but {name} is "
                f"{there[0]} with {there[1]} layers of width {there[2]}: give the preset that fits"
            )


def _compare(
    vlm: Any, plan: Plan, batch: int, tokens: tuple[int, int, int], ragged: bool, repeats: int, seed: int
) -> Comparison:
    from halfv_accel.bench import build_prompt, compare

    visual, text, new = tokens
    prompt = build_prompt(vlm, visual, text, batch, ragged, seed)
    if prompt.visual[0] != visual:
        typer.echo(f"note: {prompt.visual[0]} visual tokens, the nearest to {visual} that this model allows", err=True)
    if max(prompt.visual) < plan.min_visual_tokens:
        typer.echo(
            f"note: the plan leaves prompts of fewer than {plan.min_visual_tokens} visual tokens alone", err=True
        )
    with progress("rounds") as show:
        return compare(vlm, plan, prompt, new, repeats, seed, partial(show, f"batch {batch}"))


def _save(document: dict[str, Any], out: Path) -> None:
    from halfv_accel.files import write_atomically

    write_atomically(out, (json.dumps(document, indent=2) + "\n").encode())


def _print_comparison(comparison: Comparison, name: str) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    title = f"{name}: {comparison.headline}, {comparison.new_tokens} new"
    caption = f"median (interquartile range) of {comparison.rounds} interleaved rounds; {_legend(comparison.rounds)}"
    variants = comparison.variants
    names = [variant.name for variant in variants]
    table = Table(
        "", *names, title=Text(title), caption=caption, box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True
    )
    for label, quantity, unit in ROWS:
        found = [variant.quantities[quantity] for variant in variants]
        if any(found):  # the CPU has no peak memory
            table.add_row(label, *(_quantity(each, unit) for each in found))
    for kind in ("exact", "paper", "selection"):
        table.add_row(f"{kind} TFLOPs", *(f"{getattr(variant.flops, kind) / 1e12:.4g}" for variant in variants))
    for label, ratio in (("prefill", "prefill_speedup"), ("TTFT", "ttft_speedup"), ("decode", "decode_speedup")):
        ratios = [getattr(variant, ratio) for variant in variants]
        table.add_row(f"{label} speedup", *(_ratio(found, "x") for found in ratios))
    table.add_row("EFFICIENCY", *(_ratio(variant.efficiency) for variant in variants))
    Console().print(table)
    doubts = [f"{variant.name} ({', '.join(variant.doubtful)})" for variant in variants if variant.doubtful]
    _warn(doubts, comparison.rounds)


def _warn(doubts: list[str], rounds: int) -> None:
    """Say on stderr what cannot be concluded, and what would help."""
    if doubts:
        help_ = "more --repeats or a quieter machine" if _doubt(rounds) == DOUBT else "--repeats 20"
        typer.echo(f"warning: {_doubt(rounds)}: {'; '.join(doubts)}; {help_} would help", err=True)


def _legend(rounds: int) -> str:
    return f"ratios with 95 % intervals, ?: {_doubt(rounds)}"


def _doubt(rounds: int) -> str:
    from halfv_accel.bench.results import FEWEST_ROUNDS

    return DOUBT if rounds >= FEWEST_ROUNDS else FEW


def _quantity(quantity: Quantity | None, unit: float) -> str:
    return "-" if quantity is None else f"{_short(quantity.median / unit)} ({_short(quantity.iqr / unit)})"


def _short(number: float) -> str:
    return f"{number:.0f}" if number >= 1000 else f"{number:.3g}"


def _ratio(ratio: Ratio | None, unit: str = "") -> str:
    if ratio is None:
        return "-"
    doubt = "" if ratio.conclusive else " ?"
    return f"{ratio.median:.2f}{unit}{doubt}\n{ratio.low:.2f}-{ratio.high:.2f}"


def _print_break_even(found: BreakEven, model: str, rounds: int, out: Path) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    columns = ("visual tokens", "untouched (ms)", "accelerated (ms)", "prefill speedup")
    table = Table(*columns, title=Text(model), caption=_legend(rounds))
    for size in found.sizes:
        times = (_quantity(size.untouched_ms, 1), _quantity(size.accelerated_ms, 1))
        table.add_row(str(size.visual_tokens), *times, _ratio(size.speedup, "x"))
    Console().print(table)
    if found.visual_tokens is None:
        most = found.sizes[-1].visual_tokens
        typer.echo(f"up to {most} visual tokens the plan does not pay off here; wrote {out}")
    else:
        least = ", the smallest number tried" if found.visual_tokens == found.sizes[0].visual_tokens else ""
        typer.echo(f"the plan pays off from {found.visual_tokens} visual tokens on{least}; wrote {out}")
    _warn([f"{size.visual_tokens} visual tokens" for size in found.sizes if not size.speedup.conclusive], rounds)


def _keep(found: BreakEven, profile: Profile, path: Path) -> None:
    """Write the number into the profile, if there is one to write."""
    if found.visual_tokens is None:
        typer.echo(f"warning: {path} stays as it is, because no break-even was found", err=True)
        return
    if not found.certain:
        typer.echo(f"warning: {path} stays as it is, because that could be chance: give more --repeats", err=True)
        return
    from halfv_accel.profile import SCHEMA_VERSION

    known = {"min_visual_tokens": found.visual_tokens, "schema_version": SCHEMA_VERSION}
    profile.model_copy(update=known).save(path)
    typer.echo(f"wrote min_visual_tokens {found.visual_tokens} into {path}")
