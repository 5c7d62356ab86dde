"""Callbacks: an experiment's own code that is called during training."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cnn_research.core.experiment import Result
from cnn_research.core.metrics_log import read_metrics
from cnn_research.data.dataset import Dataset, Split

if TYPE_CHECKING:  # avoids a circular import
    from cnn_research.train.config import Training
    from cnn_research.train.state import TrainState


@dataclasses.dataclass(frozen=True)
class View:
    """A callback's view of the training; read-only except for `log` and `stop`."""

    step: int
    """Number of completed steps."""
    epoch: float
    """Number of completed epochs."""
    metrics: Mapping[str, float]
    """Validation metrics at this step; empty if it was not evaluated."""
    state: TrainState
    """Parameters, statistics and moments, on the devices. The next step overwrites them: copy
    arrays that you keep (`np.asarray`)."""
    workdir: Path
    """The run's folder; callbacks may write their own files to it."""
    experiment: Training
    """The experiment, bound to its data."""
    dataset: Dataset
    """The data set, with the class names."""
    splits: Mapping[str, Split]
    """The evaluated splits; with `transfer.cache_after`, they contain features."""
    evaluate: Callable[[Split], dict[str, float]]
    """Compute metrics of the state on a split like those of validation."""
    log: Callable[[Mapping[str, float]], None]
    """Log values at this step to metrics.jsonl and the loggers, under the callback's name; in
    `on_start` and `on_evaluation` only."""
    stop: Callable[[str], None]
    """Stop training after this evaluation, for the given reason; in `on_evaluation` only."""

    def history(self) -> list[dict[str, Any]]:
        """Read the rows of metrics.jsonl up to this step: `step`, `epoch`, `split`, values."""
        return read_metrics(self.workdir)


@dataclasses.dataclass(frozen=True)
class Callback:
    """Base class of callbacks: registered dataclasses with methods that are called during training.

    A callback must not keep state between calls, so that a resumed run gives the same result as an
    uninterrupted one: log values and read them with `view.history()`. If a run has several
    processes, all call it, but only `log` and `stop` of the first have an effect. An exception ends
    the run, which can be resumed.
    """

    def on_start(self, view: View) -> None:
        """Called before the first step of a new run, but not when a run resumes."""

    def on_evaluation(self, view: View) -> None:
        """Called after each evaluation, before its checkpoint; repeated if the run is stopped in
        between."""

    def on_checkpoint(self, view: View, checkpoint: Path) -> None:
        """Called when an evaluation's checkpoint, a folder, is complete. Training waits for it only
        if a callback defines this method."""

    def on_end(self, view: View, result: Result) -> None:
        """Called after the report is written, with the reported state; repeated if a complete run
        is started again."""
