"""`--replicas=N`: one experiment with N seeds, trained at once in one program.

Every replica leaves the folder of a run of its own. They share what a start costs, and on
accelerators their steps are one batched program.
"""

from __future__ import annotations

import dataclasses
import statistics
from pathlib import Path

import jax

from cnn_research.core import run_folder as folders
from cnn_research.core.distributed import is_first_process
from cnn_research.core.errors import UsageError
from cnn_research.core.experiment import Result
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
    return dry_run_seeds(_runs(experiment, workdir, count), workdir)


def train(experiment: Training, workdir: Path, count: int, *, profile: bool = False) -> Result:
    """Train with `count` seeds from the experiment's own on, in WORKDIR/seed-SEED each.

    Where one of them fails, all stop, and resume together from the newest checkpoint of all. The
    result has the mean over seeds of each figure.

    Raises:
        UsageError: the experiment decides for each seed otherwise, or the folder holds another run,
            or other seeds.
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
        found = train_seeds(runs, workdir, profile=profile)
        if is_first_process():
            _summarise(runs, workdir)
    means = jax.tree.map(lambda *values: statistics.fmean(values), *(r.metrics for r in found))
    return Result(workdir, found[0].step, means)


def _runs(experiment: Training, workdir: Path, count: int) -> list[SeedRun]:
    if experiment.selection.patience:
        raise UsageError(
            "--replicas all train for the same number of steps: leave --selection.patience at 0"
        )
    if experiment.transfer.cache_after or experiment.transfer.fit_after:
        raise UsageError(
            "--replicas do not share features: leave --transfer.cache-after and .fit-after out, or "
            "give --pretrained=none"
        )
    seeds = range(experiment.seed, experiment.seed + count)
    return [
        SeedRun(dataclasses.replace(experiment, seed=seed), workdir / f"seed-{seed}")
        for seed in seeds
    ]


def _summarise(runs: list[SeedRun], workdir: Path) -> None:
    """Write results.json, and print the means."""
    evaluated = [found for run in runs if (found := read_run(run.workdir)) is not None]
    if not evaluated:
        return  # nothing to evaluate on
    (group,) = group_runs(evaluated)
    folders.write_json(workdir / RESULTS, results(group, workdir.name))
    print(f"\n{as_markdown([group])}\nRuns: {workdir}\nMetrics over seeds: {workdir / RESULTS}")
