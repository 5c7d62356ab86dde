"""The training loop: restore -> steps -> evaluate -> save -> report."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from cnn_research.core import run_folder as folders
from cnn_research.core.distributed import broadcast_from_process_zero
from cnn_research.core.errors import Interrupted, UserError
from cnn_research.core.experiment import Result
from cnn_research.core.memory import freed_memory_kept
from cnn_research.core.metrics import is_better
from cnn_research.report.tensorboard import Histograms, show_training_images
from cnn_research.report.writers import MetricsWriter
from cnn_research.train import checkpoint, hooks
from cnn_research.train.batch import first_images
from cnn_research.train.config import Training
from cnn_research.train.dry_run import say_estimate
from cnn_research.train.finish import report
from cnn_research.train.job import Job, compute_features, prepare
from cnn_research.train.profiling import Steps, profiled
from cnn_research.train.session import HostState, SeedRun, open_session
from cnn_research.train.state import TrainState
from cnn_research.train.step_metrics import StepMetrics, not_finite
from cnn_research.train.trained import reported_step


def train(experiment: Training, workdir: Path, *, profile: bool = False) -> Result:
    """Train in a folder, or resume from its latest valid checkpoint; `profile` traces a few steps.

    Raises:
        UsageError: if the folder contains another experiment, or the config does not fit the data.
        UserError: if the run fails: data not prepared, a loss that is not finite, a full disk.
        Interrupted: if a signal stopped the run, which was saved.
    """
    (result,) = train_seeds([SeedRun(experiment, workdir)], workdir, profile=profile)
    return result


def train_seeds(runs: Sequence[SeedRun], workdir: Path, *, profile: bool = False) -> list[Result]:
    """Train several seeds of an experiment in lockstep, in one program, with a folder each.

    The runs differ only in seed and folder; `workdir` is their common folder. Raises the errors of
    `train`.
    """
    with open_session(runs, workdir) as session:
        job = prepare(session)
        say_estimate(job)
        compute_features(job)
        with open_outputs(job, profile) as outputs:
            session.progress.begin(job.step)
            run_loop(job, outputs)
            return [finish(job, run, outputs) for run in runs]


# The loop ----------------------------------------------------------------------------------------


def run_loop(job: Job, outputs: Outputs) -> None:
    """Evaluate if an evaluation is due, otherwise train until the next one.

    With this order, an interrupted evaluation is repeated on the next start, before any step.
    """
    hooks.at_start(job)
    fitted = bool(job.session.experiment.transfer.fit_after)
    if fitted and job.step == 0 and job.host.best_metric is None:
        evaluate_and_save(job, outputs)  # the baseline for training
    while True:
        if job.plan.evaluation_due(job.step, job.host.last_eval_step):
            evaluate_and_save(job, outputs)
        if job.stopped_early:
            job.session.progress.say(f"Stopped early: {job.stopped_early}.")
            return
        if job.step >= job.plan.last_step:
            return
        if job.session.interruption:
            raise save_and_stop(job, outputs)
        train_until(job, outputs, job.plan.next_evaluation(job.host.last_eval_step))


def train_until(job: Job, outputs: Outputs, due: int) -> None:
    """Dispatch steps up to step `due`; fetch metrics while the next steps run."""
    with freed_memory_kept(enabled=job.has_large_steps(due)):
        while job.step < due and not job.session.interruption:
            steps, count = job.next_steps(due)
            states, metrics = outputs.profiled(steps)(job.states, job.data, job.seeds, count)
            for run, state in zip(job.runs, states, strict=True):
                run.state = state
            job.step += count
            outputs.metrics.add(job.step, metrics)
        outputs.metrics.flush(job.step)


def evaluate_and_save(job: Job, outputs: Outputs) -> None:
    """Validate every run's state, update the selection, and save a checkpoint."""
    # Measure all runs before writing anything, so that no evaluation is half written.
    measured = [validation_metrics(job, outputs, run.state) for run in job.runs]
    for run, metrics in zip(job.runs, measured, strict=True):
        if metrics is not None:
            run.writer.write(job.step, "validation", metrics, epoch=job.plan.epoch_at(job.step))
        run.histograms.write(job.step, job.on_every_device(run.state.params))
    try:
        hooks.after_evaluation(job, measured)
    except UserError:
        save_unevaluated(job, outputs)
        raise
    for run, metrics in zip(job.runs, measured, strict=True):
        if metrics is not None:
            decide(run.experiment, run.host, metrics)
        run.host.last_eval_step = job.step
    save(job, outputs, measured)
    outputs.metrics.log_epoch(job.step, measured)  # after saving, as the time left includes saves
    hooks.after_checkpoint(job, measured)


# What it calls -----------------------------------------------------------------------------------


