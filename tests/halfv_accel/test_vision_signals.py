"""Signals of the vision tower against loops in float64 over each picture alone."""

import copy
import math
import threading
from contextlib import ExitStack

import pytest
import torch
from torch import nn
from transformers import LlavaConfig, LlavaForConditionalGeneration, SiglipVisionConfig

from halfv_accel import HalfVError
from halfv_accel.adapters import Family, family_of, towers
from halfv_accel.adapters.vision import VisionRecorder

from .listening import listening
from .miniatures import IMAGE, MINIATURES, VIDEO, Miniature
from .miniatures.base import text_options
from .miniatures.llavas import PICTURES

ALL = [("attention", -2), ("keys", -2), ("features", -2)]


def prompts_of(mini):
    videos = dict(videos=1) if mini.videos else {}
    return [mini.prompt(0, pictures=2, **videos), mini.prompt(1, pictures=0, question=3), mini.prompt(2, question=9)]


def expected(model, prompt, layer):
    """Signals of one prompt's placeholders in their order: lists of [heads], [heads, d], [width], or None."""
    core, per_kind = model.model, {}
    if hasattr(core, "visual"):
        for kind, pixels in (("image", "pixel_values"), ("video", "pixel_values_videos")):
            per_kind[kind], start = [], 0
            for grid in prompt[f"{kind}_grid_thw"].tolist():
                count = math.prod(grid)
                per_kind[kind] += qwen_picture(core.visual, prompt[pixels][start : start + count], grid, layer)
                start += count
    else:
        clips = prompt.get("pixel_values_videos", ())
        tower = getattr(core, "video_tower", None)
        per_kind["video"] = [
            token for clip in clips for frame in clip for token in [None, *clip_picture(tower, frame, layer)]
        ]
        tower = getattr(core, "image_tower", getattr(core, "vision_tower", None))
        per_kind["image"] = []
        for number, picture in enumerate(prompt.get("pixel_values", prompt.get(PICTURES))):
            crops = [clip_picture(tower, one, layer) for one in (picture if picture.ndim == 4 else picture[None])]
            sizes = prompt.get("image_sizes")
            per_kind["image"] += crops[0] if sizes is None else stitched(crops, sizes[number].tolist())
    return [per_kind["image" if token == IMAGE else "video"].pop(0) for token in prompt["ids"] if token in (1, 2)]


