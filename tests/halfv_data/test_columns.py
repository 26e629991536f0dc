"""Which column is what: by name, by content, as the user says; and the rows that are left out are counted."""

import json

import datasets
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis.strategies import (
    booleans,
    dictionaries,
    floats,
    integers,
    lists,
    none,
    recursive,
    sampled_from,
    text,
)
from PIL import Image

from halfv_data import DataError, Reading, load_data
from halfv_data.choices import ask, label_form, options_of, right_option
from halfv_data.columns import CAPTION, NAMES


def asked(source, **how):
    return [(s.question, s.answer) for s in load_data(source, reading=Reading(**how)).samples]


@pytest.fixture
def table(tmp_path, png):
    """``table(question=[...], picture=[True, ...])`` as Parquet."""

    def writing(has_picture, **columns):
        image = [{"bytes": png[i % 6]} if there else None for i, there in enumerate(has_picture)]
        rows = datasets.Dataset.from_dict({"image": image, **columns}).cast_column("image", datasets.Image())
        rows.to_parquet(tmp_path / "t.parquet")
        return tmp_path / "t.parquet"

    return writing


@settings(max_examples=15)
@given(has_picture=lists(booleans(), min_size=1, max_size=12), n=integers(1, 8), seed=integers(0, 3))
def test_rows_without_a_picture_never_decide_what_is_drawn(tmp_path_factory, has_picture, n, seed):
    folder = tmp_path_factory.mktemp("drawn")
    Image.new("RGB", (2, 2)).save(folder / "dot.png")
    image = ["dot.png" if there else None for there in has_picture]
    rows = [{"image": name, "question": f"{i}?" if i % 4 else ""} for i, name in enumerate(image)]
    (folder / "t.json").write_text(json.dumps({"data": rows}))  # as TextVQA has it
    usable = [i for i, there in enumerate(has_picture) if there and i % 4]
    if not usable:
        with pytest.raises(DataError, match=r"none of \d+ rows can be used; .*t\.json entry"):
            load_data(folder / "t.json", n, seed)
        return
    loaded = load_data(folder / "t.json", n, seed)
    chosen = [int(sample.question[:-1]) for sample in loaded.samples]
    assert chosen == sorted(set(chosen)) and set(chosen) <= set(usable)
    assert len(chosen) == min(n, len(usable))
    assert loaded.summary.seen == len(chosen) + len(loaded.summary.left_out)
    if len(chosen) < n:
        assert loaded.summary.seen == loaded.summary.rows == len(image)


def test_left_out_rows_are_counted_by_reason(table):
    line = str(load_data(table([True, False, True, False], question=["a?", "b?", "", "d?"])).summary)
    assert "4 rows, 1 samples, 3 left out: no image" in line
    assert "(2, first (train) row 1)" in line and "no question (1, first (train) row 2)" in line


def test_a_set_without_question_or_picture_is_refused_before_its_rows_are_read(tmp_path, table):
    with pytest.raises(DataError, match=r"has image, width, and none is a question: add --columns question=NAME"):
        load_data(table([True], width=[3]))
    datasets.Dataset.from_dict({"question": ["What?"]}).to_parquet(tmp_path / "q.parquet")
    with pytest.raises(DataError, match=r"has question, and none is a picture: add --columns image=NAME"):
        load_data(tmp_path / "q.parquet")


# ---------------------------------------------------------------------------------------------------------------- text


def test_a_caption_called_text_is_not_asked(folder, write):
    rows = [{"image": f"{n}.png", "text": f"A picture with number {n}."} for n in range(6)]
    file = write("s.jsonl", rows)
    with pytest.raises(
        DataError, match=r"may be what is asked or a caption, .*--columns question=text, or --columns an"
    ):
        load_data(file)
    assert asked(file, columns={"answer": "text"})[0] == (CAPTION, "A picture with number 0.")
    assert asked(file, columns={"question": "text"})[0] == ("A picture with number 0.", None)
    assert CAPTION in str(load_data(file, reading=Reading(columns={"answer": "text"})).summary)


