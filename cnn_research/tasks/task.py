"""What a task is to the runner and to the report of a run."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Protocol

import numpy as np

if TYPE_CHECKING:
    import jax
    from flax import linen as nn

    from cnn_research.data.dataset import Dataset

Sums = Mapping[str, tuple["jax.Array", "jax.Array"]]
"""Per metric (sum, count), float32 `[]` each: sums of parts add up, and divide at the end."""


class Predictions(Protocol):
    """What a model said about every example of a split, for one head, and what came of it."""

    @property
    def split(self) -> str:
        """Which split: `test`, or `validation` where there is no test split."""

    def __len__(self) -> int:
        """How many examples there are, with a label or without."""

    def figures(self) -> dict[str, float | int]:
        """The numbers of an evaluation, of the examples with a label.

        Raises:
            UserError: no example has a label.
        """

    def text(self) -> str:
        """What a run says at its end: a few lines, the last one ended."""

    def page(self, folder: Path, suffix: str, images: np.ndarray | None) -> Iterator[str]:
        """The parts of the report's page below the figures, in Markdown; writes their files.

        Args:
            folder: where files go.
            suffix: what the names of files end with, before the dot.
            images: uint8 `[examples, height, width, channels]`, in the order of the predictions;
                None shows none.
        """


@dataclasses.dataclass(frozen=True)
class Task:
    """What a model's outputs mean, and what is lost when they are wrong."""

    metrics: ClassVar[tuple[str, ...]] = ()
    """The names of `sums` that also are figures of an evaluation: a selection may go by them."""

    head: str = "label"
    """Which of the data set's labels."""

    @property
    def own_objective(self) -> bool:
        """Whether training minimises something else than the metric `loss`."""
        return False

    def check(self) -> None:
        """Raises `UsageError` for a field out of range."""

    def check_data(self, dataset: Dataset) -> None:
        """Raises `UserError` for a data set that lacks what the task needs."""
        raise NotImplementedError

    def bind(self, model: nn.Module, dataset: Dataset) -> nn.Module:
        """The model with as many outputs as the task needs for this data."""
        raise NotImplementedError

    def fitted(self, dataset: Dataset) -> Task:
        """The task that knows what it has to know of the training split; most know enough.

        The methods below are those of a fitted task.
        """
        return self

    def sums(self, outputs: jax.Array, labels: Mapping[str, jax.Array], mask: jax.Array) -> Sums:
        """The metrics as sums and counts, `loss` among them.

        Args:
            outputs: float32 `[batch, outputs]`, the model's.
            labels: per head `[batch]`, as in `Split`: not all are known.
            mask: bool `[batch]`, false for padding.
        """
        raise NotImplementedError

    def objective(
        self, outputs: jax.Array, labels: Mapping[str, jax.Array], mask: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """What training minimises, as (sum, count); the arguments are those of `sums`."""
        return self.sums(outputs, labels, mask)["loss"]

    def averaged(self, views: Sequence[jax.Array]) -> jax.Array:
        """The outputs for several views of each image as one; all are `[batch, outputs]`."""
        raise NotImplementedError

    def predictions(
        self, dataset: Dataset, split: str, outputs: np.ndarray, loss: float
    ) -> Predictions:
        """What the report is made of.

        Args:
            dataset: with the labels.
            split: which of its splits.
            outputs: float32 `[examples, outputs]`, the model's, in the split's order.
            loss: the metric's mean.
        """
        raise NotImplementedError
