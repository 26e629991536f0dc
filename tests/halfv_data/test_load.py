"""Every source gives samples; every fault is named with its place."""

import io
import json
import logging
import re
from types import SimpleNamespace

import datasets
import huggingface_hub
import pytest
from hypothesis import given, settings
from hypothesis.strategies import dictionaries, integers, none, recursive, text
from PIL import Image

from halfv_data import DataError, Sample, load_samples, open_image, scenes, shipped_question
from halfv_data.tables import PROBE_SECONDS

DRAWN = list(scenes(6, seed=7))


def encoded(image: Image.Image, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


@pytest.fixture
def folder(tmp_path):
    """Six pictures, 0.png to 5.png, without questions."""
    for index, sample in enumerate(DRAWN):
        (tmp_path / f"{index}.png").write_bytes(encoded(sample.image))
    return tmp_path


def write_lines(file, rows):
    file.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return file


def rows_of(samples, key="image"):
    return [
        {key: f"{i}.png", "question": s.question, "answer": s.answer, "task": s.task, "objects": s.objects}
        for i, s in enumerate(samples)
    ]


# -------------------------------------------------------------------------------------------------------------- sources


def test_the_shipped_question_is_about_the_shipped_picture():
    path, question = shipped_question()
    assert (open_image(path), question) == (load_samples()[0].image, load_samples()[0].question)


@pytest.mark.parametrize("source", [None, "default"])
def test_default_is_the_shipped_set(source):
    assert len(load_samples(source)) == 100


def test_jsonl(folder):
    assert load_samples(write_lines(folder / "samples.jsonl", rows_of(DRAWN))) == DRAWN


def test_jsonl_with_absolute_paths_blank_lines_and_a_byte_order_mark(folder, tmp_path_factory):
    row = {"image": str(folder / "2.png"), "prompt": " What is this? "}
    file = tmp_path_factory.mktemp("elsewhere") / "s.jsonl"
    file.write_bytes(b"\xef\xbb\xbf\n" + json.dumps(row).encode() + b"\r\n\n")
    assert load_samples(str(file)) == [Sample.of(DRAWN[2].image, "What is this?")]


def test_folder_with_metadata(folder):
    write_lines(folder / "metadata.jsonl", rows_of(DRAWN, key="file_name"))
    assert load_samples(folder) == DRAWN


def test_folder_with_text_files(folder):
    for index, sample in enumerate(DRAWN):
        second = f"\n{sample.answer}\n" if index % 2 else "\n"
        (folder / f"{index}.txt").write_text(sample.question + second)
    loaded = load_samples(folder)
    assert [(s.image, s.question) for s in loaded] == [(s.image, s.question) for s in DRAWN]
    assert [s.answer for s in loaded] == [s.answer if i % 2 else None for i, s in enumerate(DRAWN)]


def dataset_columns(samples):
    return {
        "image": [s.image for s in samples],
        "prompt": [s.question for s in samples],
        "answers": [[s.answer, "?", s.answer] for s in samples],
    }


def test_datasets_parquet_and_saved_folder(tmp_path):
    features = {"image": datasets.Image(), "prompt": datasets.Value("string")}
    features = datasets.Features({**features, "answers": datasets.List(datasets.Value("string"))})
    rows = datasets.Dataset.from_dict(dataset_columns(DRAWN), features=features)
    rows.to_parquet(tmp_path / "rows.parquet")
    rows.save_to_disk(tmp_path / "saved")
    expected = [(s.image, s.question, s.answer) for s in DRAWN]
    for source in (tmp_path / "rows.parquet", tmp_path / "saved"):
        assert [(s.image, s.question, s.answer) for s in load_samples(source)] == expected


def test_a_folder_that_datasets_knows(folder):
    (folder / "train").mkdir()
    for index in range(6):
        (folder / f"{index}.png").rename(folder / "train" / f"{index}.png")
    rows = [{"file_name": f"{i}.png", "question": s.question, "answer": s.answer} for i, s in enumerate(DRAWN)]
    write_lines(folder / "train" / "metadata.jsonl", rows)
    expected = [(s.image, s.question, s.answer) for s in DRAWN]
    assert [(s.image, s.question, s.answer) for s in load_samples(folder)] == expected


@pytest.mark.parametrize("damaged", [False, True])
def test_a_column_of_picture_lists(tmp_path, damaged):
    pictures = [{"bytes": encoded(s.image)[: 1500 if damaged and i else None]} for i, s in enumerate(DRAWN[:2])]
    columns = {"images": [[picture] for picture in pictures], "prompt": ["What?", "Where?"]}
    features = {"images": datasets.List(datasets.Image()), "prompt": datasets.Value("string")}
    rows = datasets.Dataset.from_dict(columns, features=datasets.Features(features))
    rows.to_parquet(tmp_path / "rows.parquet")
    if damaged:
        with pytest.raises(DataError, match=r"rows\.parquet \(train\) row 1 is damaged or cut off"):
            load_samples(tmp_path / "rows.parquet")
    else:
        assert [s.image for s in load_samples(tmp_path / "rows.parquet")] == [s.image for s in DRAWN[:2]]


def test_a_dataset_of_several_splits_prefers_validation_to_training(monkeypatch):
    def split(name, samples):
        return datasets.Dataset.from_dict({**dataset_columns(samples)}, split=name)

    opened = datasets.DatasetDict({"train": split("train", DRAWN[:2]), "validation": split("validation", DRAWN[2:3])})
    builder = SimpleNamespace(config=SimpleNamespace(name="default", data_files=None))
    monkeypatch.setattr(datasets, "load_dataset_builder", lambda *_: builder)
    monkeypatch.setattr(datasets, "load_dataset", lambda *_: opened)
    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", lambda *_, **__: None)
    assert [s.question for s in load_samples("someone/something")] == [DRAWN[2].question]


@settings(max_examples=20, deadline=None)
@given(n=integers(1, 150), seed=integers(0, 5))
def test_a_subset_is_drawn_without_replacement_in_order(tmp_path_factory, n, seed):
    folder = tmp_path_factory.mktemp("subset")
    Image.new("RGB", (2, 2)).save(folder / "a.png")
    rows = [{"image": "a.png", "question": str(i)} for i in range(60)]
    file = write_lines(folder / "s.jsonl", rows)
    chosen = [int(s.question) for s in load_samples(file, n, seed)]
    assert len(chosen) == min(n, 60)
    assert chosen == sorted(set(chosen))
    assert chosen == [int(s.question) for s in load_samples(file, n, seed)]


def test_another_seed_draws_another_subset():
    assert load_samples(n=10, seed=0) != load_samples(n=10, seed=1)


# ------------------------------------------------------------------------------------------------------------- bad rows


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ('{"image": "0.png",', r"samples\.jsonl line 3: broken JSON .*: every line must be one complete JSON object"),
        ("[" * 100_000, r"line 3: broken JSON"),
        ("[1, 2]", r"line 3: \[1, 2\] is not an object"),
        ("null", r"line 3: None is not an object"),
        ({"question": "What?"}, r"line 3: no image .*it has question: add image"),
        ({"image": None, "question": "What?"}, r"line 3: no image"),
        ({"image": "0.png"}, r"line 3: no question .*it has image: add question"),
        ({}, r"line 3: no question .*it has no fields"),
        ({"image": "0.png", "question": 7}, r"line 3: the question is 7: it must be a text"),
        ({"image": "0.png", "question": "  "}, r"line 3: no question: the question is '  '"),
        ({"image": 5, "question": "What?"}, r"line 3: the image is 5: it must be the path of an image file"),
        ({"image": "9.png", "question": "What?"}, r"line 3: image .*9\.png does not exist: check the path"),
        ({"image": ".", "question": "What?"}, r"line 3: image .* is a folder"),
        ({"image": "x\0.png", "question": "What?"}, r"line 3: image"),
        ({"image": "0.png", "question": "What?", "answer": {"a": 1}}, r"line 3: the answer is \{'a': 1\}: it must"),
        ({"image": "0.png", "question": "What?", "answers": [1]}, r"line 3: the answers are \[1\]"),
        ({"image": "0.png", "question": "What?", "task": 1}, r"line 3: the task is 1: it must be a text"),
        ({"image": "0.png", "question": "What?", "objects": 1}, r"line 3: objects is 1: it must be a list"),
        ({"image": "0.png", "question": "What?", "objects": "["}, r"line 3: objects is broken JSON"),
        ({"image": "fake.png", "question": "What?"}, r"line 3: .*fake\.png is not an image: give a PNG"),
        ({"image": "short.png", "question": "What?"}, r"line 3: .*short\.png is damaged or cut off"),
        ({"image": "short.jpg", "question": "What?"}, r"line 3: .*short\.jpg is damaged or cut off"),
        ({"image": "empty.png", "question": "What?"}, r"line 3: .*empty\.png is not an image"),
        ({"image": "deep.png", "question": "What?"}, r"line 3: .*deep\.png has pixels of mode 'I;16'"),
    ],
)
def test_a_bad_row_is_named(folder, row, complaint):
    (folder / "fake.png").write_text("this is no picture")
    (folder / "empty.png").write_bytes(b"")
    (folder / "short.png").write_bytes(encoded(DRAWN[0].image)[:9000])
    (folder / "short.jpg").write_bytes(encoded(DRAWN[0].image, "JPEG")[:3000])
    Image.new("I;16", (4, 4), 40_000).save(folder / "deep.png")
    file = write_lines(folder / "samples.jsonl", [rows_of(DRAWN)[0], "", row, rows_of(DRAWN)[1]])
    with pytest.raises(DataError, match=complaint):
        load_samples(file)


