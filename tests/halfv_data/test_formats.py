"""Each form in which people of this field keep samples: a small file of the same shape gives what it asks."""

import base64
import gzip
import io
import json
import tarfile

import datasets
import pandas as pd
import pytest

from halfv_data import DataError, Reading, load_data
from halfv_data.choices import INSTRUCTION
from halfv_data.columns import CAPTION


def asked(source, **how):
    """Question and answer of every sample."""
    return [(s.question, s.answer) for s in load_data(source, reading=Reading(**how)).samples]


def shown(source, drawn, **how):
    """Which of the six pictures every sample shows, in order."""
    images = [sample.image for sample in drawn]
    return [[images.index(image) for image in s.images] for s in load_data(source, reading=Reading(**how)).samples]


def uri(encoded):
    return "data:image/png;base64," + base64.b64encode(encoded).decode()


# -------------------------------------------------------------------------------------------------------- conversations


LLAVA = [
    {
        "id": "a",
        "image": "coco/train2017/1.png",
        "conversations": [
            {"from": "human", "value": "<image>\nWhat is it?"},
            {"from": "gpt", "value": "A star."},
            {"from": "human", "value": "And where?"},
            {"from": "gpt", "value": "Top left."},
        ],
    },
    {"id": "b", "conversations": [{"from": "human", "value": "Say hello."}, {"from": "gpt", "value": "Hello."}]},
    {
        "id": "c",
        "image": ["0.png", "2.png"],
        "conversations": [
            {"from": "system", "value": "You are kind."},
            {"from": "human", "value": "Compare <image> with <image> now.\n<image>"},
            {"from": "gpt", "value": "They differ."},
        ],
    },
]


@pytest.fixture
def llava_pictures(folder):
    (folder / "coco/train2017").mkdir(parents=True)
    (folder / "1.png").rename(folder / "coco/train2017/1.png")
    return folder


@pytest.mark.parametrize("name", ["llava.json", "llava.jsonl", "llava.ndjson"])
def test_llava_conversations(llava_pictures, write, drawn, name):
    file = write(name, LLAVA)
    assert asked(file) == [("What is it?", "A star."), ("Compare with now.", "They differ.")]
    assert shown(file, drawn) == [[1], [0, 2]]
    summary = load_data(file).summary
    assert [(out.reason[:8], out.bad) for out in summary.left_out] == [("no image", False)]
    assert "3 rows, 2 samples, 1 left out: no image" in str(summary)
    assert "question=conversations" in str(summary)


def test_all_turns_of_a_conversation(llava_pictures, write, drawn):
    file = write("llava.json", LLAVA)
    assert asked(file, turns="all")[:2] == [("What is it?", "A star."), ("And where?", "Top left.")]
    assert shown(file, drawn, turns="all") == [[1], [1], [0, 2]]


@pytest.mark.parametrize("root", [".", "coco", "coco/train2017"])
def test_pictures_of_a_list_are_below_another_root(llava_pictures, tmp_path_factory, drawn, root):
    file = tmp_path_factory.mktemp("lists") / "llava.json"
    file.write_text(json.dumps(LLAVA[:1]))
    with pytest.raises(DataError, match=r"llava\.json entry 1: image .*1\.png does not exist: .*--images DIR"):
        load_data(file)
    assert shown(file, drawn, images=llava_pictures / root) == [[1]]


