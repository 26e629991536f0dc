"""Layer redundancy and lifecycle against slow definitions, on random models in memory."""

import functools

import pytest
import torch
import torch.nn.functional as F

from halfv_accel import accelerate
from halfv_accel.plan import Plan
from halfv_accel.prompts import chat_inputs
from halfv_data import scenes
from halfv_probe.measures.capture import watch_boundaries
from halfv_probe.measures.lifecycle import measure_lifecycle
from halfv_probe.measures.redundancy import layer_redundancy, redundancies
from halfv_probe.states.spectra import spectrum
from tests.halfv_accel import oracle
from tests.halfv_accel.miniatures import LAYERS, VIDEO
from tiny_vlm.llava import TinyLlava
from tiny_vlm.qwen import TinyQwen

TOLERANCE = 1e-6  # nats, float32


@pytest.fixture(scope="module", params=[TinyQwen, TinyLlava], ids=["qwen2.5-vl", "llava"])
def case(request):
    """A model, one prompt for it, and the mask of its visual tokens."""
    torch.manual_seed(0)
    family = request.param()
    model = family.build().eval()
    sample = next(iter(scenes(1, seed=0)))
    inputs = chat_inputs(family.processor(), [sample.image], sample.question)
    image = model.config.image_token_id
    return model, inputs, inputs["input_ids"][0] == image


def hook_count(model):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


@functools.cache
def by_hand(mini, row, tokens, stop):
    """Slow oracle: the decoder run submodule by submodule, at full length; layers in `stop` do not update `tokens`.

    Returns the log-probabilities of the next token, in float64.
    """
    model, prompt = mini.model("eager"), mini.prompt(*row)
    text = model.model.language_model
    visual = torch.tensor([token in oracle.placeholders(model).values() for token in prompt["ids"]])
    terminated = visual if tokens == "visual" else ~visual
    with torch.no_grad():
        states, rotary, stacked = oracle.embed(mini, model, prompt, [])
        causal = torch.full((1, 1, len(visual), len(visual)), -torch.inf).triu(1)
        for index, layer in enumerate(text.layers):
            update = torch.where(terminated[:, None], 0.0, 1.0) if index in stop else 1.0
            attended = layer.self_attn(
                hidden_states=layer.input_layernorm(states), attention_mask=causal, position_embeddings=rotary
            )[0]
            middle = states + update * attended
            states = middle + update * layer.mlp(layer.post_attention_layernorm(middle))
            if index in stacked:  # DeepStack stands between the layers
                states = states + stacked[index]
        return F.log_softmax(model.lm_head(text.norm(states))[0, -1].double(), -1)


def expected(mini, row, tokens):
    """Rows of (KL of the layer, KL of the suffix, whether the suffix keeps the next token)."""
    untouched, table = by_hand(mini, row, tokens, ()), []
    for layer in range(LAYERS):
        alone, rest = (by_hand(mini, row, tokens, tuple(range(layer, end))) for end in (layer + 1, LAYERS))
        kl = [float((untouched.exp() * (untouched - changed)).sum()) for changed in (alone, rest)]
        table.append((*kl, float(rest.argmax() == untouched.argmax())))
    return torch.tensor(table, dtype=torch.float64)


def rows_of(mini):
    """Seed, pictures, words and videos of each prompt of a ragged batch."""
    return [(0, 1, 6, int(mini.videos)), (1, 2, 9, 0), (2, 1, 7, 0), (3, 0, 5, 0)]


def measured(mini, rows, tokens, attention, side="left"):
    inputs = mini.batch([mini.prompt(*row) for row in rows], side)
    found = redundancies(mini.model(attention), inputs, tokens)
    return torch.stack([found.layer, found.suffix, found.same.double()], dim=-1)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("tokens", ["visual", "text"])
def test_redundancy_is_the_kl_of_the_terminated_decoder(mini, attention, tokens):
    for row in rows_of(mini)[:3]:
        truth = expected(mini, row, tokens)
        torch.testing.assert_close(measured(mini, [row], tokens, attention)[0], truth, rtol=1e-3, atol=TOLERANCE)
        assert truth[0, :2].min() > 100 * TOLERANCE  # or the comparison would show nothing


@pytest.mark.parametrize(("attention", "side"), [("sdpa", "left"), ("eager", "left"), ("sdpa", "right")])
@pytest.mark.parametrize("tokens", ["visual", "text"])
def test_a_ragged_batch_is_its_prompts_alone(mini, attention, tokens, side):
    rows = rows_of(mini)
    truth = torch.stack([expected(mini, row, tokens) for row in rows])
    torch.testing.assert_close(measured(mini, rows, tokens, attention, side), truth, rtol=1e-3, atol=TOLERANCE)


def test_layer_redundancy_is_the_mean_over_the_batch(mini):
    inputs = mini.batch([mini.prompt(*row) for row in rows_of(mini)])
    mean = redundancies(mini.model(), inputs, "text").layer.mean(dim=0)
    torch.testing.assert_close(layer_redundancy(mini.model(), inputs, "text"), mean, rtol=1e-6, atol=1e-9)


