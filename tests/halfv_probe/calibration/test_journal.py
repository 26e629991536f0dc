"""A journal that is cut anywhere gives the same results when it is gone on with, and measures only what was lost."""

import json
import math
import struct
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from halfv_accel import HalfVError
from halfv_accel.settings import Goal, Settings
from halfv_probe.calibration.journal import Journal, header
from tests.halfv_accel.miniatures import MINIATURES, MiniLlava, widen

HEADER = {"model": "llava", "data": "ä", "options": {"seed": 0, "ratio": 0.1}, "layers": [1, 2]}
floats = st.floats(width=64)
results = st.recursive(
    st.one_of(floats, st.integers(), st.booleans(), st.none(), st.text(max_size=4)),
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=6,
)
entries = st.dictionaries(st.text(max_size=5), results, min_size=1, max_size=5)


def fill(journal, wanted):
    """Ask for every result; returns those answers, and the keys that had to be measured."""
    measured = []
    answers = {key: journal.recall(key, lambda key=key: measured.append(key) or wanted[key]) for key in wanted}
    journal.close()
    return answers, measured


def bits(result):
    """A result in which floats are compared bit by bit; NaN is NaN."""
    if isinstance(result, list):
        return [bits(part) for part in result]
    if isinstance(result, float):
        return "nan" if math.isnan(result) else struct.pack("d", result)
    return type(result), result


def exactly(answers):
    return {key: bits(result) for key, result in answers.items()}


@pytest.fixture(scope="module")
def folder():
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


@given(wanted=entries, cut=st.floats(0, 1))
@settings(max_examples=200)
def test_a_journal_cut_at_any_byte_is_gone_on_with(folder, wanted, cut):
    path = folder / "cut.journal"
    answers, measured = fill(Journal(path, HEADER), wanted)
    assert exactly(answers) == exactly(wanted) and measured == list(wanted)
    whole = path.read_bytes()
    path.write_bytes(whole[: round(cut * len(whole))])
    complete = max(0, path.read_bytes().count(b"\n") - 1)
    answers, measured = fill(Journal(path, HEADER, resume=True), wanted)
    assert exactly(answers) == exactly(wanted)
    assert measured == list(wanted)[complete:]
    assert path.read_bytes() == whole


@given(wanted=entries, cuts=st.lists(st.floats(0, 1), max_size=3))
def test_however_often_it_was_cut(folder, wanted, cuts):
    path = folder / "often.journal"
    fill(Journal(path, HEADER), wanted)
    whole = path.read_bytes()
    for cut in cuts:
        path.write_bytes(path.read_bytes()[: round(cut * len(whole))])
        fill(Journal(path, HEADER, resume=True), dict(list(wanted.items())[: round(cut * len(wanted))]))
    answers, _ = fill(Journal(path, HEADER, resume=True), wanted)
    assert exactly(answers) == exactly(wanted)
    assert path.read_bytes() == whole


@given(wanted=entries)
def test_a_journal_that_was_closed_goes_on(folder, wanted):
    path = folder / "closed.journal"
    fill(Journal(path, HEADER), wanted)
    whole = path.read_bytes()
    path.unlink()
    journal = Journal(path, HEADER)
    for key in wanted:
        fill(journal, {key: wanted[key]})
    assert path.read_bytes() == whole


@given(keys=st.lists(st.text(max_size=2), max_size=9), known=st.sets(st.text(max_size=2), max_size=9))
def test_of_several_results_those_that_are_missing_are_measured_once_and_together(folder, keys, known):
    path = folder / "several.journal"
    wanted = {key: [key, 0.1] for key in {*keys, *known}}
    fill(Journal(path, HEADER), {key: wanted[key] for key in sorted(known)})
    journal, asked = Journal(path, HEADER, resume=True) if known else Journal(path, HEADER), []

    def measure(places):
        asked.append([keys[place] for place in places])
        return [wanted[keys[place]] for place in places]

    before = len(path.read_bytes().splitlines()) if known else 0
    assert journal.recall_all(keys, measure) == [wanted[key] for key in keys]
    journal.close()
    missing = [key for key in dict.fromkeys(keys) if key not in known]
    assert asked == ([missing] if missing else [])
    if missing and before:
        assert len(path.read_bytes().splitlines()) == before + 1
    assert fill(Journal(path, HEADER, resume=True), {key: wanted[key] for key in keys})[1] == []


def test_a_batch_that_was_not_written_to_its_end_is_forgotten_whole(tmp_path):
    path = tmp_path / "journal"
    with Journal(path, HEADER) as journal:
        journal.recall_all(["a", "b"], lambda places: places)
        journal.recall_all(["c", "d"], lambda places: places)
    path.write_bytes(path.read_bytes()[:-3])
    assert set(Journal(path, HEADER, resume=True).found) == {"a", "b"}


def test_every_result_is_on_disk_before_the_next_is_measured(tmp_path):
    journal = Journal(tmp_path / "journal", HEADER)
    for number in range(3):
        journal.recall(str(number), lambda number=number: number)
        lines = (tmp_path / "journal").read_bytes().splitlines()
        assert [json.loads(line)["results"] for line in lines[1:]] == [{str(n): n} for n in range(number + 1)]
    journal.close()


def test_without_resume_it_begins_anew_with_the_first_result(tmp_path):
    path = tmp_path / "journal"
    fill(Journal(path, HEADER), {"a": 1})
    journal = Journal(path, {"model": "another"})
    assert b"llava" in path.read_bytes()
    answers, measured = fill(journal, {"a": 2})
    assert (answers, measured) == ({"a": 2}, ["a"])
    assert fill(Journal(path, {"model": "another"}, resume=True), {"a": 3}) == ({"a": 2}, [])


