"""Callbacks: code of an experiment's own that a training calls, for what its config cannot say."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cnn_research.core.experiment import Result
from cnn_research.core.metrics_log import read_metrics
from cnn_research.data.dataset import Dataset, Split

if TYPE_CHECKING:  # which itself has callbacks
    from cnn_research.train.config import Training
    from cnn_research.train.state import TrainState


@dataclasses.dataclass(frozen=True)
class View:
    """A training as a callback sees it: to read, but for `log` and `stop`."""

    step: int
    """Steps done."""
    epoch: float
    """Epochs done."""
    metrics: Mapping[str, float]
    """Of the validation split at this step; empty where it was not evaluated."""
    state: TrainState
    """Parameters, statistics and moments, on the devices. The next step writes over them: copy
    what is to be kept (`np.asarray`)."""
    workdir: Path
    """The run's folder, in which a callback may write files of its own."""
    experiment: Training
    """The experiment, bound to its data."""
    dataset: Dataset
    """The data, with the names of classes."""
    splits: Mapping[str, Split]
    """The splits as they are evaluated; with `transfer.cache_after`, of features."""
    evaluate: Callable[[Split], dict[str, float]]
    """Metrics of the state on a split, as those of validation are computed."""
    log: Callable[[Mapping[str, float]], None]
    """Add numbers to metrics.jsonl and to what loggers show, beside those of this step and under
    the callback's name; from `on_start` and `on_evaluation`."""
    stop: Callable[[str], None]
    """End the training after this evaluation, for the reason given; from `on_evaluation`."""

    def history(self) -> list[dict[str, Any]]:
        """The rows of metrics.jsonl, up to this step: `step`, `epoch`, `split`, and the numbers."""
        return read_metrics(self.workdir)


@dataclasses.dataclass(frozen=True)
class Callback:
    """The base of callbacks: registered dataclasses whose methods a training calls.

    A callback keeps nothing between two calls, so that a run that resumes ends as if it had not
    been stopped: what it has to remember it logs, and finds in `view.history()`. Of several
    processes of a run all call it, and the first one's `log` and `stop` count. An exception ends
    the run, which can resume.
    """

    def on_start(self, view: View) -> None:
        """Before the first step of a new run; not where one resumes."""

    def on_evaluation(self, view: View) -> None:
        """After each evaluation, before it is saved; once more where the run is stopped between."""

    def on_checkpoint(self, view: View, checkpoint: Path) -> None:
        """After an evaluation's checkpoint, a folder, is complete on the disk. Training waits for
        that only where a callback has this method."""

    def on_end(self, view: View, result: Result) -> None:
        """After the report is written, with the state that it is about; again where a run that is
        complete is started again."""
