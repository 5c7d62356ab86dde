"""Two consecutive trainings, the second of which starts from the first one's network."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import tyro

from cnn_research.core import run_folder as folders
from cnn_research.core.config import register_config
from cnn_research.core.errors import UserError
from cnn_research.core.experiment import Experiment, Result
from cnn_research.core.ranges import Seed
from cnn_research.models.pretrained import Pretrained
from cnn_research.train.config import Training
from cnn_research.workflows import pipeline

FIRST, SECOND = "pretraining", "training"


@register_config
@dataclasses.dataclass(frozen=True, kw_only=True)
class TwoStage(Experiment):
    """A pretraining, and a training that starts from its network with a new head.

    Evaluation, prediction and export use the second training.
    """

    pretraining: Training
    """The first training; skipped if `training.pretrained` names weights."""
    training: Training
    """The second training."""
    fresh: Annotated[tuple[str, ...], tyro.conf.Suppress]
    """New layers of its network, as patterns like those of `Pretrained`."""
    seed: Seed = 0
    """Seed of both trainings."""

    def check(self) -> None:
        super().check()
        self.pretraining.check()
        self.training.check()

    def stages(self) -> list[tuple[str, Training]]:
        """The trainings to run, in order, with the names of their folders."""
        pretraining, training = (
            dataclasses.replace(stage, seed=self.seed, name=f"{self.name}/{folder}")
            for folder, stage in ((FIRST, self.pretraining), (SECOND, self.training))
        )
        if training.pretrained.origin:
            return [(SECOND, training)]
        start = Pretrained(f"{folders.STAGE}{FIRST}", fresh=self.fresh)
        return [(FIRST, pretraining), (SECOND, dataclasses.replace(training, pretrained=start))]


def train(experiment: TwoStage, workdir: Path) -> Result:
    """Run the remaining stages, and return the result of the second training."""
    with pipeline.open_pipeline(experiment, workdir) as stages:
        for name, training in experiment.stages():
            result = stages.train(name, _with_outputs(training, workdir / name))
    return result


def _with_outputs(training: Training, folder: Path) -> Training:
    """Give the model the number of outputs of the run it starts from, unless the head is new."""
    from cnn_research.train.trained import bound_experiment

    start = folders.located(training.pretrained, folder).source
    if not (start and Path(start).is_dir()):
        return training
    outputs = bound_experiment(Path(start)).model.num_classes
    return dataclasses.replace(training, model=training.model.clone(num_classes=outputs))


def dry_run(experiment: TwoStage, workdir: Path) -> Result:
    return pipeline.dry_run(workdir, experiment.stages())


def evaluate(experiment: TwoStage, workdir: Path) -> Result:
    """Evaluate the second training, as `train.finish.evaluate` does."""
    from cnn_research.train import finish

    return finish.evaluate(_second(experiment, workdir), workdir / SECOND)


def predict(experiment: TwoStage, workdir: Path, source: str, *, neighbours: int = 0) -> Result:
    """Predict with the second training's network; write below its folder."""
    from cnn_research.inference.predict import predict_images

    training = _second(experiment, workdir)
    return predict_images(training, workdir / SECOND, source, neighbours=neighbours)


def export(experiment: TwoStage, workdir: Path) -> Result:
    from cnn_research.inference.export import FOLDER, export_run

    return export_run(_second(experiment, workdir), workdir / SECOND, workdir / FOLDER)


def _second(experiment: TwoStage, workdir: Path) -> Training:
    """Read the second training's saved config, and set this evaluation.

    Raises `UserError` if it has not run.
    """
    folders.check_same(experiment, workdir, ("training.evaluation",))
    saved = folders.saved_config(workdir / SECOND)
    if not isinstance(saved, Training):
        raise UserError(f"{workdir} has no training yet: run it first with --mode=train")
    return dataclasses.replace(saved, evaluation=experiment.training.evaluation)
