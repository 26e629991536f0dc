"""Where visual tokens are, against models whose features say where they come from (`coded`)."""

import inspect

import pytest
import torch
from transformers import LlavaConfig, LlavaForConditionalGeneration, PixtralVisionConfig

from halfv_accel import HalfVError
from halfv_accel.adapters import Family, family_of

from .coded import code, coded_model, embeddings
from .listening import listening
from .miniatures import IMAGE, MINIATURES, VIDEO
from .miniatures.base import text_options

CODED = {name: coded_model(mini) for name, mini in MINIATURES.items()}


def ragged(mini, side="left"):
    """Two pictures and a video, none, one picture; padded."""
    videos = dict(videos=2) if mini.videos else {}
    prompts = [
        mini.prompt(0, pictures=2, **videos),
        mini.prompt(1, pictures=0, question=3),
        mini.prompt(2, pictures=1, question=9),
    ]
    return mini.batch([code(prompt) for prompt in prompts], side)


def agrees(structure, batch, embeds):
    """Does the structure say what the features say?"""
    ids, copies = batch["input_ids"], len(embeds) // len(batch["input_ids"])
    ids = ids.repeat_interleave(copies, dim=0)
    places, before = structure.places, images_before(batch)
    for row, column in torch.cartesian_prod(torch.arange(ids.shape[0]), torch.arange(ids.shape[1])).tolist():
        said = [int(getattr(places, name)[row, column]) for name in ("picture", "part", "row", "column")]
        separator, source = bool(places.separator[row, column]), int(structure.source[row, column])
        if ids[row, column] not in (IMAGE, VIDEO):
            assert said == [-1] * 4 and not separator and source == -1
            continue
        number, at_row, at_column, place = embeds[row, column, :4].tolist()
        if number == -1:
            assert separator and said[2:] == [-1, -1] and source == -1
            assert said[0] >= 0 and said[1] >= 0
            continue
        assert not separator
        assert said == [number // 100, number % 100, at_row, at_column]
        if before is not None:
            assert source == place + (before if ids[row, column] == VIDEO else 0)


def images_before(batch):
    """Entries of the image tower's output; None for Qwen, whose towers have not numbered theirs."""
    if any(name.endswith("grid_thw") for name in batch):
        return None
    pixels = batch.get("pixel_values", batch.get("pixel_values_images"))
    return pixels[:, 0].numel() // 16


@pytest.mark.parametrize("side", ["left", "right"])
@torch.no_grad()
def test_structure_is_what_the_features_say(mini, side):
    batch = ragged(mini, side)
    with embeddings(CODED[mini.name]) as embeds, listening(CODED[mini.name]) as seen:
        CODED[mini.name](**batch)
    agrees(seen.read[0][0], batch, embeds[0])


@pytest.mark.parametrize("beams", [1, 3])
def test_generate_hands_on_no_sizes_and_repeats_rows(mini, beams):
    before = "mm_encoder_outputs" not in inspect.signature(type(CODED[mini.name]).forward).parameters
    if before and beams > 1 and "llava" in mini.name:
        pytest.skip("older releases hand [A, A, B, B] to two beams of a row with pictures A and B")
    batch = ragged(mini)
    with embeddings(CODED[mini.name]) as embeds, listening(CODED[mini.name]) as seen:
        seen.generate(**batch, num_beams=beams)
    assert len(seen.read) == 1
    agrees(seen.read[0][0], batch, embeds[0])


@torch.no_grad()
def test_sources_of_qwen_are_the_prompts_own_order():
    """Features come out in the order of the prompt, whatever order the tower works in."""
    for name in ("qwen2-vl", "qwen2.5-vl", "qwen3-vl"):
        batch = ragged(MINIATURES[name])
        with listening(CODED[name]) as seen:
            CODED[name](**batch)
        structure, ids = seen.read[0][0], batch["input_ids"]
        images = (ids == IMAGE).sum()
        assert structure.source[ids == IMAGE].tolist() == list(range(images))
        assert structure.source[ids == VIDEO].tolist() == list(range(images, structure.sources))


@torch.no_grad()
def test_pictures_and_videos_are_counted_in_the_order_of_the_prompt():
    mini, name = MINIATURES["qwen2.5-vl"], "qwen2.5-vl"
    prompt = mini.prompt(0, pictures=2, videos=1)
    ids = prompt["ids"]
    start = ids.index(VIDEO) - 1
    video, rest = ids[start : start + 20], ids[:start] + ids[start + 20 :]
    prompt["ids"] = rest[:-6] + video + rest[-6:]  # behind both pictures
    batch = mini.batch([prompt])
    picture = family_of(CODED[name]).structure(batch["input_ids"], batch).places.picture[0]
    assert picture[picture >= 0].tolist() == [0] * 20 + [1] * 12 + [2] * 18


@pytest.mark.parametrize("size", [(12, 24), (24, 12), (4, 24), (24, 5), (12, 23), (7, 7), (1, 100), (100, 3)])
@torch.no_grad()
def test_unpadded_crops_of_any_shape(size):
    mini, model = MINIATURES["llava-next-mistral"], CODED["llava-next-mistral"]
    tokens = mini.tokens(size)
    prompts = [mini.prompt(0, pictures=1), mini.prompt(1, pictures=1)]
    prompts[1]["image_sizes"] = torch.tensor([size])
    prompts[1]["ids"] = [5, 6, *[IMAGE] * tokens, 7, 8, 9]
    batch = mini.batch([code(prompt) for prompt in prompts])
    with embeddings(model) as embeds, listening(model) as seen:
        model(**batch)
    agrees(seen.read[0][0], batch, embeds[0])


@pytest.mark.parametrize("name, tokens", [("llava", 26), ("video-llava", 17)])
@torch.no_grad()
def test_a_class_token_that_stays_is_a_separator(name, tokens):
    mini, model = MINIATURES[name], CODED[name]
    prompt = code(mini.prompt(0, pictures=2))
    prompt["ids"] = [5, *[IMAGE] * tokens, 6, *[IMAGE] * tokens, 7, 8]
    batch = mini.batch([prompt])
    for generate in (False, True):
        with embeddings(model) as embeds, listening(model) as seen:
            call = seen.generate if generate else model
            call(**batch, vision_feature_select_strategy="full")
        assert seen.read[0][0].places.separator.sum() == 2
        agrees(seen.read[0][0], batch, embeds[0])


def test_some_positions_of_each_row(mini):
    batch = ragged(mini)
    whole = family_of(CODED[mini.name]).structure(batch["input_ids"], batch)
    visual = whole.places.picture >= 0
    index = visual.byte().argsort(dim=1, descending=True, stable=True)[:, : int(visual.sum(1).max())]
    part = whole.at(index, visual.gather(1, index))
    for row in range(len(index)):
        count = int(visual[row].sum())
        for name in ("picture", "part", "row", "column", "separator"):
            packed, full = getattr(part.places, name)[row], getattr(whole.places, name)[row]
            assert packed[:count].tolist() == full[visual[row]].tolist()
            assert packed[count:].tolist() == [False if name == "separator" else -1] * (len(packed) - count)
        assert part.source[row, :count].tolist() == whole.source[row, visual[row]].tolist()
        assert (part.source[row, count:] == -1).all()
    assert part.sources == whole.sources


def test_no_pictures(mini):
    batch = mini.batch([mini.prompt(0, pictures=0), mini.prompt(1, pictures=0, question=2)])
    structure = family_of(CODED[mini.name]).structure(batch["input_ids"], batch)
    assert (structure.places.picture == -1).all() and (structure.source == -1).all() and structure.sources == 0


def test_pixtrals_grids_are_those_of_the_sizes():
    vision = PixtralVisionConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=32, patch_size=4
    )
    text = dict(text_options(2), model_type="mistral")
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=IMAGE,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
    )
    family = family_of(LlavaForConditionalGeneration(config))
    ids = torch.tensor([[5, *[IMAGE] * 6, 5], [*[IMAGE] * 2, 5, 5, *[IMAGE] * 4]])
    arguments = {"pixel_values": torch.zeros(3, 3, 16, 16), "image_sizes": torch.tensor([[8, 12], [4, 8], [8, 8]])}
    places = family.structure(ids, arguments).places
    assert places.picture.tolist() == [[-1, *[0] * 6, -1], [0, 0, -1, -1, 1, 1, 1, 1]]
    assert places.row.tolist() == [[-1, 0, 0, 0, 1, 1, 1, -1], [0, 0, -1, -1, 0, 0, 1, 1]]
    assert places.column.tolist() == [[-1, 0, 1, 2, 0, 1, 2, -1], [0, 1, -1, -1, 0, 1, 0, 1]]


