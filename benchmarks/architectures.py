"""One training step of every full-size architecture: compilation, steps a second, peak memory.

python -m benchmarks.architectures --output results/architectures.json

The runner's own step on a batch of 8 images of the published size, with SGD and momentum, in
float32. Each architecture is a process of its own, whose peak memory is that of the whole program,
compilation included. Worth something on an idle machine only; takes a quarter of an hour on two
cores.
"""

from __future__ import annotations

import json
import math
import resource
import statistics
import subprocess
import sys
import time
from typing import Any

from benchmarks.results import ROOT, Measurement, arguments, row

BATCH = 8
STEPS = 3
FULL_SIZE = 224
MOST_BYTES = 12e9


def main() -> int:
    from cnn_research.models.registry import architectures

    parser = arguments(__doc__)
    parser.add_argument("--only", nargs="*", help="architectures; all full-size ones by default")
    parser.add_argument("--one", help="measure this one in this process, and print its figures")
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measured(options.one)))
        return 0
    measurement = Measurement(
        "architectures",
        what=f"one training step of every architecture at its published size, batch {BATCH}",
        target="runs in under 12 GB",
    )
    names = options.only or [
        name for name, found in architectures().items() if found.image_shape[0] >= FULL_SIZE
    ]
    figures = {}
    for name in names:
        print(f"{name} ...", flush=True)
        figures[name] = found = in_a_process(name)
        print(
            found.get("failed")
            or f"  {found['steps_per_second']:.3g} steps/s, {found['peak_bytes'] / 1e9:.1f} GB, "
            f"compiled in {found['compile_seconds']:.0f} s",
            flush=True,
        )
    failed = [name for name, found in figures.items() if "failed" in found]
    peaks = {name: found["peak_bytes"] for name, found in figures.items() if name not in failed}
    largest = max(peaks, key=peaks.__getitem__, default="")
    said = f"{peaks[largest] / 1e9:.1f} GB at most ({largest})" if largest else "none ran"
    rows = [
        row(
            f"a training step of each of {len(names)} architectures at its published size, batch "
            f"{BATCH}: peak memory",
            "< 12 GB",
            said + (f"; {', '.join(failed)} failed" if failed else ""),
            not failed and max(peaks.values()) < MOST_BYTES,
        )
    ]
    return measurement.finish(rows, figures, options.output)


def in_a_process(name: str) -> dict[str, Any]:
    """What `measured` returns, or why it did not, from a process that does nothing else."""
    command = [sys.executable, "-m", "benchmarks.architectures", "--one", name]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if ended.returncode:
        last = (ended.stderr.strip().splitlines() or ["no message"])[-1]
        return {"failed": f"ended with code {ended.returncode}: {last}"}
    return json.loads(ended.stdout.splitlines()[-1])


def measured(name: str) -> dict[str, Any]:
    """Trains a registered architecture for a few steps on noise."""
    import jax
    import jax.numpy as jnp

    from cnn_research import ops
    from cnn_research.core.distributed import data_mesh, replicated
    from cnn_research.data.sources import Synthetic
    from cnn_research.models.registry import architectures
    from cnn_research.train.config import Training
    from cnn_research.train.loop import Arrays, initial_state, make_steps
    from cnn_research.train.optimizers import Optimizer

    found = architectures()[name]
    experiment = Training(
        name=name,
        data=Synthetic(
            train=BATCH,
            validation=0,
            test=0,
            image_shape=found.image_shape,
            classes=(found.model.num_classes,),
        ),
        model=found.model,
        optimizer=Optimizer(name="sgd", momentum=0.9, learning_rate=1e-3),
        batch_size=BATCH,
        keep_memory=True,
    )
    ops.keep_freed_memory()  # as `keep_memory` does in the runner
    dataset, mesh = experiment.data.load(), data_mesh()
    train = dataset.splits["train"]
    optimizer = experiment.optimizer.build(STEPS)
    arrays = Arrays(train.images, dict(train.labels))
    arrays, seeds = jax.device_put((arrays, (jnp.uint32(0),)), replicated(mesh))
    with jax.set_mesh(mesh):
        states = (initial_state(experiment, found.model, optimizer, dataset, mesh),)
        parameters = sum(leaf.size for leaf in jax.tree.leaves(states[0].params))
        steps = make_steps(experiment, found.model, optimizer, len(train), mesh)
        started = time.perf_counter()
        step = steps.lower(states, arrays, seeds, 1).compile()
        compile_seconds = time.perf_counter() - started
        states, _ = jax.block_until_ready(step(states, arrays, seeds))
        seconds, losses = [], []
        for _ in range(STEPS):
            started = time.perf_counter()
            states, metrics = jax.block_until_ready(step(states, arrays, seeds))
            seconds.append(time.perf_counter() - started)
            losses.append(float(metrics["loss"][0, 0, 0] / metrics["loss"][0, 0, 1]))
    if not all(map(math.isfinite, losses)):
        raise RuntimeError(f"{name} lost its way: losses {losses}")
    return {
        "image_shape": list(found.image_shape),
        "parameters": parameters,
        "compile_seconds": compile_seconds,
        "step_seconds": seconds,
        "steps_per_second": 1 / statistics.median(seconds),
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "losses": losses,
    }


if __name__ == "__main__":
    sys.exit(main())
