"""Folders: which files are used, and that nothing is left out without a word."""

import json

import datasets
import pytest
from PIL import Image

from halfv_data import DataError, Reading, load_data, load_samples

SKIP = Reading(skip_bad=True)


def asked(source):
    return [(sample.question, sample.answer) for sample in load_samples(source)]


def ask_all(folder, *but):
    for number in range(6):
        if number not in but:
            (folder / f"{number}.txt").write_text(f"Question {number}?\nAnswer {number}\n")


def test_a_prompt_file_of_mme_is_two_samples(folder):
    ask_all(folder, 0)
    (folder / "0.txt").write_text("Is it a cat?\tNo\nIs it a star?\tYes\n")
    assert asked(folder)[:3] == [("Is it a cat?", "No"), ("Is it a star?", "Yes"), ("Question 1?", "Answer 1")]
    images = [sample.image for sample in load_samples(folder)]
    assert images[0] == images[1] != images[2]


def test_mme_keeps_questions_in_a_folder_of_their_own(folder):
    for name in ("images", "questions_answers_YN"):
        (folder / name).mkdir()
    for number in range(6):
        (folder / f"{number}.png").rename(folder / f"images/{number}.png")
        (folder / f"questions_answers_YN/{number}.txt").write_text(f"Is it {number}?\tYes\nIs it 9?\tNo")
    assert len(asked(folder)) == 12 and asked(folder)[2] == ("Is it 1?", "Yes")


@pytest.mark.parametrize(
    "content",
    ["Question?\nAnswer\nAnother line\n", "Question?\tYes\nAnother?\n", "Question?\tYes\tNo\n", "One?\n\nYes\nTwo?\n"],
)
def test_a_prompt_file_with_more_than_is_used_is_refused(folder, content):
    ask_all(folder, 3)
    (folder / "3.txt").write_text(content)
    with pytest.raises(DataError, match=r"3\.txt has \d lines: write the question into the first and the answer into"):
        load_samples(folder)
    loaded = load_data(folder, reading=SKIP)
    assert len(loaded.samples) == 5 and [out.where[-5:] for out in loaded.summary.left_out] == ["3.png"]


@pytest.mark.parametrize("suffix", ["AVIF", "jp2", "jfif", "ppm", "tga", "jpe", "JPEG", "webp", "pgm", "ico", "pcx"])
def test_whatever_pillow_opens_is_a_picture(tmp_path, suffix):
    kind = {"jfif": "JPEG", "jpe": "JPEG", "jp2": "JPEG2000"}.get(suffix, suffix.upper())
    kind = {"PPM": "PPM", "PGM": "PPM"}.get(kind, kind)
    image = Image.new("L" if suffix == "pgm" else "RGB", (32, 32))
    with open(tmp_path / f"x.{suffix}", "wb") as file:
        image.save(file, kind)
    (tmp_path / "x.txt").write_text("What?")
    assert asked(tmp_path) == [("What?", None)]


def test_files_that_are_not_used_are_counted(folder):
    ask_all(folder)
    (folder / "README.md").write_text("about")
    (folder / "notes.docx").write_text("about")
    (folder / "labels.json").write_text("{}")
    (folder / "orphan.txt").write_text("What?")
    (folder / "._0.png").write_bytes(b"macOS")
    (folder / ".DS_Store").write_bytes(b"macOS")
    line = str(load_data(folder).summary)
    assert "6 rows, 6 samples, none left out" in line
    assert "1 .txt without a picture (orphan.txt)" in line
    assert "3 files that are no pictures (" in line and all(f"1 {kind}" in line for kind in (".md", ".docx", ".json"))


def test_pictures_without_questions_can_be_left_out(folder):
    ask_all(folder, 0, 4)
    with pytest.raises(DataError, match=r"0\.png has no question"):
        load_samples(folder)
    assert "6 rows, 4 samples, 2 left out: no question (2, first " in str(load_data(folder, reading=SKIP).summary)


@pytest.mark.parametrize("name", ["data.json", "train.jsonl", "labels.csv", "a/b.tsv", "x.jsonl.gz"])
def test_pictures_beside_a_list_name_the_list(folder, write, name):
    write(name, "image,question\n0.png,What?\n")
    with pytest.raises(DataError, match=rf"holds pictures and {name}: give the file .*: --data .*{name}$"):
        load_samples(folder)


@pytest.mark.parametrize("name", ["train.csv", "data.json", "rows.jsonl.gz"])
def test_a_folder_with_one_list_is_that_list(tmp_path_factory, folder, name):
    import gzip

    lists = tmp_path_factory.mktemp("lists")
    row = {"image": str(folder / "0.png"), "question": "What?", "answer": "007"}
    content = {"c": f"{','.join(row)}\n{','.join(row.values())}\n", "n": json.dumps([row])}.get(
        name[-2], json.dumps(row)
    )
    content = {"train.csv": f"{','.join(row)}\n{','.join(row.values())}\n", "data.json": json.dumps([row])}.get(name)
    data = content.encode() if content else gzip.compress(json.dumps(row).encode())
    (lists / name).write_bytes(data)
    assert asked(lists) == [("What?", "007")]


def test_a_cloned_repository_with_a_picture_in_its_card(tmp_path, png):
    table = datasets.Dataset.from_dict({"image": [{"bytes": png[0]}], "question": ["What?"]})
    (tmp_path / "data").mkdir()
    table.cast_column("image", datasets.Image()).to_parquet(tmp_path / "data/train-00000-of-00001.parquet")
    (tmp_path / "logo.png").write_bytes(png[1])
    (tmp_path / "README.md").write_text("# A data set\n")
    (tmp_path / "dataset_infos.json").write_text("{}")
    assert asked(tmp_path) == [("What?", None)]


def test_a_folder_without_splits(folder):
    (folder / "metadata.jsonl").write_text('{"file_name": "0.png", "question": "What?"}')
    with pytest.raises(DataError, match="has no splits: leave --split out"):
        load_data(folder, reading=Reading(split="train"))


def test_lists_of_several_splits(tmp_path_factory, folder):
    lists = tmp_path_factory.mktemp("lists")
    for split in ("train", "test"):
        (lists / f"{split}.csv").write_text(f"image,question,answer\n{folder}/0.png,{split}?,007\n")
    assert asked(lists) == [("test?", "007")]
    assert "split test" in str(load_data(lists).summary)
    assert [s.question for s in load_samples(lists, reading=Reading(split="train"))] == ["train?"]


def test_a_folder_and_a_list_by_relative_paths_and_from_home(folder, monkeypatch, write):
    ask_all(folder)
    write("lists/s.jsonl", [{"image": "~/0.png", "question": "What?"}])
    monkeypatch.chdir(folder.parent)
    monkeypatch.setenv("HOME", str(folder))
    assert len(asked(folder.name)) == len(asked("~")) == 6
    assert asked("~/lists/s.jsonl") == asked(f"{folder.name}/lists/s.jsonl") == [("What?", None)]


def test_a_mistyped_folder_says_so_before_it_talks_of_the_hub(tmp_path, monkeypatch):
    (tmp_path / "pictures").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=r"^there is no file or folder picturs \(did you mean pictures\?\), and"):
        load_samples("picturs")
    with pytest.raises(DataError, match=r"^there is no file or folder \./picturs|^there is no file or folder picturs"):
        load_samples("./picturs")