def test_a_prompt_that_does_not_fit_its_pictures_is_refused(mini):
    batch = mini.batch([mini.prompt(0, pictures=2)])
    batch["input_ids"][0, int((batch["input_ids"][0] == IMAGE).nonzero()[0])] = 5
    with pytest.raises(HalfVError, match="the prompt has places for"):
        family_of(CODED[mini.name]).structure(batch["input_ids"], batch)


def test_twice_the_tokens_are_no_beams_where_pixels_came_along():
    mini = MINIATURES["llava"]
    batch = mini.batch([mini.prompt(0)] * 2)
    batch["pixel_values"] = batch["pixel_values"][:1]
    with pytest.raises(HalfVError, match="50 visual tokens, and its pictures make 25"):
        family_of(CODED["llava"]).structure(batch["input_ids"], batch)


@pytest.mark.parametrize("name", ["llava-next-mistral", "qwen2.5-vl"])
def test_encoded_pictures_without_sizes_are_refused(name):
    batch = MINIATURES[name].batch([MINIATURES[name].prompt(0)])
    arguments = {"mm_encoder_outputs": {"image": object()}}
    with pytest.raises(HalfVError, match="is missing"):
        family_of(CODED[name]).structure(batch["input_ids"], arguments)


def test_an_unknown_class_is_refused_by_name():
    family = Family(CODED["llava"])
    with pytest.raises(HalfVError, match=r"where visual tokens are .* LlavaForConditionalGeneration: choose one"):
        family.check_structure()
    with pytest.raises(HalfVError, match="write an adapter"):
        family.pictures("image", {})
    family_of(CODED["llava"]).check_structure()
