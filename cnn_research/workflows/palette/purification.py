"""The palette paper's second phase: colour names from noisy labels, purified in rounds.

A pipeline: a training, and rounds of a training and the purification of what it was trained on.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import numpy as np

from cnn_research.core import run_folder as folders
from cnn_research.core.config import register_config
from cnn_research.core.errors import UserError
from cnn_research.core.experiment import Experiment, Result
from cnn_research.core.ranges import NonNegativeInt, Range, Seed
from cnn_research.core.terminal import show
from cnn_research.models.pretrained import Pretrained
from cnn_research.report.markdown import markdown_table
from cnn_research.report.plots import SERIES, VERBATIM, blank_grid, plain_plot, show_image
from cnn_research.train.config import Training
from cnn_research.train.transfer import Transfer
from cnn_research.workflows import pipeline
from cnn_research.workflows.page import new_page

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FIRST = "ss_cnn"
"""The folder of the first phase; those of the second are `round_0`, `round_1` and so on."""
KEEP_MASK = "kept.npy"
DISCARDED = "discarded.png"
MOST_DISCARDED = 20
"""Crops of each class in that picture."""
FEATURES = "features"
"""Layer of the compared outputs: after the third convolution."""
LAST = "fc"
"""The layer that is trained on them, alone."""


@register_config
@dataclasses.dataclass(frozen=True, kw_only=True)
class Purification(Experiment):
    """A self-supervised network, a last layer on its features, and rounds of purification.

    In each round the crops that a class's network knows best are its seeds, the mean of their
    features its centre; of each class the crops farthest from its centre, by how near they are to
    another, are discarded, and the last layer is trained anew on the others.
    """

    resumable_fields: ClassVar = ("rounds",)

    ss_cnn: Training
    """Training of the first phase."""
    naming: Training
    """Training of the second phase, on `Crops`. It starts from the first phase's network, and
    trains a new last layer alone."""
    rounds: NonNegativeInt = 3
    """Rounds of purification, each with a training after it; 0 trains on all crops alone."""
    seed_fraction: Annotated[float, Range(above=0, maximum=1)] = 0.1
    """The fraction of a class's correctly named crops that are its seeds: the surest ones."""
    discard: Annotated[float, Range(above=0, below=1)] = 0.1
    """The share of a class's crops that a round discards."""
    seed: Seed = 0
    """Seed of every training below."""

    def check(self) -> None:
        super().check()
        self.ss_cnn.check()
        self.naming.check()

    def first(self) -> Training:
        return dataclasses.replace(self.ss_cnn, seed=self.seed, name=f"{self.name}/{FIRST}")

    def training(self, number: int) -> Training:
        """The training of a round; round 0 is on all crops."""
        mask = f"{folders.STAGE}round_{number - 1}/{KEEP_MASK}" if number else ""
        return dataclasses.replace(
            self.naming,
            data=dataclasses.replace(self.naming.data, keep_mask_file=mask),
            pretrained=Pretrained(f"{folders.STAGE}{FIRST}", fresh=(LAST,)),
            transfer=Transfer(cache_after=FEATURES),
            seed=self.seed,
            name=f"{self.name}/round_{number}",
        )


def purify(experiment: Purification, workdir: Path) -> Result:
    """Run the remaining stages, and write `report/` with the accuracy of each round, which is
    returned."""
    with pipeline.open_pipeline(experiment, workdir) as stages:
        stages.train(FIRST, experiment.first())
        for number in range(experiment.rounds + 1):
            name, training = f"round_{number}", experiment.training(number)
            stages.train(name, training)
            # What the last round would discard, no training uses.
            if number < experiment.rounds:
                discarded = functools.partial(discard, experiment, training, workdir / name)
                stages.once(workdir / name / KEEP_MASK, discarded, _write_mask)
        return write(experiment, workdir)


def dry_run(experiment: Purification, workdir: Path) -> Result:
    """Estimate the first phase; the rounds take less."""
    result = pipeline.dry_run(workdir, [(FIRST, experiment.first())])
    print(f"{experiment.rounds + 1} trainings of the last layer on its features follow.")
    return result