def stitched(crops, size):
    """LLaVA-NeXT with crops of 3 x 3 patches, two side by side or one above the other; None ends a row."""
    height, width = size
    tall = min(24 / height, 12 / width), min(12 / height, 24 / width)
    areas = [min(int(height * scale) * int(width * scale), height * width) for scale in tall]
    rows, columns = (6, 3) if areas[0] > areas[1] else (3, 6)
    assert areas[0] != areas[1]
    grid = [
        [crops[1 + (row // 3) + (column // 3)][3 * (row % 3) + column % 3] for column in range(columns)]
        for row in range(rows)
    ]
    if width / height > columns / rows:
        cut = (rows - int(height * columns / width)) // 2
        grid = grid[cut : rows - cut]
    else:
        cut = (columns - int(width * rows / height)) // 2
        grid = [line[cut : columns - cut] for line in grid]
    return crops[0] + [token for line in grid for token in [*line, None]]


@torch.no_grad()
def input_of(layer, call):
    """What a layer gets, in float64, while the tower runs on one picture alone; and the tower's output."""
    seen = []
    handle = layer.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    try:
        output = call()
    finally:
        handle.remove()
    return seen[0].double(), output


def linear(module, states):
    return states @ module.weight.double().T + module.bias.double()


@torch.no_grad()
def clip_picture(tower, pixels, layer):
    """Per patch: CLS's attention of each head, keys, features."""
    block = tower.encoder.layers[layer]
    states, output = input_of(block, lambda: tower(pixels[None], output_hidden_states=True))
    normed = nn.functional.layer_norm(
        states[0], states.shape[-1:], block.layer_norm1.weight.double(), block.layer_norm1.bias.double(), 1e-5
    )
    queries = linear(block.self_attn.q_proj, normed).view(len(normed), 2, -1)
    keys = linear(block.self_attn.k_proj, normed).view(len(normed), 2, -1)
    cls = any(name.endswith("class_embedding") for name, _ in tower.named_parameters())
    asking = [0] if cls else range(len(normed))
    attention = torch.zeros(2, len(normed), dtype=torch.float64)
    for head in range(2):
        for query in asking:
            logits = [float(queries[query, head] @ key) / math.sqrt(keys.shape[-1]) for key in keys[:, head]]
            weights = [math.exp(logit - max(logits)) for logit in logits]
            attention[head] += torch.tensor(weights, dtype=torch.float64) / sum(weights) / len(asking)
    first = 1 if cls else 0
    return [
        (attention[:, place], keys[place], output.hidden_states[-1][0, place].double())
        for place in range(first, len(normed))
    ]


@torch.no_grad()
def qwen_picture(tower, pixels, grid, layer):
    """Per token: the same, received from all patches of its frame, and averaged over its four patches."""
    frames, rows, columns = grid
    block, norm = tower.blocks[layer], tower.blocks[layer].norm1
    given = torch.tensor([grid])
    states, output = input_of(block, lambda: tower(pixels, grid_thw=given, return_dict=True))
    last = output.last_hidden_state.double()
    if norm.weight.shape and "RMS" in type(norm).__name__:
        normed = states / (states.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt() * norm.weight.double()
    else:
        normed = nn.functional.layer_norm(states, states.shape[-1:], norm.weight.double(), norm.bias.double(), 1e-6)
    order = positions(tower, frames, rows // 2, columns // 2)
    projected = linear(block.attn.qkv, normed).view(len(normed), 3, 2, -1)
    size = projected.shape[-1]
    queries, keys = projected[:, 0], projected[:, 1]
    received = torch.zeros(len(normed), 2, dtype=torch.float64)
    for frame in range(frames):
        places = [place for place, where in enumerate(order) if where[0] == frame]
        for head in range(2):
            turned = [turn(keys[place, head], *order[place][1:]) for place in places]
            for query in places:
                asked = turn(queries[query, head], *order[query][1:])
                logits = torch.stack([asked @ key for key in turned]) / math.sqrt(size)
                received[places, head] += logits.softmax(0) / len(places)
    tokens = {}
    for place, (frame, row, column) in enumerate(order):
        tokens.setdefault((frame, row // 2, column // 2), []).append(place)
    return [
        (received[places].mean(0), keys[places].mean(0), last[places].mean(0)) for _, places in sorted(tokens.items())
    ]


def positions(tower, frames, rows, columns):
    """Frame, row and column of each patch, in the order in which the blocks see them; 4 patches a window's side."""
    side = 2 if hasattr(tower, "window_size") else max(rows, columns)
    found = []
    for frame in range(frames):
        for window_row in range(0, rows, side):
            for window_column in range(0, columns, side):
                for row in range(window_row, min(window_row + side, rows)):
                    for column in range(window_column, min(window_column + side, columns)):
                        found += [(frame, 2 * row + down, 2 * column + right) for down in (0, 1) for right in (0, 1)]
    return found


def turn(vector, row, column):
    """Rotary position embedding: a quarter of the pairs turns with the row, the next with the column."""
    half, turned = len(vector) // 2, vector.clone()
    for pair in range(half):
        angle = (row if pair < half // 2 else column) * 10000.0 ** (-2 * (pair % (half // 2)) / half)
        a, b = vector[pair], vector[pair + half]
        turned[pair] = a * math.cos(angle) - b * math.sin(angle)
        turned[pair + half] = b * math.cos(angle) + a * math.sin(angle)
    return turned


def compare(mini, read, prompts, ids, layer, tolerance=2e-5):
    """All signals at all positions of all rows."""
    model, copies = mini.model("eager"), len(read["attention"]) // len(prompts)
    for row in range(len(read["attention"])):
        prompt = prompts[row // copies]
        tokens, visual = expected(model, prompt, layer), (ids[row // copies] == IMAGE) | (ids[row // copies] == VIDEO)
        for name, found in read.items():
            got = found[row] if name == "features" else found[row].transpose(0, 1)
            assert (got[~visual] == 0).all()
            index = ("attention", "keys", "features").index(name)
            nothing = torch.zeros_like(got[0]).double()
            told = [nothing if token is None else token[index] for token in tokens]
            wanted = torch.stack([*told, nothing])[:-1]
            assert got[visual].shape == wanted.shape
            torch.testing.assert_close(got[visual].double(), wanted, rtol=tolerance, atol=tolerance)


def real_layer(mini, layer):
    """Qwen2.5-VL's miniature has one layer with full attention, its last."""
    return 1 if mini.name == "qwen2.5-vl" else layer


@pytest.mark.parametrize("layer", [-2, -1, 0])
@torch.no_grad()
def test_signals_of_a_forward(mini, attention, layer):
    prompts, needs = prompts_of(mini), [(signal, layer) for signal, _ in ALL]
    batch, model = mini.batch(prompts), mini.model(attention)
    with listening(model, needs) as seen:
        model(**batch)
    assert seen.read[0][1]["attention"].dtype == torch.float32
    compare(mini, seen.read[0][1], prompts, batch["input_ids"], real_layer(mini, layer))


@pytest.mark.parametrize("beams", [1, 2])
def test_signals_of_generate(mini, beams):
    prompts = prompts_of(mini)
    if beams > 1:
        prompts = [prompts[2], prompts[1], mini.prompt(5)]  # see test_structure: older releases mix several pictures
    batch, model = mini.batch(prompts), mini.model()
    with listening(model, ALL) as seen:
        seen.generate(**batch, num_beams=beams)
    assert len(seen.read) == 1
    compare(mini, seen.read[0][1], prompts, batch["input_ids"], real_layer(mini, -2))


@torch.no_grad()
def test_half_precision_is_close(mini):
    prompts = prompts_of(mini)
    batch, model = mini.batch(prompts), copy.deepcopy(mini.model()).to(torch.bfloat16)
    with listening(model, ALL) as seen:
        model(**batch)
    read = seen.read[0][1]
    assert read["attention"].dtype == torch.float32 and read["keys"].dtype == read["features"].dtype == torch.bfloat16
    compare(mini, read, prompts, batch["input_ids"], real_layer(mini, -2), tolerance=0.1)


@torch.no_grad()
def test_chunks_do_not_change_the_attention(monkeypatch):
    draw = torch.Generator().manual_seed(0)
    queries, keys = torch.randn(2, 30, 2, 8, generator=draw)
    whole = towers.received(queries, keys, [0, 13, 13, 30])
    monkeypatch.setattr(towers, "ENTRIES", 100)
    torch.testing.assert_close(towers.received(queries, keys, [0, 13, 13, 30]), whole)
    assert torch.allclose(whole[:13].sum(0), torch.ones(2)) and torch.allclose(whole[13:].sum(0), torch.ones(2))


@torch.no_grad()
def test_features_go_through_the_projector_to_the_prompt():
    """Where tokens are not merged, the projected features are the prompt's embeddings."""
    for name in ("llava", "llava-next-vicuna", "video-llava"):
        mini = MINIATURES[name]
        batch, model, embeds = mini.batch(prompts_of(mini)), mini.model(), []
        handle = model.model.language_model.register_forward_pre_hook(
            lambda module, args, kwargs, embeds=embeds: embeds.append(kwargs["inputs_embeds"]), with_kwargs=True
        )
        with listening(model, [("features", -2)]) as seen:
            model(**batch)
        handle.remove()
        structure, read = seen.read[0]
        shown = structure.source >= 0
        assert shown.any()
        projected = model.model.multi_modal_projector(read["features"][shown])
        torch.testing.assert_close(projected, embeds[0][shown])


class MiniSiglip(Miniature):
    """LLaVA with a tower that has no CLS token."""

    name = "llava-siglip"

    def build(self):
        vision = SiglipVisionConfig(
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=12,
            patch_size=4,
        )
        config = LlavaConfig(
            vision_config=vision,
            text_config=dict(text_options(4), model_type="llama"),
            image_token_index=IMAGE,
            vision_feature_layer=-1,
            vision_feature_select_strategy="full",
        )
        return LlavaForConditionalGeneration(config)

    def prompt(self, seed, pictures=1, question=6, videos=0):
        draw = torch.Generator().manual_seed(seed)
        ids = [5, *[IMAGE] * (9 * pictures), *[6] * question]
        return {"ids": ids, "pixel_values": torch.randn(pictures, 3, 12, 12, generator=draw)}

    def features(self, prompts, ids):
        return {"pixel_values": torch.cat([prompt["pixel_values"] for prompt in prompts])}


@torch.no_grad()
def test_a_tower_without_cls_says_what_patches_receive(attention):
    mini = MiniSiglip()
    prompts = [mini.prompt(0, pictures=2), mini.prompt(1, question=2)]
    batch, model = mini.batch(prompts), mini.model(attention)
    with listening(model, ALL) as seen:
        model(**batch)
    read = dict(seen.read[0][1])
    compare(mini, read, prompts, batch["input_ids"], 0)


@torch.no_grad()
def test_a_class_token_that_stays_has_no_signal():
    mini = MINIATURES["llava"]
    prompt = mini.prompt(0)
    usual = mini.batch([prompt])
    full = dict(usual, input_ids=torch.tensor([[5, *[IMAGE] * 26, 7, 8]]), attention_mask=torch.ones(1, 29).long())
    with listening(mini.model(), ALL) as seen:
        mini.model()(**usual)
        mini.model()(**full, vision_feature_select_strategy="full")
    (_, dropped), (_, kept) = seen.read
    usual_places = (usual["input_ids"][0] == IMAGE).nonzero()[:, 0]
    for signal in ("attention", "keys", "features"):
        dim = 1 if signal == "features" else 2
        places = torch.arange(2, 27)
        assert torch.equal(kept[signal].index_select(dim, places), dropped[signal].index_select(dim, usual_places))
        assert (kept[signal].select(dim, 1) == 0).all()


@torch.no_grad()
def test_padding_and_part_of_the_tokens(mini):
    batch, model = mini.batch(prompts_of(mini)), mini.model()
    with listening(model, ALL) as seen:
        seen_signals = []
        signals = seen.recorder.signals
        seen.recorder.signals = lambda structure: seen_signals.append(signals(structure)) or seen_signals[-1]
        model(**batch)
    structure, read = seen.read[0]
    index = torch.tensor([[5, 3, 0], [1, 1, 2], [9, 8, 7]])
    present = torch.tensor([[True, True, False], [False] * 3, [True] * 3])
    part = structure.at(index, present)
    for signal in ("attention", "keys", "features"):
        found, whole = seen_signals[0].at(signal, -2, part), read[signal]
        for row in range(3):
            for place in range(3):
                one = found[row, place] if signal == "features" else found[row, :, place]
                at = int(index[row, place])
                full = whole[row, at] if signal == "features" else whole[row, :, at]
                assert torch.equal(one, full if present[row, place] else torch.zeros_like(full))


@torch.no_grad()
def test_nothing_of_an_earlier_call_is_left(mini):
    model = mini.model()
    pictures, text = mini.batch([mini.prompt(0)]), mini.batch([mini.prompt(0, pictures=0)])
    with listening(model, ALL) as seen:
        model(**pictures)
        assert seen.recorder._thread.calls == []
        seen.generate(**pictures)
        assert seen.recorder._thread.calls == []
        model(**text)
        empty = family_of(model).structure(text["input_ids"], text)
        family = family_of(model)
        with pytest.raises(HalfVError, match="ran where HalfV could not listen"):
            seen.recorder.signals(family.structure(pictures["input_ids"], pictures))
        assert empty.sources == 0
        encode = {name: pictures[name] for name in family.encoder_arguments if name in pictures}
        model.model.get_image_features(**encode, return_dict=True)  # nobody asked
        assert seen.recorder._thread.calls == []


@torch.no_grad()
def test_pictures_encoded_outside_are_refused():
    mini = MINIATURES["llava"]
    model, batch = mini.model(), mini.batch([mini.prompt(0)])
    if not hasattr(model, "_prepare_multimodal_encoder_kwargs_for_generation"):
        pytest.skip("this release takes no encoded pictures")
    encoded = model.model.get_image_features(pixel_values=batch.pop("pixel_values"), return_dict=True)
    with listening(model, ALL), pytest.raises(HalfVError, match="give the model pixels"):
        model(**batch, mm_encoder_outputs={"image": encoded})


@torch.no_grad()
def test_hooks_are_gone_after_an_exception(mini):
    model = mini.model()
    before = hooks(model)

    def fail(*_):
        raise RuntimeError("in the middle")

    batch = mini.batch([mini.prompt(0)])
    with pytest.raises(RuntimeError, match="in the middle"), listening(model, ALL) as seen:
        assert hooks(model) > before
        handle = model.model.language_model.layers[3].register_forward_pre_hook(fail)
        try:
            for call in (model, seen.generate):
                with pytest.raises(RuntimeError, match="in the middle"):
                    call(**batch)
                assert seen.recorder._thread.calls == []
            model(**batch)
        finally:
            handle.remove()
    assert hooks(model) == before


@torch.no_grad()
def test_an_exception_in_the_tower_leaves_nothing(mini):
    model, batch = mini.model(), mini.batch([mini.prompt(0)])
    core = model.model
    tower = next(getattr(core, name) for name in ("visual", "vision_tower", "image_tower") if hasattr(core, name))
    deep = tower.blocks[-1] if hasattr(tower, "blocks") else tower.encoder.layers[-1]

    def fail(*_):
        raise RuntimeError("in the tower")

    with listening(model, ALL) as seen:
        handle = deep.register_forward_pre_hook(fail)
        for call in (model, seen.generate):
            with pytest.raises(RuntimeError, match="in the tower"):
                call(**batch)
            assert seen.recorder._thread.calls == []
        handle.remove()
        model(**batch)
    assert len(seen.read) == 1


def hooks(model):
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


def test_threads_do_not_mix():
    mini = MINIATURES["qwen2.5-vl"]
    model, needs = mini.model(), ALL
    batches = [mini.batch([mini.prompt(seed, pictures=1 + seed % 2)]) for seed in range(4)]
    family, found, barrier = family_of(model), {}, threading.Barrier(4)
    recorder = VisionRecorder(family, needs)
    local = threading.local()

    def begin(core, args, kwargs):
        local.arguments = recorder.begin(family.core_arguments(args, kwargs))

    def first(module, args, kwargs):
        if family.modalities(local.arguments):
            structure = family.structure(local.arguments["input_ids"], local.arguments)
            found[local.seed] = recorder.signals(structure).at("keys", -2, structure)

    def work(seed):
        local.seed = seed
        for _ in range(5):
            barrier.wait(timeout=60)
            with torch.no_grad(), recorder.call(batches[seed]):
                model.generate(**batches[seed], max_new_tokens=1, do_sample=False)

    with ExitStack() as stack:
        recorder.install(stack)
        stack.callback(model.model.register_forward_pre_hook(begin, with_kwargs=True).remove)
        stack.callback(model.model.language_model.layers[0].register_forward_pre_hook(first, with_kwargs=True).remove)
        stack.callback(model.model.register_forward_hook(lambda *_: recorder.end(), always_call=True).remove)
        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for seed, batch in enumerate(batches):
        with listening(model, needs) as seen, torch.no_grad():
            model(**batch)
        torch.testing.assert_close(found[seed], seen.read[0][1]["keys"])


def test_only_what_is_needed_is_heard(mini):
    model, before = mini.model(), hooks(mini.model())
    with ExitStack() as stack:
        VisionRecorder(family_of(model)).install(stack)
        assert hooks(model) == before
    with ExitStack() as stack:
        VisionRecorder(family_of(model), [("features", -2)]).install(stack)
        towers = len(set(family_of(model).towers.values()))
        assert hooks(model) == before + 3 * towers


def test_a_layer_that_is_not_there_is_refused(mini):
    for layer in (7, -9):
        with pytest.raises(HalfVError, match=f"vision_layer is {layer}, and the vision tower has"):
            VisionRecorder(family_of(mini.model()), [("attention", layer)])


def test_a_windowed_layer_gives_way_to_one_with_full_attention():
    tower = copy.deepcopy(MINIATURES["qwen2.5-vl"].model().model.visual)
    for _ in range(6):
        tower.blocks.append(tower.blocks[0])
    tower.fullatt_block_indexes = [3, 6]
    packed = towers.PackedTower(tower, tower.merger)
    assert [packed.layer(asked) for asked in range(8)] == [3, 3, 3, 3, 3, 3, 6, 6]
    assert packed.layer(-2) == 6


@torch.no_grad()
def test_a_tower_that_was_compiled_before_is_noticed():
    mini = MINIATURES["llava"]
    model, batch = copy.deepcopy(mini.model()), mini.batch([mini.prompt(0)])
    with listening(mini.model(), ALL) as plain:
        mini.model()(**batch)
    torch.compiler.reset()
    model.model.vision_tower.compile(backend="eager")
    model(**batch)
    with listening(model, ALL) as seen:
        with pytest.raises(HalfVError, match=r"torch.compiler.reset\(\)"):
            model(**batch)
        torch.compiler.reset()
        model(**batch)
    for name, signal in seen.read[0][1].items():
        torch.testing.assert_close(signal, plain.read[0][1][name])


def test_an_unknown_class_is_refused_by_name():
    with pytest.raises(HalfVError, match=r"signals of the vision tower, .* LlavaForConditionalGeneration"):
        VisionRecorder(Family(MINIATURES["llava"].model()), [("keys", -2)])
    VisionRecorder(Family(MINIATURES["llava"].model()))


def test_an_unknown_tower_is_refused_by_name():
    model = copy.deepcopy(MINIATURES["llava"].model())
    for layer in model.model.vision_tower.encoder.layers:
        del layer.self_attn.q_proj
    with pytest.raises(HalfVError, match="layers of CLIPVisionModel are not of a form that HalfV knows"):
        VisionRecorder(family_of(model), [("keys", -2)])


def test_a_recorder_that_listens_cannot_be_copied():
    model = copy.deepcopy(MINIATURES["llava"].model())
    with listening(model, ALL) as seen, pytest.raises(HalfVError, match="cannot be copied"):
        copy.deepcopy(seen.recorder)
