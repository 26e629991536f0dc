"""Laws that hold for every strategy there is; one that joins is held to them by being registered."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from halfv_accel import accelerate
from halfv_accel.plan import Plan, Stage
from halfv_accel.strategies import STRATEGIES, AdaVTP, CDPruner, KeepNone, Merging, needs_of
from tests.halfv_accel.miniatures import IMAGE, MINIATURES
from tests.halfv_accel.miniatures.base import END, START
from tests.halfv_accel.strategies.cases import mapped, outcome, tokens
from tests.halfv_accel.strategies.pictures import ROWS, pictured_view
from tests.halfv_accel.strategies.views import random_view

EVERY = {name: STRATEGIES.resolve(name) for name in STRATEGIES}
CHOOSING = [name for name, one in EVERY.items() if not isinstance(one, KeepNone)]  # which has one budget: none
FOLDING = [name for name, one in EVERY.items() if isinstance(one, Merging)]
lawful = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
every_strategy = pytest.mark.parametrize("name", CHOOSING)


@st.composite
def cases(draw, ties=False):
    """The arguments of a view, and a budget for each row: ragged, rows without tokens and budgets of 0 among them."""
    counts = draw(st.lists(st.integers(0, 14), min_size=1, max_size=4))
    texts = draw(st.lists(st.integers(1, 6), min_size=len(counts), max_size=len(counts)))
    shape = dict(counts=counts, texts=texts, seed=draw(st.integers(0, 10**6)), coarse=ties and draw(st.booleans()))
    return shape, [draw(st.integers(0, count)) for count in counts]


@every_strategy
@lawful
@given(cases(ties=True))
def test_budgets_are_met_by_tokens_that_are_there(name, case):
    shape, budget = case
    view = random_view(**shape)
    chosen, _ = outcome(EVERY[name], view, budget)
    assert chosen.dtype == torch.bool and chosen.shape == view.present.shape
    assert chosen.sum(1).tolist() == budget
    assert not (chosen & ~view.present).any()


@every_strategy
@lawful
@given(cases(), st.sampled_from([0.0, 1e4, -1e4]), st.integers(0, 3))
def test_what_stands_on_padding_has_no_say(name, case, value, wider):
    """The engine shows some token of the row there; signals alone are 0."""
    shape, budget = case
    plain, merged = outcome(EVERY[name], random_view(**shape), budget)
    view = widened(random_view(**shape), wider)
    for states, present in ((view.states, view.present), (view.text_states, view.text_present)):
        states[~present] = value
    for states, present in zip(view.signals["prompt"], (view.present, view.text_present), strict=True):
        states[~present] = value
    for keys, present in zip(view.signals["keys"], (view.present, view.text_present), strict=True):
        keys.transpose(1, 2)[~present] = value
    chosen, states = outcome(EVERY[name], view, budget)
    width = plain.shape[1]
    assert torch.equal(chosen[:, :width], plain) and not chosen[:, width:].any()
    torch.testing.assert_close(states[:, :width], merged, rtol=1e-4, atol=1e-4)


def widened(view, more):
    """The view with so many more places of padding for visual tokens."""
    width = view.present.shape[1]

    def padded(tensor, dim, value=0):
        shape = [*tensor.shape]
        shape[dim] = more
        return torch.cat([tensor, tensor.new_full(shape, value)], dim=dim)

    assert all(value.shape[1] == width for value in vars(view.places).values())
    view.places = type(view.places)(
        *[padded(value, 1, False if value.dtype == torch.bool else -1) for value in vars(view.places).values()]
    )
    view.present, view.states = padded(view.present, 1), padded(view.states, 1)
    for key, value in view.signals.items():
        if isinstance(value, tuple):
            view.signals[key] = padded(value[0], 2 if key == "keys" else 1), value[1]
        else:
            along = {"last": 1, "text attention": 3, "visual attention": 2, ("vision", "features"): 1}
            view.signals[key] = padded(value, along.get(key, 2))
    return view


@every_strategy
@lawful
@given(cases(), st.randoms())
def test_permuting_rows_permutes_the_result(name, case, random):
    shape, budget = case
    order = list(range(len(budget)))
    random.shuffle(order)
    chosen, states = outcome(EVERY[name], random_view(**shape), budget)
    shuffled = mapped(random_view(**shape), lambda x: x[order])
    again, merged = outcome(EVERY[name], shuffled, [budget[row] for row in order])
    assert torch.equal(again, chosen[order])
    torch.testing.assert_close(merged, states[order], rtol=1e-4, atol=1e-4)


@every_strategy
@lawful
@given(cases())
def test_a_row_is_chosen_in_a_batch_as_alone(name, case):
    shape, budget = case
    view = random_view(**shape)
    chosen, states = outcome(EVERY[name], view, budget)
    for row, kept in enumerate(budget):
        one = view.row(row)
        alone, merged = outcome(EVERY[name], one, [kept])
        width = one.present.shape[1]
        assert torch.equal(alone[0], chosen[row, :width])
        torch.testing.assert_close(merged[0], states[row, :width], rtol=1e-4, atol=1e-4)


@every_strategy
def test_pictures_and_crops_in_one_batch(name):
    """Rows of several pictures, crops and frames: exact, and in any order."""
    names, order = [*ROWS], list(reversed(range(len(ROWS))))
    budget = [len(ROWS[each]) // 3 for each in names]
    chosen, states = outcome(EVERY[name], pictured_view(names, seed=5), budget)
    again, merged = outcome(
        EVERY[name], mapped(pictured_view(names, seed=5), lambda x: x[order]), [budget[row] for row in order]
    )
    assert chosen.sum(1).tolist() == budget
    assert torch.equal(again, chosen[order])
    torch.testing.assert_close(merged, states[order], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", FOLDING)
@lawful
@given(cases(), st.data())
def test_where_nothing_is_dropped_no_bit_changes(name, dtype, case, data):
    """In some rows of a batch, whatever the others lose."""
    shape, budget = case
    whole = [data.draw(st.booleans()) for _ in budget]
    budget = [count if all_ else kept for count, all_, kept in zip(shape["counts"], whole, budget, strict=True)]
    view = random_view(**shape)
    view.states = view.states.to(dtype)
    chosen = EVERY[name].select(view, torch.tensor(budget))
    states = EVERY[name].merge(view, chosen)
    assert states.dtype == dtype
    for row, count in enumerate(shape["counts"]):
        if budget[row] == count:
            assert torch.equal(states[row, :count], view.states[row, :count])


# Those whose choice does not ask how many are wanted: a smaller budget is a part of a larger one.
NESTED = {name: EVERY[name] for name in ("adavtp", "cdpruner", "divprune", "farthest_points")}  # greedy
NESTED |= {name: EVERY[name] for name in ("cls_attention", "fastv", "fitprune")}  # ranked
NESTED |= {name: EVERY[name] for name in ("last_token_attention", "random_choice")}
NESTED |= {f"adavtp {average}": AdaVTP(erank_avg=average) for average in (1.0, 2.0)}
NESTED |= {"adavtp, far": AdaVTP(erank_avg=1.5, tau_max=0.9), "cdpruner, negative": CDPruner(negative=True)}
NESTED |= {f"cdpruner {theta}": CDPruner(theta=theta) for theta in (0, 0.5, 0.999)}


@pytest.mark.parametrize("name", NESTED)
@lawful
@given(st.integers(0, 10**6), st.integers(1, 16), st.booleans(), st.data())
def test_a_smaller_budget_is_a_part_of_a_larger_one(name, seed, count, coarse, data):
    less, more = sorted(data.draw(st.lists(st.integers(0, count), min_size=2, max_size=2)))
    view = random_view((count,), (2,), seed=seed, coarse=coarse)
    few, many = (NESTED[name].select(view, torch.tensor([kept])) for kept in (less, more))
    assert few.sum() == less and many.sum() == more
    assert not (few & ~many).any()


# What decides by what a token is, and not by where it stands in the prompt; ties aside, which the earlier token wins.
# Not among them: `farthest_points` begin at the first token; `holov`, `prumerge`, `uniform_grid`, `visionzip`,
# `vispruner` and `erank_vispruner` divide the row's tokens by their order; a random choice is one of places.
ORDERLESS = ("adavtp", "cdpruner", "cls_attention", "divprune", "erank_bat", "erank_divprune", "hired", "infoprune")
PAIR = ROWS["two pictures"]
SECOND = sum(place[0] for place in PAIR)  # tokens of the second picture


@pytest.mark.parametrize("name", ORDERLESS)
@lawful
@given(st.integers(0, 10**6), st.integers(0, len(PAIR)))
def test_when_two_pictures_change_places_their_tokens_do(name, seed, kept):
    first = len(PAIR) - SECOND
    order = [*range(first, len(PAIR)), *range(first)]
    view, swapped = (pictured_view(["two pictures"], seed=seed) for _ in range(2))
    swapped.present, swapped.states = swapped.present[:, order], swapped.states[:, order]
    for signal, along in (("attention", 2), ("keys", 2), ("features", 1)):
        swapped.signals["vision", signal] = swapped.signals["vision", signal].index_select(along, torch.tensor(order))
    swapped.places = type(view.places)(*[value[:, order] for value in vars(view.places).values()])
    swapped.places = type(view.places)(**{**vars(swapped.places), "picture": 1 - swapped.places.picture})
    (chosen, states), (again, merged) = (outcome(EVERY[name], one, [kept]) for one in (view, swapped))
    assert torch.equal(again, chosen[:, order])
    torch.testing.assert_close(merged, states[:, order], rtol=1e-4, atol=1e-4)


def two_pictures(mini, swapped):
    """A prompt of two pictures and its tokens of each, in either order of the pictures."""
    prompt = mini.prompt(5, 2)
    ids = prompt["ids"]
    if "image_grid_thw" not in prompt:  # pictures of one size, and words between them
        visual = [i for i, token in enumerate(ids) if token == IMAGE]
        pictures = [visual[: len(visual) // 2], visual[len(visual) // 2 :]]
        prompt["pixel_values"] = prompt["pixel_values"].flip(0) if swapped else prompt["pixel_values"]
        return prompt, pictures[::-1] if swapped else pictures
    patches = prompt["image_grid_thw"].prod(1).tolist()
    spans = [[START, *[IMAGE] * (many // 4), END] for many in patches]
    start, parts = ids.index(START), list(prompt["pixel_values"].split(patches))
    places = [1, 0] if swapped else [0, 1]
    prompt["ids"] = [*ids[:start], *spans[places[0]], *spans[places[1]], *ids[start + sum(map(len, spans)) :]]
    prompt["image_grid_thw"] = prompt["image_grid_thw"][places]
    prompt["pixel_values"] = torch.cat([parts[place] for place in places])
    behind = start + len(spans[places[0]])
    found = {places[0]: start + 1, places[1]: behind + 1}
    return prompt, [[*range(found[one], found[one] + patches[one] // 4)] for one in (0, 1)]


@pytest.mark.parametrize("family", ["llava", "qwen2-vl", "qwen2.5-vl", "qwen3-vl"])
@pytest.mark.parametrize("name", ORDERLESS)
def test_when_two_pictures_change_places_in_a_prompt_their_tokens_do(family, name):
    """Before the language model: the vision tower sees each picture alone."""
    mini, kept = MINIATURES[family], []
    for swapped in (False, True):
        prompt, pictures = two_pictures(mini, swapped)
        with torch.no_grad(), accelerate(mini.model(), Plan((Stage("one", 0, name, tokens=14),))) as run:
            mini.model()(**mini.batch([prompt]))
        chosen = run.last.kept[0][0]
        kept.append([chosen[places].tolist() for places in pictures])
    assert kept[0] == kept[1]
    assert any(0 < sum(picture) < len(picture) for picture in kept[0])


def test_the_lists_above_name_strategies_that_are_there():
    before = {name for name in EVERY if needs_of(EVERY[name]).before or needs_of(EVERY[name]).prompt}
    assert set(ORDERLESS) <= set(EVERY) - before
    assert tokens(EVERY["keep_none"].select(random_view(), torch.zeros(4).long())) == [[], [], [], []]
