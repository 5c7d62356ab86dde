"""Overhead of a local sweep per run, with 200 trivial runs: processes, files, the command itself.

The whole command is timed and compared with the same runs one after the other in one warm process.

python -m benchmarks.sweep_overhead --output results/sweep_overhead.json
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import statistics
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.results import flag, measurement, python, row

TARGET = 0.3
"""Seconds per run."""
EXPERIMENT = "digits_mlp"
EPOCHS, UNITS = 0.05, 8


def plain(seeds: range, folder: Path) -> list[float]:
    """Seconds of each run on its own, in this process."""
    from cnn_research.cli.run import run
    from cnn_research.core.experiment import lookup

    trivial = lookup(EXPERIMENT).experiment()
    model = trivial.model.clone(dense=(UNITS,))
    seconds = []
    for seed in seeds:
        experiment = dataclasses.replace(trivial, model=model, epochs=EPOCHS, seed=seed)
        silent = io.StringIO()
        with contextlib.redirect_stdout(silent), contextlib.redirect_stderr(silent):
            started = time.monotonic()
            run(experiment, folder / str(seed))
            seconds.append(time.monotonic() - started)
    return seconds


def swept(runs: int, folder: Path) -> tuple[float, list[float]]:
    """Seconds of the command, and of each run as recorded in its folder."""
    from cnn_research.sweep import definition, states

    words = (f"--epochs={EPOCHS}", "--model.dense", UNITS, f"--seeds={runs}", "--workers=1")
    command = ("-m", "cnn_research.sweep", f"--experiment={EXPERIMENT}", f"--workdir={folder}")
    whole, _ = python(*command, *words)
    names = definition.read(folder)[1]
    return whole, [states.read(folder / definition.RUNS / name).seconds for name in names]


@measurement(
    flag("--runs", type=int, default=200),
    flag("--plain", type=int, default=40, help="runs by themselves, half of them before"),
    what="a local sweep's own cost",
    target=f"< {TARGET} s a run",
    seeds=[0],
)
def main(options):
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
            f"overhead of a local sweep for each of {options.runs} trivial runs, start included",
            f"below {TARGET} s",
            f"{overhead:.2f} s beside {mean:.2f} s of the run itself",
            overhead < TARGET,
        )
    ]
    return rows, figures


if __name__ == "__main__":
    sys.exit(main())
