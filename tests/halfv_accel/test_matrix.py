"""Every family, every strategy, alone and in a ragged batch, under either attention: one row each.

A strategy joins by being registered. What it chooses is held to its own oracle elsewhere; here is what becomes of a
choice: the logits of the untouched model at full length with the same tokens hidden, put back or written over, the same
choice for a row alone and among others, and not one bit where everything is kept.
"""

import pytest
import torch

from halfv_accel import HalfVError, accelerate
from halfv_accel.adapters import FAMILIES
from halfv_accel.plan import Plan, Stage
from halfv_accel.selfcheck import selfcheck
from halfv_accel.strategies import STRATEGIES, Adaptive, KeepNone, hides_separators, needs_of

from .miniatures import MINIATURES
from .refusing import refusal


def stage(name, layer=None):
    """A strategy where it can act first; it keeps two fifths of the tokens, or decides itself."""
    strategy = STRATEGIES.resolve(name)
    layer = int(needs_of(strategy).before) if layer is None else layer
    if isinstance(strategy, KeepNone):
        return Stage(name, layer, strategy, 0.0)
    return Stage(name, layer, strategy, 0.4, least=0.1 if isinstance(strategy, Adaptive) else None)


PLANS = {name: Plan((stage(name),)) for name in STRATEGIES}
PLANS |= {
    "skip": Plan((), skip=(0, 2, 3)),
    "freeze": Plan((Stage("freeze", 2, "keep_none", 0.0, "freeze"),)),
    "infoprune, both stages": Plan((stage("infoprune"), Stage("mid", 3, "fastv", 0.2))),
    "visionzip, then sparse": Plan((stage("visionzip"), Stage("ssr", 3, "last_token_attention", 0.1))),
    "divprune, then skip": Plan((stage("divprune"),), skip=(3, 5)),
    "merged twice": Plan((stage("prumerge"), Stage("again", 2, "sparsevlm", 0.3)), skip=(1, 4)),
}


def prompts_of(mini):
    return [mini.prompt(5, 1, 6, 0), mini.prompt(6, 2, 4, 0), mini.prompt(7, 0, 9, int(mini.videos))]


@pytest.mark.parametrize("plan", PLANS)
def test_a_plan_is_exact(mini, attention, plan):
    prompts = prompts_of(mini)
    checks = selfcheck(mini.model(attention), mini.batch(prompts[:1]), mini.batch(prompts), plan=PLANS[plan])
    assert [check for check in checks if not check.ok] == []


@pytest.mark.parametrize("plan", PLANS)
def test_a_ragged_batch_equals_its_rows(mini, plan):
    """Chosen tokens, logits and greedy tokens; whichever side the padding is on, and in any order."""
    prompts, model = prompts_of(mini), mini.model()
    options = dict(max_new_tokens=2, do_sample=False, output_logits=True, return_dict_in_generate=True)
    with torch.no_grad(), accelerate(model, PLANS[plan]) as run:
        alone = []
        for prompt in prompts:
            out = model.generate(**mini.batch([prompt]), **options)
            alone.append((torch.cat(out.logits), out.sequences[0, -2:], [kept[0] for kept in run.last.kept]))
        for order in ([0, 1, 2], [2, 0, 1]):
            inputs = mini.batch([prompts[row] for row in order])
            out = model.generate(**inputs, **options)
            kept = run.last.kept
            for place, row in enumerate(order):
                logits, tokens, chosen = alone[row]
                mine = torch.stack([step[place] for step in out.logits])
                torch.testing.assert_close(mine, logits, rtol=0, atol=1e-4)
                assert torch.equal(out.sequences[place, -2:], tokens)
                length = len(prompts[row]["ids"])
                for stage_kept, wanted in zip(kept, chosen, strict=False):  # none ran on a row without pictures
                    assert torch.equal(stage_kept[place, -length:], wanted)


@pytest.fixture
def stranger(monkeypatch):
    """A class with the usual parts, of whose pictures nobody has written anything."""
    monkeypatch.delitem(FAMILIES, "LlavaForConditionalGeneration")
    return MINIATURES["llava"].model()


@pytest.mark.parametrize("plan", PLANS)
def test_what_a_class_cannot_give_is_refused_or_not_needed(stranger, plan):
    """The row of the family that is not known: exact where nothing of its pictures is asked for, else refused."""
    mini, strategies = MINIATURES["llava"], [each.strategy for each in PLANS[plan].stages]
    asks = [needs_of(each) for each in strategies]
    if any(map(hides_separators, strategies)) or any(need.vision or need.structure for need in asks):
        refusal(lambda: accelerate(stranger, PLANS[plan]), "does not know for LlavaForConditionalGeneration: choose")
        return
    prompts = prompts_of(mini)
    checks = selfcheck(stranger, mini.batch(prompts[:1]), mini.batch(prompts), plan=PLANS[plan])
    assert [check for check in checks if not check.ok] == []


@pytest.mark.parametrize("name", ["divprune", "visionzip", "uniform_grid"])
def test_keeping_everything_asks_nothing_of_a_class(stranger, name):
    """Not even where its separators are."""
    inputs = MINIATURES["llava"].batch(prompts_of(MINIATURES["llava"]))
    with torch.no_grad():
        untouched = stranger(**inputs).logits
        with accelerate(stranger, Plan((Stage(name, 0, name),))):
            assert torch.equal(stranger(**inputs).logits, untouched)


@pytest.mark.parametrize("name", [name for name in STRATEGIES if needs_of(STRATEGIES.resolve(name)).before])
def test_what_looks_at_the_layer_before_cannot_act_before_the_first(name):
    with pytest.raises(HalfVError, match="at least 1, because tokens are scored with the layer before"):
        stage(name, layer=0)
