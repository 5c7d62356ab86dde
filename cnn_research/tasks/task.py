"""Tasks: losses and metrics of a model's outputs, and the predictions for a report."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import jax
import numpy as np
from flax import linen as nn

from cnn_research.core.errors import UserError
from cnn_research.core.metrics import Direction
from cnn_research.data.dataset import MISSING, Dataset
from cnn_research.report.page import Predictions
from cnn_research.tasks.decode import Answer

Sums = Mapping[str, tuple[jax.Array, jax.Array]]
"""Per metric (sum, count), float32 `[]` each: sums of parts add up, and divide at the end."""


PIXELS = "/pixels"
"""Among the labels of a task that sees images: these themselves, 0 to 255, as they are before the
model's scaling. No head is called so."""


@dataclasses.dataclass(frozen=True)
class Task(abc.ABC):
    """The meaning of a model's outputs, and their loss."""

    metrics: ClassVar[Mapping[str, Direction]] = {}
    """The direction of each metric of `means` that an evaluation has as well: states are selected,
    and searches steered, by one of them."""
    evaluation_metrics: ClassVar[Mapping[str, Direction]] = {}
    """The direction of those that an evaluation alone has; not of counts and the like, of which
    neither end is better."""
    needs_pixels: ClassVar[bool] = False
    """True if the loss compares with the images themselves, which are then among the labels."""
    counts_colours: ClassVar[bool] = False
    """True if the answers are an image's own colours, of which transparent pixels have none."""

    @property
    def directions(self) -> Mapping[str, Direction]:
        """The direction of every metric of an evaluation, for each head the same."""
        return {**self.metrics, **self.evaluation_metrics}

    @property
    @abc.abstractmethod
    def heads(self) -> tuple[str, ...]:
        """Names of its labels in the data set; one or more."""

    def check(self) -> None:  # noqa: B027 (there may be none)
        """Raise `UsageError` for invalid or contradictory fields, apart from their ranges."""

    @abc.abstractmethod
    def check_data(self, dataset: Dataset) -> None:
        """Raise `UserError` for a data set that lacks what the task needs."""

    @abc.abstractmethod
    def num_outputs(self, dataset: Dataset) -> int:
        """Number of outputs that a model needs for this data."""

    def bind(self, model: nn.Module, dataset: Dataset) -> nn.Module:
        """The model with as many outputs as the task needs for this data."""
        return model.clone(num_classes=self.num_outputs(dataset))

    @abc.abstractmethod
    def fitted(self, dataset: Dataset) -> FittedTask:
        """The task that knows what it has to know of the training split."""


@dataclasses.dataclass(frozen=True)
class SingleHeadTask(Task):
    """A task whose labels are those of one head."""

    head: str = "label"
    """Name of the labels in the data set."""

    @property
    def heads(self) -> tuple[str, ...]:
        return (self.head,)


@dataclasses.dataclass(frozen=True)
class FittedTask(Task):
    """A task that can be trained and evaluated: it knows what it has to know of its data."""

    @property
    def has_training_loss(self) -> bool:
        """True if training minimises something else than the metric `loss`."""
        return False

    @abc.abstractmethod
    def sums(self, outputs: jax.Array, labels: Mapping[str, jax.Array], weights: jax.Array) -> Sums:
        """Metrics as sums and counts.

        Outputs are float32 `[batch, outputs]`; labels `[batch]` per head, as in `Split`, not all
        known, and the images as `PIXELS`, where the task needs them. Weights, float32 `[batch]`,
        are 0 for padding, and for a mixed image the share of the label.
        """

    def means(self, sums: Mapping[str, tuple[float, float]]) -> dict[str, float]:
        """The metrics, `loss` among them: sums over counts; NaN where nothing was counted."""
        return {
            name: total / count if count else float("nan") for name, (total, count) in sums.items()
        }

    def training_loss(
        self, outputs: jax.Array, labels: Mapping[str, jax.Array], weights: jax.Array
    ) -> Sums:
        """Training loss, as terms whose means `combine_losses` adds up; arguments as of `sums`."""
        return {"loss": self.sums(outputs, labels, weights)["loss"]}

    def combine_losses(self, terms: Mapping[str, Any]) -> Any:
        """The loss, from the mean of each term of `training_loss`: floats, or arrays `[]`."""
        return terms["loss"]

    @abc.abstractmethod
    def average_views(self, views: Sequence[jax.Array]) -> jax.Array:
        """The outputs for several views of each image as one; all are `[batch, outputs]`."""

    @abc.abstractmethod
    def predictions(
        self, dataset: Dataset, split: str, outputs: np.ndarray, means: Mapping[str, float]
    ) -> dict[str, Predictions]:
        """Predictions of each head for a report, of outputs `[examples, outputs]` in the split's
        order."""

    def combine_metrics(self, predictions: Mapping[str, Predictions]) -> dict[str, Any]:
        """Metrics of an evaluation, under a head's name its own; a `UserError` without any
        labels."""
        (one,) = predictions.values()
        return dict(one.metrics())

    def text(self, predictions: Mapping[str, Predictions]) -> str:
        """The text that a run ends with."""
        (one,) = predictions.values()
        return one.text()

    @abc.abstractmethod
    def output_spec(self, class_names: Mapping[str, tuple[str, ...]]) -> list[dict[str, Any]]:
        """Description of the outputs for users of an export: JSON values for each head.

        They are its `name`, its `kind`, and where in the outputs it is, from `start` to before
        `stop`; with its `classes`, or with `mean` and `std` of its numbers.
        """

    def write_files(self, base: Path, file: Path, answers: Mapping[str, Answer]) -> None:
        """Write what programs of its field read of one image's answers; nothing by default.

        The paths of what is written are `base` with an ending; `file` is the image's.
        """


def check_measured(
    dataset: Dataset,
    heads: Sequence[str],
    splits: Sequence[str] = ("test", "target"),
    without: Sequence[int] = (MISSING,),
) -> None:
    """Raise `UserError` if a split has none of the heads' labels, which the report needs.

    Classes `without`, and numbers that are NaN, do not count.
    """

    def unknown(labels: np.ndarray) -> bool:
        is_number = np.issubdtype(labels.dtype, np.floating)
        return bool((np.isnan(labels) if is_number else np.isin(labels, without)).all())

    for name in splits:
        split = dataset.splits.get(name)
        if split is not None and all(unknown(split.labels[head]) for head in heads):
            named = " or ".join(f"'{head}'" for head in heads)
            raise UserError(
                f"data set {dataset.name}: no image of its {name} split has a known label {named}, "
                "so that nothing can be measured: take another split or head"
            )
