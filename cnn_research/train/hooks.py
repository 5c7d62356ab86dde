"""Calls an experiment's callbacks for the training loop."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

from cnn_research.core.definitions import error_with_place
from cnn_research.core.distributed import broadcast_from_process_zero
from cnn_research.core.errors import UserError
from cnn_research.core.experiment import Result
from cnn_research.data.dataset import Split
from cnn_research.train.callbacks import Callback, View
from cnn_research.train.job import Job
from cnn_research.train.session import SeedRun
from cnn_research.train.state import TrainState

Measured = Sequence[Mapping[str, float] | None]
"""Validation metrics of each run."""


def at_start(job: Job) -> None:
    """Call `on_start`, unless the run resumes."""
    if job.session.restored is None:
        for run in job.runs:
            for callback, view in _views(job, run, logs=True):
                _call(callback, "on_start", view, saved="nothing was trained yet")


def after_evaluation(job: Job, measured: Measured) -> None:
    """Call `on_evaluation`; record in the host state if a callback stops the run.

    Raises `UserError` if a callback raises any exception; the caller saves the step.
    """
    for run, metrics in zip(job.runs, measured, strict=True):
        reasons: list[str] = []
        for callback, view in _views(job, run, metrics, logs=True, reasons=reasons):
            saved = "the step is saved, and its evaluation is repeated when the run resumes"
            _call(callback, "on_evaluation", view, saved=saved)
        # All processes must stop together, or they would wait for each other.
        if job.session.experiment.callbacks and broadcast_from_process_zero(len(reasons)):
            run.host.stop_reason = "; ".join(reasons) or "a callback's decision"


def after_checkpoint(job: Job, measured: Measured) -> None:
    """Call the `on_checkpoint` methods that exist, when the evaluation's checkpoint is complete."""
    for run, metrics in zip(job.runs, measured, strict=True):
        for callback, view in _views(job, run, metrics):
            if type(callback).on_checkpoint is not Callback.on_checkpoint:
                run.checkpoints.wait()
                path = run.saved / str(job.step)
                _call(callback, "on_checkpoint", view, path, saved="the step is saved")


def at_end(job: Job, run: SeedRun, state: TrainState, result: Result) -> None:
    """Call `on_end` with the reported state."""
    for callback, view in _views(job, run, state=state):
        _call(callback, "on_end", view, result, saved="the run is complete, with its report")


def _views(
    job: Job,
    run: SeedRun,
    metrics: Mapping[str, float] | None = None,
    *,
    state: TrainState | None = None,
    logs: bool = False,
    reasons: list[str] | None = None,
) -> list[tuple[Callback, View]]:
    """Return callbacks with views of a run; `logs` enables `log`, and `reasons` collects stops."""
    session, state = job.session, state or run.state
    step = int(state.step)
    epoch = job.plan.epoch_at(step)

    def evaluate(split: Split) -> dict[str, float]:
        sums, _ = job.evaluator(state.variables(), split) or ({}, None)
        return session.experiment.fitted_task.means(sums)

    def refuse(_: Any) -> None:
        raise UserError("log works only in on_start and on_evaluation, stop only in on_evaluation")

    views = []
    for callback in session.experiment.callbacks:
        write = functools.partial(run.writer.write, step, type(callback).__name__, epoch=epoch)
        view = View(
            step=step,
            epoch=epoch,
            metrics=metrics or {},
            state=state,
            workdir=run.workdir,
            experiment=session.experiment,
            dataset=session.dataset,
            splits=job.splits,
            evaluate=evaluate,
            log=write if logs else refuse,
            stop=refuse if reasons is None else reasons.append,
        )
        views.append((callback, view))
    return views


def _call(callback: Callback, hook: str, view: View, *more: Any, saved: str) -> None:
    """Call a callback's method; convert exceptions to `UserError`, which states what is `saved`."""
    try:
        getattr(callback, hook)(view, *more)
    except Exception as error:
        raise UserError(
            f"the callback {type(callback).__name__} failed in {hook} at step {view.step:,}, "
            f"{error_with_place(error)}: {saved}; correct it and repeat the command"
        ) from error
