"""Claims of the lectures, put to the test: the same classifier, trained with each kind of pooling.

Each training is a run of its own in a folder below; one that is complete is not run again.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np

from cnn_research.core import run_folder as folders
from cnn_research.core.config import register_config, to_dict
from cnn_research.core.errors import UsageError
from cnn_research.core.experiment import Experiment, Result
from cnn_research.data.dataset import Split
from cnn_research.report.html import write_page
from cnn_research.report.markdown import markdown_table
from cnn_research.report.plots import kinds_accuracy, shifted_accuracy
from cnn_research.report.runs import mean_and_deviation
from cnn_research.train.config import Training

RESULTS = "results.json"


@register_config
@dataclasses.dataclass(frozen=True, kw_only=True)
class PoolingStudy(Experiment):
    """One training for each kind of pooling and seed, and their accuracy on shifted images."""

    resumable_fields: ClassVar = ("seeds",)

    training: Training
    """What is trained; its model is a ConvNet."""
    pooling: tuple[Literal["max", "average", "min", "stride"], ...] = ("max", "average", "min")
    """The kinds; 'stride' is no pooling, but convolutions that move two pixels at a time."""
    seeds: int = 3
    """Trainings of each kind."""
    largest_shift: int = 0
    """Evaluate on images moved sideways by up to so many pixels; 0 only where they are."""

    def check(self) -> None:
        super().check()
        if self.seeds < 1 or self.largest_shift < 0 or not self.pooling:
            raise UsageError(
                "--seeds must be 1 or more, --largest-shift 0 or more, --pooling given"
            )
        self.training.check()

    def trainings(self) -> Iterator[tuple[str, int, Training]]:
        """(kind, seed, training) of each run."""
        for kind in self.pooling:
            for seed in range(self.seeds):
                model = self.training.model.clone(pooling=kind)
                yield kind, seed, dataclasses.replace(self.training, model=model, seed=seed)


def compare(study: PoolingStudy, workdir: Path) -> Result:
    """Trains what is not trained yet, evaluates it all, and writes `report/` with its figure.

    Returns:
        The mean test accuracy of each kind, on images where they are.
    """
    from cnn_research.train import loop as runner

    with folders.claimed(workdir):
        folders.check_same(study, workdir, study.resumable_fields)
        folders.describe(study, workdir)
        shifts = range(-study.largest_shift, study.largest_shift + 1)
        accuracy: dict[str, list[list[float]]] = {kind: [] for kind in study.pooling}
        for kind, seed, training in study.trainings():
            folder = workdir / f"{kind}-seed{seed}"
            if not (folder / folders.EVALUATION).exists():
                print(f"Training with {kind} pooling, seed {seed}, in {folder}.")
                runner.train(training, folder)
            accuracy[kind].append(accuracies(training, folder, shifts))
        return write(study, workdir, list(shifts), accuracy)


def dry_run(study: PoolingStudy, workdir: Path) -> Result:
    """Says what the first of the trainings will take, as `runner.dry_run` does."""
    from cnn_research.train import loop as runner

    kind, seed, training = next(study.trainings())
    print(f"The first of {len(study.pooling) * study.seeds} trainings:")
    return runner.dry_run(training, workdir / f"{kind}-seed{seed}")


def accuracies(training: Training, folder: Path, shifts: Sequence[int]) -> list[float]:
    """The test accuracy of a trained run on images moved to the right by so many pixels each."""
    from cnn_research.core.distributed import data_mesh
    from cnn_research.train.evaluator import Evaluator
    from cnn_research.train.trained import TrainedModel

    model = TrainedModel.load(folder, training)
    experiment = model.experiment
    evaluator = Evaluator(experiment, experiment.model, data_mesh())
    split = model.load_data().splits["test"]
    found = []
    for shift in shifts:
        moved = Split(images=shifted(split.images, shift), labels=split.labels)
        outcome = evaluator(model.state.variables(), moved)
        assert outcome is not None, "nothing stops it"
        found.append(experiment.fitted_task.means(outcome[0])["accuracy"])
    return found


def shifted(images: np.ndarray, shift: int) -> np.ndarray:
    """Images moved to the right by `shift` pixels (to the left below 0); black comes in.

    Args:
        images: `[examples, height, width, channels]`.
        shift: less than the width.
    """
    moved = np.zeros_like(images)
    width = images.shape[2]
    moved[:, :, max(0, shift) : width + min(0, shift)] = images[
        :, :, max(0, -shift) : width - max(0, shift)
    ]
    return moved


def write(
    study: PoolingStudy, workdir: Path, shifts: list[int], accuracy: Mapping[str, list[list[float]]]
) -> Result:
    """Writes `report/`, a page and its figure, and results.json.

    Args:
        study: what was run.
        workdir: where.
        shifts: in pixels.
        accuracy: per kind, per seed, the test accuracy for each shift.
    """
    report = workdir / "report"
    report.mkdir(exist_ok=True)
    means = {kind: np.mean(values, axis=0) for kind, values in accuracy.items()}
    still = shifts.index(0)
    shown = sorted({0, *(s for s in (1, 2, 4, 8) if s <= study.largest_shift)})
    columns = [still if not s else (shifts.index(-s), shifts.index(s)) for s in shown]
    rows = []
    for kind, values in accuracy.items():
        cells = [np.asarray(values)[:, np.atleast_1d(column)].mean(axis=1) for column in columns]
        rows.append([kind, *(mean_and_deviation([float(x) for x in cell]) for cell in cells)])
    header = ["pooling", *("test accuracy" if not s else f"moved by {s}" for s in shown)]
    if len(shifts) > 1:
        figure = shifted_accuracy(shifts, accuracy)
    else:
        figure = kinds_accuracy({kind: [v[0] for v in values] for kind, values in accuracy.items()})
    figure.savefig(report / "accuracy.png")
    seeds = f"{study.seeds} training{'s' * (study.seeds > 1)} of each kind"
    table = markdown_table(header, rows)
    parts = [
        f"# {study.name or 'Pooling'}",
        f"{seeds}; mean ± standard deviation.",
        table,
        "![Accuracy of each kind of pooling](accuracy.png)",
    ]
    page = write_page(report, parts, to_dict(study))
    folders.write_json(workdir / RESULTS, {"shifts": shifts, "accuracy": dict(accuracy)})
    print(f"\n{table}\n\nReport: {page}")
    figures = {kind: {"accuracy": float(values[still])} for kind, values in means.items()}
    return Result(workdir, 0, figures)
