"""The committed sheet of kept tokens is of the methods and plans that there are."""

from pathlib import Path

import pandas as pd
import pytest
from transformers import AutoConfig

from halfv_accel.methods import Facts
from halfv_accel.plan_text import describe_plan
from tiny_vlm import NAMES, checkpoint
from tiny_vlm.methods_sheet import plans

REPORT = Path(__file__).parents[2] / "reports" / "methods"


@pytest.mark.parametrize("name", NAMES)
def test_the_sheet_shows_every_method(name):
    rows = pd.read_csv(REPORT / "kept.csv").query("model == @name")
    wanted = [
        (title, describe_plan(plan)) for title, plan in plans(Facts.of(AutoConfig.from_pretrained(checkpoint(name))))
    ]
    assert list(zip(rows.method, rows.plan, strict=True)) == wanted
    assert (rows.kept <= rows.visual / 2).all() and (rows.kept > 0).all()
