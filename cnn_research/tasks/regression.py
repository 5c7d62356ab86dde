"""Regression: loss, metrics and report of one number per image."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from cnn_research.core.config import register_config
from cnn_research.core.errors import UsageError, UserError
from cnn_research.data.dataset import Dataset
from cnn_research.report.interval import interval, interval_text
from cnn_research.report.names import in_picture
from cnn_research.report.page import Predictions
from cnn_research.report.pictures import MOST_LISTED, Shown, pictures_table
from cnn_research.report.plots import GREY, SERIES, VERBATIM, image_grid, no_mistakes, saved
from cnn_research.tasks.task import FittedTask, SingleHeadTask, Sums, check_measured

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_MISTAKES = 24
"""Number of images in a figure."""


@register_config
@dataclasses.dataclass(frozen=True)
class Regression(SingleHeadTask):
    """Squared error on the numbers of one head.

    The model predicts standardised numbers, (number - mean) / deviation of the training split, so
    that it starts near the mean and learning rates do not depend on the unit.
    """

    metrics: ClassVar = {"MAE": "minimize", "loss": "minimize"}
    evaluation_metrics: ClassVar = {"RMSE": "minimize", "R2": "maximize"}

    def check(self) -> None:
        """Raise `UsageError` if the head is not set."""
        if not self.head:
            raise UsageError("--task.head is empty: name a column of numbers")

    def check_data(self, dataset: Dataset) -> None:
        """Raise `UserError` for a data set without these numbers, with only one number, or with an
        unlabelled split."""
        heads = dataset.splits["train"].labels
        if self.head not in heads or self.head in dataset.class_names:
            numbers = ", ".join(heads.keys() - dataset.class_names.keys())
            raise UserError(
                f"data set {dataset.name} has no numbers '{self.head}'; it has "
                f"{numbers or 'none'}: name a column of numbers with --data.number and --task.head"
            )
        if not _deviation(heads[self.head]) > 0:
            raise UserError(
                f"data set {dataset.name}: the training images have fewer than two different "
                f"numbers '{self.head}'; there is nothing to learn"
            )
        check_measured(dataset, self.heads, tuple(dataset.splits))

    def num_outputs(self, dataset: Dataset) -> int:
        return 1

    def fitted(self, dataset: Dataset) -> FittedRegression:
        """Return the task with the mean and deviation of the training split."""
        numbers = dataset.splits["train"].labels[self.head]
        mean = float(np.nanmean(numbers, dtype=np.float64))
        return FittedRegression(head=self.head, mean=mean, deviation=_deviation(numbers))


@register_config
@dataclasses.dataclass(frozen=True, kw_only=True)
class FittedRegression(Regression, FittedTask):
    """A regression task that knows its training split."""

    mean: float
    """Mean of the numbers."""
    deviation: float
    """Standard deviation, above 0."""

    def sums(self, outputs: jax.Array, labels: Mapping[str, jax.Array], weights: jax.Array) -> Sums:
        """Squared error of standardised numbers, float32 `[batch, 1]`, and absolute error in the
        unit of the labels, float32 `[batch]`, which are NaN if missing.

        The loss is thus the unexplained share of the training split's variance, and the RMSE is its
        square root times the deviation.
        """
        numbers = labels[self.head]
        known = ~jnp.isnan(numbers)
        target = (jnp.where(known, numbers, self.mean) - self.mean) / self.deviation
        error = outputs[:, 0] - target
        weights = jnp.where(known, weights, 0)
        count = weights.sum()
        return {
            "loss": ((weights * error**2).sum(), count),
            "MAE": ((weights * jnp.abs(error)).sum() * self.deviation, count),
        }

    def average_views(self, views: Sequence[jax.Array]) -> jax.Array:
        return jnp.stack(list(views)).mean(axis=0)

    def predictions(
        self, dataset: Dataset, split: str, outputs: np.ndarray, means: Mapping[str, float]
    ) -> dict[str, Predictions]:
        predicted = NumberPredictions(
            split=split,
            name=self.head,
            predicted=outputs[:, 0].astype(np.float64) * self.deviation + self.mean,
            numbers=dataset.splits[split].labels[self.head],
            training_mean=self.mean,
            loss=means["loss"],
        )
        return {self.head: predicted}

    def output_spec(self, class_names: Mapping[str, tuple[str, ...]]) -> list[dict[str, Any]]:
        head = {"name": self.head, "kind": "number", "start": 0, "stop": 1}
        return [{**head, "mean": self.mean, "std": self.deviation}]


def _deviation(numbers: np.ndarray) -> float:
    """Standard deviation of the numbers that are not NaN; 0 if there are none."""
    known = numbers[~np.isnan(numbers)]
    return float(known.std(dtype=np.float64)) if known.size else 0.0


@dataclasses.dataclass(frozen=True, eq=False)
class NumberPredictions(Predictions):
    """Predicted numbers of all examples of a split, for one head."""

    name: str
    """Name of the numbers, such as `year`."""
    predicted: np.ndarray
    """float64 `[examples]`, in the unit of the numbers."""
    numbers: np.ndarray
    """float32 `[examples]`; NaN for unlabelled examples, which are ignored."""
    training_mean: float
    """Mean of the training numbers, the baseline."""

    def __len__(self) -> int:
        return len(self.numbers)

    def metrics(self) -> dict[str, float | int]:
        """MAE and RMSE, in the unit of the numbers, and R2 if it is defined.

        The errors of always predicting the training mean are added. Raises `UserError` without
        labels.
        """
        true, predicted = self.known()
        if not true.size:
            raise UserError(f"split {self.split}: no example has a number to evaluate against")
        squared = ((predicted - true) ** 2).mean()
        metrics: dict[str, float | int] = {
            "loss": self.loss,
            "MAE": float(np.abs(predicted - true).mean()),
            "RMSE": float(np.sqrt(squared)),
        }
        if true.var() > 0:
            metrics["R2"] = float(1 - squared / true.var())
        metrics["MAE of the training mean"] = float(np.abs(self.training_mean - true).mean())
        of_mean = ((self.training_mean - true) ** 2).mean()
        metrics["RMSE of the training mean"] = float(np.sqrt(of_mean))
        return {**metrics, "count": len(true)}

    def verdict(self, groups: np.ndarray | None) -> str:
        """The MAE with its interval, compared with always predicting the training mean."""
        true, predicted = self.known()
        errors = np.abs(predicted - true)
        groups = None if groups is None else groups[~np.isnan(self.numbers)]
        limits = interval(errors, groups)
        text = f"On {errors.size:,} {self.split} images, {self.name} is off by {errors.mean():.4g}"
        text += interval_text(limits, ".4g", errors, groups)
        of_mean = np.abs(self.training_mean - true).mean()
        text += f" on average; always predicting the training mean would be off by {of_mean:.4g}"
        if limits is not None and limits[1] >= of_mean:
            text += ", and these images do not show that the network is better"
        return f"{text}."

    def page(self, folder: Path, suffix: str, shown: Shown | None) -> Iterator[str]:
        """Plot predicted against true numbers, and show the worst predictions."""
        true, predicted = self.known()
        yield (
            "MAE is the mean absolute error and RMSE the root mean squared error, both in the unit "
            f"of {self.name}; for comparison, those of always predicting the training mean are "
            "given. R2 is the explained share of the split's variance."
        )
        figure = estimates_plot(true, predicted, self.name, self.training_mean)
        yield saved(figure, folder / f"estimates{suffix}.png", "Predicted against true numbers")
        if shown is None:
            return
        figure = mistakes_plot(shown.images, self.numbers, self.predicted)
        figure.savefig(folder / f"mistakes{suffix}.png")
        worst = farthest_off(self.numbers, self.predicted, MOST_LISTED)
        if worst.size:
            yield "The predictions that are farthest off; some true numbers may be wrong:"
            digits = _digits(self.numbers)
            numbers = (self.numbers[worst], self.predicted[worst])
            rows = [[_rounded(number, digits) for number in each] for each in zip(*numbers)]
            name, columns = f"mistakes{suffix}", ("true", "predicted")
            yield pictures_table(shown, worst.tolist(), folder, name, columns, rows)

    def known(self) -> tuple[np.ndarray, np.ndarray]:
        """True and predicted numbers of the labelled examples, float64 `[labelled]` each."""
        known = ~np.isnan(self.numbers)
        return self.numbers[known].astype(np.float64), self.predicted[known]


def estimates_plot(
    true: np.ndarray, predicted: np.ndarray, name: str, training_mean: float
) -> Figure:
    """Plot predicted against true numbers, float `[examples]` each, one point per example.

    A square figure with equal axes, the diagonal, and the training mean as the baseline. If the
    true numbers are integers, points are spread sideways, or they would hide each other.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    whole = bool((true == np.round(true)).all())
    # Steps of the golden ratio fill a column evenly and deterministically.
    aside = 0.6 * (np.arange(len(true)) * 0.618034 % 1 - 0.5) if whole else 0
    low, high = (f([f(true), f(predicted)]) for f in (np.min, np.max))
    margin = 0.05 * (high - low) or 1.0
    limits = (low - margin, high + margin)
    figure = Figure(figsize=(4.8, 4.8), dpi=144, layout="constrained")
    axes = figure.subplots()
    faint = float(np.clip(300 / len(true), 0.08, 0.8))
    axes.scatter(true + aside, predicted, s=6, alpha=faint, color=SERIES[0], linewidths=0)
    axes.axline((low, low), slope=1, color=GREY, linewidth=1.2, label="predicted = true")
    dashed: dict[str, Any] = {"color": SERIES[1], "linestyle": "--", "linewidth": 1.2}
    axes.axhline(training_mean, **dashed, label="training mean")
    axes.set(xlim=limits, ylim=limits, aspect="equal")
    spread, name = " (points spread sideways)" if whole else "", in_picture(name)
    axes.set_xlabel(f"true {name}{spread}", **VERBATIM)
    axes.set_ylabel(f"predicted {name}", **VERBATIM)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(7, integer=whole))
    axes.ticklabel_format(useOffset=False)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9, loc="upper left")
    return figure


