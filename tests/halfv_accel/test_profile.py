"""profile.json: what is written is read, and what is wrong is refused in one line."""

import json
import os
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from halfv_accel import Plan, Profile, Stage, accelerate
from halfv_accel.plan_document import PlanDocument
from halfv_accel.profile import IVR, SSR, Calibration, Evidence, fingerprint, json_schema, model_info
from halfv_accel.strategies import AnchorCover, KeepNone, LastTokenAttention, RandomChoice

from .miniatures import MiniLlava, MiniQwen
from .refusing import refusal

text = st.text(max_size=12)
ratios = st.floats(0.001, 1)
fidelities = st.sampled_from(["paper", "reference"])


@st.composite
def profiles(draw):
    depth = draw(st.integers(4, 40))
    mode = draw(st.sampled_from(["sparse", "freeze", "none"]))
    ivr = draw(st.integers(1, depth - 2))
    curve = st.lists(st.floats(0, 10), min_size=depth + 1, max_size=depth + 1)
    model = dict(id=draw(text), architecture="X", num_layers=depth, hidden_size=8, fingerprint="0" * 16)
    return Profile(
        model=model,
        ivr=IVR(layer=ivr, retention=draw(ratios), anchor_ratio=draw(ratios)),
        ssr=SSR(
            mode=mode,
            layer=None if mode == "none" else draw(st.integers(ivr + 1, depth - 1)),
            retention=draw(ratios) if mode == "sparse" else None,
        ),
        calibration=Calibration(
            data=draw(text), data_fingerprint="f", samples=100, seed=draw(st.integers(0, 9)), fidelity=draw(fidelities)
        ),
        evidence=Evidence(
            k=10, entropy={name: draw(curve) for name in ("visual", "text", "all")}, choices={"ivr": draw(text)}
        ),
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("profiles")


def curves(**changed):
    return {"visual": [1.0] * 7, "text": [2.0] * 7, "all": [3.0] * 7, **changed}


@pytest.fixture
def document():
    """A valid profile as plain data."""
    return dict(
        schema_version="1.0",
        model=dict(id="m", architecture="A", num_layers=6, hidden_size=8, fingerprint="0" * 16),
        ivr=dict(layer=2, retention=0.25, anchor_ratio=0.1),
        ssr=dict(mode="sparse", layer=4, retention=0.05),
        calibration=dict(data="d", data_fingerprint="f", samples=100, seed=0, fidelity="paper", versions={}),
        evidence=dict(k=10, entropy=curves(), layer_kl=[0.1] * 6, choices={}, stable=True),
        min_visual_tokens=0,
    )


def load(folder, content):
    path = folder / "profile.json"
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return Profile.load(path)


@given(profile=profiles())
def test_a_saved_profile_is_read_back_equal(folder, profile):
    profile.save(folder / "round.json")
    again = Profile.load(folder / "round.json")
    assert again == profile
    assert again.plan() == profile.plan()
    assert os.listdir(folder).count("round.json") == 1
    assert not [name for name in os.listdir(folder) if name.startswith(".")]


@given(profile=profiles())
def test_the_plan_has_the_profile_s_numbers(profile):
    plan, ivr, ssr = profile.plan(), profile.ivr, profile.ssr
    stages = [Stage("ivr", ivr.layer, AnchorCover(ivr.anchor_ratio), ivr.retention, "drop")]
    if ssr.mode == "sparse":
        stages.append(Stage("ssr", ssr.layer, LastTokenAttention(rotary=True), ssr.retention, "drop"))
    if ssr.mode == "freeze":
        stages.append(Stage("ssr", ssr.layer, KeepNone(), 0.0, "freeze"))
    assert plan == Plan(tuple(stages), profile.calibration.fidelity)


OTHER = Plan(
    (Stage("a", 0, RandomChoice(3), tokens=4), Stage("b", 2, LastTokenAttention(scored_by="own"), 0.25)),
    skip=(1, 4),
)


def other(document, **plan):
    """A profile of another method than HalfV's."""
    written = PlanDocument.of(OTHER).model_dump(mode="json") | plan
    return {**{k: v for k, v in document.items() if k not in ("ivr", "ssr")}, "schema_version": "2.0", "plan": written}


def test_a_profile_holds_any_method_s_plan(folder, document):
    profile = load(folder, {**other(document), "min_visual_tokens": 9})
    assert profile.plan() == replace(OTHER, min_visual_tokens=9)
    profile.save(folder / "round.json")
    assert Profile.load(folder / "round.json") == profile
    refusal(lambda: profile.halfv, r"random_choice:0:4:seed=3,sparse:2:0.25:own,skip:1\+4.*not HalfV's own")


def test_a_saved_profile_of_halfv_s_says_its_plan_in_general_form_too(folder, document):
    profile = load(folder, document)
    profile.save(folder / "round.json")
    raw = json.loads((folder / "round.json").read_text())
    assert [stage["strategy"] for stage in raw["plan"]["stages"]] == ["anchor_cover", "last_token_attention"]
    raw["plan"]["stages"][0]["layer"] = 3
    refusal(lambda: load(folder, raw), "plan, and ivr and ssr, do not say the same")


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (dict(stages=[dict(name="a", layer=1, strategy="theirs")]), "no strategy 'theirs'.*install the package"),
        (dict(stages=[dict(name="a", layer=1, strategy="random_choice", parameters={"x": 1})]), "no parameter 'x'"),
        (dict(stages=[dict(name="a", layer=7, strategy="random_choice", retention=0.5)]), "layer 7"),
        (dict(stages=[], skip=[]), "no stage"),
        (dict(stages=[dict(name="a", layer=-1, strategy="random_choice")]), "greater than or equal to 0"),
    ],
)
def test_plans_that_make_no_sense_are_named(folder, document, plan, message):
    refusal(lambda: load(folder, other(document, **{"skip": (), **plan})), message)


