"""The palette paper's second phase: colour names from noisy labels, purified in rounds.

A pipeline of one training, followed by rounds of a training and the purification of its data.
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
"""Folder of the first phase; those of the second are `round_0`, `round_1` and so on."""
KEEP_MASK = "kept.npy"
DISCARDED = "discarded.png"
MOST_DISCARDED = 20
"""Maximum number of crops per class in that figure."""
FEATURES = "features"
"""Layer whose outputs are compared, after the third convolution."""
LAST = "fc"
"""The only layer that is trained on them."""


@register_config
@dataclasses.dataclass(frozen=True, kw_only=True)
class Purification(Experiment):
    """A self-supervised network, a last layer on its features, and rounds of purification.

    In each round a class's most confident crops are its seeds, and the mean of their features is
    its centre. The crops of a class that are farthest from its centre, relative to the nearest
    other centre, are discarded, and the last layer is trained again on the rest.
    """

    resumable_fields: ClassVar = ("rounds",)

    ss_cnn: Training
    """Training of the first phase."""
    naming: Training
    """Training of the second phase, on `Crops`. It starts from the first phase's network and trains
    only a new last layer."""
    rounds: NonNegativeInt = 3
    """Rounds of purification, each followed by a training; 0 for one training on all crops."""
    seed_fraction: Annotated[float, Range(above=0, maximum=1)] = 0.1
    """Fraction of a class's correctly named crops that are its seeds, the most confident ones."""
    discard: Annotated[float, Range(above=0, below=1)] = 0.1
    """Fraction of a class's crops that each round discards."""
    seed: Seed = 0
    """Seed of all trainings."""

    def check(self) -> None:
        super().check()
        self.ss_cnn.check()
        self.naming.check()

    def first(self) -> Training:
        return dataclasses.replace(self.ss_cnn, seed=self.seed, name=f"{self.name}/{FIRST}")

    def training(self, number: int) -> Training:
        """The training of a round; round 0 uses all crops."""
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
    """Run the remaining stages, write `report/`, and return the metrics of each round."""
    with pipeline.open_pipeline(experiment, workdir) as stages:
        stages.train(FIRST, experiment.first())
        for number in range(experiment.rounds + 1):
            name, training = f"round_{number}", experiment.training(number)
            stages.train(name, training)
            # The last round discards nothing, as no training follows.
            if number < experiment.rounds:
                discarded = functools.partial(discard, experiment, training, workdir / name)
                stages.once(workdir / name / KEEP_MASK, discarded, _write_mask)
        return write(experiment, workdir)


def dry_run(experiment: Purification, workdir: Path) -> Result:
    """Estimate the first phase; the rounds are shorter."""
    result = pipeline.dry_run(workdir, [(FIRST, experiment.first())])
    print(f"{experiment.rounds + 1} trainings of the last layer on its features follow.")
    return result


def last_round(experiment: Purification, workdir: Path) -> Path:
    """Return the folder of the last round's training; raise `UserError` if it is not complete."""
    folders.check_same(experiment, workdir, experiment.resumable_fields)
    last = workdir / f"round_{experiment.rounds}"
    if not (last / folders.EVALUATION).exists():
        raise UserError(f"{last} is not complete: run the experiment first with --mode=run")
    return last


def export(experiment: Purification, workdir: Path) -> Result:
    """Export the last round's network, whose input is one crop, by `export_run`."""
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
    assert outcome is not None, "it is not interrupted"
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
    print(f"{file.parent.name}: keeping {keep.sum():,} of {len(keep):,} crops.")


def to_centres(
    features: np.ndarray, logits: np.ndarray, labels: np.ndarray, share: float
) -> np.ndarray:
    """Compute the distance of each sample to the centre of each class, the mean of its seeds.

    Features are float32 `[samples, dimensions]`, logits float32 `[samples, classes]`, labels int
    `[samples]`, below 0 if missing. The seeds are the most confident `share` of a class's
    correctly named samples, at least one.

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
    """Divide each sample's distance to its own class centre by that to the nearest other centre.

    The paper discards samples that are "too far" from their centre. But distant samples need not be
    wrong: a light blue is as far from the centre of blue as many wrong labels. A blue that is
    called red, however, is also near the centre of blue.

    Distances are `[samples, classes]`, from `to_centres`; labels int `[samples]`, below 0 if
    missing. The result is float32 `[samples]`; NaN if the label is missing, or if its class, or all
    others, have no centre.
    """
    rows = np.arange(len(labels))
    own = distances[rows, np.maximum(labels, 0)]
    others = np.where(np.isnan(distances), np.inf, distances)
    others[rows, np.maximum(labels, 0)] = np.inf
    nearest = others.min(axis=1)
    usable = (labels >= 0) & np.isfinite(nearest)
    return np.where(usable, own / np.maximum(nearest, 1e-12), np.nan).astype(np.float32)


def keep_mask(ratios: np.ndarray, labels: np.ndarray, share: float) -> np.ndarray:
    """Mask the samples to keep: all labelled ones except the farthest `share` of each class.

    Ratios, `[samples]`, are those of `to_own`; classes without a centre are kept.
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
    """Draw one row of discarded crops per class, after its name, the farthest first.

    Images are uint8 `[crops, height, width, channels]`; labels of kept crops are below 0.
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
    """Write `report/` from the results of the stages."""
    stages = [workdir / f"round_{number}" for number in range(experiment.rounds + 1)]
    rounds = {stage.name: folders.read_json(stage / folders.EVALUATION) for stage in stages}
    crops = ["all", *(f"{np.load(stage / KEEP_MASK).sum():,}" for stage in stages[:-1])]
    names = [name for name in ("validation", "test") if name in rounds["round_0"]]
    curves: dict[str, list[float]] = {
        name: [values[name]["macro recall"] for values in rounds.values()] for name in names
    }
    table = markdown_table(
        ["round", "crops", *(f"{name} accuracy, mean over classes" for name in names)],
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
    """Plot the accuracy of each round, one line per split."""
    figure, axes = plain_plot(5, 3.2)
    for (name, values), color in zip(accuracy.items(), SERIES):
        axes.plot(range(len(values)), values, color=color, marker="o", markersize=4, label=name)
        axes.annotate(
            f"{values[-1]:.3f}", (len(values) - 1, values[-1]), xytext=(6, 0),
            textcoords="offset points", va="center", fontsize=8, color=color,
        )  # fmt: skip
    axes.set_xticks(range(len(next(iter(accuracy.values())))))
    axes.set_xlabel("rounds of purification before the training")
    axes.set_ylabel("accuracy, mean over classes")
    axes.legend(frameon=False)
    return figure