def mistakes_plot(images: np.ndarray, true: np.ndarray, predicted: np.ndarray) -> Figure:
    """Draw up to 24 images whose predictions are farthest from the true numbers, the worst first.

    Images are uint8 `[examples, height, width, channels]`, of which few are read; numbers are float
    `[examples]`, NaN if missing.
    """
    worst, digits = farthest_off(true, predicted, MOST_MISTAKES), _digits(true)
    titles = [f"{_rounded(predicted[i], digits)}\ntrue: {_rounded(true[i], digits)}" for i in worst]
    return image_grid(images[worst], titles) if worst.size else no_mistakes()


def farthest_off(true: np.ndarray, predicted: np.ndarray, most: int) -> np.ndarray:
    """Indices of the predictions that are farthest off, the worst first, int `[at most most]`."""
    errors = np.abs(np.nan_to_num(predicted - true))
    worst = np.argsort(-errors, kind="stable")[:most]
    return worst[errors[worst] > 0]


def _digits(numbers: np.ndarray) -> int:
    """Decimal places that show differences of a hundredth of the standard deviation."""
    spread = np.nanstd(numbers)
    return max(0, 1 - math.floor(math.log10(spread))) if spread > 0 else 0


def _rounded(number: float, digits: int) -> str:
    """Format a number with up to `digits` decimal places, without trailing zeros."""
    return np.format_float_positional(round(float(number), digits), trim="-")
