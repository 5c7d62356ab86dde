"""What a local sweep adds to each of 200 trivial runs: processes, files, the command itself.

The whole command is timed, from its start to its end, and compared with the same runs by
`cli.run.run` in one warm process.

python -m benchmarks.sweep_overhead --output results/sweep_overhead.json
"""

from __future__ import annotations

import contextlib
import io
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.results import ROOT, Measurement, arguments, row

TARGET = 0.3
"""Seconds a run."""
EXPERIMENT = "digits_mlp"
WORDS = ("--epochs=0.05", "--model.dense", "8")


def plain(seeds: range, folder: Path) -> list[float]:
    """Seconds of each run by itself, in this process."""
    from cnn_research.cli.fields import overridden
    from cnn_research.cli.run import run
    from cnn_research.core.experiment import lookup

    seconds = []
    for seed in seeds:
        words = [*WORDS, f"--seed={seed}"]
        experiment = overridden(lookup(EXPERIMENT).experiment(), words)
        with (
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            started = time.monotonic()
            run(experiment, folder / str(seed))
            seconds.append(time.monotonic() - started)
    return seconds


def swept(runs: int, folder: Path) -> tuple[float, list[float]]:
    """Seconds of the command, and of each of its runs as their folders have it."""
    from cnn_research.sweep import definition, states

    command = [
        *(sys.executable, "-m", "cnn_research.sweep", f"--experiment={EXPERIMENT}", *WORDS),
        *(f"--seeds={runs}", f"--workdir={folder}", "--workers=1"),
    ]
    started = time.monotonic()
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    whole = time.monotonic() - started
    names = definition.read(folder)[1]
    return whole, [states.read(folder / definition.RUNS / name).seconds for name in names]


def main() -> int:
    parser = arguments(__doc__)
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument(
        "--plain", type=int, default=40, help="runs by themselves, half of them before"
    )
    options = parser.parse_args()
    measurement = Measurement(
        "sweep_overhead", what="a local sweep's own cost", target=f"< {TARGET} s a run", seeds=[0]
    )
    half = options.plain // 2
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        plain(range(1), folder / "warm")
        alone = plain(range(half), folder / "before")
        whole, each = swept(options.runs, folder / "sweep")
        alone += plain(range(half), folder / "after")
    mean = statistics.fmean(alone)
    overhead = whole / options.runs - mean
    figures = {
        "runs": options.runs,
        "sweep_seconds": whole,
        "seconds_of_runs": each,
        "seconds_of_plain_runs": alone,
        "overhead_seconds_a_run": overhead,
        # The first run waits for imports.
        "beside_runs_seconds_a_run": (whole - sum(each)) / options.runs,
    }
    rows = [
        row(
            f"what a local sweep adds to each of {options.runs} trivial runs, its start included",
            f"below {TARGET} s",
            f"{overhead:.2f} s beside {mean:.2f} s of the run itself",
            overhead < TARGET,
        )
    ]
    return measurement.finish(rows, figures, options.output)


if __name__ == "__main__":
    sys.exit(main())
