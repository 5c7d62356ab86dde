"""Preparation of a training: locks, checks of config, folder and data, and loading of the data."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
from absl import logging
from jax.sharding import Mesh

from cnn_research.core import run_folder as folders
from cnn_research.core.distributed import (
    broadcast_from_process_zero,
    check_divides,
    data_mesh,
    max_over_processes,
)
from cnn_research.core.errors import UsageError
from cnn_research.core.preemption import Interruption
from cnn_research.core.progress import Progress
from cnn_research.data.dataset import Dataset
from cnn_research.models.pretrained import check_fits
from cnn_research.report.tensorboard import Histograms
from cnn_research.report.writers import MetricsWriter
from cnn_research.tasks.task import Task
from cnn_research.train import checkpoint, outside
from cnn_research.train.config import Training
from cnn_research.train.plan import Plan
from cnn_research.train.state import TrainState, abstract_state
from cnn_research.train.trained import bind_to_dataset, check_same_data, weights_to_start_from
from cnn_research.train.undecoded import check_disk


@dataclasses.dataclass
class HostState:
    """The state of a run besides arrays, saved in every checkpoint."""

    best_metric: float | None = None
    """Best validation value of the selection metric."""
    evals_since_best: int = 0
    last_eval_step: int = 0
    wall_seconds: float = 0.0
    stop_reason: str = ""
    """Reason given by a callback that stopped the training; empty if none did."""


@dataclasses.dataclass
class SeedRun:
    """One seed of a training, its folder, its state and its outputs."""

    experiment: Training
    workdir: Path
    host: HostState = dataclasses.field(default_factory=HostState)
    state: TrainState = dataclasses.field(init=False)
    writer: MetricsWriter = dataclasses.field(init=False)
    checkpoints: checkpoint.Checkpoints = dataclasses.field(init=False)
    histograms: Histograms = dataclasses.field(init=False)

    @property
    def saved(self) -> Path:
        return self.workdir / folders.CHECKPOINTS


@dataclasses.dataclass(frozen=True)
class Session:
    """Locked folders, loaded data and devices of a training.

    The runs are trained together and differ only in seed and folder; `workdir` is their common
    folder. The experiment is bound to the data and has the seed of the first run. `restored` is the
    latest step with a valid checkpoint of all runs; None for a new run.
    """

    runs: Sequence[SeedRun]
    workdir: Path
    experiment: Training
    dataset: Dataset
    mesh: Mesh
    plan: Plan
    restored: int | None
    interruption: Interruption
    progress: Progress
    read_only: bool

    @property
    def writes(self) -> bool:
        """Whether this process writes to the folders; only the first does."""
        return jax.process_index() == 0 and not self.read_only

    @functools.cached_property
    def abstract_state(self) -> TrainState:
        """Shapes, dtypes and shardings of a run's state."""
        return abstract_state(self.experiment, self.dataset.image_shape, self.mesh)


@contextlib.contextmanager
def open_session(
    runs: Sequence[SeedRun], workdir: Path, *, read_only: bool = False
) -> Iterator[Session]:
    """Lock the folders, handle signals, load the data, and bind the experiment to it.

    With `read_only`, nothing is written or locked.

    Raises:
        UsageError: if a folder contains another experiment, or the config does not fit the data.
        UserError: if the data does not exist.
        Interrupted: if a signal stops the process.
    """
    experiment, first = runs[0].experiment, jax.process_index() == 0
    check_possible(experiment)
    with contextlib.ExitStack() as stack:
        # Lock first, so that the folders do not change after they are read.
        for run in runs:
            stack.enter_context(folders.locked(run.workdir, enabled=not read_only))
        agree = max_over_processes if jax.process_count() > 1 else None
        interruption = stack.enter_context(Interruption(agree))
        for run in runs:
            folders.check_same(run.experiment, run.workdir, experiment.resumable_fields)
        saved = [run.saved for run in runs]
        newest = checkpoint.newest(*saved, repair=not read_only) if first else None
        restored = broadcast_from_process_zero(newest)
        # Load the data only after the folder and the weights are checked.
        with interruption.interruptible_setup():
            if restored is None:
                check_weights(experiment, runs[0].workdir)
            data = folders.located(experiment.data, runs[0].workdir)
            check_disk(experiment, data)
            dataset = outside.load(data)
        check_data(experiment, dataset)
        warn_of_patience(experiment)
        mesh = data_mesh()
        check_divides(mesh, experiment.batch_size, experiment.accumulate)
        stack.enter_context(jax.set_mesh(mesh))
        plan, ready = Plan.of(experiment, dataset), bind_to_dataset(experiment, dataset)
        outside.check_outside(ready, dataset)
        batch_size = experiment.batch_size * len(runs)
        session = Session(
            runs=runs,
            workdir=workdir,
            experiment=ready,
            dataset=dataset,
            mesh=mesh,
            plan=plan,
            restored=restored,
            interruption=interruption,
            progress=Progress(
                plan.last_step, batch_size, experiment.epochs, ready.task.metrics, enabled=first
            ),
            read_only=read_only,
        )
        if session.restored is not None:
            for run in runs:
                check_same_data(run.workdir, dataset)
        elif ready.transfer.names_layers:
            experiment.transfer.check_layers(session.abstract_state.params)
            session.experiment.transfer.check_learns(session.abstract_state.params)
        yield session


