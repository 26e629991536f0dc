"""The page: one file that loads nothing, whose every figure brings its numbers, whatever the profile holds."""

import re
from itertools import pairwise

import numpy as np
import pytest

from halfv_accel import HalfVError
from halfv_probe.views.report import TokenMap, write_report
from halfv_probe.views.report.document import headline, plan_in_words, report_page
from halfv_probe.views.report.overlays import KeptBy
from halfv_probe.views.report.provenance import not_measured
from halfv_probe.views.tables import pareto_front

from .pages import Page, decoded
from .profiles import made_up

SECTIONS = {"choice", "entropy", "spectrum", "redundancy", "utility", "trials", "votes", "provenance", "words"}
SECTIONS |= {"stages", "second-stage", "holds"}


def drawn(count=12, **changes):
    """Tokens of a made-up picture without a grid."""
    kept = np.arange(count) < 5
    tokens = dict(
        question="What <b>is</b> & what is not?",
        image=None,
        grid=None,
        stages=[KeptBy("ivr", 3, "drop", kept), KeptBy("ssr", 20, "drop", np.arange(count) < 2)],
        anchors=np.arange(count) < 1,
        plane=np.stack([np.linspace(-1, 1, count), np.linspace(0, 1, count) ** 2], axis=1),
        explained=0.9,
    )
    return TokenMap(**tokens | changes)


@pytest.fixture(scope="module", params=["28 layers", "10 layers", "version 1.0", "no stages"])
def case(request):
    profiles = {
        "28 layers": lambda: made_up(),
        "10 layers": lambda: made_up(10, 2, 3, "freeze"),
        "version 1.0": lambda: made_up(old=True),
        "no stages": lambda: made_up(mode="none", stable=False),
    }
    profile = profiles[request.param]()
    return profile, Page(report_page(profile, [drawn()], "Drawn by hand."))


def test_nothing_is_loaded_from_elsewhere(case):
    _, page = case
    assert not {"script", "iframe", "object", "base"} & {tag for tag, _ in page.elements}
    for value in page.attributes("src", "href", "srcset", "poster", "action"):
        assert value.startswith(("data:", "#")), value[:80]
    assert "url(" not in page.texts["style"] and "@import" not in page.texts["style"]
    for source in page.attributes("src"):
        if source.startswith("data:image/svg+xml"):
            for reference in re.findall(r'(?:href|src)="([^"]*)"|url\(([^)]*)\)', decoded(source)):
                assert "".join(reference).startswith(("#", "data:"))


def test_every_figure_has_alternative_texts_and_one_table(case):
    _, page = case
    assert len(page.figures) >= 3
    for figure in page.figures:
        assert all(attributes["alt"] for tag, attributes in figure if tag == "img")
        assert sum(1 for tag, attributes in figure if tag == "a" and "download" in attributes) == 1
    links = [attributes["download"] for _, attributes in page.elements if "download" in attributes]
    assert len(set(links)) == len(links) >= len(page.figures)


def test_links_lead_to_sections(case):
    _, page = case
    ids = page.attributes("id")
    assert len(ids) == len(set(ids))
    assert {href[1:] for href in page.attributes("href") if href.startswith("#")} == set(ids)


def test_a_full_profile_has_all_sections_and_its_numbers():
    profile = made_up()
    evidence, page = profile.evidence, Page(report_page(profile))
    assert set(page.attributes("id")) == SECTIONS
    tables = {name.removesuffix(".csv"): rows for name, rows in page.tables.items()}
    columns = {name: {key: [row[key] for row in rows] for key in rows[0]} for name, rows in tables.items()}
    assert [float(x) for x in columns["entropy"]["entropy_visual_nats"]] == evidence.entropy["visual"]
    assert [float(x) for x in columns["entropy"]["entropy_text_std_nats"]] == evidence.entropy_std["text"]
    spectrum = [[float(row[f"eigenvalue_{i}_share"]) for i in range(1, 65)] for row in tables["spectrum"]]
    assert spectrum == evidence.spectrum
    for name in ("layer_kl", "suffix_kl"):
        assert [float(x) for x in columns["redundancy"][f"{name}_nats"]] == getattr(evidence, name)
    assert [float(x) for x in columns["utility"]["utility"]] == [cell.utility for cell in evidence.utility]
    assert [float(x) for x in columns["trials"]["flops_share"]] == [trial.flops for trial in evidence.trials]
    assert [row["chosen"] for row in tables["trials"]].count("1") == 1
    votes = {(row["choice"], row["value"]): float(row["share_of_resamples"]) for row in tables["votes"]}
    assert votes == {(choice, value): x for choice, shares in evidence.votes.items() for value, x in shares.items()}


def test_a_table_of_tokens_says_what_became_of_each():
    tokens = drawn()
    rows = Page(report_page(made_up(), [tokens])).tables["tokens_1.csv"]
    assert [int(row["active_after_ivr"]) for row in rows] == tokens.stages[0].kept.astype(int).tolist()
    assert [int(row["active_after_ssr"]) for row in rows] == tokens.stages[1].kept.astype(int).tolist()
    assert [[float(row["pca_1"]), float(row["pca_2"])] for row in rows] == tokens.plane.tolist()


def test_ten_seconds_are_enough():
    header = headline(made_up())
    for words in (
        "someone/some-model",
        "31%",
        "97%",
        "of samples lose their right answer",
        "95% confidence at most 4.7%",
    ):
        assert words in header
    assert "first 3 of 28 layers read all of a picture&#x27;s tokens" in header
    assert "cautious fallback" in headline(made_up(stable=False))


