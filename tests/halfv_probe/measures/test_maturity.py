"""Semantic maturity against the hidden states that the model reports, pushed through its head one by one."""

import pytest
import torch

from halfv_accel import HalfVError
from halfv_probe.measures.maturity import SemanticMaturity, semantic_maturity
from tests.halfv_accel.miniatures import LAYERS, MINIATURES


@torch.no_grad()
def slow_lens(mini, prompt):
    """Token and probability at boundaries 0..L of one prompt, and the model's own distribution."""
    model = mini.model("eager")
    out = model(**mini.batch([prompt]), output_hidden_states=True)
    normed = [model.model.language_model.norm(states[0, -1]) for states in out.hidden_states[:-1]]
    normed.append(out.hidden_states[-1][0, -1])  # the last one is normalised already
    distributions = [torch.softmax(model.lm_head(state).double(), 0) for state in normed]
    own = torch.softmax(out.logits[0, -1].double(), 0)
    return [int(p.argmax()) for p in distributions], [float(p.max()) for p in distributions], own


@pytest.mark.parametrize("side", ["left", "right"])
def test_every_boundary_says_what_its_prompt_says_alone(mini, side):
    prompts = [mini.prompt(0), mini.prompt(1, 2), mini.prompt(2, 0), mini.prompt(3, 1, 9, videos=int(mini.videos))]
    measured = semantic_maturity(mini.model(), mini.batch(prompts, side))
    assert measured.top1.shape == measured.probability.shape == (len(prompts), LAYERS + 1)
    for row, prompt in enumerate(prompts):
        top1, probability, own = slow_lens(mini, prompt)
        assert measured.top1[row].tolist() == top1
        assert measured.probability[row].tolist() == pytest.approx(probability, rel=1e-4)
        assert (top1[-1], measured.probability[row, -1].item()) == (
            int(own.argmax()),
            pytest.approx(float(own.max()), rel=1e-4),
        )
        start = LAYERS
        while start > 0 and top1[start - 1] == top1[-1]:
            start -= 1
        assert measured.stable_from[row] == start
        assert measured.agrees[row].tolist() == [token == top1[-1] for token in top1]


@pytest.mark.parametrize(
    ("tokens", "start"), [([7, 7, 7], 0), ([1, 7, 7], 1), ([7, 1, 7], 2), ([7, 7, 1], 2), ([1, 2, 7], 2)]
)
def test_stable_is_what_never_changes_again(tokens, start):
    found = SemanticMaturity(torch.tensor([tokens]), torch.ones(1, 3, dtype=torch.float64))
    assert found.stable_from.tolist() == [start]


def test_the_model_comes_out_as_it_went_in(mini, untouched, breaking):
    model, inputs = mini.model(), mini.batch([mini.prompt(0)])
    with untouched(model):
        semantic_maturity(model, inputs)
    with breaking(model), untouched(model), pytest.raises(RuntimeError, match="broken"):
        semantic_maturity(model, inputs)


def test_a_model_in_training_is_refused():
    mini = MINIATURES["llava"]
    model = mini.model()
    try:
        model.train()
        with pytest.raises(HalfVError, match="eval"):
            semantic_maturity(model, mini.batch([mini.prompt(0)]))
    finally:
        model.eval()
