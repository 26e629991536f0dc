"""The words of a report, for a reader who does not know the paper, and what in it is not this measurement's."""

from __future__ import annotations

from halfv_accel import Profile

TERMS: tuple[tuple[str, str], ...] = (
    ("visual token", "A vector that stands for a patch of a picture; a picture becomes hundreds to thousands of them."),
    (
        "decoder layer",
        "Layers are counted from 0. Boundary l is the input of layer l, the last boundary is the output.",
    ),
    ("retention", "Visual tokens kept / all that the prompt began with, from 0 to 1."),
    (
        "IVR",
        "Intrinsic visual redundancy: from layer L_IVR on, some of the visual tokens are kept, the rest are dropped.",
    ),
    (
        "anchor, coverage",
        "IVR keeps the tokens that the last text token attends to most (anchors), then, one by one, the token most "
        "distant from all kept ones (coverage).",
    ),
    (
        "SSR",
        "Secondary saturation redundancy, from layer L_SSR on. Mode freeze: visual tokens are no longer updated, but "
        "still attended to. Mode sparse: only the few most attended ones stay. Mode none: nothing more is done.",
    ),
    (
        "entropy (nats)",
        "Truncated matrix entropy (Eq. 1-2): the k largest eigenvalues of the tokens' Gram matrix, made to sum to 1, "
        "and their Shannon entropy. High: the tokens spread over many directions. A nat is 1.44 bits.",
    ),
    ("k", "How many eigenvalues enter the entropy."),
    ("spectrum", "The eigenvalues themselves, each as a share of the sum of all."),
    (
        "layer KL, suffix KL (nats)",
        "How far the next-token distribution moves (Kullback-Leibler divergence) when one layer (Eq. 36-38), or a "
        "layer and all deeper ones, stop updating visual tokens. Near 0: that work is not needed.",
    ),
    (
        "attention to visual tokens",
        "Share of the text tokens' attention in a layer that goes to visual tokens, from 0 to 1.",
    ),
    (
        "maturity",
        "Share of samples whose most likely next token, read off the hidden states at that depth (logit lens), is "
        "already the final one and stays so.",
    ),
    (
        "stages I, II, III",
        "The paper's reading of depth: alignment, aggregation, saturation. L_IVR is where II begins, L_SSR where III "
        "does. A curve that names such a layer is a witness.",
    ),
    (
        "withdraw",
        "A third way for the second stage, for comparison only: from its layer on, no visual token stays.",
    ),
    (
        "random weights",
        "The same architecture with fresh random weights, measured in the same way: what curves look like where "
        "nothing was learned.",
    ),
    ("FLOPs", "Floating-point operations of the decoder's prefill, choosing tokens included / the untouched model's."),
    ("agreement", "Share of samples on which the accelerated model replies as the untouched one does."),
    (
        "drop",
        "Share of all samples whose right answer is lost; where answers are not known, or the untouched model misses "
        "most of them, share of samples whose reply changes.",
    ),
    (
        "confidence",
        "One-sided Clopper-Pearson bound of the drop. It takes the plan as given; that the plan was chosen on the same "
        "samples is not in it.",
    ),
    (
        "marginal utility",
        "Drop / (share of FLOPs saved + 0.01) when visual tokens are pruned once (Eq. 3); lower is better. The paper "
        "divides by the latency saved.",
    ),
    ("Pareto front", "Plans that no other one beats in both FLOPs and drop."),
    (
        "bootstrap votes",
        "Samples are drawn anew with replacement, many times; a vote is the value that is chosen then.",
    ),
    (
        "flip",
        "Under another condition another value comes out; for a layer, one more than a twelfth of the depth away.",
    ),
)

PAPER = "From Inheritance to Saturation: Disentangling the Evolution of Visual Redundancy (HalfV; Shi et al.)"


def measured_here(profile: Profile) -> list[str]:
    """What the page states from its own measurement."""
    clock = any(cell.latency_saved is not None for cell in profile.evidence.utility)
    timed = (
        "time saved by pruning once was measured, and is among the numbers of marginal utility"
        if clock
        else ("time was not measured")
    )
    return [
        "Measured here, on this model and these samples: all curves, maps, scatter plots, votes and pictures, and "
        "every number at the top but FLOPs. Other pictures or questions may give others.",
        f"Computed here: FLOPs, from the sizes of the model and of the prompts; {timed}.",
    ]


def from_the_paper(profile: Profile) -> list[str]:
    """What it takes from the paper, and where it departs from it."""
    taken = [
        "The paper's: reading the curves as three stages (I alignment, II aggregation, III saturation), the "
        "definitions of entropy, redundancy and marginal utility, and the way in which tokens are chosen.",
    ]
    if profile.evidence.goal.kind == "paper":
        taken.append("The paper's: how many tokens to keep in each mode (Table 9). It was not searched for here.")
    taken.append("Not the paper's: the implementation, and tokens shown by PCA; the paper uses t-SNE.")
    return taken
