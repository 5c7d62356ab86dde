"""`--folds=N`: N trainings of one experiment, each tested on another N-th of the images."""

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
    print(f"The first of {count} trainings, one after the other:")
    return estimates.dry_run(first.experiment, first.workdir)


def train(experiment: Training, workdir: Path, count: int, *, profile: bool = False) -> Result:
    """Train once for each fold, in WORKDIR/fold-K; a fold that is complete is not trained again.

    The result has the mean over folds of each figure that all have.

    Raises:
        UsageError: the data are not dealt into folds, or a folder holds another run.
        UserError, Interrupted: as `train.loop.train`.
    """
    runs = _runs(experiment, workdir, count)
    with folders.locked(workdir):
        if (workdir / folders.CONFIG).exists():
            raise UsageError(f"{workdir} is the folder of a single run: give another --workdir")
        found = [loop.train(run.experiment, run.workdir, profile=profile) for run in runs]
        if is_first_process():
            summarise(runs, workdir, "folds")
            _rank_labels([run.workdir for run in runs], workdir / f"{RANKING}.csv")
    return Result(workdir, found[0].step, means([result.metrics for result in found]))


def _rank_labels(runs: list[Path], file: Path) -> None:
    """Rank all labels by the networks that were not trained on them, where they are classes."""
    if all(map(rankings_of, runs)):
        write_ranking(merged(runs), file)
        print(f"Labels, those that are most likely wrong first: {file}")


def _runs(experiment: Training, workdir: Path, count: int) -> list[SeedRun]:
    data = experiment.data
    if not {"folds", "fold"} <= {field.name for field in dataclasses.fields(data)}:
        raise UsageError(
            f"--folds is for folders and tables of images, but {experiment.name} has splits of its "
            "own: leave --folds out"
        )
    runs = []
    for fold in range(count):
        dealt = dataclasses.replace(data, folds=count, fold=fold)
        one = dataclasses.replace(experiment, data=dealt)
        one.check()
        runs.append(SeedRun(one, workdir / f"fold-{fold}"))
    return runs
