"""A replay is the model's own forward, or it is refused; and it holds one layer's states, however deep the model is."""

import gc
from contextlib import contextmanager

import pytest
import torch

from halfv_accel import HalfVError
from halfv_probe.measures.redundancy import redundancies
from halfv_probe.measures.replay import Replay
from tests.halfv_accel.miniatures import MINIATURES, MiniLlava

TOLERANCE = 1e-4  # log-probabilities, float32


def ragged(mini, side):
    return mini.batch([mini.prompt(0, 1, 6, int(mini.videos)), mini.prompt(1, 2, 9), mini.prompt(2, 0)], side)


@torch.no_grad()
def own(model, inputs):
    """Log-probabilities of the model's own forward: [B, S, vocabulary]."""
    return model(**inputs, use_cache=False).logits.log_softmax(-1)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_an_untouched_run_is_the_models_own_forward(mini, attention, side):
    model, inputs = mini.model(attention), ragged(mini, side)
    real, expected = inputs["attention_mask"].bool(), own(model, inputs)
    replay = Replay(model, inputs, wanted=real)
    replay.verify()
    found = replay.run_on(0, replay.first, replay.prefill)
    for row, places in enumerate(real):
        mine = found[row][replay.present[row]]
        torch.testing.assert_close(mine, expected[row][places], rtol=0, atol=TOLERANCE)
        torch.testing.assert_close(replay.untouched[row][replay.present[row]], mine, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_last_token_of_each_prompt_is_wanted_unless_told_otherwise(mini, side):
    inputs = ragged(mini, side)
    expected = own(mini.model(), inputs)
    untouched = Replay(mini.model(), inputs).untouched
    assert untouched.shape[1] == 1
    for row, mask in enumerate(inputs["attention_mask"]):
        torch.testing.assert_close(untouched[row, 0], expected[row, mask.nonzero().max()], rtol=0, atol=TOLERANCE)


def test_one_question_leaves_no_trace_in_the_next(mini):
    replay = Replay(mini.model(), ragged(mini, "left"))
    before = replay.run_on(0, replay.first, replay.prefill)
    narrow = replay.prefill.fork()
    narrow.keep(narrow.active & ~narrow.visual, "drop")
    changed = replay.run_on(0, replay.first, narrow)
    assert (changed - before).abs().max() > 0.01
    assert torch.equal(replay.run_on(0, replay.first, replay.prefill), before)
    assert torch.equal(replay.run_on(0, replay.first, narrow), changed)


@contextmanager
def text_model_that(model, change, before):
    """The text model changes the states in front of a module; the module called by itself does not."""
    text, inside = model.model.language_model, []

    def leave(*_):
        inside.clear()

    def interfere(_module, args, kwargs):
        if not inside:
            return None
        key = "hidden_states"
        return ((change(args[0]), *args[1:]), kwargs) if args else (args, {**kwargs, key: change(kwargs[key])})

    handles = [
        text.register_forward_pre_hook(lambda *_: inside.append(True)),
        text.register_forward_hook(leave, always_call=True),
        before(text).register_forward_pre_hook(interfere, with_kwargs=True),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


CHANGES = {
    "scales states between layers": (lambda text: text.layers[3], lambda states: 1.1 * states),
    "scales states in front of the last layer": (lambda text: text.layers[-1], lambda states: 1.1 * states),
    "shifts states between layers": (lambda text: text.layers[1], lambda states: states + 0.1),
    "scales states behind the last layer": (lambda text: text.norm, lambda states: states + 0.1 * states[..., :1]),
    "adds to states behind the last layer": (lambda text: text.norm, lambda states: states + 0.1),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_text_model_with_steps_of_its_own_is_refused(mini, untouched, name):
    before, change = CHANGES[name]
    model, inputs = mini.model(), ragged(mini, "left")
    refused = pytest.raises(HalfVError, match=r"^the decoder of \w+ could not be replayed layer by layer.*layers$")
    with text_model_that(model, change, before), untouched(model), refused:
        redundancies(model, inputs)
    redundancies(model, inputs)


def test_what_happens_in_front_of_the_first_layer_is_part_of_its_input(mini):
    model, inputs = mini.model(), ragged(mini, "left")
    with text_model_that(model, lambda states: 2 * states, lambda text: text.layers[0]):
        expected = own(model, inputs)[:, -1]
        torch.testing.assert_close(Replay(model, inputs).untouched[:, 0], expected, rtol=0, atol=TOLERANCE)


def test_a_run_that_differs_from_the_untouched_one_is_told(mini):
    replay = Replay(mini.model(), ragged(mini, "left"))
    replay.compare(replay.untouched + 1e-6)
    with pytest.raises(HalfVError, match="could not be replayed"):
        replay.compare(replay.untouched + 1)


@pytest.mark.parametrize("kernel", ["flash_attention_2", "flex_attention", "paged|sdpa"])
def test_kernels_whose_masks_are_not_known_are_refused(monkeypatch, kernel):
    mini = MINIATURES["llava"]
    monkeypatch.setattr(mini.model().model.language_model.config, "_attn_implementation", kernel)
    with pytest.raises(HalfVError, match=r"cannot be measured: call model.set_attn_implementation\('sdpa'\)"):
        Replay(mini.model(), ragged(mini, "left"))


def test_a_model_in_training_is_refused():
    model = MINIATURES["llava"].model().train()
    try:
        with pytest.raises(HalfVError, match=r"model.eval\(\)"):
            Replay(model, ragged(MINIATURES["llava"], "left"))
    finally:
        model.eval()


class Deep(MiniLlava):
    """LLaVA of any depth."""

    def __init__(self, layers):
        super().__init__()
        self.layers = layers

    def build(self):
        config = super().build().config
        config.text_config.num_hidden_layers = self.layers
        config.text_config.layer_types = None
        return type(super().build())(config)


def most_states_held(layers, question):
    """Full-length states that are alive at once, whenever a layer has run."""
    mini = Deep(layers)
    model, inputs = mini.model(), ragged(mini, "left")
    shape, held = (*inputs["input_ids"].shape, model.config.text_config.hidden_size), []

    def count(*_):
        alive = [thing for thing in gc.get_objects() if type(thing) is torch.Tensor and tuple(thing.shape) == shape]
        held.append(len({tensor.data_ptr() for tensor in alive}))

    for layer in model.model.language_model.layers:
        layer.register_forward_hook(count)
    gc.freeze()  # what is there already is not counted
    try:
        question(model, inputs)
    finally:
        gc.unfreeze()
    return max(held)


def test_memory_does_not_grow_with_depth():
    assert 1 < most_states_held(4, redundancies) == most_states_held(12, redundancies)