MESSAGES = {
    "openai": lambda png: {
        "messages": [
            {"role": "system", "content": "You are kind."},
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "What is it?"},
                    {"type": "image_url", "image_url": {"url": uri(png[1])}},
                ],
            },
            {"role": "assistant", "content": "A star."},
        ]
    },
    "hugging face": lambda png: {
        "messages": [
            {"role": "user", "content": [{"type": "image", "path": "1.png"}, {"type": "text", "text": "What is it?"}]},
            {"role": "assistant", "content": [{"type": "text", "text": "A star."}]},
        ]
    },
    "trl": lambda png: {
        "images": ["1.png"],
        "prompt": [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]}],
        "completion": [{"role": "assistant", "content": [{"type": "text", "text": "A star."}]}],
    },
    "ms-swift": lambda png: {
        "messages": [
            {"role": "user", "content": "<image>What is it?"},
            {"role": "assistant", "content": "A star."},
        ],
        "images": ["1.png"],
    },
    "older ms-swift": lambda png: {"query": "<image>What is it?", "response": "A star.", "images": ["1.png"]},
    "ms-swift with bytes": lambda png: {
        "messages": [{"role": "user", "content": "<image>What is it?"}, {"role": "assistant", "content": "A star."}],
        "images": [{"bytes": None, "path": "1.png"}],
    },
    "llama-factory": lambda png: {
        "conversations": [{"from": "human", "value": "<image>What is it?"}, {"from": "gpt", "value": "A star."}],
        "images": ["1.png"],
    },
    "alpaca": lambda png: {"instruction": "What is it?", "input": "", "output": "A star.", "images": ["1.png"]},
    "qwen-vl": lambda png: {
        "conversations": [
            {"from": "user", "value": "Picture 1: <img>1.png</img>\nWhat is it?"},
            {"from": "assistant", "value": "A star."},
        ]
    },
    "anthropic": lambda png: {
        "messages": [
            {
                "role": "user",
                "content": [
                    {"type": "image", "source": {"type": "base64", "data": base64.b64encode(png[1]).decode()}},
                    {"type": "text", "text": "What is it?"},
                ],
            },
            {"role": "assistant", "content": "A star."},
        ]
    },
    "internvl": lambda png: {
        "image": "1.png",
        "width": 192,
        "height": 192,
        "conversations": [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "A star."}],
    },
    "a request to openai": lambda png: {"custom_id": "1", "body": MESSAGES["openai"](png)},
}


@pytest.mark.parametrize("form", MESSAGES)
def test_messages(folder, write, png, drawn, form):
    file = write("m.jsonl", [MESSAGES[form](png)])
    assert asked(file) == [("What is it?", "A star.")]
    assert shown(file, drawn) == [[1]]


def test_pictures_of_a_later_turn_are_not_shown_before(folder, write, drawn):
    said = ["<image>One?", "<image>Two?"]
    turns = [{"role": role, "content": text} for one in said for role, text in (("user", one), ("assistant", "Yes."))]
    file = write("m.jsonl", [{"messages": turns, "images": ["0.png", "1.png"]}])
    assert shown(file, drawn, turns="all") == [[0], [0, 1]]


def test_the_cauldron(tmp_path, png, drawn):
    features = {
        "images": datasets.List(datasets.Image()),
        "texts": datasets.List({name: datasets.Value("string") for name in ("user", "assistant", "source")}),
    }
    turns = [{"user": f"{n}?", "assistant": f"{n}.", "source": "x"} for n in range(2)]
    rows = {"images": [[{"bytes": png[0]}], [{"bytes": png[1]}, {"bytes": png[2]}]], "texts": [turns, turns[:1]]}
    datasets.Dataset.from_dict(rows, features=datasets.Features(features)).to_parquet(tmp_path / "c.parquet")
    assert asked(tmp_path / "c.parquet") == [("0?", "0."), ("0?", "0.")]
    assert asked(tmp_path / "c.parquet", turns="all") == [("0?", "0."), ("1?", "1."), ("0?", "0.")]
    assert shown(tmp_path / "c.parquet", drawn) == [[0], [1, 2]]


def test_a_conversation_by_a_stranger(folder, write):
    file = write("m.jsonl", [{"image": "0.png", "messages": [{"role": "stranger", "content": "Hello?"}]}])
    with pytest.raises(DataError, match=r"line 1: a turn of a conversation is by 'stranger': it must be by human and"):
        load_data(file)


# ------------------------------------------------------------------------------------------------------ multiple choice


def prompt(*lines):
    return "\n".join([*lines, INSTRUCTION])


MC = prompt("What is it?", "A. cat", "B. dog", "C. cow")