def test_nothing_is_written_where_no_path_is_given(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    journal = Journal()
    assert fill(journal, {"a": 1}) == ({"a": 1}, ["a"])
    assert fill(journal, {"a": 1, "b": 2}) == ({"a": 1, "b": 2}, ["b"])
    journal.remove()
    assert not list(tmp_path.iterdir())


def test_what_is_not_there_yet_is_begun_and_what_is_done_is_removed(tmp_path):
    journal = Journal(tmp_path / "journal", HEADER, resume=True)
    journal.remove()
    fill(journal, {"a": 1})
    journal.remove()
    assert not list(tmp_path.iterdir())


def test_a_failed_measurement_is_not_remembered(tmp_path):
    journal = Journal(tmp_path / "journal", HEADER)
    with pytest.raises(ZeroDivisionError):
        journal.recall("a", lambda: 1 / 0)
    assert fill(journal, {"a": 1}) == ({"a": 1}, ["a"])


@pytest.mark.parametrize(
    ("change", "named"),
    [({"model": "qwen"}, "model"), ({"options": {"seed": 1, "ratio": 0.1}}, "options"), ({"new": 1}, "new")],
)
def test_a_journal_of_something_else_is_refused_and_kept(tmp_path, change, named):
    path = tmp_path / "journal"
    fill(Journal(path, HEADER), {"a": 1})
    before = path.read_bytes()
    sentence = rf"another calibration \({named} differ\): leave out --resume to begin anew$"
    with pytest.raises(HalfVError, match=sentence):
        Journal(path, {**HEADER, **change}, resume=True)
    assert path.read_bytes() == before


def test_a_field_that_is_gone_is_named_too(tmp_path):
    fill(Journal(tmp_path / "journal", HEADER), {"a": 1})
    with pytest.raises(HalfVError, match=r"another calibration \(data differ\)"):
        Journal(tmp_path / "journal", {key: HEADER[key] for key in HEADER if key != "data"}, resume=True)


def test_tuples_in_a_header_are_the_lists_that_json_makes_of_them(tmp_path):
    fill(Journal(tmp_path / "journal", {**HEADER, "layers": (1, 2)}), {"a": 1})
    Journal(tmp_path / "journal", HEADER, resume=True)
    with pytest.raises(HalfVError, match=r"\(model differ\)"):
        Journal(tmp_path / "journal", {**HEADER, "layers": (1, 2), "model": "qwen"}, resume=True)


FOREIGN = {
    "text": b"Dear diary,\n",
    "binary": b"\xff\xfe\x00\n",
    "a list": b"[1, 2]\n",
    "a number": b"3\n",
    "other lines": json.dumps(HEADER).encode() + b'\n{"step": 1}\n',
    "lists as lines": json.dumps(HEADER).encode() + b"\n[1]\n",
    "a hole": json.dumps(HEADER).encode() + b'\n{"results": {"a"\n{"results": {"b": 1}}\n',
    "results of another kind": json.dumps(HEADER).encode() + b'\n{"results": [1]}\n',
}


@pytest.mark.parametrize("content", FOREIGN)
def test_what_is_no_journal_is_refused_and_kept(tmp_path, content):
    (tmp_path / "journal").write_bytes(FOREIGN[content])
    with pytest.raises(
        HalfVError, match=r"journal is not a journal of halfv calibrate: remove it, or leave out --resu"
    ):
        Journal(tmp_path / "journal", HEADER, resume=True)
    assert (tmp_path / "journal").read_bytes() == FOREIGN[content]


def test_a_folder_is_no_journal(tmp_path):
    with pytest.raises(HalfVError, match="not a journal"):
        Journal(tmp_path, HEADER, resume=True)


@pytest.mark.parametrize("place", ["", "missing/journal"])
def test_a_place_that_cannot_be_written_is_told(tmp_path, place):
    journal = Journal(tmp_path / place, HEADER)
    with pytest.raises(HalfVError, match=r"cannot be written \(.+\): choose another place with --out$"):
        journal.recall("a", lambda: 1)


def test_a_file_that_cannot_be_gone_on_with_is_told(tmp_path):
    path = tmp_path / "journal"
    fill(Journal(path, HEADER), {"a": 1})
    journal = Journal(path, HEADER, resume=True)
    path.unlink()
    path.mkdir()
    with pytest.raises(HalfVError, match="cannot be written"):
        fill(journal, {"a": 1, "b": 2})


def test_the_header_tells_models_weights_and_settings_apart(mini):
    model, same = mini.model(), mini.model("sdpa")
    assert header(model, Settings(), 8) == header(same, Settings(), 8)
    others = [header(each.model(), Settings(), 8) for each in MINIATURES.values() if each is not mini]
    changed = widen(mini.build())
    with torch.no_grad():
        changed.get_output_embeddings().weight[0, 0] += 1e-3
    others += [
        header(model, Settings(seed=1), 8),
        header(model, Settings(fidelity="reference"), 8),
        header(model, Settings(), 4),
        header(changed, Settings(), 8),
        header(mini.model("eager"), Settings(), 8),
    ]
    others.append(header(widen(MiniLlava().build()).bfloat16(), Settings(), 8))
    assert header(model, Settings(), 8) not in others
    other_goal = Settings(goal=Goal(kind="max_drop", value=0.1), k=16, latency=True, null_samples=3)
    assert header(model, other_goal, 8) == header(model, Settings(), 8)  # what was measured serves them, too
    other_data = Settings(data="mended.jsonl", data_fingerprint="f00")
    assert header(model, other_data, 8) == header(model, Settings(), 8)  # results are kept under their own samples
    json.dumps(header(model, Settings(), 8))
