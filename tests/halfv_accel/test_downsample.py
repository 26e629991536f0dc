"""Pictures are shrunk to the nearest grid that their processor can make, and nothing else changes."""

import copy
import math
from collections import Counter
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from halfv_accel import (
    Downsample,
    accelerate,
    chat_inputs,
    load_model,
    shrink_pictures,
)
from halfv_accel.adapters import FAMILIES
from halfv_accel.bench import build_prompt
from halfv_accel.bench.prompts import shrink_prompt
from halfv_accel.downsample import divided, nearest_grid, visual_tokens
from halfv_accel.plan_text import parse_plan
from halfv_accel.prompts import batch_inputs

from .refusing import refusal

SHRINKING = sorted(name for name in FAMILIES if "Qwen" in name)
SIZES = [(640, 480), (300, 300), (97, 613), (2000, 31), (5, 9), (1600, 1200)]
BUDGETS = [Downsample(share) for share in (0.001, 0.05, 0.25, 0.6, 0.999)] + [Downsample(tokens=n) for n in (1, 7, 64)]
sides = st.integers(1, 40)


def noise(size, seed=0):
    width, height = size
    draw = torch.Generator().manual_seed(seed)
    return Image.fromarray(torch.randint(256, (height, width, 3), generator=draw, dtype=torch.uint8).numpy())


