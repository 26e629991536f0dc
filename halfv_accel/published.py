"""The published methods, as data: stages, defaults, sources, and what ours does otherwise.

Where a source gives layers for a model of another depth, they are scaled by depth, and so said. Shares of "192 tokens"
and the like are of LLaVA-1.5's 576.
"""

from __future__ import annotations

from typing import Any

from halfv_accel.downsample import Downsample
from halfv_accel.methods import Method, Step

LLAVA_SINGLE, QWEN_SINGLE = 1 / 3, 0.222  # Table 10 of the HalfV paper, single-stage methods at layer 2
SCALED = "other depths: scaled"
HALFV = "HalfV (submitted 2025)"


def _before(retention: float) -> tuple[Step, ...]:
    """One stage before the language model."""
    return (Step(0, retention=retention),)


def _steps(of: int, *stages: tuple[int, float], **changed: Any) -> tuple[Step, ...]:
    """Stages of a model of so many layers: layer and retention of each."""
    return tuple(Step(layer, of, retention, **changed) for layer, retention in stages)


HALFV_LLAVA = (
    Step(3, 32, 0.5, strategy="anchor_cover", parameters={"anchor_ratio": 0.2}),
    Step(15, 32, 0.0, strategy="keep_none", then="freeze"),
)
HALFV_QWEN = (
    Step(2, 28, 0.25, strategy="anchor_cover"),
    Step(21, 28, 0.05, strategy="last_token_attention"),
)
BTP_LLAVA = (
    Step(3, 32, 1 / 2),
    Step(6, 32, 1 / 4, parameters={"spatial": 0.0, "attention": 0.9, "widen": 1.5}),
    Step(14, 32, 1 / 12, parameters={"spatial": 0.0, "attention": 1.0, "widen": 1.2}),
    Step(22, 32, 0.0, strategy="keep_none"),
)
BTP_QWEN = (
    Step(3, 28, 1 / 2, parameters={"spatial": 0.0, "attention": 0.12, "widen": 1.0}),
    Step(6, 28, 1 / 4, parameters={"spatial": 0.0, "attention": 0.4, "widen": 1.0}),
    Step(15, 28, 1 / 8, parameters={"spatial": 0.0, "attention": 1.0, "widen": 1.2}),
    Step(22, 28, 0.0, strategy="keep_none"),
)
INSIDE = (
    Method(
        "halfv",
        "HalfV",
        HALFV,
        "anchor_cover",
        HALFV_LLAVA,
        "Table 9: LLaVA-1.5-7B's row, for Qwen Qwen2.5-VL-7B's; " + SCALED + ". `paper` is a model's own row",
        "public code: no 1/sqrt(d) in scores, states behind the final norm (`fidelity=reference` does the same); its "
        "frozen attention is broken",
        reads_text=True,
        by_family={"qwen": HALFV_QWEN},
    ),
    Method(
        "fastv",
        "FastV",
        "Chen et al. 2024, arXiv 2403.06764",
        "fastv",
        (Step(2, retention=0.5),),
        "its paper (K = 2, R = 50 %); Qwen: Table 10 of the HalfV paper",
        "public code runs layer K - 1 twice, fixes where the picture is, and its mask-only mode saves nothing",
        reads_text=True,
        by_family={"qwen": (Step(2, retention=QWEN_SINGLE),)},
    ),
    Method(
        "vtw",
        "VTW",
        "Lin et al. 2024, arXiv 2405.05803",
        "keep_none",
        (Step(16, 32, 0.0),),
        "half of the depth, as the HalfV paper runs it (App. I.5); `halfv calibrate --method vtw` finds K from KL",
        "public code has K = 15 for LLaVA-1.5-7B. Reading text in pictures collapses",
        calibrated=True,
    ),
    Method(
        "pdrop",
        "PyramidDrop",
        "Xing et al. 2024, arXiv 2410.17247",
        "fastv",
        _steps(32, (8, 0.5), (16, 0.25), (24, 0.125)),
        "public code, LLaVA-1.5-7B; " + SCALED,
        "public code gives positions anew and refuses left padding; ours keeps positions",
        reads_text=True,
        parameters={"scored_by": "own"},
    ),
    Method(
        "sparsevlm",
        "SparseVLM",
        "Zhang et al. 2024, arXiv 2410.04417",
        "sparsevlm",
        _steps(32, (2, 300 / 576), (6, 200 / 576), (15, 110 / 576)),
        "public code, LLaVA-1.5-7B at 192 tokens on average; " + SCALED + ". lambda of the adaptive count is ours",
        "public code never looks at the rank, adds recycled tokens to the budget and gives positions anew",
        reads_text=True,
    ),
    Method(
        "fitprune",
        "FitPrune",
        "Ye et al. 2024, arXiv 2409.10197",
        "fitprune",
        (Step(2, retention=LLAVA_SINGLE),),
        "one stage as in Table 10 of the HalfV paper; `halfv calibrate --method fitprune` finds its own counts",
        "public code takes the largest head of each query, which needs the dense map; ours takes it of the mean",
        reads_text=True,
        calibrated=True,
        by_family={"qwen": (Step(2, retention=QWEN_SINGLE),)},
    ),
    Method(
        "dart",
        "DART",
        "Wen et al. 2025, arXiv 2502.11494",
        "dart",
        (Step(5, 32, 0.222),),
        "LightCompress's port, LLaVA-1.5-7B; " + SCALED,
        "public code depends on the order of a set, and keeps another number than was asked for",
        reads_text=True,
    ),
    Method(
        "btp",
        "Balanced Token Pruning",
        "Li et al. 2025, arXiv 2505.22038",
        "btp",
        BTP_LLAVA,
        "public code, LLaVA-1.5-7B and Qwen2.5-VL-7B; " + SCALED,
        "public code's three sets overlap by chance, so that no budget is exact; ours fills up by farthest points",
        reads_text=True,
        by_family={"qwen": BTP_QWEN},
    ),
    Method(
        "shortv",
        "ShortV",
        "Yuan et al. 2025",
        "keep_none",
        (),
        "none: which layers it skips has to be measured; 19 of 32 for LLaVA-1.5-7B (Table 10 of the HalfV paper)",
        "a plan of it is skip:3+4+9; `halfv calibrate --method shortv` finds the layers",
        calibrated=True,
    ),
    Method(
        "infoprune_mid",
        "InfoPrune, stage 2",
        "InfoPrune (submitted 2025), Eq. 9",
        "fastv",
        (Step(16, 32, 1 / 3),),
        "half of the depth (its K of LLaVA and of Qwen); " + SCALED,
        "no public code was seen; the flow of saliency only motivates K",
        reads_text=True,
    ),
)
E32 = 64 / 576
BEFORE = (
    Method(
        "infoprune",
        "InfoPrune, both stages",
        "InfoPrune (submitted 2025), Algorithm 1, Eq. 6-9",
        "infoprune",
        (Step(0, retention=1 / 6), Step(16, 32, 1 / 18, strategy="fastv")),
        "R1 = 16.7 %, R2 = a third of these (its Table 4); " + SCALED,
        "no public code was seen; saturation and inertia have no value in the paper, which sets K by hand; "
        "`halfv calibrate --method infoprune` finds it by semantic maturity",
        calibrated=True,
        reads_text=True,
        by_family={
            "qwen": (
                Step(0, retention=1 / 6, parameters={"pool": 3.0}),
                Step(14, 28, 1 / 18, strategy="fastv"),
            )
        },
    ),
    Method(
        "visionzip",
        "VisionZip",
        "Yang et al. 2024, arXiv 2412.04467",
        "visionzip",
        _before(E32),
        "54 + 10 of LLaVA-1.5's 576 tokens, as a share",
        "paper and code merge in front of the projector, ours behind it; code adds the mean to the target, ours takes "
        "the mean of all",
    ),
    Method(
        "fastervlm",
        "FasterVLM",
        "Zhang et al. 2024, arXiv 2412.01818v1",
        "cls_attention",
        _before(E32),
        "64 of LLaVA-1.5's 576 tokens, as a share; the method leaves the number to the user",
        "towers without a CLS token rank by the attention that a patch receives",
    ),
    Method(
        "vispruner",
        "VisPruner",
        "Zhang et al. 2024, arXiv 2412.01818v2",
        "vispruner",
        _before(E32),
        "64 of LLaVA-1.5's 576 tokens, as a share",
        "public code lets one round reorder the next one's tokens; ours keeps the picture's order",
    ),
    Method(
        "prumerge",
        "PruMerge+",
        "Shang et al. 2024, arXiv 2403.15388",
        "prumerge",
        _before(0.25),
        "a quarter, as it keeps on average; `prumerge::0.05-0.5` lets it decide",
        "public code adds sums that are not normalised, and one token for all that was dropped; ours merges by the "
        "mean, behind the projector",
    ),
    Method(
        "holov",
        "HoloV",
        "Zou et al. 2025, arXiv 2510.02912",
        "holov",
        _before(E32),
        "64 of LLaVA-1.5's 576 tokens, as a share; 16 crops and alpha = 0.09 are the code's",
        "public code ranks inside a crop by attention alone; the second look at the picture is not built",
    ),
    Method(
        "hired",
        "HiRED",
        "Arif et al. 2024, arXiv 2408.10945",
        "hired",
        _before(0.2),
        "its paper, LLaVA-NeXT; where a picture has no crops it is top-k",
        "public code counts top tokens for each region, the paper sums their attention, as ours",
    ),
    Method(
        "divprune",
        "DivPrune",
        "Alvar et al. 2025, arXiv 2503.02175",
        "divprune",
        _before(0.098),
        "public code, LLaVA-1.5",
        "public code looks at the first sample of a batch only, and at fixed places",
    ),
    Method(
        "farthest_points",
        "Farthest point sampling",
        "baseline of AdaVTP (submitted 2025), Table 8",
        "farthest_points",
        _before(E32),
        "64 of LLaVA-1.5's 576 tokens, as a share",
        "the first point is the row's first token; distances are between directions",
    ),
    Method(
        "cdpruner",
        "CDPruner",
        "Zhang et al. 2025, arXiv 2506.10967",
        "cdpruner",
        _before(E32),
        "64 of LLaVA-1.5's 576 tokens, as a share",
        "relevance from the projected features and the prompt's embeddings, as openvino.genai does without a text "
        "tower; scaled in each row and not over the batch",
        reads_text=True,
    ),
    Method(
        "adavtp",
        "AdaVTP",
        "AdaVTP (submitted 2025), Eq. 6, App. B.5",
        "adavtp",
        _before(E32),
        "64 of LLaVA-1.5's 576 tokens (Table 7), as a share; erank_avg is LLaVA's: `halfv calibrate --method adavtp` "
        "measures it",
        "tau_max has no value in the paper; the highest attention fills up what the threshold leaves",
        calibrated=True,
    ),
    Method(
        "erank_vispruner",
        "VisPruner + AdaVTP",
        "AdaVTP (submitted 2025), Table 5",
        "erank_vispruner",
        _before(E32),
        "64 of LLaVA-1.5's 576 tokens, as a share",
        "the weighting's slope has no value in the paper",
        calibrated=True,
    ),
    Method(
        "erank_bat",
        "BAT + AdaVTP",
        "AdaVTP (submitted 2025), Table 5; BAT: Long et al. 2023, arXiv 2211.11315",
        "erank_bat",
        _before(E32),
        "64 of LLaVA-1.5's 576 tokens, as a share",
        "clusters by density peaks; BAT's pairing of attentive tokens is left out",
        calibrated=True,
    ),
    Method(
        "erank_divprune",
        "DivPrune + FasterVLM",
        "AdaVTP (submitted 2025), Table 6",
        "erank_divprune",
        _before(E32),
        "64 of LLaVA-1.5's 576 tokens, as a share",
        "how the two meet is not said: ours takes DivPrune among what attention has not taken",
        calibrated=True,
    ),
)
PICTURE = (
    Method(
        "downsample",
        "Downsampling",
        "VTC-Bench (2025)",
        "",
        (),
        "none: a quarter halves both sides of a picture",
        "the nearest grid that has not more tokens than asked; VTC-Bench's filter of samples is not built",
        downsample=Downsample(0.25),
    ),
)
CONTROLS = (
    Method(
        "random_choice",
        "random",
        "control",
        "random_choice",
        _before(LLAVA_SINGLE),
        "a third",
        "what every method has to beat",
    ),
    Method(
        "uniform_grid",
        "uniform grid",
        "control",
        "uniform_grid",
        _before(LLAVA_SINGLE),
        "a third",
        "evenly spaced over each picture",
    ),
)
METHODS: dict[str, Method] = {method.name: method for method in (*INSIDE, *BEFORE, *PICTURE, *CONTROLS)}
