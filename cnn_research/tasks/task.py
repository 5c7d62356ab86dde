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

from cnn_research.core.config import config_fields
from cnn_research.core.errors import UsageError, UserError
from cnn_research.core.metrics import Direction
from cnn_research.data.dataset import MISSING, Dataset
from cnn_research.report.page import Predictions
from cnn_research.tasks.decode import Answer

Sums = Mapping[str, tuple[jax.Array, jax.Array]]
"""Per metric (sum, count), float32 `[]` each, added over batches and divided at the end."""


PIXELS = "/pixels"
"""Key, among the labels, of the images, 0 to 255, before the model's scaling, for tasks that need
them. No head has this name."""


@dataclasses.dataclass(frozen=True)
class Task(abc.ABC):
    """The meaning of a model's outputs, and their loss."""

    metrics: ClassVar[Mapping[str, Direction]] = {}
    """Direction of each metric of `means` that evaluations also have. Checkpoint selection and
    hyperparameter search use one of them."""
    evaluation_metrics: ClassVar[Mapping[str, Direction]] = {}
    """Direction of each metric that only evaluations have, except counts and the like, which have
    no better direction."""
    needs_pixels: ClassVar[bool] = False
    """True if the loss uses the images themselves, which are then among the labels."""
    counts_colours: ClassVar[bool] = False
    """True if predictions are colours of the image, so that transparent pixels must be ignored."""

    @property
    def directions(self) -> Mapping[str, Direction]:
        """Direction of every metric of an evaluation, the same for each head."""
        return {**self.metrics, **self.evaluation_metrics}

    @property
    @abc.abstractmethod
    def heads(self) -> tuple[str, ...]:
        """Names of the task's labels in the data set, at least one."""

    def check(self) -> None:  # noqa: B027 (there may be none)
        """Raise `UsageError` for invalid or contradictory fields, apart from their ranges."""

    @abc.abstractmethod
    def check_data(self, dataset: Dataset) -> None:
        """Raise `UserError` for a data set that lacks what the task needs."""

    @abc.abstractmethod
    def num_outputs(self, dataset: Dataset) -> int:
        """Number of outputs that a model needs for this data."""

    def bind(self, model: nn.Module, dataset: Dataset) -> nn.Module:
        """Return the model with the number of outputs that the task needs for this data."""
        if "num_classes" not in {field.name for field in config_fields(model)}:
            raise UsageError(
                f"{type(model).__name__} has no field num_classes: declare `num_classes: int = 10`;"
                " the data set it to the number of outputs"
            )
        return model.clone(num_classes=self.num_outputs(dataset))

    @abc.abstractmethod
    def fitted(self, dataset: Dataset) -> FittedTask:
        """Return the task with the facts that it needs about the training split."""


@dataclasses.dataclass(frozen=True)
class SingleHeadTask(Task):
    """A task with one head of labels."""

    head: str = "label"
    """Name of the labels in the data set."""

    @property
    def heads(self) -> tuple[str, ...]:
        return (self.head,)


@dataclasses.dataclass(frozen=True)
class FittedTask(Task):
    """A task that can be trained and evaluated, as it has the necessary facts about its data."""

    @property
    def has_training_loss(self) -> bool:
        """True if training minimises something other than the metric `loss`."""
        return False

    @abc.abstractmethod
    def sums(self, outputs: jax.Array, labels: Mapping[str, jax.Array], weights: jax.Array) -> Sums:
        """Compute metrics as sums and counts.

        Outputs are float32 `[batch, outputs]`; labels are `[batch]` per head, as in `Split`,
        possibly missing, and include the images as `PIXELS` if the task needs them. Weights,
        float32 `[batch]`, are 0 for padding; for a mixed image they are the share of the label.
        """

    def means(self, sums: Mapping[str, tuple[float, float]]) -> dict[str, float]:
        """Divide sums by counts; NaN if nothing was counted. `loss` is one of the metrics."""
        return {
            name: total / count if count else float("nan") for name, (total, count) in sums.items()
        }

    def training_loss(
        self, outputs: jax.Array, labels: Mapping[str, jax.Array], weights: jax.Array
    ) -> Sums:
        """Compute the terms of the training loss, whose means `combine_losses` adds; see `sums`."""
        return {"loss": self.sums(outputs, labels, weights)["loss"]}

    def combine_losses(self, terms: Mapping[str, Any]) -> Any:
        """Combine the means of the terms of `training_loss`, floats or arrays `[]`, to the loss."""
        return terms["loss"]

    @abc.abstractmethod
    def average_views(self, views: Sequence[jax.Array]) -> jax.Array:
        """Average the outputs for several views of each image; all are `[batch, outputs]`."""

    @abc.abstractmethod
    def predictions(
        self, dataset: Dataset, split: str, outputs: np.ndarray, means: Mapping[str, float]
    ) -> dict[str, Predictions]:
        """Make each head's predictions, for a report, from outputs `[examples, outputs]`."""

    def combine_metrics(self, predictions: Mapping[str, Predictions]) -> dict[str, Any]:
        """Metrics of an evaluation; several heads have their own under their names.

        Raises `UserError` if there are no labels.
        """
        (one,) = predictions.values()
        return dict(one.metrics())

    def text(self, predictions: Mapping[str, Predictions]) -> str:
        """Text that a run prints at its end."""
        (one,) = predictions.values()
        return one.text()

    @abc.abstractmethod
    def output_spec(self, class_names: Mapping[str, tuple[str, ...]]) -> list[dict[str, Any]]:
        """Describe the outputs for users of an export, as JSON values per head.

        These are its `name`, `kind`, its slice of the outputs from `start` to before `stop`, and
        its `classes`, or `mean` and `std` of its numbers.
        """

    def write_files(self, base: Path, file: Path, answers: Mapping[str, Answer]) -> None:
        """Write files for other programs with the predictions for one image; none by default.

        Their paths are `base` with an extension; `file` is the image's.
        """


def check_measured(
    dataset: Dataset,
    heads: Sequence[str],
    splits: Sequence[str] = ("test", "target"),
    without: Sequence[int] = (MISSING,),
) -> None:
    """Raise `UserError` if a split has none of the heads' labels, which the report needs.

    Classes in `without`, and NaN, count as missing.
    """

    def unknown(labels: np.ndarray) -> bool:
        is_number = np.issubdtype(labels.dtype, np.floating)
        return bool((np.isnan(labels) if is_number else np.isin(labels, without)).all())

    for name in splits:
        split = dataset.splits.get(name)
        if split is not None and all(unknown(split.labels[head]) for head in heads):
            named = " or ".join(f"'{head}'" for head in heads)
            raise UserError(
                f"data set {dataset.name}: no image of the {name} split has a label {named}, so "
                "nothing can be measured: use another split or head"
            )
