"""Calibration of runs: expected calibration error before and after, and reliability curves.

    python -m benchmarks.calibration --runs runs/cifar10_best runs/artworks_best \\
        --pictures docs/pictures --output results/calibration.json

Each run is evaluated again, which fits the temperature to its validation split; the metrics are
those of the test split. Curves are written to the pictures' folder as `reliability_RUN.png`.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

from benchmarks.results import Row, flag, measurement, row
from cnn_research.cli.run import run
from cnn_research.core import run_folder as folders
from cnn_research.core.config import from_dict


def calibrated(workdir: Path, pictures: Path) -> dict[str, Any]:
    """Evaluate a run as before; return its evaluation before and after."""
    before = folders.read_json(workdir / folders.EVALUATION)
    run(from_dict(folders.evaluated_config(workdir)), workdir, "evaluate")
    pictures.mkdir(parents=True, exist_ok=True)
    for curve in sorted((workdir / folders.REPORT_FOLDER).glob("reliability*.png")):
        name = curve.stem.removeprefix("reliability")
        shutil.copy2(curve, pictures / f"reliability_{workdir.name}{name}.png")
    return {"before": before, "after": folders.read_json(workdir / folders.EVALUATION)}


def rows_of(name: str, found: dict[str, Any]) -> list[Row]:
    """Make one row per head of a run."""
    rows, after = [], found["after"]
    if not after["calibration"]:
        raise RuntimeError(f"{name}: no temperature was fitted, as there are no validation images")
    for head, fitted in after["calibration"].items():
        figures, old = (each.get("test", {}) for each in (after, found["before"]))
        # With several heads, each has its own metrics.
        figures, old = figures.get(head, figures), old.get(head, old)
        error, plain = figures["ECE"], figures["ECE before calibration"]
        same = old.get("accuracy", figures.get("accuracy")) == figures.get("accuracy")
        rows.append(
            row(
                f"{name}, {head}: expected calibration error of the test, before and after",
                "lower after; accuracy unchanged",
                f"{plain:.4f} -> {error:.4f}, temperature {fitted['temperature']:.3f}; "
                f"accuracy {'unchanged' if same else 'CHANGED'}",
                error < plain and same,
            )
        )
    return rows


@measurement(
    flag("--runs", type=Path, nargs="+", required=True, help="folders of trainings"),
    flag("--pictures", type=Path, default=Path("runs/calibration"), help="folder of the curves"),
    what="expected calibration error (15 bins) of tests, before and after a temperature",
    target="lower after, at the same accuracy",
)
def main(options):
    found = {
        workdir.name: calibrated(workdir.absolute(), options.pictures) for workdir in options.runs
    }
    return [each for name, one in found.items() for each in rows_of(name, one)], found


if __name__ == "__main__":
    sys.exit(main())
