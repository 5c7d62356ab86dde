"""Several classes per image, one per head: the classifier lecture's material, type and brand."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cnn_research.core.config import register_config
from cnn_research.core.errors import UsageError, UserError
from cnn_research.core.ranges import NonNegativeFloat
from cnn_research.data.dataset import Dataset
from cnn_research.report.markdown import markdown_table, number
from cnn_research.report.page import Predictions
from cnn_research.tasks.classification import Classification, ClassTask
from cnn_research.tasks.task import FittedTask, Sums, check_measured


@register_config
@dataclasses.dataclass(frozen=True)
class MultiHead(ClassTask):
    """Softmax cross-entropy on each head; an example counts for the heads in which it is labelled.

    The classes of all heads are concatenated in the model's last layer, which equals one linear
    layer per head over the same features, so every model supports any number of heads.
    """

    label: tuple[str, ...] = ()
    """Names of the labels in the data set, one head each; empty for all heads of classes."""
    loss_weights: tuple[NonNegativeFloat, ...] = ()
    """Weight of each head's loss; empty for 1 each."""

    @property
    def heads(self) -> tuple[str, ...]:
        return self.label

    def check(self) -> None:
        if self.loss_weights and len(self.loss_weights) != len(self.label):
            raise UsageError(
                f"--task.loss-weights has {len(self.loss_weights)} numbers, but --task.label names "
                f"{len(self.label)} heads: set one for each"
            )
        if self.loss_weights and not any(self.loss_weights):
            raise UsageError("--task.loss-weights are all 0: at least one must be above 0")
        if len(set(self.label)) < len(self.label):
            raise UsageError("--task.label names a head twice")

    def check_data(self, dataset: Dataset) -> None:
        """Raise `UserError` for a data set without one of the heads, with only one class in it, or
        with an unlabelled split; a test split needs the labels of only one head."""
        parts = list(self._classifications(dataset))
        for part in parts:
            part.check_head(dataset, "--task.label")
        check_measured(dataset, [part.head for part in parts])

    def num_outputs(self, dataset: Dataset) -> int:
        return sum(part.num_outputs(dataset) for part in self._classifications(dataset))

    def fitted(self, dataset: Dataset) -> FittedMultiHead:
        """Return the task with the number of classes of each head."""
        parts = list(self._classifications(dataset))
        return FittedMultiHead(
            **{**vars(self), "label": tuple(part.head for part in parts)},
            parts=tuple(part.fitted(dataset) for part in parts),
            sizes=tuple(part.num_outputs(dataset) for part in parts),
        )

    def _classifications(self, dataset: Dataset) -> Iterator[Classification]:
        shared = {each.name: getattr(self, each.name) for each in dataclasses.fields(ClassTask)}
        for head in self.label or dataset.class_names:
            yield Classification(head, **shared)


