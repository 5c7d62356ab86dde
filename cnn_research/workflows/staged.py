"""Two trainings, one after the other: the second starts from the first one's network.

Each is a run of its own in a folder below; one that is complete is not run again.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import tyro

from cnn_research.core import run_folder as folders
from cnn_research.core.config import register_config
from cnn_research.core.errors import UserError
from cnn_research.core.experiment import Experiment, Result
from cnn_research.models.pretrained import Pretrained
from cnn_research.train.config import Training

FIRST, SECOND = "pretraining", "training"
"""The folders of the two."""


@register_config
@dataclasses.dataclass(frozen=True, kw_only=True)
class Staged(Experiment):
    """A pretraining, and a training that takes over its network but for a new head.

    What it is asked, it is the training that answers.
    """

    pretraining: Training
    """The first; not run where `training.pretrained.source` names weights."""
    training: Training
    """The second."""
    fresh: Annotated[tuple[str, ...], tyro.conf.Suppress]
    """What of its network is new: patterns, as in `Pretrained`."""
    seed: int = 0
    """Of both."""

    def check(self) -> None:
        super().check()
        self.pretraining.check()
        self.training.check()

    def stages(self, workdir: Path) -> dict[str, Training]:
        """The trainings that are run, by their folder's name, in order."""
        pretraining, training = (
            dataclasses.replace(stage, seed=self.seed, name=f"{self.name}/{folder}")
            for folder, stage in ((FIRST, self.pretraining), (SECOND, self.training))
        )
        if training.pretrained.source:
            return {SECOND: training}
        start = Pretrained(str(workdir / FIRST), fresh=self.fresh)
        return {FIRST: pretraining, SECOND: dataclasses.replace(training, pretrained=start)}


def train(experiment: Staged, workdir: Path) -> Result:
    """Runs what is not complete yet.

    Returns:
        What the training ends with.
    """
    from cnn_research.train.trained import bound_experiment

    with folders.claimed(workdir):
        folders.check_same(experiment, workdir, ())
        folders.describe(experiment, workdir)
        for name, training in experiment.stages(workdir).items():
            if (before := training.pretrained.source) and Path(before).is_dir():
                # What is taken over has as many outputs as there; a new head has its own.
                outputs = bound_experiment(Path(before)).model.num_classes
                model = training.model.clone(num_classes=outputs)
                training = dataclasses.replace(training, model=model)
            found = train_once(name, training, workdir / name)
    return found


def dry_run(experiment: Staged, workdir: Path) -> Result:
    """Says what each training will take, as `runner.dry_run` does."""
    for name, training in experiment.stages(workdir).items():
        found = dry_run_of(name, training, workdir / name)
    return found


def dry_run_of(name: str, training: Training, folder: Path) -> Result:
    """Says what a training will take; what it will start from need not be there yet."""
    from cnn_research.train import loop as runner

    print(f"{name}:")
    start = Path(training.pretrained.source)
    if training.pretrained.source and not start.exists():
        training = dataclasses.replace(training, pretrained=Pretrained())
    return runner.dry_run(training, folder)


def train_once(name: str, training: Training, folder: Path) -> Result:
    """Trains in a folder, or reads what came of it where that is complete."""
    from cnn_research.train import loop as runner

    figures = folders.read_json(folder / folders.EVALUATION)
    if figures:
        print(f"{name}: complete in {folder}.")
        step = figures["step"]
        return Result(folder, step, {k: v for k, v in figures.items() if k in folders.EVALUATED})
    print(f"{name}: training in {folder}.")
    return runner.train(training, folder)


def evaluate(experiment: Staged, workdir: Path) -> Result:
    """Evaluates the training, as `evaluate.evaluate` does."""
    from cnn_research.train import finish

    return finish.evaluate(_second(experiment, workdir), workdir / SECOND)


def predict(experiment: Staged, workdir: Path, source: str, *, neighbours: int = 0) -> Result:
    """Asks the training about images, as `predict.predict_images` does; the answers are below its
    folder."""
    from cnn_research.inference.predict import predict_images

    training = _second(experiment, workdir)
    return predict_images(training, workdir / SECOND, source, neighbours=neighbours)


def export(experiment: Staged, workdir: Path) -> Result:
    """Exports the training's network, as `export.export` does."""
    from cnn_research.inference.export import FOLDER, export_to

    return export_to(_second(experiment, workdir), workdir / SECOND, workdir / FOLDER)


def _second(experiment: Staged, workdir: Path) -> Training:
    """The training as it was run, which may be evaluated otherwise.

    Raises:
        UserError: there is none.
    """
    folders.check_same(experiment, workdir, ("training.evaluation",))
    saved = folders.saved_config(workdir / SECOND)
    if not isinstance(saved, Training):
        raise UserError(f"{workdir} holds no training yet: run it first, with --mode=train")
    return dataclasses.replace(saved, evaluation=experiment.training.evaluation)
