"""`--replicas=N`: one experiment with N seeds, trained together in one program.

Every replica has its own run folder. They share the costs of starting, and on accelerators their
steps are one batched program. Trainings that may end at different steps (by patience or a
callback), and those on cached features, run one after the other.
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
"""Metrics with mean and standard deviation, written at the end."""


def dry_run(experiment: Training, workdir: Path, count: int) -> Result:
    """Estimate the training of all replicas; write nothing."""
    runs = _runs(experiment, workdir, count)
    if in_turn(experiment):
        print(f"The first of {count} trainings, which run one after the other:")
        runs = runs[:1]
    return dry_run_seeds(runs, workdir)


def train(experiment: Training, workdir: Path, count: int, *, profile: bool = False) -> Result:
    """Train with `count` seeds, starting with the experiment's, in WORKDIR/seed-SEED each.

    If one fails, all stop; they resume together from the latest checkpoint that all have. The
    result has the mean over seeds of each metric.

    Raises:
        UsageError: a seed is too large, or the folder belongs to another run or other seeds.
        UserError, Interrupted: those of `train.loop.train`.
    """
    runs = _runs(experiment, workdir, count)
    with folders.locked(workdir):
        seeds = [run.experiment.seed for run in runs]
        before = folders.read_json(workdir / REPLICAS).get("seeds", seeds)
        if before != seeds:
            raise UsageError(
                f"{workdir} contains replicas with the seeds {before}, not {seeds}: choose another "
                "--workdir, or the same --replicas and --seed"
            )
        if (workdir / folders.CONFIG).exists():
            raise UsageError(f"{workdir} is the folder of a single run: choose another --workdir")
        if is_first_process():
            folders.write_json(workdir / REPLICAS, {"seeds": seeds})
        together = [[run] for run in runs] if in_turn(experiment) else [runs]
        results = [
            result for seeds in together for result in train_seeds(seeds, workdir, profile=profile)
        ]
        if is_first_process():
            summarise(runs, workdir, "seeds")
    return Result(workdir, results[0].step, means([result.metrics for result in results]))


def means(metrics: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Average each metric that all have, also those nested by split and head."""
    averages: dict[str, Any] = {}
    for name, first in metrics[0].items():
        if all(name in each for each in metrics):
            values = [each[name] for each in metrics]
            nested = isinstance(first, Mapping)
            averages[name] = means(values) if nested else statistics.fmean(values)
    return averages


def in_turn(experiment: Training) -> bool:
    """Return whether the seeds are trained one after the other instead of in lockstep."""
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
    """Write results.json, and print means and deviations over `over`."""
    evaluated = [read for run in runs if (read := read_run(run.workdir)) is not None]
    if not evaluated:
        return  # there is no split to evaluate
    (group,) = group_runs(evaluated)
    folders.write_json(workdir / RESULTS, results(group, workdir.name))
    show(f"\n{as_markdown([group])}\nRuns: {workdir}\nMetrics over {over}: {workdir / RESULTS}")
