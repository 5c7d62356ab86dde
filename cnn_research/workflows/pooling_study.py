"""A study of pooling: the same classifier trained with each kind of pooling."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np

from cnn_research.core import run_folder as folders
from cnn_research.core.config import register_config
from cnn_research.core.distributed import is_first_process
from cnn_research.core.errors import UsageError
from cnn_research.core.experiment import Experiment, Result
from cnn_research.core.ranges import NonNegativeInt, PositiveInt
from cnn_research.core.terminal import show
from cnn_research.data.dataset import Split
from cnn_research.report.markdown import markdown_table
from cnn_research.report.plots import MARKERS, SERIES, plain_plot
from cnn_research.report.runs import mean_and_deviation
from cnn_research.train.config import Training
from cnn_research.workflows import pipeline
from cnn_research.workflows.page import new_page

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RESULTS = "results.json"
ACCURACY = "accuracy.json"
"""File in a training's folder with its test accuracy for each shift."""


@register_config
@dataclasses.dataclass(frozen=True, kw_only=True)
class PoolingStudy(Experiment):
    """One training per kind of pooling and seed, and their accuracies on shifted images."""

    resumable_fields: ClassVar = ("num_seeds",)

    training: Training
    """The training to repeat; its model is a ConvNet."""
    pooling: tuple[Literal["max", "average", "min", "stride"], ...] = ("max", "average", "min")
    """Kinds of pooling; 'stride' uses convolutions of stride 2 instead."""
    num_seeds: PositiveInt = 3
    """Number of trainings of each kind."""
    largest_shift: NonNegativeInt = 0
    """Maximum number of pixels by which evaluations shift images horizontally; 0 for none."""

    def check(self) -> None:
        super().check()
        if not self.pooling:
            raise UsageError("--pooling is empty: name at least one kind")
        self.training.check()

    @property
    def shifts(self) -> list[int]:
        """Shifts in pixels, from left to right."""
        return [*range(-self.largest_shift, self.largest_shift + 1)]

    def trainings(self) -> Iterator[tuple[str, str, Training]]:
        """Yield (kind, folder name, training) of each run."""
        for kind in self.pooling:
            for seed in range(self.num_seeds):
                model = self.training.model.clone(pooling=kind)
                training = dataclasses.replace(self.training, model=model, seed=seed)
                yield kind, f"{kind}-seed{seed}", training


def compare(study: PoolingStudy, workdir: Path) -> Result:
    """Run the remaining trainings, evaluate all, and write `report/`.

    The result has the mean test accuracy of each kind on unshifted images.
    """
    accuracy: dict[str, list[list[float]]] = {kind: [] for kind in study.pooling}
    with pipeline.open_pipeline(study, workdir) as stages:
        for kind, name, training in study.trainings():
            stages.train(name, training)
            file = workdir / name / ACCURACY
            measured = functools.partial(
                measure_accuracies, training, file.parent, study.shifts, stages.check
            )
            stages.once(
                file,
                measured,
                lambda to, values: to.write_text(json.dumps(values), encoding="utf-8"),
            )
            accuracy[kind].append(json.loads(file.read_text(encoding="utf-8")))
        return write(study, workdir, accuracy)


def dry_run(study: PoolingStudy, workdir: Path) -> Result:
    """Estimate the first training."""
    _, name, training = next(study.trainings())
    print(f"The first of {len(study.pooling) * study.num_seeds} trainings:")
    return pipeline.dry_run(workdir, [(name, training)])


def measure_accuracies(
    training: Training, folder: Path, shifts: Sequence[int], check: Callable[[], None]
) -> list[float]:
    """Measure a run's test accuracy on images shifted right by each of `shifts`, in pixels."""
    from cnn_research.core.distributed import data_mesh
    from cnn_research.train.evaluator import Evaluator
    from cnn_research.train.trained import TrainedModel

    model = TrainedModel.load(folder, training)
    experiment = model.experiment
    evaluator = Evaluator(experiment, experiment.model, data_mesh())
    split = model.load_data().splits["test"]
    accuracies = []
    for shift in shifts:
        check()
        moved = Split(images=shifted(split.images, shift), labels=split.labels)
        outcome = evaluator(model.state.variables(), moved)
        assert outcome is not None, "it is not interrupted"
        accuracies.append(experiment.fitted_task.means(outcome[0])["accuracy"])
    return accuracies