@register_config
@dataclasses.dataclass(frozen=True, kw_only=True)
class FittedMultiHead(MultiHead, FittedTask):
    """Several heads whose numbers of classes are known."""

    parts: tuple[Classification, ...]
    """Task of each head."""
    sizes: tuple[int, ...]
    """Number of classes of each head."""

    @property
    def has_training_loss(self) -> bool:
        return any(part.has_training_loss for part in self.parts)

    def split(self, outputs: Any) -> list[Any]:
        """Split the model's outputs, `[..., outputs]`, by head: `[..., classes]` each."""
        ends = itertools.accumulate(self.sizes)
        return [outputs[..., end - size : end] for end, size in zip(ends, self.sizes, strict=True)]

    def sums(self, outputs: jax.Array, labels: Mapping[str, jax.Array], weights: jax.Array) -> Sums:
        """Loss and accuracy of each head, such as `material accuracy`; see `Task.sums`."""
        return {
            f"{part.head} {name}": pair
            for part, logits in zip(self.parts, self.split(outputs), strict=True)
            for name, pair in part.sums(logits, labels, weights).items()
        }

    def means(self, sums: Mapping[str, tuple[float, float]]) -> dict[str, float]:
        """Means of each head, the weighted sum of their losses, and their mean accuracy.

        The latter two ignore heads without labels among the examples.
        """
        means = super().means(sums)
        known = {name: value for name, value in means.items() if not np.isnan(value)}
        losses = {head: known.get(f"{head} loss", 0.0) for head in self.heads}
        accuracies = [known[n] for n in (f"{head} accuracy" for head in self.heads) if n in known]
        return {
            "loss": self.combine_losses(losses),
            "accuracy": float(np.mean(accuracies)) if accuracies else float("nan"),
            **means,
        }

    def training_loss(
        self, outputs: jax.Array, labels: Mapping[str, jax.Array], weights: jax.Array
    ) -> Sums:
        return {
            part.head: part.training_loss(logits, labels, weights)["loss"]
            for part, logits in zip(self.parts, self.split(outputs), strict=True)
        }

    def combine_losses(self, terms: Mapping[str, Any]) -> Any:
        """Weighted sum of the heads' losses."""
        weights = self.loss_weights or (1.0,) * len(self.heads)
        first, *rest = (w * terms[head] for head, w in zip(self.heads, weights, strict=True))
        return sum(rest, first)

    def average_views(self, views: Sequence[jax.Array]) -> jax.Array:
        """Logarithm of the views' mean probabilities, per head."""
        by_head = zip(self.parts, *(self.split(view) for view in views), strict=True)
        return jnp.concatenate([part.average_views(x) for part, *x in by_head], axis=-1)

    def predictions(
        self, dataset: Dataset, split: str, outputs: np.ndarray, means: Mapping[str, float]
    ) -> dict[str, Predictions]:
        predictions: dict[str, Predictions] = {}
        for part, logits in zip(self.parts, self.split(outputs), strict=True):
            loss = {"loss": means[f"{part.head} loss"]}
            predictions |= part.predictions(dataset, split, logits, loss)
        return predictions

    def combine_metrics(self, predictions: Mapping[str, Predictions]) -> dict[str, Any]:
        """Metrics of each labelled head, their mean accuracy and the sum of their losses."""
        heads: dict[str, Mapping[str, float | int]] = {}
        for head, predicted in predictions.items():
            with contextlib.suppress(UserError):  # no example has a label
                heads[head] = predicted.metrics()
        if not heads:
            named = ", ".join(predictions)
            raise UserError(f"no example has a label of {named}: there is nothing to evaluate")
        seen = "accuracy of seen labels"
        losses = dict.fromkeys(predictions, 0.0) | {h: float(f["loss"]) for h, f in heads.items()}
        metrics: dict[str, Any] = {
            "loss": self.combine_losses(losses),
            "accuracy": float(np.mean([each["accuracy"] for each in heads.values()])),
        }
        if any(seen in each for each in heads.values()):
            values = [each.get(seen, each["accuracy"]) for each in heads.values()]
            metrics[seen] = float(np.mean(values))
        return {**metrics, **heads}

    def text(self, predictions: Mapping[str, Predictions]) -> str:
        """Table of the heads' accuracies and macro F1, and their means."""
        metrics = self.combine_metrics(predictions)
        names = ("accuracy", "accuracy of seen labels", "macro F1")
        heads = [head for head in predictions if head in metrics]
        shown = [name for name in names if any(name in metrics[head] for head in heads)]
        rows = [(head, *(number(metrics[head].get(name)) for name in shown)) for head in heads]
        mean = ("mean", *(number(metrics.get(name)) for name in shown))
        return markdown_table(("head", *shown), [*rows, mean]) + "\n"

    def output_spec(self, class_names: Mapping[str, tuple[str, ...]]) -> list[dict[str, Any]]:
        heads, start = [], 0
        for part in self.parts:
            (head,) = part.output_spec(class_names)
            heads.append({**head, "start": start, "stop": start + head["stop"]})
            start = heads[-1]["stop"]
        return heads
