"""Memory of a training on all paintings, and the time of its second start.

    python -m benchmarks.paintings_memory --output results/paintings_memory.json

A separate process trains the painters paper's Red 1 on the paintings at 244x244 for one epoch and
evaluates it several times; its peak resident memory is that reported by the operating system,
including memory-mapped images. Then a new process opens the same arrays. The paintings must be
prepared.
"""

from __future__ import annotations

import os
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.results import flag, in_process, launch, measurement, row

MOST_GIGABYTES = 6.0
MOST_SECONDS = 5.0
EVALUATIONS = 3
"""Several, as each might leave memory behind."""


def opened() -> dict[str, int]:
    """The images of each split."""
    from cnn_research.core.experiment import lookup

    dataset = lookup("artworks_red1").experiment().data.load()
    return {name: len(split) for name, split in dataset.splits.items()}


@measurement(
    flag("--epochs", type=float, default=1.0, help="how long to train"),
    what="peak resident memory of a training on 8,355 paintings; time to open them again",
    target=f"under {MOST_GIGABYTES:g} GB; under {MOST_SECONDS:g} s",
)
def main(options):
    epochs = options.epochs
    with tempfile.TemporaryDirectory() as folder:
        words = (f"--epochs={epochs}", f"--eval-every-epochs={epochs / EVALUATIONS}")
        launch("artworks_red1", Path(folder, "run"), *words)
    # Of all children the largest: in kilobytes on Linux, in bytes on macOS.
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    peak /= 1e9 if sys.platform == "darwin" else 1e9 / 1024
    started = time.perf_counter()
    examples = in_process(opened)
    seconds = time.perf_counter() - started
    rows = [
        row(
            "peak resident memory while training and evaluating artworks_red1 on 8,355 paintings",
            f"under {MOST_GIGABYTES:g} GB",
            f"{peak:.1f} GB",
            peak < MOST_GIGABYTES,
        ),
        row(
            "opening the prepared paintings in a new process, including its start",
            f"under {MOST_SECONDS:g} s",
            f"{seconds:.1f} s",
            seconds < MOST_SECONDS,
        ),
    ]
    figures: dict[str, Any] = {"peak_gigabytes": peak, "cores": os.cpu_count()}
    return rows, figures | {"second_start": {"examples": examples, "seconds": seconds}}


if __name__ == "__main__":
    sys.exit(main())