def test_mmbench_tsv_with_base64(tmp_path, png, drawn):
    packed = [base64.b64encode(encoded).decode() for encoded in png]
    table = pd.DataFrame(
        {
            "index": [0, 1, 2],
            "question": ["What is it?"] * 3,
            "hint": [None, "It barks, loudly.", None],
            "A": ["cat"] * 3,
            "B": ["dog"] * 3,
            "C": ["cow", None, "cow"],
            "D": [None] * 3,
            "answer": ["A", "B", None],
            "image": [packed[0], packed[1], "1"],  # the third shares the second's picture
            "split": ["dev", "dev", "test"],
        }
    )
    table.to_csv(tmp_path / "mmbench.tsv", sep="\t", index=False)
    assert asked(tmp_path / "mmbench.tsv") == [
        (MC, "A"),
        (prompt("It barks, loudly.", "What is it?", "A. cat", "B. dog"), "B"),
        (MC, None),
    ]
    assert shown(tmp_path / "mmbench.tsv", drawn) == [[0], [1], [1]]
    assert len(asked(tmp_path / "mmbench.tsv", split="dev")) == 2
    with pytest.raises(DataError, match="has no split 'train', only dev, test"):
        asked(tmp_path / "mmbench.tsv", split="train")


def parquet(tmp_path, png, columns, several=False):
    """A table whose pictures are the first ones of the six."""
    count = len(next(iter(columns.values())))
    image = [[{"bytes": one}] for one in png[:count]] if several else [{"bytes": one} for one in png[:count]]
    table = datasets.Dataset.from_dict({"image": image, **columns})
    kind = datasets.List(datasets.Image()) if several else datasets.Image()
    table.cast_column("image", kind).to_parquet(tmp_path / "t.parquet")
    return tmp_path / "t.parquet"


ANIMALS = ["cat", "dog", "cow"]
LMMS = {  # columns as lmms-lab and others publish them, and what they ask
    "MMBench with nan as a text": (
        {"question": ["What is it?"], "hint": ["nan"], "A": ["cat"], "B": ["dog"], "C": ["cow"], "D": ["nan"]}
        | {"answer": ["B"]},
        [(MC, "B")],
    ),
    "ScienceQA-IMG": (
        {"question": ["What is it?"] * 2, "choices": [ANIMALS] * 2, "answer": [0, 2], "hint": ["", "It moos."]}
        | {"task": ["closed choice"] * 2, "lecture": ["Animals are ..."] * 2, "solution": ["..."] * 2},
        [(MC, "A"), ("It moos.\n" + MC, "C")],
    ),
    "AI2D": (
        {"question": ["What is it?"] * 2, "options": [ANIMALS] * 2, "answer": ["0", "2"]},
        [(MC, "A"), (MC, "C")],
    ),
    "indices from 1": (
        {"question": ["What is it?"] * 2, "options": [ANIMALS] * 2, "answer": [1, 3]},
        [(MC, "A"), (MC, "C")],
    ),
    "labels as text": (
        {"question": ["What is it?"] * 2, "choices": [ANIMALS] * 2, "answer": ["dog", "Cow"]},
        [(MC, "B"), (MC, "C")],
    ),
    "SEED-Bench": (
        {"question": ["What is it?"], "choice_a": ["cat"], "choice_b": ["dog"], "choice_c": ["cow"], "choice_d": [None]}
        | {"answer": ["C"], "question_type_id": [1]},
        [(MC, "C")],
    ),
    "NExT-QA": (
        {"question": ["What is it?"], "a0": ["cat"], "a1": ["dog"], "a2": ["cow"], "answer": [2]},
        [(MC, "C")],
    ),
    "letters before the options": (
        {"question": ["What is it?"], "options": [["A. cat", "B. dog", "C. cow"]], "answer": ["B"]},
        [(MC, "B")],
    ),
    "BLINK": (
        {"question": ["What is it?"], "choices": [ANIMALS], "answer": ["(C)"], "prompt": ["What is it? (A) cat"]},
        [(MC, "C")],
    ),
    "A-OKVQA": (
        {"question": ["What is it?"], "choices": [ANIMALS], "correct_choice_idx": [1], "direct_answers": [["dog"]]},
        [(MC, "B")],
    ),
    "options in one line": (
        {"question": ["What is it?"], "options": ["A. cat B. dog C. cow"], "answer": ["B"]},
        [(MC, "B")],
    ),
    "columns that mean something else here": (
        {"question": ["What?"], "answer": ["x"], "task": [3], "objects": [{"bbox": [[1, 2]], "id": [1]}]},
        [("What?", "x")],
    ),
    "options in the question (MMStar)": (
        {"question": ["What is it?\nOptions: A: cat, B: dog"], "answer": ["A"]},
        [("What is it?\nOptions: A: cat, B: dog", "A")],
    ),
    "POPE": (
        {"question_id": ["1"], "question": ["Is there a cat?"], "answer": ["yes"], "category": ["random"]},
        [("Is there a cat?", "yes")],
    ),
    "MME": (
        {"question": ["Is it a cat? Please answer yes or no."], "answer": ["No"], "category": ["existence"]},
        [("Is it a cat? Please answer yes or no.", "No")],
    ),
    "VQAv2": (
        {"question": ["What?"], "multiple_choice_answer": ["dog"], "question_id": [7]}
        | {"answers": [[{"answer": text, "answer_id": i} for i, text in enumerate(["cat", "dog", "dog"])]]},
        [("What?", "dog")],
    ),
    "OK-VQA, TextVQA, DocVQA": (
        {"question": ["What?"], "answers": [["cat", "dog", "dog", "cow"]], "image_id": ["x1"]},
        [("What?", "dog")],
    ),
    "GQA": (
        {"imageId": ["x1"], "question": ["Is it?"], "answer": ["no"], "fullAnswer": ["No, it is not."]},
        [("Is it?", "no")],
    ),
    "LLaVA-Bench": (
        {"question": ["What?"], "caption": ["A cat."], "gpt_answer": ["It is a cat."]},
        [("What?", "It is a cat.")],
    ),
    "Flickr30k": ({"caption": [["A cat.", "One cat."]], "sentids": [[1, 2]]}, [(CAPTION, "A cat.")]),
    "integers with a blank": (
        {"question": ["How many?"] * 2, "answer": [3.0, float("nan")]},
        [("How many?", a) for a in ("3", None)],
    ),
}


