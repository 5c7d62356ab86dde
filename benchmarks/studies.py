"""Runs the studies of the lectures' claims, and writes down what they found.

    python -m benchmarks.studies pooling_types translation

Runs stand in `runs/NAME`; a training that is finished already is not run again. Other flags
override fields of every study named.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys

from benchmarks.results import ROOT, Measurement


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("studies", nargs="+", help="names of registered studies")
    options, overrides = parser.parse_known_args()
    for name in options.studies:
        measurement = Measurement(
            "studies",
            what=f"{name}: test accuracy of each kind of pooling, per seed and shift in pixels",
            target="none: the lectures give no numbers",
        )
        command = [f"--experiment={name}", f"--workdir=runs/{name}", *overrides]
        subprocess.run([sys.executable, "launch.py", *command], cwd=ROOT, check=True)
        found = json.loads((ROOT / "runs" / name / "results.json").read_text())
        measurement.finish([], {"study": found}, ROOT / "results" / f"{name}.json")
    return 0


if __name__ == "__main__":
    sys.exit(main())
