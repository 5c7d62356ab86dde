"""`--replicas=N`: one experiment with N seeds, trained at once in one program.

Every replica leaves the folder of a run of its own. They share what a start costs, and on
accelerators their steps are one batched program. Trainings that may end apart, by patience or a
callback, and those on features, which are computed once and read from the disk, follow one after
the other.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cnn_research.core import run_folder as folders
from cnn_research.core.distributed import is_first_process
from cnn_research.core.errors import UsageError
from cnn_research.core.experiment import Result
from cnn_research.core.terminal import show
from cnn_research.report.runs import as_markdown, group_runs, read_run, results
from cnn_research.train.config import Training
from cnn_research.train.dry_run import dry_run_seeds
from cnn_research.train.loop import train_seeds
from cnn_research.train.session import SeedRun

REPLICAS = "replicas.json"
RESULTS = "results.json"
"""Their figures with mean and standard deviation, once all are done."""


def dry_run(experiment: Training, workdir: Path, count: int) -> Result:
    """Estimate the training of all replicas; write nothing."""
    runs = _runs(experiment, workdir, count)
    if in_turn(experiment):
        print(f"The first of {count} trainings, one after the other:")
        runs = runs[:1]
    return dry_run_seeds(runs, workdir)


def train(experiment: Training, workdir: Path, count: int, *, profile: bool = False) -> Result:
    """Train with `count` seeds from the experiment's own on, in WORKDIR/seed-SEED each.

    Where one of them fails, all stop, and resume together from the newest checkpoint of all. The
    result has the mean over seeds of each figure.

    Raises:
        UsageError: a seed beyond the last one, or the folder holds another run, or other seeds.
        UserError, Interrupted: as `train.loop.train`.
    """
    runs = _runs(experiment, workdir, count)
    with folders.locked(workdir):
        seeds = [run.experiment.seed for run in runs]
        before = folders.read_json(workdir / REPLICAS).get("seeds", seeds)
        if before != seeds:
            raise UsageError(
                f"{workdir} holds replicas with the seeds {before}, not {seeds}: name another "
                "--workdir, or give the same --replicas and --seed"
            )
        if (workdir / folders.CONFIG).exists():
            raise UsageError(f"{workdir} holds a run of its own: name another --workdir")
        if is_first_process():
            folders.write_json(workdir / REPLICAS, {"seeds": seeds})
        together = [[run] for run in runs] if in_turn(experiment) else [runs]
        found = [
            result for seeds in together for result in train_seeds(seeds, workdir, profile=profile)
        ]
        if is_first_process():
            summarise(runs, workdir, "seeds")
    return Result(workdir, found[0].step, means([result.metrics for result in found]))


def means(metrics: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The mean of each figure that all have; of splits and heads, the means of theirs."""
    found: dict[str, Any] = {}
    for name, first in metrics[0].items():
        if all(name in each for each in metrics):
            values = [each[name] for each in metrics]
            found[name] = means(values) if isinstance(first, Mapping) else statistics.fmean(values)
    return found


def in_turn(experiment: Training) -> bool:
    """Return whether the seeds are trained one after the other, not in lockstep."""
    transfer = experiment.transfer
    ends_apart = experiment.selection.patience or experiment.callbacks
    return bool(ends_apart or transfer.cache_after or transfer.fit_after)


def _runs(experiment: Training, workdir: Path, count: int) -> list[SeedRun]:
    dataclasses.replace(experiment, seed=experiment.seed + count - 1).check()
    seeds = range(experiment.seed, experiment.seed + count)
    return [
        SeedRun(dataclasses.replace(experiment, seed=seed), workdir / f"seed-{seed}")
        for seed in seeds
    ]


def summarise(runs: list[SeedRun], workdir: Path, over: str) -> None:
    """Write results.json, and print means and deviations, which are over `over`."""
    evaluated = [found for run in runs if (found := read_run(run.workdir)) is not None]
    if not evaluated:
        return  # nothing to evaluate on
    (group,) = group_runs(evaluated)
    folders.write_json(workdir / RESULTS, results(group, workdir.name))
    show(f"\n{as_markdown([group])}\nRuns: {workdir}\nMetrics over {over}: {workdir / RESULTS}")
