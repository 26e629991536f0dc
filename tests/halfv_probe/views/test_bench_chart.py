"""The bars are the medians, and can be told apart without colours."""

from itertools import pairwise

import pytest

from halfv_accel import HalfVError
from halfv_accel.bench.results import UNTOUCHED, Comparison, Flops, Reading, variant
from halfv_probe.views.bench_chart import PARTS, bench_chart, draw_bench, parts
from halfv_probe.views.canvas import WIDE, render

TIMES = {UNTOUCHED: (10.0, 80.0, 100.0, 0.0, 5.0), "fast": (11.0, 30.0, 50.0, 4.0, 3.0)}


def comparison(rows=1, **changes):
    """Six rounds that differ by 0 to 5 per mille."""
    flops = {name: Flops(10, 10, 0) for name in TIMES}
    readings = {name: [reading(name, 1 + turn / 1000, **changes) for turn in range(6)] for name in TIMES}
    found = [variant(name, None, flops, readings) for name in TIMES]
    return Comparison([64] * rows, [9] * rows, 4, 6, found)


def reading(name, factor, **changes):
    vision, prefill, ttft, selection, decode = (time * factor for time in TIMES[name])
    times = dict(vision_ms=vision, prefill_ms=prefill, ttft_ms=ttft, decode_ms=decode, selection_ms=selection)
    return Reading(**{**times, "tokens_per_s": 1.0, "peak_mib": None, "cache_bytes": 1, **changes})


def drawn(*comparisons):
    figure = []
    render(lambda new: (figure.append(new), draw_bench(new, comparisons, "mid, ivr:2:0.5")), (WIDE, 4.0), "png")
    return figure[0]


def test_parts_add_up_to_the_time_to_the_first_token():
    for one in comparison().variants:
        found = parts(one)
        assert list(found) == list(PARTS)
        assert sum(found.values()) == pytest.approx(one.quantities["ttft_ms"].median)
        assert found["vision encoder"] == one.quantities["vision_ms"].median
        assert found["LLM prefill"] + found["selection"] == pytest.approx(one.quantities["prefill_ms"].median)


def test_bars_are_as_long_as_the_medians():
    one, other = comparison(), comparison(8)
    figure = drawn(one, other)
    for (left, right), shown in zip((figure.axes[:2], figure.axes[2:]), (one, other), strict=True):
        stacked = [[bar.get_width() for bar in group] for group in left.containers if getattr(group, "patches", None)]
        assert [list(column) for column in zip(*stacked, strict=True)] == [
            pytest.approx(list(parts(variant).values())) for variant in shown.variants
        ]
        for bars in zip(*(group.patches for group in left.containers if getattr(group, "patches", None)), strict=True):
            assert bars[0].get_x() == 0
            for bar, following in pairwise(bars):  # each begins where the one before ends
                assert following.get_x() == pytest.approx(bar.get_x() + bar.get_width())
        decode = [bar.get_width() for bar in right.patches]
        assert decode == [variant.quantities["decode_ms"].median for variant in shown.variants]
        assert [label.get_text() for label in left.get_yticklabels()] == list(TIMES)
        assert left.get_title(loc="left") == shown.headline


def test_the_legend_stands_below_and_covers_no_bar():
    figure = drawn(comparison())
    legend = figure.legends[0].get_window_extent()
    assert not any(legend.overlaps(axes.get_window_extent()) for axes in figure.axes)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == list(PARTS)


def test_parts_differ_without_colours():
    def grey(style):
        from matplotlib.colors import to_rgb

        return round(sum(w * part for w, part in zip((0.3, 0.59, 0.11), to_rgb(style["facecolor"]), strict=True)), 1)

    assert len({(style.get("hatch"), grey(style)) for style in PARTS.values()}) == len(PARTS)
    assert len({style.get("hatch") or grey(style) for style in PARTS.values()}) == len(PARTS)


@pytest.mark.parametrize(("kind", "start"), [("png", b"\x89PNG"), ("svg", b"<?xml"), ("pdf", b"%PDF")])
def test_the_ending_decides_and_equal_figures_give_equal_files(tmp_path, kind, start):
    files = [tmp_path / f"{name}.{kind}" for name in "ab"]
    for file in files:
        bench_chart([comparison()], "$x_{", file)
    assert files[0].read_bytes().startswith(start)
    assert files[0].read_bytes() == files[1].read_bytes()


def test_a_run_without_decoding_is_drawn(tmp_path):
    bench_chart([comparison(decode_ms=None)], "one token", tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 5_000


@pytest.mark.parametrize("name", ["bench.docx", "bench", "no/such/folder.png"])
def test_what_cannot_be_drawn_is_refused(tmp_path, name):
    with pytest.raises(HalfVError):
        bench_chart([comparison()], "mid", tmp_path / name)
    assert not list(tmp_path.iterdir())
