"""The table of targets says what the reports hold, and no more."""

import json

import pytest

from halfv_accel.bench.targets import TARGETS, table


def report(folder, name, **changes):
    """A report of `halfv bench` in which everything goes four times as fast, but for `changes`."""
    ratios = ("efficiency", "prefill_speedup", "ttft_speedup", "decode_speedup")
    found = {key: dict(median=4.0, low=3.0, high=5.0, conclusive=True) for key in ratios}
    found |= {"name": "accelerated", "quantities": {"selection_share": dict(median=0.005, iqr=0.002)}}
    variants = [found | changes]
    (folder / f"{name}.json").write_text(json.dumps({"comparisons": [{"variants": variants}]}))


def test_without_reports_every_target_is_open(tmp_path):
    lines = table(tmp_path).splitlines()
    assert len(lines) == 2 + len(TARGETS)
    assert all("not yet measured" in line for line in lines[2:])


def test_every_target_reads_its_own_report(tmp_path):
    for name in {target.report for target in TARGETS}:
        report(tmp_path, name)
    lines = table(tmp_path).splitlines()[2:]
    assert not [line for line in lines if "not yet" in line or "missed" in line]
    assert "| 4.00 [3.00, 5.00] |" in lines[0]
    assert "| 0.25 [0.20, 0.33] |" in lines[2]  # four times as fast is a quarter of the time
    assert "| -75.0 % [-80.0 %, -66.7 %] |" in lines[4]
    assert "| 0.5 % [0.4 %, 0.6 %] |" in lines[7]


@pytest.mark.parametrize(
    ("changes", "number", "shown"),
    [
        ({"efficiency": dict(median=0.87, low=0.8, high=0.9)}, 0, "0.87 [0.80, 0.90] (not decided)"),
        ({"efficiency": dict(median=0.8, low=0.7, high=0.87)}, 0, "0.80 [0.70, 0.87] (missed)"),
        ({"decode_speedup": dict(median=0.5, low=0.4, high=1.0)}, 2, "2.00 [1.00, 2.50] (not decided)"),
        ({"prefill_speedup": dict(median=0.8, low=0.8, high=1.0)}, 4, "25.0 % [0.0 %, 25.0 %] (not decided)"),
    ],
)
def test_a_missed_target_says_so(tmp_path, changes, number, shown):
    for name in ("cpu-sparse", "cpu-keep-all"):
        report(tmp_path, name, **changes)
    assert f"| {shown} |" in table(tmp_path).splitlines()[2 + number]
