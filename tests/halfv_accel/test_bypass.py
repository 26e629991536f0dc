"""What runs past the hooks is refused when it runs, and what can work around them works."""

import copy

import pytest
import torch
from transformers import DynamicCache

from halfv_accel import HalfVError, accelerate, halfv_plan

from .miniatures import MiniLlava
from .refusing import refusal

PLAN = halfv_plan(ivr_layer=1, ivr_retention=0.5, ssr_mode="freeze", ssr_layer=2)
OPTIONS = dict(max_new_tokens=3, do_sample=False)


def twin_of(model):
    """A copy without hooks: what runs in its place is what a stale compiled forward would run."""
    return copy.deepcopy(model)


def stale_forward(model, twin):
    model.forward = twin.forward


def other_core(model, twin):
    model.model = twin.model


def other_decoder(model, twin):
    model.model.language_model = twin.model.language_model


def other_decoder_forward(model, twin):
    model.model.language_model.forward = twin.model.language_model.forward


def other_layer(model, twin):
    model.model.language_model.layers[4] = twin.model.language_model.layers[4]


REPLACED = {
    stale_forward: "the model ran without HalfV's hooks",
    other_core: "the model ran without HalfV's hooks",
    other_decoder: "decoder layer 0 ran without HalfV's hooks",
    other_decoder_forward: "decoder layer 0 ran without HalfV's hooks",
    other_layer: "decoder layer 4 ran without HalfV's hooks",
}


@torch.no_grad()
@pytest.mark.parametrize("replace", REPLACED)
def test_what_was_replaced_inside_the_block(mini, replace):
    model, inputs, text = copy.deepcopy(mini.model()), mini.batch([mini.prompt(0)]), mini.batch([mini.prompt(0, 0)])
    twin = twin_of(model)
    plain = twin(**inputs).logits
    with accelerate(model, PLAN) as run:
        replace(model, twin)
        refusal(lambda: model(**inputs), f"{REPLACED[replace]}.*torch.compiler.reset")
        refusal(lambda: model.generate(**inputs, **OPTIONS), REPLACED[replace])
        model.generate(**text, **OPTIONS)  # nothing could have been reduced
        assert run.last is None or run.last.stages == []
    assert torch.equal(model(**inputs).logits, plain)


@torch.no_grad()
def test_a_failed_forward_fails_as_it_would(mini):
    """Hooks that did not run because something broke off are no bypass."""
    model, inputs = mini.model(), mini.batch([mini.prompt(0)])

    def fail(*_):
        raise ZeroDivisionError

    for module in (model.model, *(model.model.language_model.layers[i] for i in (0, 3))):
        with accelerate(model, PLAN):
            handle = module.register_forward_pre_hook(fail, prepend=True)
            try:
                with pytest.raises(ZeroDivisionError):
                    model(**inputs)
            finally:
                handle.remove()
            model(**inputs)


@torch.no_grad()
def test_parts_that_are_called_by_themselves(mini):
    model, inputs = mini.model(), mini.batch([mini.prompt(0)])
    text, ids = model.model.language_model, torch.arange(5, 15)[None]
    embeds, plain = model.get_input_embeddings()(inputs["input_ids"]), text(input_ids=ids).last_hidden_state
    with accelerate(model, PLAN):
        for call in (text, text.forward):
            refusal(lambda call=call: call(inputs_embeds=embeds), "language model was called on inputs_embeds")
            assert torch.equal(call(input_ids=ids).last_hidden_state, plain)
        refusal(lambda: model.model.forward(**inputs), "language model was called on inputs_embeds")
        with accelerate(model, PLAN):  # which runs single layers to check them
            refusal(lambda: text(inputs_embeds=embeds), "language model was called on inputs_embeds")
        assert not torch.equal(model.forward(**inputs).logits, model.lm_head(text(input_ids=ids).last_hidden_state))
    assert torch.equal(text(inputs_embeds=embeds).last_hidden_state, text(inputs_embeds=embeds).last_hidden_state)


@torch.no_grad()
@pytest.mark.filterwarnings("ignore")
def test_recordings(mini):
    model, inputs = mini.model(), mini.batch([mini.prompt(0)])
    with accelerate(model, PLAN):
        options = dict(example_kwarg_inputs=inputs, strict=False, check_trace=False)
        refusal(lambda: torch.jit.trace(model, **options), "torch.jit.trace.*call the model as it is")
        model(**inputs)


@torch.no_grad()
def test_a_cache_that_nothing_reduced_goes_on_inside_the_block(mini):
    """A prefill of the untouched model, then steps inside: no pictures, nothing to refuse."""
    model, inputs = mini.model(), mini.batch([mini.prompt(0)])
    step = dict(input_ids=torch.tensor([[9]]))
    cache = model(**inputs, past_key_values=DynamicCache()).past_key_values
    plain = model(**step, past_key_values=copy.deepcopy(cache)).logits
    with accelerate(model, PLAN):
        assert torch.equal(model(**step, past_key_values=cache).logits, plain)


class ShortLlava(MiniLlava):
    """Three layers, and pictures that the compiler leaves alone: it takes seconds for each."""

    def build(self):
        model = super().build()
        text = model.model.language_model
        text.layers, text.config.num_hidden_layers = text.layers[:3], 3
        return model

    def fresh(self):
        model = copy.deepcopy(self.model())
        model.model.get_image_features = torch.compiler.disable(model.model.get_image_features)
        return model


