"""Held-out scenes as a folder that every command takes: ``python -m tiny_vlm.heldout --out runs/heldout``.

They are of the split that neither training nor calibration draws from.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from halfv_data import scenes
from halfv_data.export import export


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tiny_vlm.heldout", description=__doc__.split(":", 1)[0])
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True, help="folder; what is there is replaced")
    options = parser.parse_args(arguments)
    shutil.rmtree(options.out, ignore_errors=True)
    print(f"wrote {export(list(scenes(options.samples, options.seed, 'heldout')), options.out)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