@pytest.mark.parametrize(
    "rows",
    [
        [{"text": "What is it?"}],
        [{"text": "Describe the picture."}] * 5,
        [{"text": "Name it.", "question_id": 7}],
        [{"text": "Name it.", "answer": "Star"}],
    ],
)
def test_a_question_called_text_is_asked(folder, write, rows):
    file = write("s.jsonl", [{"image": "0.png", **row} for row in rows])
    assert asked(file)[0][0] == rows[0]["text"]


def test_a_label_without_a_question_does_not_make_a_question_of_the_text(folder, write):
    with pytest.raises(DataError, match="may be what is asked or a caption"):
        load_data(write("memes.jsonl", [{"image": "0.png", "text": "look at this", "label": 1}]))


@pytest.mark.parametrize("name", ["caption", "captions", "Caption"])
def test_captions_are_answers(folder, write, name):
    assert asked(write("s.jsonl", [{"image": "0.png", name: "A star."}])) == [(CAPTION, "A star.")]


@pytest.mark.parametrize("small", [0, 10_000])
def test_damaged_pictures_are_left_out_and_others_drawn(folder, write, monkeypatch, small):
    monkeypatch.setattr("halfv_data.load.SMALL", small)  # a list of any length
    for number in (1, 4):
        (folder / f"{number}.png").write_bytes(b"damaged")
    file = write("s.jsonl", [{"image": f"{n}.png", "question": f"{n}?"} for n in range(6)])
    for n in range(1, 7):
        loaded = load_data(file, n, reading=Reading(skip_bad=True))
        assert len(loaded.samples) == min(n, 4)
        assert not {"1?", "4?"} & {sample.question for sample in loaded.samples}
    assert [out.where[-6:] for out in loaded.summary.left_out] == ["line 2", "line 5"]
    with pytest.raises(DataError, match=r"is not an image.*\(2 of 6 rows cannot be used; --skip-bad leaves them out\)"):
        load_data(file)


# ----------------------------------------------------------------------------------------------------------- --columns


def test_columns_overrule_every_guess(folder, write, drawn):
    row = {"image": "0.png", "other": "1.png", "question": "What?", "answer": "x", "meta": {"q": "Where?", "a": "y"}}
    file = write("s.jsonl", [row])
    assert asked(file, columns={"question": "meta.q", "answer": "meta.a"}) == [("Where?", "y")]
    assert asked(file, columns={"answer": ""}) == [("What?", None)]
    for columns, images in (("other", [1]), ("other+image", [1, 0])):
        (sample,) = load_data(file, reading=Reading(columns={"image": columns})).samples
        assert sample.images == [drawn[i].image for i in images]
    choices = {"choices": "first+second", "hint": "about"}
    file = write("c.jsonl", [{**row, "first": "a", "second": "b", "about": "Look.", "answer": "B"}])
    assert asked(file, columns=choices) == [(ask("What?", ["a", "b"], "Look."), "B")]


def test_columns_overrule_a_conversation(folder, write):
    turns = [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "x"}]
    file = write("s.jsonl", [{"image": "0.png", "conversations": turns, "short": "Where?", "gold": "y"}])
    assert asked(file) == [("What?", "x")]
    assert asked(file, columns={"answer": "gold"}) == [("What?", "y")]
    assert asked(file, columns={"question": "short", "answer": "gold"}) == [("Where?", "y")]


