"""`--folds=N`: N-fold cross-validation of one experiment."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from cnn_research.core import run_folder as folders
from cnn_research.core.distributed import is_first_process
from cnn_research.core.errors import UsageError
from cnn_research.core.experiment import Result
from cnn_research.report.label_errors import RANKING, merged, rankings_of, write_ranking
from cnn_research.train import dry_run as estimates
from cnn_research.train import loop
from cnn_research.train.config import Training
from cnn_research.train.session import SeedRun
from cnn_research.workflows.replicas import means, summarise


def dry_run(experiment: Training, workdir: Path, count: int) -> Result:
    """Estimate the first training; write nothing."""
    first, *_ = _runs(experiment, workdir, count)
    print(f"The first of {count} trainings, which run one after the other:")
    return estimates.dry_run(first.experiment, first.workdir)


def train(experiment: Training, workdir: Path, count: int, *, profile: bool = False) -> Result:
    """Train once per fold, in WORKDIR/fold-K; complete folds are not trained again.

    The result has the mean over folds of each metric that all have.

    Raises:
        UsageError: the data set does not support folds, or a folder belongs to another run.
        UserError, Interrupted: those of `train.loop.train`.
    """
    runs = _runs(experiment, workdir, count)
    with folders.locked(workdir):
        if (workdir / folders.CONFIG).exists():
            raise UsageError(f"{workdir} is the folder of a single run: choose another --workdir")
        results = [loop.train(run.experiment, run.workdir, profile=profile) for run in runs]
        if is_first_process():
            summarise(runs, workdir, "folds")
            _rank_labels([run.workdir for run in runs], workdir / f"{RANKING}.csv")
    return Result(workdir, results[0].step, means([result.metrics for result in results]))


def _rank_labels(runs: list[Path], file: Path) -> None:
    """If labels are classes, rank all of them by networks that were not trained on them."""
    if all(map(rankings_of, runs)):
        write_ranking(merged(runs), file)
        print(f"Labels, the most likely wrong ones first: {file}")


def _runs(experiment: Training, workdir: Path, count: int) -> list[SeedRun]:
    data = experiment.data
    if not {"folds", "fold"} <= {field.name for field in dataclasses.fields(data)}:
        raise UsageError(
            f"--folds is for folders and tables of images, but {experiment.name} has its own "
            "splits: omit --folds"
        )
    runs = []
    for fold in range(count):
        dealt = dataclasses.replace(data, folds=count, fold=fold)
        one = dataclasses.replace(experiment, data=dealt)
        one.check()
        runs.append(SeedRun(one, workdir / f"fold-{fold}"))
    return runs
