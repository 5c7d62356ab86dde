"""The runner's images per second against a bare loop over its own jitted step, interleaved.

python -m benchmarks.runner_overhead --output results/runner_overhead.json
"""

from __future__ import annotations

import dataclasses
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.results import Measurement, arguments, row

TARGET = 0.95


def main() -> int:
    parser = arguments(__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=500)
    options = parser.parse_args()
    measurement = Measurement("runner_overhead", what="the runner's own cost", target="<= 5 %")

    import jax
    import jax.numpy as jnp

    from cnn_research.cli.run import run
    from cnn_research.core.distributed import data_mesh, replicated
    from cnn_research.core.experiment import lookup
    from cnn_research.data.sources import Synthetic
    from cnn_research.train.loop import Arrays, initial_state, make_steps

    experiment = lookup("fashion_mnist_cnn").experiment()
    experiment = dataclasses.replace(
        experiment,
        data=Synthetic(
            train=experiment.batch_size * options.steps,
            validation=100,
            test=100,
            image_shape=(28, 28, 1),
        ),
        epochs=1,
    )
    dataset = experiment.data.load()
    train = dataset.splits["train"]
    mesh = data_mesh()

    def bare() -> float:
        """Images per second of a loop that does nothing but take steps."""
        model = experiment.task.bind(experiment.model, dataset)
        optimizer = experiment.optimizer.build(options.steps)
        with jax.set_mesh(mesh):
            states = (initial_state(experiment, model, optimizer, dataset, mesh),)
            arrays = Arrays(train.images, dict(train.labels))
            arrays = jax.device_put(arrays, replicated(mesh))
            seeds = jax.device_put((jnp.uint32(experiment.seed),), replicated(mesh))
            step = make_steps(experiment, model, optimizer, len(train), mesh)
            states, _ = step(states, arrays, seeds, 1)
            jax.block_until_ready(states)
            started = time.perf_counter()
            for _ in range(options.steps - 1):
                states, _ = step(states, arrays, seeds, 1)
            jax.block_until_ready(states)
            seconds = time.perf_counter() - started
        return experiment.batch_size * (options.steps - 1) / seconds

    def whole() -> float:
        """Images per second of the runner: metrics fetched, checked, logged and shown."""
        with tempfile.TemporaryDirectory() as folder:
            run(experiment, folder)
            rows = (Path(folder) / "metrics.jsonl").read_text().splitlines()
        training = [found for found in map(json.loads, rows) if found["split"] == "train"]
        return training[-1]["images_per_second"]

    rounds = [(whole(), bare()) for _ in range(options.rounds)]
    ratio = statistics.median(ours / loop for ours, loop in rounds)
    figures = {
        "images_per_second": {"runner": [a for a, _ in rounds], "bare loop": [b for _, b in rounds]}
    }
    rows = [
        row(
            "images per second of the whole runner, of those of a bare loop over its own jitted "
            "step (document 004's CNN)",
            "at least 95 %",
            f"{100 * ratio:.1f} %",
            ratio >= TARGET,
        )
    ]
    return measurement.finish(rows, figures, options.output)


if __name__ == "__main__":
    sys.exit(main())
