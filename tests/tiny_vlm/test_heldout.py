"""Held-out scenes are written into a new folder only, and are none that calibration draws."""

from halfv_data import load_samples, scenes
from tiny_vlm import heldout


def test_they_are_held_out_and_read_back(tmp_path, capsys):
    assert heldout.main(["--samples", "5", "--out", str(tmp_path / "new")]) == 0
    found = [(each.question, each.answer) for each in load_samples(tmp_path / "new", 5)]
    wanted = [(each.question, each.answer) for each in scenes(5, 0, "heldout")]
    assert sorted(found) == sorted(wanted)
    assert wanted != [(each.question, each.answer) for each in scenes(5, 0)]
    assert "wrote" in capsys.readouterr().out


def test_what_is_there_stays(tmp_path, capsys):
    (tmp_path / "mine.txt").write_text("mine")
    assert heldout.main(["--samples", "5", "--out", str(tmp_path)]) == 1
    assert "not empty" in capsys.readouterr().err and (tmp_path / "mine.txt").exists()
