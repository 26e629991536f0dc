"""POPE's counts against a confusion matrix counted by hand."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from halfv_probe.compare.scores import typed
from halfv_probe.compare.yes_no import ALL, says_yes, yes_no, yes_no_table

from .made_up import rows_of

WORDS = st.sampled_from(["yes", "no"])


@given(pairs=st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=30))
def test_counts_are_those_of_the_confusion_matrix(pairs):
    true_yes = false_yes = true_no = false_no = 0
    for reply, answer in pairs:
        if reply == "yes":
            true_yes, false_yes = true_yes + (answer == "yes"), false_yes + (answer == "no")
        else:
            true_no, false_no = true_no + (answer == "no"), false_no + (answer == "yes")
    found = yes_no(*map(list, zip(*pairs, strict=True)))
    assert found.accuracy == pytest.approx((true_yes + true_no) / len(pairs))
    assert found.yes_rate == pytest.approx((true_yes + false_yes) / len(pairs))
    if true_yes:
        precision, recall = true_yes / (true_yes + false_yes), true_yes / (true_yes + false_no)
        assert found.f1 == pytest.approx(2 * precision * recall / (precision + recall))
    elif true_no == len(pairs):
        assert math.isnan(found.f1)
    else:
        assert found.f1 == 0


@pytest.mark.parametrize("reply", ["no", "No, there isn't.", "There is not a dog. Yes.", "NO!"])
def test_replies_that_pope_reads_as_no(reply):
    assert not says_yes(reply)


@pytest.mark.parametrize("reply", ["yes", "Yes, there is. No doubt.", "a note about nothing", ""])
def test_replies_that_pope_reads_as_yes(reply):
    assert says_yes(reply)


def test_one_answer_to_each_reply():
    for replies, answers in (([], []), (["yes"], [])):
        with pytest.raises(ValueError, match="give one to each"):
            yes_no(replies, answers)


def test_a_table_holds_the_tasks_whose_answers_are_all_yes_or_no():
    task = ["existence", "existence", "colour", "pope"]
    results = typed(rows_of("a", "a", None, [True, False, True, True], task=task, answer=["yes", "No.", "blue", "yes"]))
    results["reply"] = ["yes", "yes", "blue", "no"]
    found = yes_no_table(results).set_index("task")
    assert list(found.index) == ["existence", "pope", ALL]
    assert list(found["accuracy"]) == [0.5, 0.0, pytest.approx(1 / 3)]
    assert list(found["yes_rate"]) == [1.0, 0.0, pytest.approx(2 / 3)]
    assert list(found["answers_yes"]) == [0.5, 1.0, pytest.approx(2 / 3)]
    mixed = results.assign(task="existence")
    assert yes_no_table(mixed).empty


def test_seeds_are_counted_one_by_one_and_averaged():
    import pandas as pd

    parts = [
        rows_of(
            f"random_choice@0.5#{seed}", "random_choice", 0.5, right, seed=seed, task=["q", "q"], answer=["yes"] * 2
        )
        for seed, right in enumerate(([True, True], [False, False]))
    ]
    results = typed(pd.concat(parts, ignore_index=True))
    results["reply"] = ["yes", "yes", "no", "no"]
    [row] = yes_no_table(results).to_dict("records")
    assert row["entrant"] == "random_choice@0.5" and row["samples"] == 2
    assert (row["accuracy"], row["f1"], row["yes_rate"]) == (0.5, 0.5, 0.5)
