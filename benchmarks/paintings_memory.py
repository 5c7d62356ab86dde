"""Memory of a training on all paintings, and the time of its second start.

    python -m benchmarks.paintings_memory --output results/paintings_memory.json

A process of its own trains document 002's Red 1 on the paintings at 244x244 for an epoch, and
evaluates it several times; its largest resident memory is what the operating system reports, the
memory-mapped images included. Then a fresh process opens the same arrays. The paintings have to be
prepared.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.results import ROOT, Measurement, arguments, row

MOST_GIGABYTES = 6.0
MOST_SECONDS = 5.0
EVALUATIONS = 3
"""What each leaves behind in memory could add up."""
OPEN = """
import json, time
start = time.perf_counter()
from cnn_research.core.experiment import lookup
dataset = lookup("artworks_red1").experiment().data.load()
counts = {name: len(split) for name, split in dataset.splits.items()}
print(json.dumps({"seconds": time.perf_counter() - start, "examples": counts}))
"""


def train(steps_share: float) -> float:
    """Peak resident memory of a short training and its evaluation, in GB."""
    with tempfile.TemporaryDirectory() as folder:
        command = [
            *(sys.executable, "launch.py", "--experiment=artworks_red1"),
            *(f"--workdir={Path(folder) / 'run'}", f"--epochs={steps_share}"),
            f"--evaluate-every={steps_share / EVALUATIONS}",
        ]
        subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    # Of all children the largest: in kilobytes on Linux, in bytes on macOS.
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    return peak / (1e9 if sys.platform == "darwin" else 1e9 / 1024)


def second_start() -> dict[str, object]:
    """Seconds from importing to open arrays in a fresh process, and what they hold."""
    started = time.perf_counter()
    said = subprocess.run(
        [sys.executable, "-c", OPEN], cwd=ROOT, check=True, capture_output=True, text=True
    )
    whole = time.perf_counter() - started
    return {**json.loads(said.stdout.splitlines()[-1]), "seconds_of_the_process": whole}


def main() -> int:
    parser = arguments(__doc__)
    parser.add_argument("--epochs", type=float, default=1.0, help="how long to train")
    chosen = parser.parse_args()
    measurement = Measurement(
        "paintings_memory",
        what="peak resident memory of a training on 8,355 paintings; time to open them again",
        target=f"under {MOST_GIGABYTES:g} GB; under {MOST_SECONDS:g} s",
    )
    peak = train(chosen.epochs)
    opened = second_start()
    seconds = float(str(opened["seconds_of_the_process"]))
    rows = [
        row(
            "peak resident memory while training and evaluating artworks_red1 on 8,355 paintings",
            f"under {MOST_GIGABYTES:g} GB",
            f"{peak:.1f} GB",
            peak < MOST_GIGABYTES,
        ),
        row(
            "opening the prepared paintings again, in a fresh process, its start included",
            f"under {MOST_SECONDS:g} s",
            f"{seconds:.1f} s",
            seconds < MOST_SECONDS,
        ),
    ]
    figures = {"peak_gigabytes": peak, "second_start": opened, "cores": os.cpu_count()}
    return measurement.finish(rows, figures, chosen.output)


if __name__ == "__main__":
    sys.exit(main())