def test_a_profile_without_any_plan_is_refused(folder, document):
    del document["ssr"]
    refusal(lambda: load(folder, document), "give plan, or both ivr and ssr")


FILES = [
    (b"", "not complete JSON"),
    (b'{"schema_version": "1.0", "mod', "not complete JSON"),
    (b"\x89PNG\xff\xfe", "not UTF-8"),
    (b"[" * 100_000, "not complete JSON"),
    (b'{"schema_version": ' + b"1" * 5000 + b"}", "number of thousands of digits.*halfv calibrate"),
    ([1], "JSON list"),
    ("text", "JSON str"),
    ({}, "no schema_version"),
    ({"schema_version": 1}, "no schema_version"),
    ({"schema_version": "3.0"}, "version 3.0.*reads 1.x and 2.x"),
    ({"schema_version": "1.0"}, "model: field required"),
]


@pytest.mark.parametrize(("content", "pattern"), FILES)
def test_files_that_hold_no_profile(tmp_path, content, pattern):
    refusal(lambda: load(tmp_path, content), pattern)


CHANGES = [
    ("ivr", "layer", "two", r"ivr\.layer.*'two'"),
    ("ivr", "layer", 2.5, r"ivr\.layer"),
    ("ivr", "layer", "2", r"ivr\.layer"),
    ("ivr", "layer", 0, r"ivr\.layer.*greater than or equal to 1"),
    ("ivr", "layer", 6, "ivr.layer is 6, but the model has 6 layers"),
    ("ssr", "layer", 6, "ssr.layer is 6"),
    ("ssr", "layer", 2, "at least 3"),
    ("ssr", "layer", None, "needs ssr_layer"),
    ("ssr", "retention", None, "needs ssr_retention"),
    ("ssr", "mode", "melt", r"ssr\.mode.*'melt'"),
    ("ivr", "retention", 0, r"ivr\.retention.*greater than 0"),
    ("ivr", "retention", 1.01, r"ivr\.retention.*less than or equal to 1"),
    ("ivr", "retention", float("nan"), r"ivr\.retention"),
    ("ivr", "anchor_ratio", -0.1, r"ivr\.anchor_ratio"),
    ("ssr", "retention", 2, r"ssr\.retention"),
    ("model", "num_layers", None, r"model\.num_layers"),
    ("calibration", "samples", 0, r"calibration\.samples"),
    ("calibration", "fidelity", "exact", r"calibration\.fidelity"),
    ("evidence", "entropy", curves(text=[1.0]), r"evidence\.entropy\.text has 1 values, but 6 layers need 7"),
    ("evidence", "entropy", curves(sound=[1.0] * 7), r"evidence\.entropy\.sound"),
    ("evidence", "entropy", curves(all=[float("inf")] * 7), r"evidence\.entropy\.all"),
    ("evidence", "entropy", {"all": [1.0] * 7}, r"evidence\.entropy: the curve of visual and of text is missing"),
    (
        "evidence",
        "entropy",
        {"visual": [1.0] * 7, "text": [1.0] * 7},
        r"evidence\.entropy: the curve of all is missing",
    ),
    ("evidence", "layer_kl", [1.0], "layer_kl has 1 values"),
    ("evidence", "entropy_by_k", {"4": {"all": dict(mean=[1.0] * 7, std=[1.0])}}, r"entropy_by_k\.4\.all\.std has 1 "),
    ("evidence", "null", dict(seed=0, samples=1, entropy=curves(), layer_kl=[1.0]), r"null\.layer_kl has 1 values"),
    (
        "evidence",
        "null",
        dict(seed=0, samples=1, entropy={"all": [1.0]}, layer_kl=[1.0] * 6),
        r"null\.entropy\.all has",
    ),
]