def test_replies_count_where_answers_cannot():
    for accuracy in (None, 0.2):
        header = headline(made_up(untouched_accuracy=accuracy))
        assert "of samples get another reply" in header and "lose their right answer" not in header


@pytest.mark.parametrize(
    ("mode", "retention", "words"),
    [
        ("none", 0.5, "from layer 3 on, 50% of them are kept."),
        ("freeze", 0.5, "kept; from layer 20 on, they are still looked at, but no longer updated."),
        ("both at 3", 0.5, "from layer 3 on, 50% of them are kept; these are still looked at, but no longer updated."),
        ("freeze", 1.0, "The first 20 of 28 layers read all of a picture's tokens; from layer 20 on, they"),
        ("sparse", 0.125, "12.5% of them are kept; from layer 20 on, only 5%."),
    ],
)
def test_every_plan_has_words(mode, retention, words):
    profile = made_up(28, 3, 3, "freeze") if mode == "both at 3" else made_up(mode=mode)
    profile = profile.model_copy(update={"ivr": profile.ivr.model_copy(update={"retention": retention})})
    assert words in plan_in_words(profile)


def test_an_old_profile_says_in_one_sentence_what_it_does_not_hold():
    page = Page(report_page(made_up(old=True)))
    assert set(page.attributes("id")) == {"choice", "entropy", "redundancy", "provenance", "words"}
    assert "Not measured in this profile, and so not on this page:" in page.texts["section"]
    assert "97%" in page.texts["header"] and "first answer tokens" in page.texts["header"]
    assert not_measured(made_up()) == ""


NASTY = "</title></style><script>alert(1)</script>&amp;\"'$x_{$0<img src=http://example.com/x>"


def test_what_a_profile_says_is_text_and_nothing_else():
    profile = made_up(
        10,
        2,
        7,
        "freeze",
        name=NASTY,
        choices={"ivr": NASTY, NASTY: NASTY},
        votes={"mode": {NASTY: 1.0}},
        witnesses={"ivr": [dict(curve="attention", layer=2, says=NASTY)]},
        verdicts={"ssr": dict(curve=NASTY, kl="7", trials=None, agree=False)},
        holds=[made_up(10, 2, 7).evidence.holds[0].model_copy(update=dict(condition=NASTY, plan=NASTY))],
    )
    calibration = profile.calibration.model_copy(
        update=dict(data=NASTY, data_fingerprint=NASTY, versions={NASTY: NASTY})
    )
    profile = profile.model_copy(update={"calibration": calibration})
    page = Page(report_page(profile, [drawn(question=NASTY)], NASTY))
    assert page.texts["h1"] == NASTY
    assert page.texts["title"] == f"HalfV report: {NASTY}"
    assert NASTY in page.texts["h3"]
    assert not {"script"} & {tag for tag, _ in page.elements}
    assert all(not source.startswith("http") for source in page.attributes("src", "href"))
    tags = [tag for tag, _ in page.elements]
    assert tags.count("title") == tags.count("style") == 1


ODD = {
    "two layers": lambda: made_up(2, 1, 1, "freeze"),
    "many layers": lambda: made_up(64, 20, 40),
    "one eigenvalue": lambda: made_up(10, 2, 7, k=3, spectrum=[[1.0]] * 11),
    "spectra of unequal lengths": lambda: made_up(
        10, 2, 7, spectrum=[[0.5, 0.5 - i / 99, i / 99][: 1 + i % 3] for i in range(11)]
    ),
    "no utility lost": lambda: made_up(
        10, 2, 7, utility=[dict(layer=2, retention=0.5, drop=0, kl=0, flops_saved=0, utility=0)]
    ),
    "one trial": lambda: made_up(
        10, 2, 7, trials=made_up(10, 2, 7).evidence.trials[:1], flops=None, drop=None, drop_bound=None
    ),
    "suffix alone": lambda: made_up(10, 2, 7, layer_kl=[], suffix_agreement=[]),
    "nothing to vote on": lambda: made_up(10, 2, 7, votes={"ivr": {}, "mode": {"sparse": 1.0}}),
    "a budget": lambda: made_up(10, 2, 7, goal=dict(kind="target_flops", value=0.45)),
}


@pytest.mark.parametrize("case", ODD)
def test_odd_profiles_give_pages(case):
    page = Page(report_page(ODD[case]()))  # and no warning
    assert all(decoded(source) for source in page.attributes("src"))


def test_equal_profiles_give_equal_pages():
    assert report_page(made_up(10, 2, 7)) == report_page(made_up(10, 2, 7))


def test_the_front_holds_what_nothing_beats():
    trials = made_up().evidence.trials
    beaten = [
        any((b.flops <= a.flops and b.drop < a.drop) or (b.flops < a.flops and b.drop <= a.drop) for b in trials)
        for a in trials
    ]
    front = pareto_front(trials)
    assert {(trials[i].flops, trials[i].drop) for i in front} == {
        (trial.flops, trial.drop) for trial, worse in zip(trials, beaten, strict=True) if not worse
    }
    assert all(trials[a].flops < trials[b].flops for a, b in pairwise(front))


@pytest.mark.parametrize(
    ("name", "words"), [("report.pdf", "ends in .pdf"), ("report", "ends in nothing"), (".", "folder")]
)
def test_places_that_cannot_hold_a_page_are_refused(tmp_path, name, words):
    with pytest.raises(HalfVError, match=words):
        write_report(made_up(), tmp_path / name)
    assert list(tmp_path.iterdir()) == []