def cut(processor, images, **told):
    """Rows and columns of the visual tokens of each picture, by the processor itself."""
    image_processor = processor.image_processor
    grids = image_processor(images=images, return_tensors="pt", **told)["image_grid_thw"]
    return [
        (rows // image_processor.merge_size, columns // image_processor.merge_size)
        for _, rows, columns in grids.tolist()
    ]


# ----------------------------------------------------------------------------------------------------------- the grid


def all_grids(rows, columns, tokens):
    """The rule, read off from every grid that there is."""
    exact = Fraction(rows * tokens, columns), Fraction(columns * tokens, rows)  # squares of the exact sides
    found = []
    for high in range(1, rows + 1):
        for wide in range(1, columns + 1):
            if high * wide <= tokens:
                ratios = [Fraction(side * side) / square for side, square in zip((high, wide), exact, strict=True)]
                found.append((-max(*ratios, *(1 / ratio for ratio in ratios)), high * wide, wide, (high, wide)))
    return (rows, columns) if tokens >= rows * columns else max(found)[-1]


@given(sides, sides, st.integers(1, 300))
def test_the_grid_is_the_nearest_of_all(rows, columns, tokens):
    assert nearest_grid(rows, columns, tokens) == all_grids(rows, columns, tokens)


@given(sides, sides, st.integers(1, 1600))
def test_never_more_than_asked_and_no_side_grows(rows, columns, tokens):
    high, wide = nearest_grid(rows, columns, tokens)
    assert 1 <= high * wide <= tokens
    assert high <= rows and wide <= columns


@pytest.mark.parametrize(
    ("rows", "columns", "tokens", "grid"),
    [
        (24, 24, 64, (8, 8)),
        (24, 24, 192, (13, 14)),
        (24, 24, 63, (7, 9)),  # exact, and no farther from 7.94 x 7.94 than 7 x 8
        (8, 8, 63, (7, 8)),  # no side grows
        (36, 64, 100, (7, 14)),
        (25, 9, 9, (4, 2)),  # rounding down both sides would leave five of nine
        (2, 100, 100, (1, 100)),
        (1, 50, 7, (1, 7)),
        (50, 1, 7, (7, 1)),
        (4, 90, 3, (1, 3)),
        (3, 3, 1, (1, 1)),
    ],
)
def test_grids_by_hand(rows, columns, tokens, grid):
    assert nearest_grid(rows, columns, tokens) == grid


@given(sides, sides, st.integers(1, 1600))
def test_at_least_as_many_as_the_processor_s_own_limit_leaves(rows, columns, tokens):
    """Which rounds both sides down."""
    high, wide = nearest_grid(rows, columns, tokens)
    floor = math.isqrt(rows * tokens // columns) * math.isqrt(columns * tokens // rows)
    assert high * wide >= min(floor, rows * columns)


@given(sides, sides, st.integers(1, 6))
def test_what_fits_is_met_exactly_in_the_same_aspect_ratio(rows, columns, factor):
    """A picture of several times each side comes back to these sides."""
    assert nearest_grid(rows * factor, columns * factor, rows * columns) == (rows, columns)


@given(st.lists(st.integers(1, 400), min_size=1, max_size=6), st.floats(0, 1))
def test_a_row_s_tokens_are_divided_in_proportion(own, share):
    budget = max(1, int(share * sum(own)))
    found = divided(budget, own)
    assert all(1 <= got <= has for got, has in zip(found, own, strict=True))
    assert sum(found) <= max(budget, len(own))
    if budget == sum(own):
        assert found == own
    if budget >= len(own):
        spare = sum(own) - len(own)
        for got, has in zip(found, own, strict=True):  # beside the one that each has
            exact = (budget - len(own)) * (has - 1) / spare if spare else 0
            assert exact - 1 < got - 1 <= exact + 1e-9


# ------------------------------------------------------------------------------------------------------ the processors


@pytest.mark.parametrize("architecture", SHRINKING)
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("wanted", BUDGETS, ids=str)
def test_the_real_processor_makes_the_grid(wide, architecture, size, wanted):
    _, processor = wide(architecture)
    told = copy.deepcopy(processor.image_processor.to_dict())
    picture = noise(size)
    [whole] = cut(processor, [picture])
    shrunk = shrink_pictures(processor, [[picture]], wanted)
    grid = all_grids(*whole, wanted.most(math.prod(whole)))
    assert cut(processor, shrunk.rows[0], **shrunk.options) == [grid]
    assert (shrunk.before, shrunk.after) == ([math.prod(whole)], [math.prod(grid)])
    inputs = chat_inputs(processor, [picture], "Where?", downsample=wanted)
    assert (inputs["input_ids"] == processor.image_token_id).sum() == math.prod(grid)
    assert processor.image_processor.to_dict() == told
    assert visual_tokens(processor, [picture]) == math.prod(whole)


@pytest.mark.parametrize("architecture", SHRINKING)
def test_the_picture_is_resized_once_and_as_the_processor_would(wide, architecture):
    """Its pixels are those of the processor with a limit that leads to the same grid."""
    _, processor = wide(architecture)
    picture, images = noise((480, 480)), processor.image_processor
    unit = images.patch_size * images.merge_size
    limits = {"shortest_edge": unit**2, "longest_edge": 16 * unit**2}
    wanted = images(images=[picture], size=limits, return_tensors="pt")
    assert wanted["image_grid_thw"].prod() == 16 * 4
    mine = chat_inputs(processor, [picture], "Where?", downsample=Downsample(tokens=16))
    assert torch.equal(mine["image_grid_thw"], wanted["image_grid_thw"])
    assert torch.equal(mine["pixel_values"], wanted["pixel_values"])


@pytest.mark.parametrize("architecture", SHRINKING)
@pytest.mark.parametrize("wanted", [Downsample(), Downsample(1.0), Downsample(tokens=10**6)], ids=str)
def test_keeping_everything_changes_nothing(wide, architecture, wanted):
    _, processor = wide(architecture)
    images = [noise((300, 200)), noise((5, 9)), noise((90, 90)).convert("P"), noise((40, 80)).convert("RGBA")]
    shrunk = shrink_pictures(processor, [images], wanted)
    assert all(mine is given for mine, given in zip(shrunk.rows[0], images, strict=True))
    assert shrunk.options == {} and shrunk.before == shrunk.after
    plain, mine = (chat_inputs(processor, images, "Where?", downsample=each) for each in (None, wanted))
    assert set(plain) == set(mine) and all(torch.equal(plain[name], mine[name]) for name in plain)


@pytest.mark.parametrize("architecture", SHRINKING)
def test_several_pictures_and_rows_share_alike(wide, architecture):
    """A row's budget is its own, and each row has the pixels that it has alone, whatever stands beside it."""
    _, processor = wide(architecture)
    rows = [[noise((600, 400)), noise((200, 300), 1)], [], [noise((30, 20), 2)], [noise((200, 200), 3)] * 3]
    wanted = Downsample(tokens=20)
    shrunk = shrink_pictures(processor, rows, wanted)
    assert [len(row) for row in shrunk.rows] == [2, 0, 1, 3]
    assert all(now <= min(20, was) for was, now in zip(shrunk.before, shrunk.after, strict=True))
    assert shrunk.before[2] == shrunk.after[2]  # few enough
    together = batch_inputs(processor, [(row, "Where?") for row in rows], downsample=wanted)
    counts = (together["input_ids"] == processor.image_token_id).sum(1)
    assert counts.tolist() == shrunk.after
    alone = [batch_inputs(processor, [(row, "Where?")], downsample=wanted) for row in rows if row]
    assert torch.equal(together["image_grid_thw"], torch.cat([each["image_grid_thw"] for each in alone]))
    assert torch.equal(together["pixel_values"], torch.cat([each["pixel_values"] for each in alone]))


def test_a_share_counts_each_row_s_own_pictures(wide):
    _, processor = wide("Qwen2_5_VLForConditionalGeneration")
    rows = [[noise((280, 280))], [noise((140, 140))], [noise((280, 280)), noise((280, 280))]]
    shrunk = shrink_pictures(processor, rows, Downsample(0.25))
    assert shrunk.before == [100, 25, 200]
    assert shrunk.after == [25, 6, 50]


def test_every_picture_keeps_a_token_and_the_model_takes_it(wide):
    for name in SHRINKING:
        model, processor = wide(name)
        images = [noise((600, 400)), noise((30, 20)), noise((90, 400))]
        inputs = chat_inputs(processor, images, "Where?", downsample=Downsample(0.0001))
        assert (inputs["input_ids"] == processor.image_token_id).sum() == 3
        assert model(**inputs).logits.isfinite().all()


def test_arrays_and_modes_are_made_pictures(wide):
    _, processor = wide("Qwen2VLForConditionalGeneration")
    picture, wanted = noise((300, 200)), Downsample(tokens=12)
    plain = shrink_pictures(processor, [[picture]], wanted).rows[0][0]
    array = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8).view(200, 300, 3).numpy()
    clear = picture.copy()
    clear.putalpha(255)
    for same in (array, clear):
        assert shrink_pictures(processor, [[same]], wanted).rows[0][0].tobytes() == plain.tobytes()
    palette = shrink_pictures(processor, [[picture.convert("P")]], wanted).rows[0][0]
    assert palette.mode == "RGB" and len(Counter(palette.getdata())) > 256  # resized in colours, not in numbers of them


# -------------------------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize("architecture", sorted(set(FAMILIES) - set(SHRINKING)))
def test_fixed_grids_are_refused(hub, architecture):
    model, processor = load_model(hub(architecture))
    said = "tiles up to fixed sizes" if "Next" in architecture else "a picture of any size"
    plan = parse_plan("downsample::0.25")
    pattern = f"downsample is not for {{}}.*{said}.*choose a method"
    whose = type(processor).__name__
    refusal(lambda: shrink_pictures(processor, [[noise((90, 60))]], plan.downsample), pattern.format(whose))
    refusal(lambda: chat_inputs(processor, [noise((90, 60))], "?", downsample=plan.downsample), pattern.format(whose))
    refusal(lambda: accelerate(model, plan), pattern.format(architecture))
    prompt = build_prompt(model, 16, 8) if architecture != "VideoLlavaForConditionalGeneration" else None
    refusal(lambda: shrink_prompt(model, prompt, plan.downsample), pattern.format(architecture))


def test_a_model_alone_cannot_shrink_pictures(wide):
    model, _ = wide("Qwen2VLForConditionalGeneration")
    for plan in (parse_plan("downsample::64"), parse_plan("downsample::0.5,ivr:2:0.5")):
        refusal(
            lambda plan=plan: accelerate(model, plan), r"downsample=plan.downsample.*accelerate\(model, plan.inside\)"
        )
        accelerate(model, plan.inside)
    accelerate(model, parse_plan("downsample::1,ivr:2:0.5"))


def test_what_is_no_picture_is_refused(wide):
    _, processor = wide("Qwen2VLForConditionalGeneration")
    wanted = Downsample(0.5)
    refusal(
        lambda: chat_inputs(processor, ["picture.png"], "?", downsample=wanted), "'picture.png' is no picture.*open"
    )
    strip = Image.new("RGB", (3000, 3))
    refusal(lambda: chat_inputs(processor, [strip], "?", downsample=wanted), "3000 x 3 pixels.*crop it")
    video = [([], "?", [strip] * 4)]
    refusal(lambda: batch_inputs(processor, video, downsample=wanted), "videos")


@pytest.mark.parametrize("given", [dict(retention=0), dict(retention=1.5), dict(retention=True), dict(tokens=0)])
def test_budgets_that_make_no_sense_are_refused(given):
    refusal(lambda: Downsample(**given), "downsample has")
    refusal(lambda: Downsample(0.5, 7), "one of them")


WRONG = {
    "ivr:2:0.5,downsample::0.25": "write it first",
    "downsample::0.5,downsample::0.5": "once",
    "downsample:2:0.25": "no layer",
    "downsample::0.25:own": "no layer or option",
    "downsample::0.1-0.5": "has bounds",
    "downsample::half": "where a number belongs",
    "downsample::0": "give a number in",
}


@pytest.mark.parametrize("text", WRONG)
def test_nonsense_in_words_is_refused(text):
    refusal(lambda: parse_plan(text), WRONG[text])