@pytest.mark.parametrize(("part", "field", "value", "pattern"), CHANGES)
def test_wrong_values_name_their_field(tmp_path, document, part, field, value, pattern):
    document[part][field] = value
    refusal(lambda: load(tmp_path, document), pattern)


def test_freeze_may_share_the_layer_of_ivr_but_not_precede_it(tmp_path, document):
    document["ssr"] = dict(mode="freeze", layer=2, retention=None)
    assert load(tmp_path, document).plan().stages[1].then == "freeze"
    document["ssr"]["layer"] = 1
    refusal(lambda: load(tmp_path, document), "at least 2")


def test_fields_of_a_later_minor_version_are_ignored(tmp_path, document):
    before = load(tmp_path, document)
    document |= {"schema_version": "1.7", "color": "blue"}
    document["ivr"]["merge"] = True
    assert load(tmp_path, document).plan() == before.plan()


def test_a_profile_carries_from_how_many_tokens_on_it_pays(tmp_path, document):
    document["min_visual_tokens"] = 300
    assert load(tmp_path, document).plan().min_visual_tokens == 300
    del document["min_visual_tokens"]  # as older profiles have it
    assert load(tmp_path, document).plan().min_visual_tokens == 0


def test_places_that_do_not_serve(tmp_path, document):
    profile = load(tmp_path, document)
    refusal(lambda: Profile.load(tmp_path), "is a folder")
    refusal(lambda: Profile.load(tmp_path / "none.json"), "does not exist.*halfv calibrate")
    refusal(lambda: profile.save(tmp_path / "no" / "profile.json"), "does not exist")
    refusal(lambda: profile.save(tmp_path), "folder")


def test_a_failed_write_leaves_the_old_profile(tmp_path, document, monkeypatch):
    profile = load(tmp_path, document)

    def replace(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", replace)
    refusal(lambda: profile.save(tmp_path / "profile.json"), "No space left")
    assert os.listdir(tmp_path) == ["profile.json"]
    assert Profile.load(tmp_path / "profile.json") == profile


def made_for(model, document):
    return Profile.model_validate({**document, "model": model_info(model, "mini")})


def test_a_profile_runs_on_its_model_and_on_no_other(tmp_path, document):
    llava, qwen = MiniLlava(), MiniQwen()
    made_for(llava.model(), document).save(tmp_path / "p.json")
    with torch.no_grad(), accelerate(llava.model(), tmp_path / "p.json") as run:
        llava.model()(**llava.batch([llava.prompt(0)]))
    assert [stage.after for stage in run.last.stages] == [[6], [1]]
    refusal(
        lambda: accelerate(qwen.model(), str(tmp_path / "p.json")),
        "made for LlavaFor.*6 layers.*but this model is Qwen2_5_VL.*calibrate this model with: halfv calibrate",
    )
    other = Profile.load(tmp_path / "p.json")
    other = other.model_copy(update={"model": other.model.model_copy(update={"fingerprint": "1" * 16})})
    refusal(lambda: accelerate(llava.model(), other), "other names or shapes")


def test_the_fingerprint_ignores_dtype_and_values(mini):
    model = mini.model()
    first = fingerprint(model)
    other = mini.build().to(torch.bfloat16)
    assert fingerprint(other) == first
    assert fingerprint(MiniQwen().model()) != fingerprint(MiniLlava().model())


def test_the_schema_describes_a_saved_profile(document):
    schema = json_schema()
    assert set(schema["required"]) <= set(document) == set(schema["properties"]) - {"plan"}
    json.dumps(schema)
