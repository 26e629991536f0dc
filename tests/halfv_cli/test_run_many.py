"""``halfv run --input``: a row of answers for each row of questions, whatever happens on the way."""

import json

import pytest

from halfv_cli import data_options, run_many
from halfv_data import DataError, scenes

from .test_bad_input import refused, snapshot

PLAN = ("--model", "tiny-llava", "--plan", "ivr:2:0.5,freeze:5", "--max-new-tokens", 3)
RUN = ("run", *PLAN, "--input", "questions.jsonl", "--output", "answers.jsonl")


@pytest.fixture
def questions(tmp_path):
    """Five rows in questions.jsonl; the answer of the last is not known."""
    rows = []
    for index, sample in enumerate(scenes(5, seed=5)):
        sample.image.save(tmp_path / f"{index}.png")
        rows.append({"image": f"{index}.png", "question": sample.question, "answer": sample.answer})
    del rows[-1]["answer"]
    write(tmp_path / "questions.jsonl", rows)
    return rows


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def answered(halfv, tmp_path, questions):
    """The rows of a run without trouble."""
    result = halfv(*RUN, "--batch-size", 2)
    assert result.code == 0, result.err
    return read(tmp_path / "answers.jsonl")


def test_a_row_for_each_question_in_order(halfv, tmp_path, questions, answered):
    assert [row["index"] for row in answered] == [0, 1, 2, 3, 4]
    assert [row["question"] for row in answered] == [row["question"] for row in questions]
    assert [row["label"] for row in answered] == [row.get("answer") for row in questions]
    assert [row["correct"] for row in answered] == [
        row["label"] and row["answer"].casefold() == row["label"].casefold() for row in answered
    ]
    for row in answered:
        assert (row["visual_tokens"], row["visual_tokens_after"], row["error"]) == (144, [72, 0], None)
        assert (row["model"], row["plan"], row["max_new_tokens"]) == ("tiny-llava", "ivr:2:0.5:0.1,freeze:5", 3)
        alone = halfv("run", *PLAN, "--image", tmp_path / f"{row['index']}.png", "--prompt", row["question"], "--json")
        assert row["answer"] == json.loads(alone.out)["text"]


def test_what_was_done_is_said(halfv, tmp_path, answered):
    right = sum(row["correct"] is True for row in answered)
    (tmp_path / "answers.jsonl").unlink()
    result = halfv(*RUN)
    assert result.out.startswith(f"wrote answers.jsonl: 5 answers, {right} of 4 right, ")
    assert "answers: 5 questions, " in result.err  # nobody watches a terminal
    (tmp_path / "answers.jsonl").unlink()
    told = json.loads(halfv(*RUN, "--json").out)
    assert told.pop("seconds") > 0
    assert told == {"output": "answers.jsonl", "rows": 5, "failed": 0, "judged": 4, "correct": right}


@pytest.fixture
def breaking(monkeypatch):
    """``breaking(1, error)``: the picture of row 1 cannot be opened."""

    def install(index, error):
        opened = run_many.Question.images

        def images(question):
            if question.index == index:
                raise error
            return opened.fget(question)

        monkeypatch.setattr(run_many.Question, "images", property(images))

    return install


def test_a_failed_row_has_its_error_and_is_asked_again(halfv, tmp_path, monkeypatch, breaking, answered):
    (tmp_path / "answers.jsonl").unlink()
    breaking(1, DataError("1.png is damaged: save it again"))
    result = halfv(*RUN)
    assert result.code == 0
    assert "warning: 1 of 5 rows failed, the first: questions.jsonl line 2: 1.png is damaged" in result.err
    rows = read(tmp_path / "answers.jsonl")
    assert [row["error"] for row in rows] == [None, "1.png is damaged: save it again", None, None, None]
    assert (rows[1]["answer"], rows[1]["correct"], rows[1]["visual_tokens"]) == (None, None, None)
    assert [row for row in rows if row["index"] != 1] == [row for row in answered if row["index"] != 1]
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    assert halfv(*RUN, "--resume").code == 0
    assert read(tmp_path / "answers.jsonl") == answered


def test_a_row_without_its_picture_is_a_row_with_its_error(halfv, tmp_path, questions, answered):
    (tmp_path / "answers.jsonl").unlink()
    write(tmp_path / "questions.jsonl", [questions[0], questions[1] | {"image": "no.png"}, *questions[2:]])
    result = halfv(*RUN)
    assert result.code == 0 and "5 rows" in result.err
    rows = read(tmp_path / "answers.jsonl")
    assert [row["error"] is None for row in rows] == [True] * 4 + [False]
    assert "line 2" in rows[4]["where"] and [row["answer"] for row in rows[:4]] == [
        row["answer"] for row in answered if row["index"] != 1
    ]
    write(tmp_path / "questions.jsonl", questions)  # mended, so it has a place among the others
    assert halfv(*RUN, "--resume").code == 0
    assert read(tmp_path / "answers.jsonl") == answered
    (tmp_path / "answers.jsonl").unlink()
    write(tmp_path / "questions.jsonl", [questions[0] | {"image": "no.png"}, *questions[1:]])
    assert halfv(*RUN, "--skip-bad").code == 0
    assert len(read(tmp_path / "answers.jsonl")) == 4


