"""Train eight seeds of fashion_mnist_mlp in one program, and one after the other.

    python -m benchmarks.replicas --output results/replicas.json

First the parameters after 20 steps of SGD are compared; then mean accuracies and times of whole
runs, started as from a terminal. The data must be prepared
(`python -m cnn_research.data prepare fashion_mnist`). About twelve minutes on two idle cores.
"""

from __future__ import annotations

import math
import statistics
import sys
import tempfile
from pathlib import Path

from benchmarks.results import apart, last_checkpoint, launch, measurement, row
from cnn_research.core import run_folder as folders

SEEDS = range(8)
NAME, BATCH, EXAMPLES = "fashion_mnist_mlp", 100, 50_000
SHORT = (
    f"--epochs={20 * BATCH / EXAMPLES}",
    "--optimizer.name=sgd",
    "--optimizer.learning-rate=0.05",
)
WAYS = "at once", "one by one"


def both_ways(folder: Path, *words: str) -> tuple[float, float]:
    """Train at once in `folder/at once`, and one by one beside it; return the seconds of each."""
    together, alone = (folder / way for way in WAYS)
    return launch(NAME, together, f"--replicas={len(SEEDS)}", *words), sum(
        launch(NAME, alone / f"seed-{seed}", f"--seed={seed}", *words) for seed in SEEDS
    )


def parameters(workdir: Path):
    """Final parameters of a run."""
    return last_checkpoint(workdir)[1].params


def accuracies(folder: Path) -> list[float]:
    """Test accuracy of each seed."""
    files = [folder / f"seed-{seed}" / folders.EVALUATION for seed in SEEDS]
    return [folders.read_json(file)["test"]["accuracy"] for file in files]


@measurement(
    what=f"{len(SEEDS)} seeds of {NAME}, in one program and one after the other",
    target="parameters within 1e-5 after 20 steps; accuracy within 2 standard errors; faster",
    seeds=list(SEEDS),
)
def main(options):
    with tempfile.TemporaryDirectory() as scratch:
        short, whole = Path(scratch, "short"), Path(scratch, "whole")
        both_ways(short, *SHORT)
        furthest = max(
            apart(*(parameters(short / way / f"seed-{seed}") for way in WAYS)) for seed in SEEDS
        )
        seconds = both_ways(whole)
        ours, theirs = (accuracies(whole / way) for way in WAYS)
    error = math.hypot(*(statistics.stdev(each) / math.sqrt(len(each)) for each in (ours, theirs)))
    difference = abs(statistics.fmean(ours) - statistics.fmean(theirs))
    at_once, one_by_one = seconds
    rows = [
        row(
            "parameters of 8 replicas after 20 steps of SGD, against 8 runs",
            "within 1e-5",
            f"{furthest:.1e}",
            furthest <= 1e-5,
        ),
        row(
            "mean test accuracy of 8 replicas, against 8 runs",
            "within 2 standard errors",
            f"{difference:.4f}, {difference / error if error else 0:.1f} standard errors",
            difference <= 2 * error or difference == 0,
        ),
        row(
            "time of 8 replicas in one program, relative to 8 runs",
            "below 1",
            f"{at_once / one_by_one:.2f} ({at_once:.0f} s and {one_by_one:.0f} s)",
            at_once < one_by_one,
        ),
    ]
    figures = {
        "parameters_apart": furthest,
        "accuracy": dict(zip(WAYS, (ours, theirs))),
        "seconds": dict(zip(WAYS, seconds)),
    }
    return rows, figures


if __name__ == "__main__":
    sys.exit(main())