def shifted(images: np.ndarray, shift: int) -> np.ndarray:
    """Shift images `[examples, height, width, channels]` right by `shift` pixels, padding black."""
    width, right, left = images.shape[2], max(0, shift), max(0, -shift)
    return np.pad(images[:, :, left : width - right], ((0, 0), (0, 0), (right, left), (0, 0)))


def write(study: PoolingStudy, workdir: Path, accuracy: Mapping[str, list[list[float]]]) -> Result:
    """Write `report/` and results.json from `accuracy`, by kind, seed and shift."""
    shifts, still = study.shifts, study.largest_shift
    shown = sorted({0, *(s for s in (1, 2, 4, 8) if s <= study.largest_shift)})
    rows = []
    for kind, values in accuracy.items():
        # The mean over shifts to the left and to the right.
        cells = [np.asarray(values)[:, [still - s, still + s]].mean(axis=1) for s in shown]
        rows.append([kind, *(mean_and_deviation([float(x) for x in cell]) for cell in cells)])
    header = ["pooling", *("test accuracy" if not s else f"shifted by {s}" for s in shown)]
    table = markdown_table(header, rows)
    if len(shifts) > 1:
        figure = shifted_accuracy(shifts, accuracy)
    else:
        figure = kinds_accuracy({kind: [v[0] for v in values] for kind, values in accuracy.items()})
    show(f"\n{table}\n")
    with new_page(study, workdir, study.name or "Pooling") as page:
        seeds = f"{study.num_seeds} training{'s' * (study.num_seeds > 1)} of each kind"
        page.text(f"{seeds}; mean ± standard deviation.")
        page.text(table)
        page.picture("accuracy", figure, "Accuracy of each kind of pooling.")
    if is_first_process():
        results = {"shifts": shifts, "accuracy": dict(accuracy)}
        folders.write_json(workdir / RESULTS, results)
    means = {kind: np.mean(values, axis=0)[still] for kind, values in accuracy.items()}
    return Result(workdir, 0, {kind: {"accuracy": float(mean)} for kind, mean in means.items()})


def shifted_accuracy(
    shifts: Sequence[int], accuracy: Mapping[str, Sequence[Sequence[float]]]
) -> Figure:
    """Plot accuracies (by kind and seed) against the shift, with a band over the seeds."""
    figure, axes = plain_plot(6.4, 4.0)
    for (kind, values), color, marker in zip(accuracy.items(), SERIES, MARKERS):
        mean = np.mean(values, axis=0)
        axes.fill_between(
            shifts, np.min(values, axis=0), np.max(values, axis=0), color=color, alpha=0.2, lw=0
        )
        axes.plot(shifts, mean, color=color, marker=marker, markersize=4, linewidth=1.8, label=kind)
    axes.set_xlabel("shift of the images to the right, pixels")
    axes.set_ylabel("test accuracy")
    axes.set_ylim(0, 1)
    axes.legend(frameon=False, title="pooling", alignment="left")
    return figure


def kinds_accuracy(accuracy: Mapping[str, Sequence[float]]) -> Figure:
    """Plot the accuracy of each kind of network: one point per seed, and the mean."""
    figure, axes = plain_plot(1.5 * len(accuracy) + 1.8, 3.6)
    for (kind, values), color in zip(accuracy.items(), SERIES):
        mean = float(np.mean(values))
        axes.plot([kind] * len(values), values, "o", color=color, alpha=0.7)
        axes.plot([kind], [mean], "_", color=color, markersize=30, markeredgewidth=2)
        axes.annotate(
            *(f"{mean:.4f}", (kind, mean), (18, 0)), textcoords="offset points", va="center"
        )
    axes.margins(x=0.3)
    axes.set_xlabel("pooling")
    axes.set_ylabel("test accuracy")
    return figure