def test_a_video_is_not_left_out_of_its_question(halfv, tmp_path, questions):
    write(tmp_path / "questions.jsonl", [{"video": ["0.png", "1.png"], "question": "What moves?"}, *questions[:2]])
    assert halfv(*RUN).code == 0
    rows = read(tmp_path / "answers.jsonl")
    assert rows[0]["question"] == "What moves?" and "takes no videos" in rows[0]["error"]
    assert [row["error"] for row in rows[1:]] == [None, None]


def test_where_nothing_was_answered_the_exit_code_says_so(halfv, tmp_path, questions):
    write(tmp_path / "questions.jsonl", [row | {"question": "What is <image>?"} for row in questions])
    result = halfv(*RUN)
    assert result.code == 1
    assert "5 of 5 rows failed" in result.err and "take it out" in result.err
    assert len(read(tmp_path / "answers.jsonl")) == 5


@pytest.mark.parametrize("cut", [0, 1, 100, -1])
def test_a_run_that_was_cut_off_goes_on_where_it_was(halfv, tmp_path, answered, monkeypatch, cut):
    """At a byte of the third row, as a crash leaves it."""
    path = tmp_path / "answers.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:2]) + lines[2][:cut])
    asked = []
    plain = run_many._row
    monkeypatch.setattr(
        run_many, "_row", lambda question, *rest: asked.append(question.index) or plain(question, *rest)
    )
    assert halfv(*RUN, "--resume").code == 0
    assert asked == [2, 3, 4]
    assert path.read_bytes() == b"".join(lines)
    assert halfv(*RUN, "--resume").code == 0  # nothing left to do
    assert (asked, path.read_bytes()) == ([2, 3, 4], b"".join(lines))


def test_an_interrupted_run_keeps_its_rows_and_says_how_to_go_on(halfv, tmp_path, answered, monkeypatch, breaking):
    (tmp_path / "answers.jsonl").unlink()
    breaking(2, KeyboardInterrupt())
    result = halfv(*RUN, "--batch-size", 2)
    assert result.code == 130
    assert "answers.jsonl keeps its rows" in result.err and "--resume" in result.err
    assert read(tmp_path / "answers.jsonl") == answered[:2]


def test_an_output_that_is_there_is_not_overwritten(halfv, tmp_path, questions):
    (tmp_path / "answers.jsonl").write_text("mine\n")
    before = snapshot(tmp_path)
    refused(halfv(*RUN), tmp_path, before, "answers.jsonl exists: --resume goes on with it")
    refused(halfv(*RUN, "--resume"), tmp_path, before, "answers.jsonl line 1 is no answer")


def test_answers_to_other_questions_or_of_another_run_are_not_gone_on_with(halfv, tmp_path, questions, answered):
    before = snapshot(tmp_path)
    other = [word if word != "ivr:2:0.5,freeze:5" else "ivr:2:0.25,freeze:5" for word in RUN]
    refused(halfv(*other, "--resume"), tmp_path, before, "line 1 is of another run (plan ivr:2:0.5:0.1,freeze:5)")
    refused(halfv(*RUN, "--resume", "--dtype", "float64"), tmp_path, before, "is of another run (dtype ")
    write(tmp_path / "questions.jsonl", [*questions[:1], *questions[2:]])
    before = snapshot(tmp_path)
    refused(halfv(*RUN, "--resume"), tmp_path, before, "answers.jsonl line 2 answers another question")
    write(tmp_path / "questions.jsonl", questions[:2])
    before = snapshot(tmp_path)
    refused(halfv(*RUN, "--resume"), tmp_path, before, "answers.jsonl line 3 is no answer to a row of this --input")


@pytest.mark.parametrize(
    ("arguments", "fragment"),
    [
        (["--input", "questions.jsonl"], "add --output answers.jsonl"),
        (["--output", "answers.jsonl"], "--output is for many questions: add --input"),
        (["--resume"], "--resume is for many questions: add --input"),
        (["--columns", "question=text"], "say how --input is read: add it"),
        (["--skip-bad"], "say how --input is read: add it"),
        (["--input", "questions.jsonl", "--output", "a.jsonl", "--prompt", "Why?"], "leave --prompt out"),
        (["--input", "questions.jsonl", "--output", "a.jsonl", "--image", "0.png", "--compare"], "--image and --comp"),
        (["--input", "no.jsonl", "--output", "a.jsonl"], "no.jsonl does not exist"),
        (["--input", "questions.jsonl", "--output", "no/a.jsonl"], "the folder no does not exist"),
        (["--input", "questions.jsonl", "--output", "."], "is a folder"),
        (["--input", "questions.jsonl", "--output", "questions.jsonl"], "questions.jsonl exists"),
        (["--input", "questions.jsonl", "--output", "questions.jsonl", "--resume"], "questions.jsonl line 1 is no"),
        (["--input", "questions.jsonl", "--output", "a.jsonl", "--batch-size", "0"], "batch-size"),
    ],
)
def test_what_makes_no_sense_is_refused(halfv, tmp_path, questions, arguments, fragment):
    before = snapshot(tmp_path)
    refused(halfv("run", *PLAN, *arguments), tmp_path, before, fragment)


def test_the_shipped_questions_can_be_asked(halfv, tmp_path, monkeypatch):
    monkeypatch.setattr(data_options, "SHIPPED", 3)
    result = halfv("run", *PLAN, "--input", "default", "--output", "a.jsonl")
    assert result.code == 0, result.err
    assert len(read(tmp_path / "a.jsonl")) == 3
