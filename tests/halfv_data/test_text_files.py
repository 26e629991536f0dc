"""What a text file really is, where it cannot be read; and no message repeats much of what was read."""

import gzip
import json

import pytest
from hypothesis import given
from hypothesis.strategies import floats, integers, one_of, text

from halfv_data import DataError, Reading, load_data, load_samples
from halfv_data.errors import LONGEST
from halfv_data.json_text import WrittenFloat, parse_json, read_text
from halfv_data.values import read_answer

ROW = '{"image": "0.png", "question": "What?"}\n'
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 7\n"


@pytest.mark.parametrize(
    ("name", "content", "cause"),
    [
        ("s.jsonl", gzip.compress(ROW.encode()), r"s\.jsonl is gzip data: add \.gz to its name"),
        ("s.jsonl.gz", ROW.encode(), r"s\.jsonl\.gz is not gzip data: take \.gz from its name"),
        ("s.jsonl.gz", gzip.compress(ROW.encode() * 99)[:40], r"s\.jsonl\.gz is cut off or damaged gzip data"),
        ("s.jsonl", ROW.encode("utf-16"), r"s\.jsonl is UTF-16 .*save it as UTF-8"),
        ("s.csv", "image,question\n0.png,What?\n".encode("utf-16-le"), r"s\.csv is UTF-16 .*save it as UTF-8"),
        ("s.csv", "image,question\n0.png,Où?\n".encode("latin-1"), r"not UTF-8 .*Latin-1 .*that byte is 'ù'"),
        ("s.json", b"PAR1....", r"s\.json is a Parquet file: call it \.parquet"),
        ("s.csv", b"PK\x03\x04....", r"s\.csv is a zip archive .*save the sheet as CSV"),
        ("s.jsonl", LFS, r"s\.jsonl is a Git LFS pointer .*git lfs pull"),
        ("s.json", b"<!DOCTYPE html><html>Sign in</html>", r"s\.json is a web page: download the file itself"),
        ("s.json", f"[{ROW},{ROW},]".encode(), r"broken JSON \(a comma too many before the closing bracket at line \d"),
        (
            "s.json",
            b'{"data": [{"image": "0.png", "question": "What?",}]}',
            r"a comma too many before the closing brac",
        ),
        ("s.jsonl", ROW.encode() + b'{"image": "0.png",}', r"s\.jsonl line 2: broken JSON \(a comma too many"),
        ("s.jsonl", b"{'image': '0.png'}", r"line 1: broken JSON \(single quotes at line 1 column 2"),
        ("s.json", b'[{"image": "0.png", "question": ', r"broken JSON \(it is cut off at line 1"),
        ("s.json", b'"hello"', r"s\.json holds 'hello': it must be a list of objects"),
        ("s.json", b'[{"image": "0.png", "question": "What?"}, 7]', r"s\.json entry 2: 7 is not an object"),
        ("s.json", b'{"a": {"x": [1]}, "b": [1, 2]}', r"s\.json has a, b: none of these is a list of objects"),
        ("s.csv", b"image,question\n0.png,What?,\n", r"more fields than its first line names: a comma at the end"),
        ("s.csv", b"image,question\n0.png,What?\n0.png,What,\n", r"broken CSV .*Expected 2 fields in line 3, saw 3"),
        ("s.csv", b'image,question\n0.png,"What?\n', r"broken CSV .*a quote that is not closed"),
        (
            "s.csv",
            b"0.png|What?\n1.png|Where?\n",
            r"has one column, '0\.png\|What\?': its first line must name the col",
        ),
        ("s.csv", b"0.png,What?\n1.png,Where?\n", r"its first line names no columns: write image,question above it"),
        ("s.csv", b"", r"s\.csv holds no samples"),
        ("s.parquet", b"PAR1....", r"s\.parquet could not be opened .*is it a whole Parquet file\?$"),
        ("s.xlsx", b"PK\x03\x04", r"s\.xlsx is a file of another kind: save the sheet as CSV"),
        ("s.zip", b"PK\x03\x04", r"s\.zip is a file of another kind: unpack it"),
    ],
)
def test_the_real_cause_is_named(folder, write, name, content, cause):
    with pytest.raises(DataError, match=cause) as error:
        load_samples(write(name, content))
    assert "network" not in str(error.value)


@pytest.mark.parametrize("name", ["s.json", "s.jsonl", "s.csv"])
@pytest.mark.parametrize("form", ["lines", "a list"])
def test_json_is_read_whatever_it_is_called(folder, write, name, form):
    content = ROW * 2 if form == "lines" else json.dumps([json.loads(ROW)] * 2, indent=form == "a list" or None)
    if name == "s.csv":
        with pytest.raises(DataError):
            load_samples(write(name, content))
    else:
        assert len(load_samples(write(name, content))) == 2


def test_skipping_bad_lines(folder, write):
    file = write("s.jsonl", ROW + "{broken\n[1]\n" + ROW + '{"image": "9.png", "question": "?"}\n{"image": "0.png"}\n')
    loaded = load_data(file, reading=Reading(skip_bad=True))
    assert len(loaded.samples) == 2
    assert [out.where.rsplit(" ", 1)[1] for out in loaded.summary.left_out] == ["2", "3", "5", "6"]
    assert "6 rows, 2 samples, 4 left out: broken JSON (2, first line 2), image" in str(loaded.summary)


def test_a_bad_line_of_a_list_says_how_many_there_are(folder, write):
    file = write("s.jsonl", [json.loads(ROW)] + [{"image": f"{n}.gone", "question": "?"} for n in range(3)])
    with pytest.raises(DataError, match=r"line 2: .*\(3 of 4 rows cannot be used; --skip-bad leaves them out\)$"):
        load_data(file)


@given(number=one_of(integers(), floats(allow_nan=False, allow_infinity=False)))
def test_a_number_is_an_answer_as_it_was_written(number):
    written = repr(number)
    assert read_answer(parse_json(written, "", ""), "") == written
    assert parse_json(written, "", "") == number


def test_a_number_is_still_a_number():
    assert WrittenFloat("3.10") == 3.1 and json.dumps(WrittenFloat("3.10")) == "3.1"


@given(long=text(min_size=300, max_size=400), key=text(max_size=3))
def test_no_message_repeats_much_of_what_was_read(tmp_path_factory, long, key):
    """Of a long text in any field, at most 80 characters come back."""
    folder = tmp_path_factory.mktemp("long")
    rows = [{"image": "0.png", "question": {key: long}}, {"image": long, "question": "What?"}, {long: long}]
    rows += [
        {"image": "0.png", "messages": [{"role": long, "content": long}]},
        {"image": "x", "question": long, "task": [long]},
    ]
    for row in rows:
        file = folder / "s.jsonl"
        file.write_text(json.dumps(row))
        with pytest.raises(DataError) as error:
            load_samples(file)
        message = str(error.value)
        repeated = [part for at in range(len(long) - LONGEST) if (part := long[at : at + LONGEST + 1]) in message]
        assert not repeated


def test_a_file_without_permission(folder, monkeypatch):
    def refuse(_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.read_bytes", refuse)
    with pytest.raises(DataError, match=r"0\.png cannot be read \(Permission denied\): check its permissions"):
        read_text(folder / "0.png")
