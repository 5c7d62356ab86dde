"""One train step of every full-size architecture: compilation, steps per second, peak memory.

python -m benchmarks.architectures --output results/architectures.json

The runner's own step on a batch of 8 images of the published size, with SGD and momentum, in
float32. Each architecture has its own process, whose peak memory is that of the whole program,
including compilation. Run it on an idle machine; it takes a quarter of an hour on two cores.
"""

from __future__ import annotations

import math
import resource
import statistics
import sys
import time
from typing import Any

from benchmarks.results import flag, in_process, measurement, row

BATCH = 8
STEPS = 3
FULL_SIZE = 224
MOST_BYTES = 12e9


@measurement(
    flag("--only", nargs="*", help="architectures; all full-size ones by default"),
    what=f"one training step of every architecture at its published size, batch {BATCH}",
    target="runs in under 12 GB",
)
def main(options):
    from cnn_research.models.registry import architectures

    figures = {}
    for name in options.only or [
        name for name, found in architectures().items() if found.image_shape[0] >= FULL_SIZE
    ]:
        try:
            figures[name] = found = in_process(step_of, name)
        except RuntimeError as error:
            figures[name] = found = {"failed": str(error).strip().splitlines()[-1]}
        print(name, found.get("failed") or f"{found['steps_per_second']:.3g} steps/s", flush=True)
    failed = [name for name, found in figures.items() if "failed" in found]
    peaks = {name: found["peak_bytes"] for name, found in figures.items() if name not in failed}
    largest = max(peaks, key=peaks.__getitem__, default="")
    said = f"{peaks[largest] / 1e9:.1f} GB at most ({largest})" if largest else "none ran"
    rows = [
        row(
            f"a training step of each of {len(figures)} architectures at its published size, batch "
            f"{BATCH}: peak memory",
            "< 12 GB",
            said + (f"; {', '.join(failed)} failed" if failed else ""),
            not failed and max(peaks.values()) < MOST_BYTES,
        )
    ]
    return rows, figures


def step_of(name: str) -> dict[str, Any]:
    """Train a registered architecture for a few steps on noise, keeping freed memory."""
    import jax

    from benchmarks.steps import mean_loss, noise, steps_of
    from cnn_research.core import memory
    from cnn_research.models.registry import architectures
    from cnn_research.train.config import Training
    from cnn_research.train.optimizers import Optimizer

    memory.use_one_arena()
    memory.keep_freed_memory()
    found = architectures()[name]
    experiment = Training(
        name=name,
        data=noise(found.image_shape, found.model.num_classes, train=BATCH),
        model=found.model,
        optimizer=Optimizer(name="sgd", momentum=0.9, learning_rate=1e-3),
        batch_size=BATCH,
    )
    steps = steps_of(experiment)
    started = time.perf_counter()
    step = steps.compiled()
    compile_seconds = time.perf_counter() - started
    parameters = sum(leaf.size for leaf in jax.tree.leaves(steps.states[0].params))
    states, _ = jax.block_until_ready(step(steps.states))
    seconds, losses = [], []
    for _ in range(STEPS):
        started = time.perf_counter()
        states, metrics = jax.block_until_ready(step(states))
        seconds.append(time.perf_counter() - started)
        losses.append(mean_loss(metrics))
    if not all(map(math.isfinite, losses)):
        raise RuntimeError(f"{name} diverged: losses {losses}")
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
