"""The cost program measures what it says, on a model small enough to be quick. No time is judged."""

import json
import time

import numpy as np
import pytest
import torch

from halfv_probe.benchmark import (
    build_inputs,
    build_model,
    main,
    redundancy_cost,
    spectra_cost,
    take_turns,
    whole_spectra,
)
from halfv_probe.measures.lifecycle import GROUPS, boundary_spectra


@pytest.fixture(scope="module")
def case():
    model = build_model(width=64, layers=2, side=4)
    return model, build_inputs(model, pictures=2, text=9)


def test_prompts_hold_as_many_tokens_as_asked_for(case):
    model, inputs = case
    assert int((inputs["input_ids"] == model.config.image_token_id).sum()) == 32
    assert inputs["input_ids"].shape == (1, 41)


def test_runs_take_turns_after_a_warm_up():
    calls = []
    found = take_turns({"a": lambda: calls.append("a"), "b": lambda: calls.append("b") or time.sleep(0.002)}, 3)
    assert [sorted(calls[start : start + 2]) for start in range(0, 8, 2)] == [["a", "b"]] * 4
    assert {name: len(times) for name, times in found["seconds"].items()} == {"a": 3, "b": 3}
    assert min(found["seconds"]["b"]) >= 0.002
    for name, times in found["seconds"].items():
        assert (found["median"][name], found["spread"][name]) == (np.median(times), max(times) - min(times))


def test_the_straightforward_way_finds_the_same_eigenvalues(case):
    (sample,) = boundary_spectra(*case)
    whole = whole_spectra(*case)
    assert len(whole) == 3
    for boundary, found in enumerate(whole):
        for group in GROUPS:
            values = found[group][:64].numpy()
            np.testing.assert_allclose(sample.values[group][boundary, : len(values)], values, atol=1e-10 * values[0])


def test_cost_reports_medians_shares_and_the_error(case):
    cost = spectra_cost(*case, repeats=3)
    for kind in ("plain", "spectra", "eigvalsh"):
        assert len(cost["seconds"][kind]) == 3
        assert cost["median"][kind] == np.median(cost["seconds"][kind])
    for kind, extra in cost["extra"].items():
        assert extra == pytest.approx(cost["median"][kind] / cost["median"]["plain"] - 1)
    assert cost["error"] < 1e-6


def test_redundancy_is_counted_in_plain_forwards_a_layer(case):
    cost = redundancy_cost(*case, repeats=2)
    for kind, forwards in cost["forwards"].items():
        assert forwards == pytest.approx(np.median(cost["seconds"][kind]) / np.median(cost["seconds"]["plain"]) / 2)


def test_program_writes_figures_with_their_provenance(tmp_path, capsys):
    out = tmp_path / "new" / "cost.json"
    threads = torch.get_num_threads()
    options = "--repeats 1 --threads 1 --width 64 --layers 2 --side 3 --seed 5".split()
    try:
        main(["--out", str(out), *options])
    finally:
        torch.set_num_threads(threads)
    document = json.loads(out.read_text())
    origin = document["provenance"]
    assert (origin["repeats"], origin["seed"], origin["threads"], origin["dtype"]) == (1, 5, 1, "float32")
    assert (origin["visual_tokens"], origin["text_tokens"], origin["device"]) == (27, 50, "cpu")
    assert {"torch", "transformers"} <= set(origin["versions"])
    assert f"{document['spectra']['extra']['spectra']:.2f}x" in capsys.readouterr().out
