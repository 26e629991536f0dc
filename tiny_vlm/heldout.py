"""Held-out scenes as a folder that every command takes: ``python -m tiny_vlm.heldout --out runs/heldout``.

They are of the split that neither training nor calibration draws from.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from halfv_data import DataError, scenes
from halfv_data.export import check_empty, export


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tiny_vlm.heldout", description=__doc__.split(":", 1)[0])
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True, help="folder; it must be new or empty")
    options = parser.parse_args(arguments)
    try:
        check_empty(options.out)
    except DataError as error:
        print(f"heldout: {error}", file=sys.stderr)
        return 1
    print(f"wrote {export(list(scenes(options.samples, options.seed, 'heldout')), options.out)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
