"""One number per image: loss, metrics, and what a report shows of the predictions."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from cnn_research.core.config import register_config
from cnn_research.core.errors import UsageError, UserError
from cnn_research.report.page import Predictions
from cnn_research.tasks.task import FittedTask, Sums, Task

if TYPE_CHECKING:
    import jax

    from cnn_research.data.dataset import Dataset


@register_config
@dataclasses.dataclass(frozen=True)
class Regression(Task):
    """Squared error on the numbers of one head.

    The model estimates standardised numbers, (number - mean) / deviation of the training split:
    so it starts near their mean, and a learning rate suits any unit.
    """

    metrics: ClassVar = {"MAE": "minimize", "loss": "minimize"}
    evaluation_metrics: ClassVar = {"RMSE": "minimize", "R2": "maximize"}

    head: str = "label"
    """Which of the data set's labels."""

    @property
    def heads(self) -> tuple[str, ...]:
        return (self.head,)

    def check(self) -> None:
        """Raises `UsageError` where no head is named."""
        if not self.head:
            raise UsageError("task.head is empty: name a column of numbers")

    def check_data(self, dataset: Dataset) -> None:
        """Raises `UserError` for a data set without such numbers, or with one number only.

        Or with a split in which none is known.
        """
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
                f"numbers '{self.head}'; there is nothing to estimate"
            )
        for name, split in dataset.splits.items():
            if np.isnan(split.labels[self.head]).all():
                raise UserError(
                    f"data set {dataset.name}: no image of its {name} split has a known number "
                    f"'{self.head}', so that nothing can be measured: take another split or column"
                )

    def outputs(self, dataset: Dataset) -> int:
        """One."""
        return 1

    def fitted(self, dataset: Dataset) -> FittedRegression:
        """The regression with the mean and the deviation of the training split."""
        numbers = dataset.splits["train"].labels[self.head]
        mean = float(np.nanmean(numbers, dtype=np.float64))
        return FittedRegression(head=self.head, mean=mean, deviation=_deviation(numbers))


@register_config
@dataclasses.dataclass(frozen=True, kw_only=True)
class FittedRegression(Regression, FittedTask):
    """A regression that knows its training split."""

    mean: float
    """Of the numbers that are known."""
    deviation: float
    """Their standard deviation, above 0."""

    def sums(self, outputs: jax.Array, labels: Mapping[str, jax.Array], weights: jax.Array) -> Sums:
        """Squared error of standardised numbers, and absolute error in the numbers' unit.

        The loss is thus the share of the training split's variance that is left unexplained, and
        the root of the mean squared error is its own root times the deviation.

        Args:
            outputs: standardised, float32 `[batch, 1]`.
            labels: per head, float32 `[batch]`; NaN where not known.
            weights: float32 `[batch]`, 0 for padding.
        """
        import jax.numpy as jnp

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

    def averaged(self, views: Sequence[jax.Array]) -> jax.Array:
        """The views' mean."""
        import jax.numpy as jnp

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

    def described(self, class_names: Mapping[str, tuple[str, ...]]) -> list[dict[str, Any]]:
        head = {"name": self.head, "kind": "number", "start": 0, "stop": 1}
        return [{**head, "mean": self.mean, "std": self.deviation}]


def _deviation(numbers: np.ndarray) -> float:
    """The standard deviation of the numbers that are known; 0 where none is."""
    known = numbers[~np.isnan(numbers)]
    return float(known.std(dtype=np.float64)) if known.size else 0.0


@dataclasses.dataclass(frozen=True, eq=False)
class NumberPredictions(Predictions):
    """What a model estimated for every example of a split, for one head.

    Attributes:
        name: what the numbers are, `year`.
        predicted: float64 `[examples]`, in the unit of the numbers.
        numbers: float32 `[examples]`; NaN where not known: such an example is left out.
        training_mean: of the numbers, the estimate of who sees no image.
    """

    name: str
    predicted: np.ndarray
    numbers: np.ndarray
    training_mean: float

    def __len__(self) -> int:
        return len(self.numbers)

    def figures(self) -> dict[str, float | int]:
        """Mean absolute error and root of the mean squared error, in the unit of the numbers;
        R^2, the share of the split's variance that is explained, where it has any; and both
        errors of one who always says the training mean.

        Raises:
            UserError: no example has a number.
        """
        true, predicted = self.known()
        if not true.size:
            raise UserError(f"split {self.split}: no example has a number to evaluate against")
        constant = np.full_like(true, self.training_mean)
        squared = ((predicted - true) ** 2).mean()
        figures: dict[str, float | int] = {
            "loss": self.loss,
            "MAE": float(np.abs(predicted - true).mean()),
            "RMSE": float(np.sqrt(squared)),
        }
        if true.var() > 0:
            figures["R2"] = float(1 - squared / true.var())
        figures["MAE of the training mean"] = float(np.abs(constant - true).mean())
        figures["RMSE of the training mean"] = float(np.sqrt(((constant - true) ** 2).mean()))
        return {**figures, "count": len(true)}

    def page(self, folder: Path, suffix: str, images: np.ndarray | None) -> Iterator[str]:
        """The estimates against the true numbers, and the worst of them as pictures."""
        from cnn_research.report import plots as figures

        true, predicted = self.known()
        name = f"estimates{suffix}.png"
        figures.estimates(true, predicted, self.name, self.training_mean).savefig(folder / name)
        yield (
            "MAE is the mean absolute error, RMSE the root of the mean squared error, both in the "
            f"unit of {self.name}, and beside them those of always saying the training mean; R2 is "
            "the share of the split's variance that is explained."
        )
        yield f"![Estimates against true numbers]({name})"
        if images is not None:
            name = f"mistakes{suffix}.png"
            figures.number_mistakes(images, self.numbers, self.predicted).savefig(folder / name)
            yield "The estimates that are farthest off:"
            yield f"![Images whose estimates are farthest off]({name})"

    def known(self) -> tuple[np.ndarray, np.ndarray]:
        """True and estimated numbers, float64 `[known]` each, of the examples with a number."""
        known = ~np.isnan(self.numbers)
        return self.numbers[known].astype(np.float64), self.predicted[known]