def test_the_last_layer_is_worth_nothing_to_visual_tokens(mini):
    found = redundancies(mini.model(), mini.batch([mini.prompt(*row) for row in rows_of(mini)]))
    assert found.layer[:, -1].max() < TOLERANCE
    assert found.suffix[:, -1].max() < TOLERANCE
    assert found.same[:, -1].all()


@torch.no_grad()
@pytest.mark.parametrize("suffix", [False, True], ids=["layer", "suffix"])
def test_a_plan_that_skips_computes_what_was_measured(mini, suffix):
    """KL of the next token between the untouched model and one that skips the layer, or it and all behind it."""
    model, inputs = mini.model(), mini.batch([mini.prompt(*row) for row in rows_of(mini)])
    found = redundancies(model, inputs)
    untouched = model(**inputs).logits[:, -1].double().log_softmax(-1)
    table = []
    for layer in range(LAYERS):
        with accelerate(model, Plan((), skip=tuple(range(layer, LAYERS if suffix else layer + 1)))):
            skipping = model(**inputs).logits[:, -1].double().log_softmax(-1)
        table.append((untouched.exp() * (untouched - skipping)).sum(-1))
    truth = torch.stack(table, dim=1)
    assert (truth[:3, :-1] > 1e-4).all()  # the last row has no picture, and nothing reads the last layer's
    torch.testing.assert_close(found.suffix if suffix else found.layer, truth, rtol=1e-3, atol=TOLERANCE)


def test_what_comes_before_the_terminated_layer_is_run_once(mini, monkeypatch):
    model, inputs = mini.model(), mini.batch([mini.prompt(0)])
    lengths = []
    for layer in model.model.language_model.layers:
        mlp = layer.mlp.forward
        monkeypatch.setattr(layer.mlp, "forward", lambda x, mlp=mlp: lengths.append(x.shape[1]) or mlp(x))
    layer_redundancy(model, inputs)
    full, text = inputs["input_ids"].shape[1], int((inputs["input_ids"] > VIDEO).sum())
    assert lengths.count(full) <= LAYERS * (LAYERS - 1) // 2 + 2 * LAYERS
    assert set(lengths) == {full, text, 1}  # all tokens, the others of a terminated layer, the last one alone
    lengths.clear()
    redundancies(model, inputs)
    assert lengths.count(full) <= LAYERS * (LAYERS - 1) // 2 + 2 * LAYERS  # suffixes run without the terminated rows


def test_the_model_comes_out_as_it_went_in(mini, untouched, breaking):
    model, inputs = mini.model(), mini.batch([mini.prompt(*row) for row in rows_of(mini)])
    with torch.no_grad(), untouched(model):
        before = model(**inputs).logits
        redundancies(model, inputs)
        assert torch.equal(model(**inputs).logits, before)
    with breaking(model), untouched(model), pytest.raises(RuntimeError, match="broken"):
        redundancies(model, inputs)


def test_redundancy_needs_a_picture(mini):
    with pytest.raises(ValueError, match="picture"):
        layer_redundancy(mini.model(), mini.batch([mini.prompt(0, 0)]))


def test_boundaries_are_the_hidden_states_of_the_model(case):
    model, inputs, _ = case
    seen = {}
    with torch.no_grad(), watch_boundaries(model.model.language_model.layers, seen.__setitem__):
        reported = model(**inputs, output_hidden_states=True).hidden_states
    assert len(seen) == len(reported)
    for index, states in enumerate(reported[:-1]):  # the last one that the model reports is normalised
        torch.testing.assert_close(seen[index], states, rtol=0, atol=0)
    torch.testing.assert_close(model.model.language_model.norm(seen[len(seen) - 1]), reported[-1])


@pytest.mark.parametrize("fidelity", ["paper", "reference"])
def test_lifecycle_measures_every_boundary(case, fidelity):
    model, inputs, visual = case
    before = hook_count(model)
    found = measure_lifecycle(model, [inputs], fidelity)
    layers = len(model.model.language_model.layers)
    assert {group: curve.shape for group, curve in found.entropy.items()} == dict.fromkeys(
        ("visual", "text", "all"), (layers + 1,)
    )
    assert hook_count(model) == before
    with torch.no_grad():
        last = model(**inputs, output_hidden_states=True).hidden_states[-1][0]
    if fidelity == "reference":  # final norm applied, centred, k = 50: the last boundary is the model's own last state
        values = spectrum(last[visual], center=True)[:50]
        p = values / values.sum()
        assert found.entropy["visual"][-1] == pytest.approx(-(p * p.log()).sum().item(), rel=1e-5)


def test_lifecycle_needs_a_prompt(case):
    with pytest.raises(ValueError, match="at least one"):
        measure_lifecycle(case[0], [])