@pytest.mark.parametrize("form", LMMS)
def test_published_columns(tmp_path, png, form):
    columns, expected = LMMS[form]
    assert asked(parquet(tmp_path, png, columns)) == expected


def test_mmmu(tmp_path, png, drawn):
    rows = {
        "id": ["a", "b"],
        "question": ["Which of <image 1> and <image 2>?", "How much?"],
        "options": ["['cat', \"dog's\"]", "[]"],
        "answer": ["B", "12.50"],
        "image_1": [{"bytes": png[0]}, {"bytes": png[2]}],
        "image_2": [{"bytes": png[1]}, None],
        "question_type": ["multiple-choice", "open"],
    }
    table = datasets.Dataset.from_dict(rows)
    for column in ("image_1", "image_2"):
        table = table.cast_column(column, datasets.Image())
    table.to_parquet(tmp_path / "mmmu.parquet")
    file = tmp_path / "mmmu.parquet"
    first = prompt("Which of <image 1> and <image 2>?", "A. cat", "B. dog's")
    assert asked(file) == [(first, "B"), ("How much?", "12.50")]
    assert shown(file, drawn) == [[0, 1], [2]]


def test_a_list_of_pictures_a_row(tmp_path, png, drawn):
    assert shown(parquet(tmp_path, png, {"question": ["What?"] * 2}, several=True), drawn) == [[0], [1]]


def test_a_picture_column_is_known_by_its_type(tmp_path, png, drawn):
    """MathVista has paths in ``image`` and pictures in ``decoded_image``."""
    table = datasets.Dataset.from_dict(
        {"image": ["images/1.jpg"], "decoded_image": [{"bytes": png[3]}], "question": ["What?"], "answer": ["1.2"]}
    )
    table.cast_column("decoded_image", datasets.Image()).to_parquet(tmp_path / "t.parquet")
    assert shown(tmp_path / "t.parquet", drawn) == [[3]]


