"""Run the studies of the lectures' claims, and record their results.

    python -m benchmarks.studies pooling_types translation

Runs are in `runs/NAME`; finished trainings are not run again. Other options override fields of all
named studies.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from benchmarks.results import ROOT, began, launch
from cnn_research.core import run_folder as folders


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("studies", nargs="+", help="names of registered studies")
    options, overrides = parser.parse_known_args()
    for name in options.studies:
        what = f"{name}: test accuracy of each kind of pooling, per seed and shift in pixels"
        surroundings = {"what": what} | began(main)
        launch(name, Path("runs") / name, *overrides)
        found = json.loads((ROOT / "runs" / name / "results.json").read_text())
        file = ROOT / "results" / f"{name}.json"
        folders.write_json(file, surroundings | {"figures": {"study": found}, "rows": []})
    return 0


if __name__ == "__main__":
    sys.exit(main())
