"""Estimate of a training's time and memory, from a few steps on a copy of its state."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from cnn_research.core.experiment import Result
from cnn_research.core.memory import available_memory, freed_memory_kept
from cnn_research.core.progress import duration
from cnn_research.models.flops import cost
from cnn_research.train.config import Training
from cnn_research.train.job import Job, prepare
from cnn_research.train.session import SeedRun, open_session

TRIED = 3


def dry_run(experiment: Training, workdir: Path) -> Result:
    """Estimate the time and memory of a training; write nothing."""
    return dry_run_seeds([SeedRun(experiment, workdir)], workdir)


def dry_run_seeds(runs: list[SeedRun], workdir: Path) -> Result:
    """As `dry_run`, for several seeds at once."""
    with open_session(runs, workdir, read_only=True) as session:
        job = prepare(session)
        say_estimate(job)
        return Result(workdir, job.step, {})


def say_estimate(job: Job) -> None:
    """Print the expected time and memory of the remaining training, if nothing stops it early.

    Compiles and times a few steps, on a copy of the state, and a batch of an evaluation.
    """
    session, plan = job.session, job.plan
    if job.step >= plan.last_step or job.out_of_patience:
        return
    steps, count = job.next_steps(plan.last_step)
    needed = job.memory_of_steps(plan.last_step)
    step_bytes, free = 0, available_memory()
    if needed:
        # State, data and what is computed.
        step_bytes = needed.argument_size_in_bytes + needed.output_size_in_bytes
        step_bytes += needed.temp_size_in_bytes - needed.alias_size_in_bytes
    if jax.default_backend() == "cpu" and needed and needed.temp_size_in_bytes > free:
        logging.warning(
            "a step needs %.1f GB of memory, and %.1f GB are free: take a smaller --batch-size",
            needed.temp_size_in_bytes / 1e9,
            free / 1e9,
        )

    states = jax.tree.map(jnp.copy, job.states)

    def dispatch() -> None:
        nonlocal states
        states, metrics = steps(states, job.data, job.seeds, count)
        jax.block_until_ready(metrics)

    with freed_memory_kept(enabled=job.has_large_steps(plan.last_step)):
        step_seconds = seconds_of(dispatch, TRIED, session.interruption.check) / count
    del states
    evaluation_seconds = 0.0
    evaluated = {name: len(split) for name, split in job.splits.items() if name != "train"}
    if evaluated:
        split = job.splits[next(iter(evaluated))]
        batch = split.take(np.arange(min(len(split), job.evaluator.batch_size)))
        variables = job.runs[0].state.variables()
        each = seconds_of(lambda: job.evaluator(variables, batch), 1, session.interruption.check)
        left = plan.evaluations_left(job.step) * evaluated.get("validation", 0)
        batches = (left + sum(evaluated.values())) / len(batch)
        evaluation_seconds = len(job.runs) * batches * each
    seconds = (plan.last_step - job.step) * step_seconds + evaluation_seconds
    flops = cost(session.experiment.model, session.dataset.image_shape).flops
    session.progress.say(
        f"Expected: {duration(seconds)}, with {1000 * step_seconds:,.1f} ms a step and "
        f"{duration(evaluation_seconds)} of evaluation; a step needs {step_bytes / 1e6:,.1f} MB of "
        f"memory; {flops / 1e6:,.3g} MFLOP an image."
    )


def seconds_of(work: Callable[[], object], times: int, check: Callable[[], None]) -> float:
    """The fastest of `times` calls after a first one, which may wait for what is set up once."""
    taken = []
    for _ in range(times + 1):
        started = time.monotonic()
        work()
        taken.append(time.monotonic() - started)
        check()
    return min(taken[1:] or taken)