def check_possible(experiment: Training) -> None:
    """Raise `UsageError` for a logger that is not installed, or evaluations that need images where
    features are cached."""
    for logger in experiment.loggers:
        logger.check_installed()
    if experiment.transfer.cache_after and experiment.evaluates_images:
        raise UsageError(
            "--transfer.cache-after cannot be combined with --evaluation.shift, or with .mirror "
            "without --augmentation.mirror: use them with --mode=evaluate"
        )


def check_weights(experiment: Training, workdir: Path) -> None:
    """Raise `UserError` if pretrained weights do not exist or do not fit the network.

    This is called before the data is decoded, which may take long. Checks that depend on the number
    of classes or on a size that only the data determines follow later.
    """
    start = folders.located(experiment.pretrained, workdir)
    if not start.origin:
        return
    weights = weights_to_start_from(start)
    image_size = getattr(experiment.data, "image_size", None)
    only_classes = type(experiment.task).bind is Task.bind
    if image_size and only_classes:
        check_fits(experiment.model, (*image_size, 3), start, weights)


def check_data(experiment: Training, dataset: Dataset) -> None:
    """Raise `UserError` if the experiment cannot be trained on the data."""
    experiment.task.check_data(dataset)
    channels = dataset.image_shape[2]
    for name, values in (("mean", experiment.mean), ("std", experiment.std)):
        if len(values) not in (1, channels):
            raise UsageError(
                f"--{name} has {len(values)} numbers, but images of data set {dataset.name} have "
                f"{channels} channel{'s' * (channels > 1)}: give one number, or one per channel"
            )
    examples = len(dataset.splits["train"]) * dataset.windows
    if experiment.batch_size > examples:
        raise UsageError(
            f"--batch-size is {experiment.batch_size}, but data set {dataset.name} has only "
            f"{examples} training examples: use a smaller batch"
        )
    if experiment.sampling == "balanced":
        check_balanced(experiment.task.heads, dataset)
    chooses = experiment.selection.patience or experiment.selection.report == "best"
    if chooses and "validation" not in dataset.splits:
        raise UsageError(
            f"--selection uses the validation {experiment.selection.metric}, but data set "
            f"{dataset.name} has no validation split: set --data.validation above 0"
        )


def warn_of_patience(experiment: Training) -> None:
    """Warn if patience may stop a run while its learning rate is still high.

    It is not an error, as it may be intended in a search.
    """
    schedule = experiment.optimizer.schedule
    if experiment.selection.patience and schedule != "constant":
        logging.warning(
            "--selection.patience may stop the run before its %s schedule has lowered the learning "
            "rate, which improves results most: use 0, or --optimizer.schedule=constant",
            schedule,
        )


def check_balanced(heads: Sequence[str], dataset: Dataset) -> None:
    """Raise `UsageError` if examples do not have one class each to sample by."""
    labels = dataset.splits["train"].labels
    if not heads or heads[0] not in dataset.class_names:
        problem = (
            f"'{heads[0]}' of data set {dataset.name} has numbers" if heads else "there are none"
        )
    elif labels[heads[0]].ndim == 2:
        problem = f"'{heads[0]}' of data set {dataset.name} has several labels per image"
    elif labels[heads[0]].ndim > 1:
        problem = f"'{heads[0]}' of data set {dataset.name} has a class per pixel"
    else:
        return
    raise UsageError(
        f"--sampling=balanced draws classes equally often, but {problem}: use --sampling=uniform"
    )
