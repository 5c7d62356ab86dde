"""Estimate of a training's time and memory, from a few steps on a copy of its state."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from cnn_research.core import run_folder as folders
from cnn_research.core.experiment import Result
from cnn_research.core.memory import available_memory, freed_memory_kept
from cnn_research.core.progress import Line, duration
from cnn_research.core.run_folder import cores
from cnn_research.data.sources.footprint import footprint
from cnn_research.models.flops import cost
from cnn_research.train.config import Training
from cnn_research.train.job import Job, prepare
from cnn_research.train.session import SeedRun, open_session
from cnn_research.train.speed import TRAINING
from cnn_research.train.undecoded import say_needs

TRIED = 3
SAVE_SECONDS, SAVED_BYTES = 0.2, 3e8
"""Seconds per checkpoint and bytes written per second, on two cores and an SSD."""
MOST_SECONDS = 10
"""Maximum time of decoding images, in seconds, that a dry run waits for."""


def dry_run(experiment: Training, workdir: Path) -> Result:
    """Estimate the time and memory of a training; write nothing."""
    return dry_run_seeds([SeedRun(experiment, workdir)], workdir)


def dry_run_seeds(runs: list[SeedRun], workdir: Path) -> Result:
    """Like `dry_run`, for several seeds at once.

    If decoding the images would take long, the estimate uses only their number.
    """
    experiment = runs[0].experiment
    data = folders.located(experiment.data, runs[0].workdir)
    decoded = footprint(data)
    if decoded and decoded.seconds > MOST_SECONDS:
        say_needs(experiment, data, decoded, Line().say)
        return Result(workdir, 0, {})
    with open_session(runs, workdir, read_only=True) as session:
        job = prepare(session)
        say_estimate(job)
        return Result(workdir, job.step, {})


def say_estimate(job: Job) -> None:
    """Print the expected time and memory of the remaining training without early stopping.

    Compiles and times a few steps on a copy of the state, one batch of evaluation, and one batch of
    features if they must be computed.
    """
    session, plan = job.session, job.plan
    trains = job.step < plan.last_step and not job.stopped_early
    if not trains and job.features is None:
        return
    step_seconds, step_bytes = _step(job) if trains else (0.0, 0)
    features = job.features.seconds() if job.features else 0.0
    fitting, evaluation = _fitting_seconds(job), _evaluation_seconds(job)
    saving = _saving_seconds(job)
    seconds = features + fitting + (plan.last_step - job.step) * step_seconds + evaluation + saving
    parts = {
        f"{1000 * step_seconds:,.1f} ms per step": trains,
        f"{duration(features)} for features": features,
        f"at most {duration(fitting)} for fitting": fitting,
        f"{duration(evaluation)} for evaluation": evaluation,
        f"{duration(saving)} for checkpoints": saving,
    }
    shown = ", ".join(text for text, value in parts.items() if value)
    memory = f"a step needs {step_bytes / 1e6:,.1f} MB of memory; " if trains else ""
    flops = cost(session.experiment.model, session.dataset.image_shape).flops
    session.progress.say(
        f"Expected: {duration(seconds)} ({shown}); {memory}{flops / 1e6:,.3g} MFLOP per image."
    )


def _step(job: Job) -> tuple[float, int]:
    """Measure the seconds of a step, and the bytes of its state, data and intermediate results."""
    needed = job.memory_of_steps(job.plan.last_step)
    step_bytes, free = 0, available_memory()
    if needed:
        step_bytes = needed.argument_size_in_bytes + needed.output_size_in_bytes
        step_bytes += needed.temp_size_in_bytes - needed.alias_size_in_bytes
    if jax.default_backend() == "cpu" and needed and needed.temp_size_in_bytes > free:
        logging.warning(
            "a step needs %.1f GB of memory, and %.1f GB are free: use a smaller --batch-size",
            needed.temp_size_in_bytes / 1e9,
            free / 1e9,
        )
    steps, count = job.next_steps(job.plan.last_step)
    states = jax.tree.map(jnp.copy, job.states)

    def dispatch() -> None:
        nonlocal states
        states, metrics = steps(states, job.data, job.seeds, count)
        jax.block_until_ready(metrics)

    with freed_memory_kept(enabled=job.has_large_steps(job.plan.last_step)):
        seconds = seconds_of(dispatch, TRIED, job.session.interruption.check)
    return seconds / count, step_bytes


def _fitting_seconds(job: Job) -> float:
    """Estimate the maximum seconds of fitting the heads from the number of operations."""
    if job.probe is None or job.features is None:
        return 0.0
    from cnn_research.train.head_fit import most_operations

    examples = len(job.splits["train"]) * job.features.views
    outputs, penalties = job.probe.model.num_classes, len(job.probe.transfer.penalties)
    operations = most_operations(examples, job.features.numbers, outputs, penalties)
    return len(job.runs) * operations / (TRAINING * cores())


def _evaluation_seconds(job: Job) -> float:
    """Estimate the seconds of the remaining evaluations from the time of a batch."""
    evaluated = {name: len(split) for name, split in job.splits.items() if name != "train"}
    if not evaluated:
        return 0.0
    split = job.splits[next(iter(evaluated))]
    batch = split.take(np.arange(min(len(split), job.evaluator.batch_size)))
    variables = job.runs[0].state.variables()
    each = seconds_of(lambda: job.evaluator(variables, batch), 1, job.session.interruption.check)
    left = job.plan.evaluations_left(job.step) + (job.probe is not None)
    batches = (left * evaluated.get("validation", 0) + sum(evaluated.values())) / len(batch)
    return len(job.runs) * batches * each


def _saving_seconds(job: Job) -> float:
    """Estimate the seconds of the remaining checkpoints from the bytes of a state."""
    state = sum(leaf.nbytes for leaf in jax.tree.leaves(job.runs[0].state))
    each = SAVE_SECONDS + state / SAVED_BYTES
    return len(job.runs) * job.plan.evaluations_left(job.step) * each


def seconds_of(work: Callable[[], object], times: int, check: Callable[[], None]) -> float:
    """Measure the fastest of `times` calls after a first one, which may include set-up."""
    taken = []
    for _ in range(times + 1):
        started = time.monotonic()
        work()
        taken.append(time.monotonic() - started)
        check()
    return min(taken[1:] or taken)