def last_round(experiment: Purification, workdir: Path) -> Path:
    """Folder of the last round's training; a `UserError` if it is not complete."""
    folders.check_same(experiment, workdir, experiment.resumable_fields)
    last = workdir / f"round_{experiment.rounds}"
    if not (last / folders.EVALUATION).exists():
        raise UserError(f"{last} is not complete: run the experiment first, with --mode=run")
    return last


def export(experiment: Purification, workdir: Path) -> Result:
    """Export the last round's network, of one crop, as `export_run` does."""
    from cnn_research.inference.export import FOLDER, export_run

    last = last_round(experiment, workdir)
    saved = folders.saved_config(last)
    assert isinstance(saved, Training), "a round is a training"
    return export_run(saved, last, workdir / FOLDER)


def discard(
    experiment: Purification, training: Training, folder: Path
) -> tuple[np.ndarray, Figure]:
    """Select the crops for the next round, bool `[training crops]`, and draw the discarded ones."""
    from cnn_research.core.distributed import data_mesh
    from cnn_research.train.evaluator import Evaluator
    from cnn_research.train.trained import TrainedModel, model_and_splits

    model = TrainedModel.load(folder, training)
    dataset = model.load_data()
    network, splits = model_and_splits(model.experiment, model.state, dataset)
    evaluator = Evaluator(model.experiment, network, data_mesh())
    outcome = evaluator(model.state.variables(), splits["train"])
    assert outcome is not None, "nothing stops it"
    features = np.asarray(splits["train"].images[:, 0], np.float32)
    (head,) = model.experiment.task.heads
    labels = dataset.splits["train"].labels[head]
    distances = to_centres(features, outcome[1], labels, experiment.seed_fraction)
    ratios = to_own(distances, labels)
    keep = keep_mask(ratios, labels, experiment.discard)
    images, names = dataset.splits["train"].images, dataset.class_names[head]
    return keep, discarded_plot(images, np.where(keep, -1, labels), names, ratios)


def _write_mask(file: Path, discarded: tuple[np.ndarray, Figure]) -> None:
    keep, figure = discarded
    figure.savefig(file.with_name(DISCARDED))
    with file.open("wb") as written:
        np.save(written, keep)
    print(f"{file.parent.name}: {keep.sum():,} of {len(keep):,} crops stay.")


def to_centres(
    features: np.ndarray, logits: np.ndarray, labels: np.ndarray, share: float
) -> np.ndarray:
    """Distance of each sample to the centre of each class: the mean of the class's seeds.

    Features are float32 `[samples, dimensions]`, logits float32 `[samples, classes]`, labels int
    `[samples]`, below 0 where not known. The seeds are the surest `share` of a class's correctly
    named samples, at least one.

    Returns:
        float32 `[samples, classes]`; NaN for a class without a correctly named sample.
    """
    from scipy.special import log_softmax

    named = logits.argmax(axis=1)
    sure = log_softmax(logits, axis=1).max(axis=1)
    distances = np.full(logits.shape, np.nan, np.float32)
    for label in range(logits.shape[1]):
        correct = np.flatnonzero((labels == label) & (named == label))
        if correct.size:
            surest = correct[np.argsort(-sure[correct], kind="stable")]
            seeds = surest[: max(1, round(share * len(correct)))]
            centre = features[seeds].mean(axis=0)
            distances[:, label] = np.linalg.norm(features - centre, axis=1)
    return distances