@pytest.fixture(scope="module")
def short():
    mini = ShortLlava()
    model, inputs = mini.fresh(), mini.batch([mini.prompt(0)])
    with torch.no_grad():
        plain = model(**inputs).logits
        with accelerate(model, PLAN):
            wanted = model(**inputs).logits
    assert not torch.allclose(plain, wanted, atol=1e-2)
    return mini, inputs, plain, wanted


def compiled(function):
    return torch.compile(function, backend="eager", dynamic=False)


def forward_compiled(model):
    model.forward = compiled(model.forward)
    return model


def wrapped(model):
    return compiled(model)


def called_in_a_compiled_function(model):
    return compiled(lambda **inputs: model(**inputs))


def decoder_compiled(model):
    model.model.language_model.compile(backend="eager", dynamic=False)
    return model


def layers_compiled(model):
    for index, layer in enumerate(model.model.language_model.layers):
        if index == 1:
            layer.forward = compiled(layer.forward)
        else:
            layer.compile(backend="eager", dynamic=False)
    return model


def layers_wrapped(model):
    layers = model.model.language_model.layers
    for index, layer in enumerate(layers):
        layers[index] = compiled(layer)
    return model


WHOLE = (forward_compiled, wrapped, called_in_a_compiled_function, decoder_compiled)
REGIONS = (layers_compiled, layers_wrapped)


@pytest.fixture
def nothing_compiled():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def close(mine, own):
    torch.testing.assert_close(mine, own, rtol=0, atol=1e-5)


@torch.no_grad()
@pytest.mark.usefixtures("nothing_compiled")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("way", WHOLE)
def test_compiled_and_run_before(short, way):
    """The plan would be ignored: refused, until what was compiled is forgotten. Leaving restores the model."""
    mini, inputs, plain, wanted = short
    model = mini.fresh()
    call = way(model)
    close(call(**inputs).logits, plain)
    with accelerate(model, PLAN) as run:
        refusal(lambda: call(**inputs), "without HalfV's hooks.*torch.compiler.reset")
        assert run.last is None
        if way is decoder_compiled:  # the others work alike, and take the compiler half a minute
            torch.compiler.reset()
            close(call(**inputs).logits, wanted)
            assert run.last.stages
    close(call(**inputs).logits, plain)


@torch.no_grad()
@pytest.mark.usefixtures("nothing_compiled")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("way", REGIONS)
def test_layers_compiled_and_run_before(short, way):
    """Hooks stand around what was compiled, and it compiles anew for fewer rows."""
    mini, inputs, plain, wanted = short
    model = mini.fresh()
    call = way(model)
    close(call(**inputs).logits, plain)
    with accelerate(model, PLAN):
        close(call(**inputs).logits, wanted)
    close(call(**inputs).logits, plain)


@torch.no_grad()
@pytest.mark.usefixtures("nothing_compiled")
@pytest.mark.filterwarnings("ignore")
def test_compiled_inside_and_used_under_another_plan(short):
    """Right or refused, in whatever order runs come and go."""
    mini, inputs, plain, wanted = short
    model = mini.fresh()
    with accelerate(model, PLAN):
        call = decoder_compiled(model)
        close(call(**inputs).logits, wanted)
    with accelerate(model, PLAN):
        close(call(**inputs).logits, wanted)
    close(call(**inputs).logits, plain)
    with accelerate(model, PLAN):
        try:
            close(call(**inputs).logits, wanted)
        except HalfVError as error:
            assert "torch.compiler.reset" in str(error)


def test_compilers_wrappers_are_told_from_models(short):
    mini, *_ = short
    model = mini.fresh()
    refusal(lambda: accelerate(compiled(model), PLAN), "itself and not wrapped or compiled")


class Adapted(torch.nn.Module):
    """What PEFT puts around a model, where PEFT is not installed."""

    def __init__(self, model):
        super().__init__()
        self.base_model = model

    def get_base_model(self):
        return self.base_model

    def generate(self, **inputs):
        return self.base_model.generate(**inputs)

    def forward(self, **inputs):
        return self.base_model.forward(**inputs)


def adapted(model):
    """With adapter layers in the decoder, and the same model with their weights merged."""
    try:
        import peft
    except ImportError:
        return Adapted(model), model
    config = peft.LoraConfig(r=4, target_modules=r".*language_model.*(q|k|v|o|up)_proj", init_lora_weights=False)
    model = peft.get_peft_model(copy.deepcopy(model), config).eval()
    return model, copy.deepcopy(model).merge_and_unload()


@torch.no_grad()
@pytest.mark.filterwarnings("ignore::FutureWarning")  # PEFT asks a model under an old name
def test_a_peft_model_is_accelerated_inside(mini):
    model, merged = adapted(mini.model())
    inputs = mini.batch([mini.prompt(0)])
    plain = model(**inputs).logits
    with accelerate(merged, PLAN):
        wanted, tokens = merged(**inputs).logits, merged.generate(**inputs, **OPTIONS)
    with accelerate(model, PLAN) as run:
        close(model(**inputs).logits, wanted)
        assert torch.equal(model.generate(**inputs, **OPTIONS), tokens)
        assert run.last.stages
        refusal(lambda: model.generate(**inputs, **OPTIONS, use_cache=False), "use_cache")
    assert torch.equal(model(**inputs).logits, plain)