def test_classes_have_names(tmp_path, png):
    features = {"image": datasets.Image(), "question": datasets.Value("string")}
    features = datasets.Features({**features, "label": datasets.ClassLabel(names=["no", "yes"])})
    rows = {"image": [{"bytes": png[0]}], "question": ["Is it?"], "label": [1]}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "t.parquet")
    assert asked(tmp_path / "t.parquet") == [("Is it?", "yes")]


def test_an_answer_that_is_none_of_the_options(tmp_path, png, folder, write):
    columns = {"question": ["What is it?"] * 2, "choices": [ANIMALS] * 2, "answer": ["dog", "horse"]}
    loaded = load_data(parquet(tmp_path, png, columns))
    assert [s.answer for s in loaded.samples] == ["B"]
    assert "1 left out: the answer is none of the options" in str(loaded.summary)
    rows = [{"image": "0.png", "question": "What is it?", "choices": ANIMALS, "answer": a} for a in ("dog", "horse")]
    with pytest.raises(DataError, match=r"line 2: the answer is none of the options: it is 'horse' of 3 options"):
        load_data(write("s.jsonl", rows))


def test_options_that_cannot_be_told_apart(folder, write):
    rows = [{"image": "0.png", "question": "What is it?", "options": "cat or dog", "answer": "A"}]
    with pytest.raises(
        DataError, match=r"line 1: options that cannot be told apart: they are 'cat or dog': make them a"
    ):
        load_data(write("s.jsonl", rows))


# ------------------------------------------------------------------------------------------------------------ documents


def test_vqa_pairs(folder, write, drawn):
    answers = ["cat"] * 3 + ["dog"] * 6 + ["cow"]
    question = {"image_id": 42, "question": "What is it?", "question_id": 1}
    noted = {
        "image_id": 42,
        "question_id": 1,
        "multiple_choice_answer": "dog",
        "answers": [{"answer": a, "answer_confidence": "yes", "answer_id": i} for i, a in enumerate(answers)],
    }
    other = {**noted, "question_id": 9}
    (folder / "val2014").mkdir()
    (folder / "4.png").rename(folder / "val2014/COCO_val2014_000000000042.jpg")
    questions = write(
        "vqa/v2_OpenEnded_mscoco_val2014_questions.json", {"data_subtype": "val2014", "questions": [question]}
    )
    alone = load_data(questions, reading=Reading(images=folder))
    assert [s.answer for s in alone.samples] == [None]
    assert "no annotations file with its answers is beside it" in str(alone.summary)
    write("vqa/v2_mscoco_train2014_annotations.json", {"annotations": [other]})
    annotations = write("vqa/v2_mscoco_val2014_annotations.json", {"data_subtype": "val2014", "annotations": [noted]})
    for source in (questions, annotations, questions.parent):
        assert asked(source, images=folder) == [("What is it?", "dog")]
        assert shown(source, drawn, images=folder) == [[4]]


def test_answers_without_their_questions(write):
    file = write("annotations.json", {"annotations": [{"question_id": 1, "answers": [{"answer": "cat"}]}]})
    with pytest.raises(DataError, match=r"annotations\.json holds answers alone: put the questions file beside it"):
        load_data(file)


def test_gqa_textvqa_and_others_that_name_pictures_by_id(folder, write, drawn):
    gqa = write("gqa.json", {"0712": {"imageId": "2", "question": "Is it?", "answer": "no", "fullAnswer": "No."}})
    rows = [{"question": "What?", "image_id": "3", "answers": ["a", "b", "b"], "image_classes": ["x"]}]
    textvqa = write("textvqa.json", {"dataset_type": "val", "data": rows})
    assert asked(gqa) == [("Is it?", "no")] and shown(gqa, drawn) == [[2]]
    assert asked(textvqa) == [("What?", "b")] and shown(textvqa, drawn) == [[3]]