words = text(max_size=5)
json_values = recursive(none() | integers() | words, lambda inner: dictionaries(words, inner, max_size=3), max_leaves=5)


@settings(max_examples=60, deadline=None)
@given(row=dictionaries(text("imagequestionanswertaskobjects", max_size=9), json_values) | json_values)
def test_any_json_loads_or_is_refused_by_line(tmp_path_factory, row):
    file = write_lines(tmp_path_factory.mktemp("any") / "s.jsonl", [row])
    with pytest.raises(DataError, match=r"s\.jsonl line 1: "):  # no such picture exists, so nothing can load
        load_samples(file)


@settings(max_examples=60, deadline=None)
@given(cut=integers(0, 4000))
def test_a_cut_off_png_is_refused_or_whole(tmp_path_factory, cut):
    image = DRAWN[0].image.crop((0, 0, 32, 32))
    whole = encoded(image)
    file = tmp_path_factory.mktemp("cut") / "a.png"
    file.write_bytes(whole[: min(cut, len(whole))])
    try:
        assert open_image(file) == image
        assert cut >= len(whole) - 16  # all pixels are there; only the end marks may be missing
    except DataError as error:
        assert "a.png" in str(error)


# ---------------------------------------------------------------------------------------------------------- bad sources


def test_a_folder_without_images(tmp_path):
    (tmp_path / "notes.md").write_text("nothing here")
    with pytest.raises(DataError, match=r"holds no images and no data files: put each X\.png beside"):
        load_samples(tmp_path)


