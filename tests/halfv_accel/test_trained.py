"""The slow oracle again, on the embedded models: trained weights, a real picture, 144 visual tokens."""

import functools

import pytest
import torch

import tiny_vlm
from halfv_accel import accelerate, halfv_plan
from halfv_accel.prompts import chat_inputs
from halfv_data import load_samples

from . import oracle

TOLERANCE = (
    1e-3  # largest difference between logits of size about 13, float32; the untouched model is off by more than 1
)
NEW_TOKENS = 3

PLANS = {  # ours, and the oracle's in token counts of 144
    "sparse": (
        dict(ivr_layer=3, ivr_retention=0.25, ssr_mode="sparse", ssr_layer=6, ssr_retention=0.05),
        dict(ivr=(3, 36, 3), sparse=(6, 7)),
    ),
    "freeze": (
        dict(ivr_layer=3, ivr_retention=0.5, ssr_mode="freeze", ssr_layer=6),
        dict(ivr=(3, 72, 7), freeze=6),
    ),
}


class Embedded:
    """An embedded model in the form that the oracle takes."""

    def __init__(self, name):
        self.name = name
        self.trained, processor = tiny_vlm.load(name, dtype=torch.float32)
        self.trained.generation_config.eos_token_id = None  # the oracle does not stop either
        self.image = self.trained.config.image_token_id
        sample = load_samples(n=1)[0]
        self.inputs = chat_inputs(processor, [sample.image], sample.question)
        self.prompt = {"ids": self.inputs["input_ids"][0].tolist()}
        self.expected = functools.cache(lambda plan: oracle.run(self, self.prompt, PLANS[plan][1], NEW_TOKENS))

    def model(self, attention="sdpa"):
        self.trained.set_attn_implementation(attention)
        return self.trained

    def features(self, prompts, ids):
        return {name: self.inputs[name] for name in ("pixel_values", "image_grid_thw") if name in self.inputs}


@pytest.fixture(scope="module", params=tiny_vlm.NAMES)
def embedded(request):
    return Embedded(request.param)


@pytest.mark.parametrize("plan", PLANS)
def test_an_embedded_model_equals_the_oracle(embedded, attention, plan):
    assert embedded.prompt["ids"].count(embedded.image) == 144
    first, tokens, steps, kept = embedded.expected(plan)
    model = embedded.model(attention)
    with torch.no_grad(), accelerate(model, halfv_plan(**PLANS[plan][0])) as run:
        logits = model(**embedded.inputs).logits[0]
        options = dict(max_new_tokens=NEW_TOKENS + 1, do_sample=False)
        out = model.generate(**embedded.inputs, **options, output_logits=True, return_dict_in_generate=True)
    assert [stage[0].nonzero()[:, 0].tolist() for stage in run.last.kept] == kept
    text = torch.tensor([token != embedded.image for token in embedded.prompt["ids"]])
    torch.testing.assert_close(logits[text], first[text], rtol=0, atol=TOLERANCE)
    torch.testing.assert_close(torch.cat(out.logits), torch.stack(steps), rtol=0, atol=TOLERANCE)
    assert out.sequences[0, -NEW_TOKENS - 1 : -1].tolist() == tokens