def test_pope(folder, write, drawn):
    rows = [
        {"question_id": 1, "image": "0.png", "text": "Is there a star in the image?", "label": "yes"},
        {"question_id": 2, "image": "1.png", "text": "Is there a dog in the image?", "label": "no"},
    ]
    file = write("coco_pope_random.json", "\n".join(json.dumps(row) for row in rows))  # lines, whatever the name says
    assert asked(file) == [("Is there a star in the image?", "yes"), ("Is there a dog in the image?", "no")]
    assert "question=text, answer=label" in str(load_data(file).summary)


def test_scienceqa(folder, write, drawn):
    problem = {"question": "What is it?", "choices": ANIMALS, "answer": 1, "hint": "It barks.", "image": "image.png"}
    problems = {
        "1": {**problem, "split": "test", "lecture": "...", "task": "closed choice"},
        "2": {**problem, "split": "train"},
        "3": {**problem, "split": "test", "image": None},
    }
    for place, number in (("test/1", 5), ("2", 4)):
        (folder / place).mkdir(parents=True)
        (folder / f"{number}.png").rename(folder / place / "image.png")
    file = write("problems.json", problems)
    assert asked(file) == [("It barks.\n" + MC, "B")] * 2
    assert shown(file, drawn) == [[5], [4]]
    assert shown(file, drawn, split="test") == [[5]]
    assert "3 rows, 2 samples, 1 left out" in str(load_data(file).summary)


def test_coco_captions(folder, write, drawn):
    (folder / "val2017").mkdir()
    (folder / "1.png").rename(folder / "val2017/000000000007.jpg")
    captions = [{"image_id": 7, "id": i, "caption": text} for i, text in enumerate(["A star. ", "One star."])]
    images = [{"id": 7, "file_name": "000000000007.jpg"}]
    file = write("captions_val2017.json", {"images": images, "annotations": captions})
    assert asked(file) == [(CAPTION, "A star.")]
    assert shown(file, drawn) == [[1]]
    boxes = write("instances_val2017.json", {"images": images, "annotations": [{"image_id": 7, "bbox": [0, 0, 1, 1]}]})
    with pytest.raises(DataError, match=r"has no captions: give captions_\*\.json"):
        load_data(boxes)


def test_captions_in_karpathys_splits(folder, write):
    images = [
        {"filename": f"{n}.png", "filepath": "", "sentences": [{"raw": f"Number {n}."}], "split": split}
        for n, split in enumerate(["train", "val"])
    ]
    assert asked(write("dataset.json", {"images": images, "dataset": "x"}), split="val") == [(CAPTION, "Number 1.")]


def test_a_list_of_lists_names_one(write):
    file = write("meta.json", {"sharegpt4v": {"root": "pictures/coco", "annotation": "a.jsonl", "repeat_time": 1}})
    with pytest.raises(
        DataError, match=r"lists other files: give one of them, .*--data a\.jsonl --images pictures/coco"
    ):
        load_data(file)


@pytest.mark.parametrize(
    "document",
    [
        {"image": {"0": "0.png", "1": "1.png"}, "question": {"0": "What?", "1": "Where?"}},
        {"image": ["0.png", "1.png"], "question": ["What?", "Where?"]},
        {"version": 1, "samples": [{"image": "0.png", "question": "What?"}, {"image": "1.png", "question": "Where?"}]},
    ],
)
def test_other_shapes_of_json(folder, write, drawn, document):
    file = write("t.json", document)
    assert asked(file) == [("What?", None), ("Where?", None)] and shown(file, drawn) == [[0], [1]]


def test_one_sample_alone(folder, write):
    assert asked(write("t.json", {"image": "0.png", "question": "What?", "answer": "x"})) == [("What?", "x")]


# ---------------------------------------------------------------------------------------------------- tables and shards


@pytest.mark.parametrize("name", ["s.jsonl.gz", "s.json.gz", "s.csv.gz", "s.tsv.gz"])
def test_gzipped_files(folder, write, name):
    lines = {
        ".jsonl": '{"image": "0.png", "question": "What?", "answer": "x"}\n',
        ".json": '[{"image": "0.png", "question": "What?", "answer": "x"}]',
        ".csv": "image,question,answer\n0.png,What?,x\n",
        ".tsv": "image\tquestion\tanswer\n0.png\tWhat?\tx\n",
    }
    file = write(name, gzip.compress(lines[name[1:-3]].encode()))
    assert asked(file) == [("What?", "x")]


