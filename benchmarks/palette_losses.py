"""Losses for palettes: short trainings of the head with each of them.

    python -m benchmarks.palette_losses --run=runs/palette --output results/palette_losses.json

RUN is a complete run of `palette`. Each head is trained from scratch on its self-supervised network
and training images for a few epochs, and evaluated on its validation images by the mean CIEDE2000
difference of a pixel to the nearest colour. The trainings are in `runs/palette_losses`.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

from benchmarks.results import ROOT, flag, measurement, row
from cnn_research.cli.run import run
from cnn_research.core import run_folder as folders
from cnn_research.models.pretrained import Pretrained
from cnn_research.workflows.two_stage import FIRST, SECOND

EPOCHS = 3.0
LOSSES = {
    "pixels to the nearest colour, CIEDE2000": ("pixels", "ciede2000", "nearest"),
    "pixels to the nearest colour, CIELAB": ("pixels", "lab", "nearest"),
    "pixels to the nearest colour, OKLab": ("pixels", "oklab", "nearest"),
    "pixels to the nearest colour, RGB": ("pixels", "rgb", "nearest"),
    "k-means' palette, nearest colours, CIEDE2000": ("kmeans", "ciede2000", "nearest"),
    "k-means' palette, optimal transport, CIEDE2000": ("kmeans", "ciede2000", "transport"),
}
"""Target, difference and matching of the task."""


@measurement(
    flag("--run", type=Path, default=ROOT / "runs/palette", help="of `palette`"),
    what=f"validation CIEDE2000 of palettes after {EPOCHS:g} epochs with each loss",
    target="none: the document names no target",
    seeds=[0],
)
def main(options):
    head = dataclasses.replace(
        folders.saved_config(options.run / SECOND),
        name="",
        epochs=EPOCHS,
        pretrained=Pretrained(str(options.run / FIRST), fresh=("head",)),
    )
    figures = {}
    for name, (target, difference, matching) in LOSSES.items():
        task = dataclasses.replace(
            head.task, target=target, difference=difference, matching=matching
        )
        workdir = ROOT / "runs" / "palette_losses" / f"{target}-{difference}-{matching}"
        result = run(dataclasses.replace(head, task=task), workdir)
        figures[name] = result.metrics["validation"]["loss"]
    rows = [
        row(f"palettes trained on {name}: validation CIEDE2000", "-", f"{found:.3f}", True)
        for name, found in figures.items()
    ]
    return rows, figures


if __name__ == "__main__":
    sys.exit(main())
