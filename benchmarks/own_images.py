"""Trains on folders of images by the one command of the documentation, and takes the time.

    python -m benchmarks.own_images --cifar10=../data/cifar10 ../data/artworks \\
        --output results/own_images.json

The folders are as they come out of their archives: a folder for each class. Half an hour on two
free cores.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.results import flag, measurement, python, row
from cnn_research.core import run_folder as folders

ACCURACY, MINUTES = 0.75, 15
"""What CIFAR-10 must come to, and how soon."""


def trained(folder: Path, workdir: Path) -> dict[str, Any]:
    """From a folder to an evaluated model: its minutes, figures and what was chosen for it."""
    words = ["--experiment=image_folder", f"--data.path={folder}", f"--workdir={workdir}"]
    seconds, said = python("launch.py", *words)
    return {
        "minutes": seconds / 60,
        "chosen": [line.split()[0] for line in said.splitlines() if line.startswith("  --")],
        "test": folders.read_json(workdir / folders.EVALUATION)["test"],
    }


@measurement(
    flag("folders", nargs="*", type=Path, help="other folders"),
    flag("--cifar10", type=Path, required=True, help="CIFAR-10's folder"),
    what="a folder of images to an evaluated model, by image_folder as it is",
    target=f"CIFAR-10: test accuracy {ACCURACY} within {MINUTES} minutes; no edit, no question",
    seeds=[0],
)
def main(options):
    rows, figures = [], {}
    with tempfile.TemporaryDirectory() as scratch:
        for folder in (options.cifar10, *options.folders):
            found = figures[folder.name] = trained(folder.absolute(), Path(scratch, folder.name))
            accuracy, minutes = found["test"]["accuracy"], found["minutes"]
            asked = folder == options.cifar10
            rows.append(
                row(
                    f"images of {folder.name}, one command: test accuracy and minutes",
                    f"{ACCURACY} within {MINUTES} minutes" if asked else "-",
                    f"{accuracy:.4f} after {minutes:.1f} minutes",
                    not asked or (accuracy >= ACCURACY and minutes <= MINUTES),
                )
            )
    return rows, figures


if __name__ == "__main__":
    sys.exit(main())