def to_own(distances: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Ratio of each sample's distance to its own class centre and that to the nearest other.

    The paper discards what is "too far" from its centre. Far is not wrong: a light blue is as
    far from the centre of blue as many a wrong label. But a blue that is called red is also near to
    the centre of blue.

    Distances are `[samples, classes]`, from `to_centres`; labels int `[samples]`, below 0 where not
    known. The result is float32 `[samples]`; NaN where the label is not known, or its class or
    every other one has no centre.
    """
    rows = np.arange(len(labels))
    own = distances[rows, np.maximum(labels, 0)]
    others = np.where(np.isnan(distances), np.inf, distances)
    others[rows, np.maximum(labels, 0)] = np.inf
    nearest = others.min(axis=1)
    usable = (labels >= 0) & np.isfinite(nearest)
    return np.where(usable, own / np.maximum(nearest, 1e-12), np.nan).astype(np.float32)


def keep_mask(ratios: np.ndarray, labels: np.ndarray, share: float) -> np.ndarray:
    """Mask of the samples that stay: all labelled ones but, of each class, the farthest `share`.

    Ratios, `[samples]`, are those of `to_own`; a class without a centre stays as it is.
    """
    keep = labels >= 0
    for label in np.unique(labels[keep]):
        members = np.flatnonzero((labels == label) & ~np.isnan(ratios))
        order = members[np.argsort(ratios[members], kind="stable")]
        keep[order[len(order) - round(share * len(order)) :]] = False
    return keep


def discarded_plot(
    images: np.ndarray, labels: np.ndarray, names: Sequence[str], ratios: np.ndarray
) -> Figure:
    """Draw a row of discarded crops for each class, the farthest first, after its name.

    Images are uint8 `[crops, height, width, channels]`; the labels of others are below 0.
    """
    columns = min(MOST_DISCARDED, max(1, np.bincount(labels[labels >= 0], minlength=1).max()))
    size = (1.2 + 0.42 * columns, 0.46 * len(names))
    widths = [1.2 / 0.42, *[1] * columns]
    figure, grid = blank_grid(len(names), columns + 1, size, width_ratios=widths)
    for label, (name, (first, *rest)) in enumerate(zip(names, grid, strict=True)):
        members = np.flatnonzero(labels == label)
        farthest = members[np.argsort(-ratios[members], kind="stable")]
        where: dict[str, Any] = {"ha": "right", "va": "center", "transform": first.transAxes}
        first.text(1, 0.5, f"{name}: {len(members):,}", fontsize=7.5, **where, **VERBATIM)
        for axes, index in zip(rest, farthest, strict=False):
            show_image(axes, images[index])
    return figure


def write(experiment: Purification, workdir: Path) -> Result:
    """Write `report/`, a page and its figure, from what the stages have left."""
    stages = [workdir / f"round_{number}" for number in range(experiment.rounds + 1)]
    rounds = {stage.name: folders.read_json(stage / folders.EVALUATION) for stage in stages}
    crops = ["all", *(f"{np.load(stage / KEEP_MASK).sum():,}" for stage in stages[:-1])]
    names = [name for name in ("validation", "test") if name in rounds["round_0"]]
    curves: dict[str, list[float]] = {
        name: [values[name]["macro recall"] for values in rounds.values()] for name in names
    }
    table = markdown_table(
        ["round", "crops", *(f"{name} accuracy, mean of classes" for name in names)],
        [
            [str(number), crops[number], *(f"{curve[number]:.4f}" for curve in curves.values())]
            for number in range(len(stages))
        ],
    )
    show(f"\n{table}\n")
    with new_page(experiment, workdir, experiment.name or "Purification") as page:
        page.text(table)
        page.picture("rounds", rounds_plot(curves), "Accuracy by round.")
        for number in range(experiment.rounds):
            page.text(f"Discarded after round {number}, the farthest first:")
            page.text(f"![Discarded crops of each class](../round_{number}/{DISCARDED})")
    return Result(workdir, 0, {name: dict(values) for name, values in rounds.items()})


def rounds_plot(accuracy: Mapping[str, Sequence[float]]) -> Figure:
    """The accuracy of each round, a line per split."""
    figure, axes = plain_plot(5, 3.2)
    for (name, values), color in zip(accuracy.items(), SERIES):
        axes.plot(range(len(values)), values, color=color, marker="o", markersize=4, label=name)
        axes.annotate(
            f"{values[-1]:.3f}", (len(values) - 1, values[-1]), xytext=(6, 0),
            textcoords="offset points", va="center", fontsize=8, color=color,
        )  # fmt: skip
    axes.set_xticks(range(len(next(iter(accuracy.values())))))
    axes.set_xlabel("rounds of purification before the training")
    axes.set_ylabel("accuracy, mean of classes")
    axes.legend(frameon=False)
    return figure
