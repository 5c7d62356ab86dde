"""Accuracy with images of many shapes that are stretched, cropped or padded to one size.

    python -m benchmarks.plain_folders ../shared/data FOLDER
    python -m benchmarks.fits FOLDER/pets --output results/fits.json

A head is fitted to the features of the pretrained network that `image_folder` chooses; a quarter of
the images is the test split. About two minutes per run on two idle cores.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.own_images import accuracy, trained
from benchmarks.results import flag, measurement, row

FITS = ("stretch", "crop", "pad")
DEFAULT = "crop"
WITHIN = 0.005
"""Maximum difference in accuracy between the best and the default."""


@measurement(
    flag("folder", type=Path, help="images of many shapes, <class>/*"),
    flag("--splits", type=int, default=3, help="splits of the images"),
    what="a head on pretrained features, of images that are stretched, cropped or padded",
    target=f"the default, {DEFAULT}, is the best or at most {WITHIN} below",
    seeds=[0],
)
def main(options):
    folder = options.folder.absolute()
    runs: dict[str, list[dict[str, Any]]] = {fit: [] for fit in FITS}
    for seed in range(options.splits):
        for fit, found in runs.items():
            words = ("--data.test=0.25", f"--data.split-seed={seed}", f"--data.fit={fit}")
            with tempfile.TemporaryDirectory() as scratch:
                found.append(trained(folder, Path(scratch), *words, "--epochs=0"))
            print(f"{fit}, split {seed}: {found[-1]['test']['accuracy']:.4f}", flush=True)
    means = {fit: accuracy(found) for fit, found in runs.items()}
    best = max(means.values())
    rows = [
        row(
            f"{folder.name}, --data.fit={fit}: test accuracy, mean of {options.splits} splits",
            f"at most {WITHIN} below the best" if fit == DEFAULT else "-",
            f"{mean:.4f}",
            fit != DEFAULT or mean >= best - WITHIN,
        )
        for fit, mean in means.items()
    ]
    return rows, {"folder": folder.name, "runs": runs}


if __name__ == "__main__":
    sys.exit(main())