KEYS = [name for names in NAMES.values() for name in names] + ["A", "B", "choice_a", "choice_b", "history", "split"]
scalars = (
    none() | booleans() | integers(-5, 5) | floats() | text(max_size=4) | sampled_from(["0.png", "A", "['a', 'b']"])
)
values = recursive(
    scalars | sampled_from([[{"role": "user", "content": "What?"}], [{"user": "What?"}], ["0.png", "1.png"]]),
    lambda inner: (
        lists(inner, max_size=3) | dictionaries(sampled_from(["text", "path", "bytes", "type", "url"]), inner)
    ),
    max_leaves=4,
)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(row=dictionaries(sampled_from(KEYS), values, max_size=6), nested=booleans(), good=booleans())
def test_whatever_is_in_known_columns_is_used_or_refused(folder, row, nested, good):
    row = {"image": "0.png", "question": "What?", **row} if good else row
    (folder / "s.json").write_text(json.dumps({"data": [row]} if nested else [row]))
    try:
        (sample, *_) = load_data(folder / "s.json", reading=Reading(turns="all")).samples
    except DataError as error:
        assert "s.json" in str(error) and len(str(error)) < 1000
    else:
        assert sample.question.strip() and (sample.pictures or sample.video)
        assert sample.answer is None or sample.answer.strip()


@pytest.mark.parametrize(
    ("columns", "complaint"),
    [
        (
            {"question": "nothing"},
            r"--columns question=nothing: .*s\.jsonl has no column nothing, only image, question",
        ),
        ({"image": "image+nothing"}, r"has no column nothing"),
        ({"prompt": "question"}, r"--columns names the role 'prompt': the roles are image, video, question"),
    ],
)
def test_columns_that_are_not_there(folder, write, columns, complaint):
    with pytest.raises(DataError, match=complaint):
        load_data(write("s.jsonl", [{"image": "0.png", "question": "?"}]), reading=Reading(columns=columns))


def test_column_names_are_known_however_they_are_spelt(folder, write):
    assert asked(write("s.csv", "Image Path,QUESTION,Ground-Truth\n0.png,What?,x\n")) == [("What?", "x")]


def test_rows_may_call_the_same_thing_differently(folder, write):
    rows = [{"image": "0.png", "question": "a?", "answer": "x"}, {"img": "1.png", "prompt": "b?", "label": "y"}]
    file = write("s.jsonl", rows)
    assert asked(file) == [("a?", "x"), ("b?", "y")]
    assert "question=question+prompt, answer=answer+label" in str(load_data(file).summary)


# -------------------------------------------------------------------------------------------------------- the right one


@given(place=integers(0, 3), count=integers(4, 8))
def test_every_form_of_a_label_names_the_same_option(place, count):
    options = [f"thing {i}" for i in range(count)]
    letter = "ABCDEFGH"[place]
    forms = {"letter": letter, "text": f"thing {place}", "index": place, "number": place + 1}
    for form, label in forms.items():
        assert right_option(label, options, form) == letter
        assert right_option(str(label), options, form) == letter


def test_the_form_of_labels_is_seen_from_many_rows():
    options = ["0", "1", "2", "3"]
    assert label_form([("2", options)], by_letter=False) == "text"
    assert label_form([(2, options)], by_letter=False) == "index"
    assert label_form([(2, ["a", "b"]), (1, ["a", "b"])], by_letter=False) == "number"
    assert label_form([("B", ["B", "A"])], by_letter=True) == "letter"
    assert label_form([("B", ["B", "A"])], by_letter=False) == "text"
    assert label_form([("B", ["B", "A"]), ("A", ["x", "y"])], by_letter=False) == "letter"


def test_options_are_read_from_texts_and_lists():
    assert options_of(["['a', 'b']"]) == options_of(['["a", "b"]']) == options_of([["a", "b"]]) == ["a", "b"]
    assert options_of(["A. a\nB. b"]) == options_of(["a", "b", "nan", None, ""]) == ["a", "b"]
    assert options_of([{"text": ["a", "b"], "label": ["A", "B"]}]) == ["a", "b"]
    assert options_of(["A. a B. b"]) == options_of(["a ) a , b ) b"]) == options_of(["(A) a\n(B) b"]) == ["a", "b"]
    assert options_of([[1, 2.5]]) == ["1", "2.5"]
    assert options_of(["[]"]) == options_of([None]) == options_of([["only"]]) == []
