"""What a training will take, before its first step: tried on a copy of its state."""

from __future__ import annotations

import dataclasses
import math
import resource
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from cnn_research import ops
from cnn_research.core.distributed import agreed
from cnn_research.core.progress import duration
from cnn_research.data.dataset import Split
from cnn_research.models.flops import cost
from cnn_research.train.config import Training
from cnn_research.train.evaluator import Evaluator
from cnn_research.train.state import TrainState

TRIED_SECONDS = 0.5
"""Steps are tried for so long."""
TRIED_SHARE = 0.05
"""At most this share of a training's steps is tried; one at least."""
MOST_GROWING, GROWING = 8, 0.02
"""At most so many steps are tried that take more memory than the ones before, by this share."""
REPORT_WORKS = 1100
"""Loading what writes and draws, and drawing the report of a few hundred examples, in
`seconds_of_python`."""
HEAD_WORKS = 750
"""What each further head adds to that."""
SAVE_WORKS = 20
"""Starting to write a checkpoint, in `seconds_of_python`."""
REPORT_BYTES = 240e6
"""What that takes in memory."""
SAVED_BYTES_A_SECOND = 300e6
"""How fast a checkpoint is written then."""


@dataclasses.dataclass(frozen=True)
class Estimate:
    """What a training is expected to take from here on.

    Attributes:
        flops: floating-point operations of one image's forward pass.
        step_seconds: of a train step.
        evaluation_seconds: of all evaluations.
        seconds: in all, if nothing stops it early.
        memory: bytes at the peak: of the process on a CPU, otherwise of its fullest device.
        where: whose memory that is.
    """

    flops: int
    step_seconds: float
    evaluation_seconds: float
    seconds: float
    memory: float
    where: str

    def __str__(self) -> str:
        return (
            f"Expected: {duration(self.seconds)}, with {1000 * self.step_seconds:,.1f} ms a step "
            f"and {duration(self.evaluation_seconds)} of evaluation; "
            f"{self.memory / 1e9:.1f} GB of {self.where}; {with_prefix(self.flops)}FLOP an image."
        )


def estimate(
    experiment: Training,
    image_shape: tuple[int, int, int],
    splits: Mapping[str, Split],
    evaluator: Evaluator,
    states: Sequence[TrainState],
    train: Callable[..., tuple[Any, Any]],
    arguments: tuple[Any, ...],
    steps: int,
    evaluations: int,
    check: Callable[[], None],
) -> Estimate:
    """Tries a few steps and a batch of an evaluation, which compiles both, and reckons from there.

    Args:
        experiment: bound to its data.
        image_shape: `(height, width, channels)` of what the network takes.
        splits: what is trained and evaluated on.
        evaluator: of the model.
        states: from which training goes on, of all that are trained at once; not changed.
        train: the jitted `(states, *arguments, count) -> (states, metrics)`, the states donated.
        arguments: between the states and the count.
        steps: that are left, one at least.
        evaluations: on the validation split, that are left.
        check: called now and then; what it raises ends this.
    """
    before, _ = peak_memory()
    count = min(steps, ops.current_formulation().steps_per_dispatch)
    tried = jax.tree.map(jnp.copy, states)
    needed = train.lower(tried, *arguments, count).compile().memory_analysis()  # type: ignore[attr-defined]
    check()
    free = available_memory()
    if jax.default_backend() == "cpu" and needed and needed.temp_size_in_bytes > free:
        logging.warning(
            "a step needs %.1f GB of memory, and %.1f GB are free: take a smaller --batch-size",
            needed.temp_size_in_bytes / 1e9,
            free / 1e9,
        )

    def seconds_of(dispatches: int) -> float:
        nonlocal tried
        check()
        started = time.monotonic()
        for _ in range(dispatches):
            tried, metrics = train(tried, *arguments, count)
        jax.block_until_ready(metrics)
        return (time.monotonic() - started) / (dispatches * count)

    seconds_of(1)  # the first may wait for what is set up once
    for _ in range(1 + min(int(TRIED_SHARE * steps / count), MOST_GROWING)):
        held, _ = peak_memory()
        step_seconds = seconds_of(1)
        # A step that takes more memory than the ones before it is slower than those to come.
        if not agreed(peak_memory()[0] > (1 + GROWING) * held):
            break
    more = min(TRIED_SECONDS / step_seconds, TRIED_SHARE * steps) / count
    if dispatches := agreed(int(more)):
        step_seconds = seconds_of(dispatches)
    del tried

    evaluation = 0.0
    evaluated = {name: len(split) for name, split in splits.items() if name != "train"}
    if evaluated:
        part = splits[next(iter(evaluated))]
        # Two batches, which are in memory together, and for the time of one.
        evaluator(
            states[0].variables(), part.take(np.arange(min(len(part), evaluator.batch_size + 1)))
        )
        part = part.take(np.arange(min(len(part), evaluator.batch_size)))
        batch = math.inf
        for _ in range(2):
            check()
            started = time.monotonic()
            evaluator(states[0].variables(), part)
            batch = min(batch, time.monotonic() - started)
        examples = evaluations * evaluated.get("validation", 0) + sum(evaluated.values())
        batches = max(evaluations, examples / evaluator.batch_size)
        evaluation = len(states) * batch * batches
    work = seconds_of_python()
    reports = work * (REPORT_WORKS + HEAD_WORKS * (len(experiment.fitted_task.heads) - 1))
    written = sum(leaf.nbytes for leaf in jax.tree.leaves(states)) / SAVED_BYTES_A_SECOND
    saved = SAVE_WORKS * work + written
    memory, where = peak_memory()
    if where == "memory":
        # Where freed memory is kept, it is given back before the report takes its own.
        memory = max(memory, (before if experiment.keep_memory else memory) + REPORT_BYTES)
        # What is read from files as it is needed, and has not been yet.
        memory += sum(s.images.nbytes for s in splits.values() if isinstance(s.images, np.memmap))
    return Estimate(
        flops=cost(experiment.model, image_shape).flops,
        step_seconds=step_seconds,
        evaluation_seconds=evaluation,
        seconds=steps * step_seconds + evaluation + evaluations * saved + len(states) * reports,
        memory=memory,
        where=where,
    )


def seconds_of_python() -> float:
    """Seconds of a small fixed piece of work, by which to reckon what one core takes for others."""
    fastest = math.inf
    for _ in range(20):
        started = time.perf_counter()
        sum(range(300_000))
        fastest = min(fastest, time.perf_counter() - started)
    return fastest


def with_prefix(number: float) -> str:
    """A number in three digits and the prefix of its unit: 1,234,000 -> `1.23 M`."""
    power = min(int(math.log10(max(number, 1))) // 3, 4)
    return f"{number / 1000**power:.3g} {('', 'k', 'M', 'G', 'T')[power]}"


def peak_memory() -> tuple[float, str]:
    """The most memory that was in use so far, in bytes, and whose it was."""
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    used = [float(each.get("peak_bytes_in_use") or 0) for each in stats]
    if all(used):
        return max(used), f"the memory of a {jax.default_backend()}"
    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return peak, "memory"


def available_memory() -> float:
    """Bytes of the machine's memory that are free, or could be; infinite where nobody says."""
    try:
        with open("/proc/meminfo") as file:
            lines = dict(line.split(":") for line in file)
        return float(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError):
        return float("inf")
