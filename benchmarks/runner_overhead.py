"""The runner's images per second against a bare loop over its own jitted step, interleaved.

python -m benchmarks.runner_overhead --output results/runner_overhead.json
"""

from __future__ import annotations

import dataclasses
import statistics
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.results import flag, measurement, row, rows_of

TARGET = 0.95


@measurement(
    flag("--rounds", type=int, default=5),
    flag("--steps", type=int, default=500),
    what="the runner's own cost",
    target="<= 5 %",
)
def main(options):
    import jax

    from benchmarks.steps import noise, steps_of
    from cnn_research.cli.run import run
    from cnn_research.core.experiment import lookup

    experiment = lookup("fashion_mnist_cnn").experiment()
    images = experiment.batch_size * options.steps
    data = noise((28, 28, 1), 10, train=images, validation=100, test=100)
    experiment = dataclasses.replace(experiment, data=data, epochs=1)

    def bare() -> float:
        """Images per second of a loop that does nothing but take steps."""
        step = steps_of(experiment)
        states, _ = step(step.states)
        jax.block_until_ready(states)
        started = time.perf_counter()
        for _ in range(options.steps - 1):
            states, _ = step(states)
        jax.block_until_ready(states)
        seconds = time.perf_counter() - started
        return experiment.batch_size * (options.steps - 1) / seconds

    def whole() -> float:
        """Images per second of the runner: metrics fetched, checked, logged and shown."""
        with tempfile.TemporaryDirectory() as folder:
            run(experiment, folder)
            return rows_of(Path(folder), "train")[-1]["images_per_second"]

    rounds = [(whole(), bare()) for _ in range(options.rounds)]
    ratio = statistics.median(ours / loop for ours, loop in rounds)
    figures = {
        "images_per_second": {"runner": [a for a, _ in rounds], "bare loop": [b for _, b in rounds]}
    }
    rows = [
        row(
            "images per second of the runner, relative to a bare loop over its jitted step "
            "(fashion_mnist_cnn)",
            "at least 95 %",
            f"{100 * ratio:.1f} %",
            ratio >= TARGET,
        )
    ]
    return rows, figures


if __name__ == "__main__":
    sys.exit(main())
