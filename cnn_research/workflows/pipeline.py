"""Pipelines: consecutive trainings, each of which is a run in its own subfolder.

Complete stages are not run again: the same command resumes a pipeline that was stopped at any
point, even if its folder was moved.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import jax

from cnn_research.core import run_folder as folders
from cnn_research.core.distributed import (
    broadcast_from_process_zero,
    is_first_process,
    max_over_processes,
    wait_for_all,
)
from cnn_research.core.experiment import Experiment, Result
from cnn_research.core.preemption import Interruption
from cnn_research.models.pretrained import Pretrained
from cnn_research.train.config import Training

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Pipeline:
    """The stages of an experiment whose folder is locked; all processes run them.

    `stages` are the names of the complete ones, which are folders below `workdir`. A signal between
    two stages sets `interruption`.
    """

    workdir: Path
    interruption: Interruption
    stages: list[str] = dataclasses.field(default_factory=list)

    def train(self, name: str, training: Training) -> Result:
        """Train in the folder `name`, or read the result if the training there is complete.

        Raises:
            Interrupted: a signal has arrived.
            UserError: those of `train.loop.train`.
        """
        from cnn_research.train import loop

        self.check()
        folder = self.workdir / name
        figures = folders.read_json(folder / folders.EVALUATION)
        step = broadcast_from_process_zero(figures.get("step"))
        if step is None:
            print(f"{name}: training in {folder}.")
            result = loop.train(training, folder)
            wait_for_all(name)
        else:
            print(f"{name}: complete in {folder}.")
            splits = {k: v for k, v in figures.items() if k in folders.EVALUATED}
            result = Result(folder, step, splits)
        self.stages.append(name)
        if step is None:
            folders.add_facts(self.workdir, stages=self.stages)
        return result

    def once(
        self, file: Path, compute: Callable[[], T], write: Callable[[Path, T], object]
    ) -> None:
        """Write the result of `compute` to a file, atomically, unless the file exists.

        All processes call `compute`; the first one calls `write` with the path to write to.
        """
        if broadcast_from_process_zero(file.exists() or None):
            return
        self.check()
        value = compute()
        if is_first_process():
            partial = file.with_name(f".partial.{file.name}")
            write(partial, value)
            partial.rename(file)
        wait_for_all(str(file))

    def check(self) -> None:
        """Raise `Interrupted` after a signal; long computations should call it often."""
        self.interruption.check(f"{len(self.stages)} stages are complete in {self.workdir}")


@contextlib.contextmanager
def open_pipeline(experiment: Experiment, workdir: Path) -> Iterator[Pipeline]:
    """Lock a folder for the stages of an experiment, and write its metadata there.

    run.json has `stages`, the names of the subfolders' runs, and `finished`, the time of
    completion.

    Raises:
        UserError: another process is using the folder.
        UsageError: the folder belongs to another experiment.
    """
    several = jax.process_count() > 1
    with (
        folders.locked(workdir),
        Interruption(max_over_processes if several else None) as interruption,
    ):
        folders.check_same(experiment, workdir, experiment.resumable_fields)
        before = folders.read_json(workdir / folders.RUN).get("stages", ())
        folders.write_metadata(experiment, workdir, step=len(before), finished=None)
        pipeline = Pipeline(workdir, interruption)
        yield pipeline
        finished = {"finished": folders.now(), "steps": len(pipeline.stages)}
        folders.add_facts(workdir, stages=pipeline.stages, **finished)


def dry_run(workdir: Path, stages: Sequence[tuple[str, Training]]) -> Result:
    """Estimate each training; the run from which it will start need not exist yet."""
    from cnn_research.train.dry_run import dry_run as dry_run_of

    for name, training in stages:
        print(f"{name}:")
        start = folders.located(training.pretrained, workdir / name).source
        if start and not Path(start).exists():
            training = dataclasses.replace(training, pretrained=Pretrained())
        result = dry_run_of(training, workdir / name)
    return result