def test_a_picture_without_its_question(folder):
    (folder / "0.txt").write_text("What is this?")
    with pytest.raises(DataError, match=r"1\.png has no question: write it into 1\.txt"):
        load_samples(folder)
    (folder / "1.txt").write_text("\n")
    with pytest.raises(DataError, match=r"1\.txt line 1: no question"):
        load_samples(folder)


@pytest.mark.parametrize("name", ["nowhere.jsonl", "./nowhere", "/nowhere/at/all", "nowhere.parquet", "photo.png"])
def test_a_path_that_does_not_exist(name):
    with pytest.raises(DataError, match=r"does not exist: expected nothing"):
        load_samples(name)


def test_an_empty_list_an_empty_name_and_a_file_of_another_kind(folder):
    with pytest.raises(DataError, match="holds no samples"):
        load_samples(write_lines(folder / "empty.jsonl", []))
    with pytest.raises(DataError, match="the source is an empty string"):
        load_samples(" ")
    with pytest.raises(DataError, match=r"0\.png is a file of another kind"):
        load_samples(folder / "0.png")


def test_text_that_is_not_utf8(folder):
    (folder / "s.jsonl").write_bytes(b'{"question": "\xff"}\n')
    with pytest.raises(DataError, match=r"s\.jsonl: not UTF-8 text \(byte 14\): save it as UTF-8"):
        load_samples(folder / "s.jsonl")


@pytest.mark.parametrize("n", [0, -5])
def test_no_samples_asked_for(n):
    with pytest.raises(DataError, match=f"{n} samples asked for: ask for at least 1"):
        load_samples(n=n)


