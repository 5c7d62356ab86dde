"""Trains on folders of images by the one command of the documentation, and takes the time.

    python -m benchmarks.own_images --cifar10=data/cifar10 data/artworks \\
        --output results/own_images.json

The folders are as they come out of their archives: a folder for each class. Half an hour on two
free cores.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.results import ROOT, Measurement, arguments, row

ACCURACY, MINUTES = 0.75, 15
"""What CIFAR-10 must come to, and how soon."""


def trained(folder: Path, workdir: Path) -> dict[str, Any]:
    """From a folder to an evaluated model: its minutes, figures and what was chosen for it.

    Raises:
        RuntimeError: the command fails.
    """
    words = ["--experiment=image_folder", f"--data.path={folder}", f"--workdir={workdir}"]
    began = time.monotonic()
    ended = subprocess.run(
        [sys.executable, "launch.py", *words],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,  # so that a question would fail
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    minutes = (time.monotonic() - began) / 60
    if ended.returncode:
        raise RuntimeError(f"{folder}: exit code {ended.returncode}: {ended.stdout[-2000:]}")
    chosen = [line.split()[0] for line in ended.stdout.splitlines() if line.startswith("  --")]
    return {
        "minutes": minutes,
        "chosen": chosen,
        "test": json.loads((workdir / "evaluation.json").read_text())["test"],
    }


def main() -> int:
    parser = arguments(__doc__)
    parser.add_argument("folders", nargs="*", type=Path, help="other folders")
    parser.add_argument("--cifar10", type=Path, required=True, help="CIFAR-10's folder")
    options = parser.parse_args()
    measurement = Measurement(
        "own_images",
        what="a folder of images to an evaluated model, by image_folder as it is",
        target=f"CIFAR-10: test accuracy {ACCURACY} within {MINUTES} minutes; no edit, no question",
        seeds=[0],
    )
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
    return measurement.finish(rows, figures, options.output)


if __name__ == "__main__":
    sys.exit(main())
