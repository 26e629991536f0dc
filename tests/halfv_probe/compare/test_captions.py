"""CHAIR by hand."""

import math

import pytest

from halfv_probe.compare.captions import chair, mentions

SYNONYMS = {
    "dog": "dog",
    "dogs": "dog",
    "puppy": "dog",
    "hot dog": "hot dog",
    "cat": "cat",
    "Table": "table",
    "traffic light": "traffic light",
}


def test_by_hand():
    captions = ["A dog and another dog on a table.", "A cat, a CAT; two dogs", "Nothing at all", "A puppy"]
    objects = [["dog", "cat"], ["cat", "table"], [], ["dog", "dog"]]
    found = chair(captions, objects, SYNONYMS)
    # Mentions: dog dog TABLE | cat cat DOG | - | dog. Two of seven are hallucinated, in two of four captions.
    assert found.chair_i == pytest.approx(2 / 7)
    assert found.chair_s == pytest.approx(2 / 4)
    # Shown and named: dog of {dog, cat}, cat of {cat, table}, nothing of {}, dog of {dog}.
    assert found.recall == pytest.approx(3 / 5)
    assert found.length == pytest.approx((8 + 6 + 3 + 2) / 4)


def test_a_mention_counts_each_time_and_a_caption_once():
    found = chair(["cat cat cat dog"], [["dog"]], SYNONYMS)
    assert (found.chair_i, found.chair_s, found.recall) == (0.75, 1.0, 1.0)


def test_phrases_are_whole_words_and_the_longest_wins():
    assert mentions("A hot dog by the traffic lights", SYNONYMS) == ["hot dog"]
    assert mentions("catalogue, hotdog, dog-house, Table.", SYNONYMS) == ["dog", "table"]
    assert mentions("dog", {}) == []


def test_what_cannot_be_counted_is_no_number():
    found = chair(["well"], [[]], SYNONYMS)
    assert found.chair_s == 0 and math.isnan(found.chair_i) and math.isnan(found.recall)
    for captions, objects in (([], []), (["a"], [])):
        with pytest.raises(ValueError, match="give one to each"):
            chair(captions, objects, SYNONYMS)
