"""docs/compare.md is a test: its commands run."""

import pytest

from halfv_data import scenes
from tests.pages import ROOT, blocks, run_block

BLOCKS = blocks((ROOT / "docs" / "compare.md").read_text())


@pytest.mark.parametrize("index", range(len(BLOCKS)))
def test_block(index, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pictures").mkdir()
    (sample,) = scenes(1, seed=1)
    sample.image.save(tmp_path / "pictures" / "0.png")
    (tmp_path / "pictures" / "0.txt").write_text(f"{sample.question}\n{sample.answer}\n")
    run_block(*BLOCKS[index], capsys)