def validation_metrics(job: Job, outputs: Outputs, state: TrainState) -> dict[str, float] | None:
    """Compute the means over the validation split; None if there is no such split.

    Raises `UserError` if the loss is not finite, and `Interrupted` after a signal: the state is
    saved and evaluated on the next start.
    """
    validation = job.splits.get("validation")
    if validation is None:
        return None
    outcome = job.evaluator(state.variables(), validation, stop=lambda: job.session.interruption)
    if outcome is None:
        raise save_and_stop(job, outputs)
    means = job.session.experiment.fitted_task.means(outcome[0])
    if not math.isfinite(means["loss"]):
        raise not_finite("validation loss", means["loss"], job.step)
    return means


def decide(experiment: Training, host: HostState, metrics: dict[str, float]) -> None:
    """Update the best metric, or count an evaluation without an improvement."""
    value = metrics[experiment.selection.metric]
    if math.isfinite(value) and is_better(value, host.best_metric, experiment.direction):
        host.best_metric, host.evals_since_best = value, 0
    else:
        host.evals_since_best += 1


def save(job: Job, outputs: Outputs, measured: Sequence[dict[str, float] | None]) -> None:
    """Start to save every run's state with its host state and metrics."""
    for run, metrics in zip(job.runs, measured, strict=True):
        run.host.wall_seconds = outputs.seconds()
        run.checkpoints.save(run.state, dataclasses.asdict(run.host), metrics)


def save_and_stop(job: Job, outputs: Outputs) -> Interrupted:
    """Save every run's state; return the error to raise."""
    save_unevaluated(job, outputs)
    return job.session.interruption.error(f"step {job.step:,} is saved in {job.session.workdir}")


def save_unevaluated(job: Job, outputs: Outputs) -> None:
    """Save every run's state without metrics; wait until it is written."""
    save(job, outputs, [None] * len(job.runs))
    for run in job.runs:
        run.checkpoints.wait()


def finish(job: Job, run: SeedRun, outputs: Outputs) -> Result:
    """Evaluate the last or the best state on all splits; write the report."""
    session, state = job.session, run.state
    run.checkpoints.wait()
    if session.experiment.selection.report == "best":
        step = broadcast_from_process_zero(
            reported_step(session.experiment, run.workdir) if session.writes else None
        )
        assert step is not None, "reported_step raises an error if there is none"
        state, _ = checkpoint.restore(run.saved, step, session.abstract_state)
    if session.writes:
        seconds = round(outputs.seconds(), 1)
        folders.add_facts(run.workdir, steps=job.step, wall_seconds=seconds)
    result = report(
        session.experiment,
        run.workdir,
        session.dataset,
        job.splits,
        state,
        job.evaluator,
        run.writer,
    )
    hooks.at_end(job, run, state, result)
    return result


@dataclasses.dataclass(frozen=True)
class Outputs:
    """Outputs of the loop that are common to all runs."""

    metrics: StepMetrics
    profiled: Callable[[Steps], Steps]
    """Traces a few steps, for `--profile`."""
    seconds: Callable[[], float]
    """Wall time per run so far, including earlier processes."""


@contextlib.contextmanager
def open_outputs(job: Job, profile: bool) -> Iterator[Outputs]:
    """Open every run's metrics, checkpoints and histograms; show the first training images."""
    session, experiment, runs = job.session, job.session.experiment, job.runs
    before, started = job.host.wall_seconds, time.monotonic()
    metric = experiment.selection.metric
    best = (metric, experiment.direction) if "validation" in job.splits else None
    with contextlib.ExitStack() as stack:
        for run in runs:
            # Rows after the restored step are dropped.
            run.writer = stack.enter_context(
                MetricsWriter(
                    run.workdir,
                    restored_step=session.restored,
                    evaluated_step=run.host.last_eval_step,
                    loggers=experiment.loggers,
                    config=run.experiment,
                    enabled=session.writes,
                )
            )
            run.checkpoints = stack.enter_context(
                checkpoint.Checkpoints(run.saved, keep=experiment.keep_checkpoints, best=best)
            )
            known = job.step == job.host.last_eval_step
            params = job.on_every_device(run.state.params) if known else None
            run.histograms = Histograms(run.writer.events, params)
        if job.step == 0 and not experiment.transfer.cache_after:
            seen = first_images(job.context(0.0), job.data, job.seeds)
            for run, images in zip(runs, seen, strict=True):
                if run.writer.events:
                    show_training_images(run.writer.events, images)
        writers = [run.writer for run in runs]
        enabled = profile and session.writes
        yield Outputs(
            StepMetrics(experiment, job.plan, writers, session.progress),
            stack.enter_context(profiled(session.workdir, job.step, enabled=enabled)),
            lambda: before + (time.monotonic() - started) / len(runs),
        )