VALUES = ["007", "1e3", "3.10", "NA", "None", "null", "", "1", "TRUE", "1,000"]


@pytest.mark.parametrize("separator", [",", "\t", ";"])
def test_values_of_a_table_stay_as_they_are_written(folder, write, separator):
    rows = "".join(f'0.png{separator}"What, {i}?"{separator}"{value}"\n' for i, value in enumerate(VALUES))
    file = write("t.tsv" if separator == "\t" else "t.csv", f"Image{separator}Question{separator}Answer\n{rows}")
    assert [answer for _, answer in asked(file)] == [value or None for value in VALUES]


def test_values_of_json_stay_as_they_are_written(folder, write):
    written = ["3.10", "1e3", "-0.50", "7", "NaN", "null", '"NA"', '"007"']
    lines = "".join(f'{{"image": "0.png", "question": "What?", "answer": {value}}}\n' for value in written)
    assert [a for _, a in asked(write("t.jsonl", lines))] == ["3.10", "1e3", "-0.50", "7", None, None, "NA", "007"]


def shard(samples):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for name, content in samples.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return file.getvalue()


def test_answers_that_a_table_spells_as_a_list(folder, write):
    rows = """0.png,What?,"['x', 'y', 'y']"\n0.png,What?,"[1, 2]"\n0.png,What?,[sic]\n"""
    answers = [answer for _, answer in asked(write("t.csv", f"image,question,answer\n{rows}"))]
    assert answers == ["y", "[1, 2]", "[sic]"]


def test_paths_of_another_system(folder, write, drawn):
    (folder / "sub").mkdir()
    (folder / "2.png").rename(folder / "sub/2.png")
    file = write("t.jsonl", [{"image": "sub\\2.png", "question": "?"}, {"image": {"url": "0.png"}, "question": "?"}])
    assert shown(file, drawn) == [[2], [0]]


def test_webdataset_shards(write, png, drawn):
    row = {"question": "What?", "answer": "3.10"}
    for number in range(2):
        members = {
            f"train/{number}a.png": png[number],
            f"train/{number}a.json": json.dumps(row).encode(),
            f"train/{number}b.json": json.dumps(row).encode(),  # a text alone
        }
        file = write(f"shards/part-{number:03d}.tar", shard(members))
    loaded = load_data(file)
    assert (loaded.summary.rows, len(loaded.samples), loaded.summary.kind) == (2, 1, "webdataset")
    for source in (file.parent, file.parent / "part-{000..001}.tar", file.parent / "part-*.tar"):
        assert asked(source) == [("What?", "3.10")] * 2
        assert shown(source, drawn) == [[0], [1]]
    with pytest.raises(DataError, match=r"part-002\.tar does not exist"):
        load_data(file.parent / "part-{000..002}.tar")


def test_captions_and_questions_in_a_shard(write, png):
    assert asked(write("c.tar", shard({"0.png": png[0], "0.txt": b"A star.\n"}))) == [(CAPTION, "A star.")]
    assert asked(write("q.tar", shard({"0.png": png[0], "0.txt": b"What is it?", "0.answer": b"A star"}))) == [
        ("What is it?", "A star")
    ]


def test_a_damaged_shard(write, png):
    with pytest.raises(DataError, match=r"c\.tar is no whole tar archive"):
        load_data(write("c.tar", b"not a tar" * 100))
    with pytest.raises(DataError, match=r"c\.tar 0.*is damaged or cut off"):
        load_data(write("c.tar", shard({"0.png": png[0][:5000], "0.json": b'{"question": "What?"}'})))


# --------------------------------------------------------------------------------------------------- configs and splits


CARD = """---
configs:
- config_name: one
  data_files:
  - {split: validation, path: a.csv}
  - {split: train, path: b.csv}
- config_name: two
  data_files: c.jsonl
---
"""


