"""Trains eight seeds of fashion_mnist_mlp in one program, and one after the other.

    python -m benchmarks.replicas --output results/replicas.json

First 20 steps of SGD, whose parameters are compared; then whole runs, in programs of their own as
from a terminal: mean accuracies and times. The data are prepared before
(`python -m cnn_research.data prepare fashion_mnist`). About twelve minutes on two free cores.
"""

from __future__ import annotations

import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.results import ROOT, Measurement, arguments, last_checkpoint, row

SEEDS = range(8)
NAME, BATCH, EXAMPLES = "fashion_mnist_mlp", 100, 50_000
SHORT = (
    f"--epochs={20 * BATCH / EXAMPLES}",
    "--optimizer.name=sgd",
    "--optimizer.learning-rate=0.05",
)


def seconds_of(workdir: Path, *words: str) -> float:
    """Runs the launcher; how long it takes."""
    command = [sys.executable, "launch.py", f"--experiment={NAME}", f"--workdir={workdir}", *words]
    began = time.monotonic()
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    return time.monotonic() - began


def both_ways(folder: Path, *words: str) -> tuple[float, float]:
    """Trains at once in `folder/at once` and one by one beside it; the seconds of each."""
    at_once = seconds_of(folder / "at once", f"--replicas={len(SEEDS)}", *words)
    one_by_one = sum(
        seconds_of(folder / "one by one" / f"seed-{seed}", f"--seed={seed}", *words)
        for seed in SEEDS
    )
    return at_once, one_by_one


def furthest(folder: Path) -> float:
    """The largest difference between parameters of the same seed."""
    import jax
    import numpy as np

    found = 0.0
    for seed in SEEDS:
        pair = [
            last_checkpoint(folder / way / f"seed-{seed}")[1].params
            for way in ("at once", "one by one")
        ]
        apart = jax.tree.map(lambda a, b: float(np.abs(np.asarray(a) - np.asarray(b)).max()), *pair)
        found = max(found, *jax.tree.leaves(apart))
    return found


def accuracies(folder: Path) -> list[float]:
    """Of each seed, on test images."""
    files = [folder / f"seed-{seed}" / "evaluation.json" for seed in SEEDS]
    return [json.loads(file.read_text())["test"]["accuracy"] for file in files]


def main() -> int:
    chosen = arguments(__doc__).parse_args()
    measurement = Measurement(
        "replicas",
        what=f"{len(SEEDS)} seeds of {NAME}, in one program and one after the other",
        target="parameters within 1e-5 after 20 steps; accuracy within 2 standard errors; faster",
        seeds=list(SEEDS),
    )
    with tempfile.TemporaryDirectory() as scratch:
        short, whole = Path(scratch, "short"), Path(scratch, "whole")
        both_ways(short, *SHORT)
        apart = furthest(short)
        at_once, one_by_one = both_ways(whole)
        ours, theirs = accuracies(whole / "at once"), accuracies(whole / "one by one")
    error = math.hypot(
        *(statistics.stdev(found) / math.sqrt(len(found)) for found in (ours, theirs))
    )
    difference = abs(statistics.fmean(ours) - statistics.fmean(theirs))
    rows = [
        row(
            "parameters of 8 replicas after 20 steps of SGD, against 8 runs",
            "within 1e-5",
            f"{apart:.1e}",
            apart <= 1e-5,
        ),
        row(
            "mean test accuracy of 8 replicas, against 8 runs",
            "within 2 standard errors",
            f"{difference:.4f}, {difference / error if error else 0:.1f} standard errors",
            difference <= 2 * error or difference == 0,
        ),
        row(
            "time of 8 replicas in one program, of that of 8 runs",
            "below 1",
            f"{at_once / one_by_one:.2f} ({at_once:.0f} s and {one_by_one:.0f} s)",
            at_once < one_by_one,
        ),
    ]
    figures = {
        "parameters_apart": apart,
        "accuracy": {"at once": ours, "one by one": theirs},
        "seconds": {"at once": at_once, "one by one": one_by_one},
    }
    return measurement.finish(rows, figures, chosen.output)


if __name__ == "__main__":
    sys.exit(main())