def test_a_hub_name_without_network(monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(
        DataError, match=r"^there is no file or folder no/such .*could not be opened .*download the dataset first"
    ):
        load_samples("no/such")


def asked_of_the_hub(monkeypatch, problem=None):
    """Answer the one request for a dataset, and count it; nothing else may reach ``datasets``."""
    asked, opened = [], []

    def probe(url, timeout):
        asked.append((url, timeout))
        logging.getLogger("huggingface_hub.utils._http").warning("thrown while requesting HEAD")
        if problem is not None:
            raise problem

    def load_dataset_builder(name, config):
        opened.append(name)
        logging.getLogger("datasets.load").warning("Using the latest cached version")
        raise FileNotFoundError(f"no {name}")

    for library in ("huggingface_hub", "datasets"):
        monkeypatch.setattr(logging.getLogger(library), "propagate", True)
    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", probe)
    monkeypatch.setattr(datasets, "load_dataset_builder", load_dataset_builder)
    return asked, opened


@pytest.mark.parametrize("name", ["squad", "no/such"])
@pytest.mark.parametrize("problem", [ConnectionError("no route"), TimeoutError("timed out")])
def test_without_a_network_the_hub_is_asked_once_and_in_silence(monkeypatch, caplog, name, problem):
    asked, opened = asked_of_the_hub(monkeypatch, problem)
    with pytest.raises(DataError, match=f"{name} could not be opened as a dataset .*{problem}"):
        load_samples(name)
    assert asked == [(f"https://huggingface.co/datasets/{name}/resolve/main/README.md", PROBE_SECONDS)]
    assert opened == []
    assert caplog.records == []


def test_without_a_network_a_cached_dataset_is_opened(monkeypatch, caplog, tmp_path):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    (tmp_path / "some___pretty_pictures").mkdir()
    _, opened = asked_of_the_hub(monkeypatch, ConnectionError("no route"))
    with pytest.raises(DataError, match="FileNotFoundError"):
        load_samples("some/PrettyPictures")
    assert opened == ["some/PrettyPictures"]
    assert caplog.records == []


def hub_error(kind):
    answer = type("Answer", (), dict(headers={}, request=None, status_code=404, text="", history=[]))()
    return kind("nothing", response=answer)


@pytest.mark.parametrize(
    ("kind", "complaint"),
    [
        ("RepositoryNotFoundError", "there is no file or folder bananas, and no dataset of that name is on the hub"),
        ("GatedRepoError", "hf auth login"),
    ],
)
def test_what_the_hub_says_of_a_name(monkeypatch, kind, complaint):
    _, opened = asked_of_the_hub(monkeypatch, hub_error(getattr(huggingface_hub.errors, kind)))
    with pytest.raises(DataError, match=complaint):
        load_samples("bananas")
    assert opened == []


def test_a_dataset_without_a_readme_is_opened(monkeypatch):
    _, opened = asked_of_the_hub(monkeypatch, hub_error(huggingface_hub.errors.RemoteEntryNotFoundError))
    with pytest.raises(DataError, match="no bananas"):
        load_samples("bananas")
    assert opened == ["bananas"]


@pytest.mark.parametrize("name", ["my pictures", "a/b/c", "what?"])
def test_a_name_that_no_dataset_can_have_is_refused_at_once(monkeypatch, name):
    asked, _ = asked_of_the_hub(monkeypatch)
    with pytest.raises(DataError, match=f"no file or folder {re.escape(name)}.*no dataset of that name"):
        load_samples(name)
    assert asked == []


def test_the_shipped_set_is_missing(monkeypatch, tmp_path):
    monkeypatch.setattr("halfv_data.load.DEFAULT", tmp_path)
    for read in (load_samples, shipped_question):
        with pytest.raises(DataError, match=r"the shipped samples are missing from .*python -m halfv_data\.ship"):
            read()


# ------------------------------------------------------------------------------------------------------------ one image


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "LA", "1", "CMYK"])
def test_pictures_come_out_as_rgb(tmp_path, mode):
    file = tmp_path / ("a.tif" if mode == "CMYK" else "a.png")
    DRAWN[0].image.convert(mode).save(file)
    opened = open_image(file)
    assert opened.mode == "RGB" and opened.size == (192, 192)


def test_a_photograph_is_turned_upright(tmp_path):
    image = Image.new("RGB", (4, 2), "red")
    exif = image.getexif()
    exif[0x0112] = 6  # the camera was turned by a quarter
    image.save(tmp_path / "a.png", exif=exif)
    assert open_image(tmp_path / "a.png").size == (2, 4)


def test_one_image_is_checked_like_a_row(tmp_path):
    with pytest.raises(DataError, match=r"^image .*a\.png does not exist: check the path$"):
        open_image(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"^image ~no-such-user/a\.png does not exist"):
        open_image("~no-such-user/a.png")
    (tmp_path / "a.png").write_text("no picture")
    with pytest.raises(DataError, match=r"a\.png is not an image"):
        open_image(str(tmp_path / "a.png"))


def test_only_local_files_are_opened(folder):
    url = "https://example.org/a.png"
    with pytest.raises(DataError, match=f"^image '{url}' is a URL: download it, because only local files are opened$"):
        open_image(url)
    file = write_lines(folder / "samples.jsonl", [{"image": url, "question": "What?"}])
    with pytest.raises(DataError, match=f"line 1: image '{url}' is a URL: download it"):
        load_samples(file)


def test_a_missing_picture_of_a_list_says_where_paths_start(folder):
    file = write_lines(folder / "samples.jsonl", [{"image": "none.png", "question": "What?"}])
    with pytest.raises(DataError, match=r"does not exist: check the path \(relative paths start at the list; --images"):
        load_samples(file)