@pytest.fixture
def configs(tmp_path_factory, png):
    folder = tmp_path_factory.mktemp("configs")
    (folder / "README.md").write_text(CARD)
    for name in "ab":
        (folder / f"{name}.csv").write_text(
            f"image,question,answer\n{tmp_path_factory.getbasetemp()}/0.png,{name}?,007\n"
        )
    (tmp_path_factory.getbasetemp() / "0.png").write_bytes(png[0])
    row = {"image": str(tmp_path_factory.getbasetemp() / "0.png"), "question": "c?", "answer": 3.5}
    (folder / "c.jsonl").write_text(json.dumps(row))
    return folder


def test_configs_and_splits(configs):
    assert asked(configs, config="one") == [("a?", "007")]  # validation rather than train, and as it was written
    assert asked(configs, config="one", split="train") == [("b?", "007")]
    assert asked(configs, config="two") == [("c?", "3.5")]
    assert "config one, split validation" in str(load_data(configs, reading=Reading(config="one")).summary)
    with pytest.raises(DataError, match="has 2 configs: choose --config from one, two"):
        load_data(configs)
    with pytest.raises(DataError, match="has no config three: choose --config from one, two"):
        load_data(configs, reading=Reading(config="three"))
    with pytest.raises(DataError, match="has no split test: choose --split from validation, train"):
        load_data(configs, reading=Reading(config="one", split="test"))


def test_splits_of_parquet_files_and_of_saved_sets(tmp_path, png):
    splits = {}
    for name in ("train", "test"):
        rows = {"image": [{"bytes": png[0]}], "question": [f"{name}?"]}
        splits[name] = datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image())
        (tmp_path / "hub/data").mkdir(parents=True, exist_ok=True)
        splits[name].to_parquet(tmp_path / f"hub/data/{name}-00000-of-00001.parquet")
    datasets.DatasetDict(splits).save_to_disk(tmp_path / "saved")
    for source in (tmp_path / "hub", tmp_path / "saved"):
        assert asked(source) == [("test?", None)]
        assert asked(source, split="train") == [("train?", None)]
        assert "split test" in str(load_data(source).summary)
        with pytest.raises(DataError, match="has no split dev: choose --split from t"):
            load_data(source, reading=Reading(split="dev"))


def test_splits_of_a_folder_of_pictures(folder, write):
    for split, picture in (("train", "0.png"), ("test", "1.png")):
        (folder / split).mkdir()
        (folder / picture).rename(folder / split / picture)
        write(f"{split}/metadata.csv", f"file_name,question,answer\n{picture},{split}?,007\n")
    assert asked(folder) == [("test?", "007")]
    assert asked(folder, split="train") == [("train?", "007")]


# --------------------------------------------------------------------------------------------------------------- videos


def test_videos(folder, write, drawn):
    write("v.mp4", b"not decoded here")
    rows = [
        {"video": "v.mp4", "question": "What happens?", "options": ["A. cat", "B. dog"], "answer": "B"},
        {"video": ["0.png", "1.png"], "question": "What happens?"},
        {"messages": [{"role": "user", "content": "<video>What happens?"}], "videos": ["v.mp4"]},
    ]
    samples = load_data(write("s.jsonl", rows)).samples
    assert [s.video.load() for s in samples[::2]] == [str(folder / "v.mp4")] * 2
    assert samples[1].video.load() == [drawn[0].image, drawn[1].image]
    assert samples[0].question == prompt("What happens?", "A. cat", "B. dog") and samples[0].answer == "B"
    assert samples[2].question == "What happens?"


def test_a_video_inside_of_a_shard(write):
    with pytest.raises(DataError, match=r"its video is inside of the table or shard: save it as a file"):
        load_data(write("v.tar", shard({"0.mp4": b"...", "0.json": b'{"question": "What?"}'})))


def test_videos_named_by_id(folder, write):
    write("abc.mp4", b"not decoded here")
    rows = [{"videoID": "abc", "question": "What happens?", "options": ["A. cat", "B. dog"], "answer": "A"}]
    assert load_data(write("s.jsonl", rows)).samples[0].video.load() == str(folder / "abc.mp4")
