"""Classification: loss and metrics of one class per image; `class_predictions` reports them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

from cnn_research.core.config import register_config
from cnn_research.core.errors import UsageError, UserError
from cnn_research.core.ranges import NonNegativeFloat, ProperFraction
from cnn_research.data.dataset import MISSING, UNKNOWN_CLASS, Dataset
from cnn_research.report.page import Predictions
from cnn_research.tasks.task import FittedTask, SingleHeadTask, Sums, Task, check_measured


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClassTask(Task):
    """Metrics and fields shared by classification with one head and with several."""

    metrics: ClassVar = {"accuracy": "maximize", "loss": "minimize"}
    evaluation_metrics: ClassVar = {
        **dict.fromkeys(
            (
                *("macro precision", "macro recall", "macro F1", "accuracy of seen labels"),
                *("weighted precision", "weighted recall", "weighted F1", "top-5 accuracy"),
            ),
            "maximize",
        ),
        **dict.fromkeys(("ECE", "ECE before calibration"), "minimize"),
    }

    label_smoothing: ProperFraction = 0.0
    """Label smoothing: share of the training target spread evenly over all classes of a head."""
    class_weights: Literal["equal", "balanced"] = "equal"
    """Weights of classes in the training loss: equal, or inversely proportional to the number of
    training examples."""
    logit_adjustment: NonNegativeFloat = 0.0
    """Logit adjustment (Menon et al. 2021): add this many times the log frequency of each class to
    its logit in training. Rare classes are then predicted more often; 1 simulates balanced classes.
    """


@register_config
@dataclasses.dataclass(frozen=True)
class Classification(ClassTask, SingleHeadTask, FittedTask):
    """Softmax cross-entropy on the classes of one head."""

    @property
    def has_training_loss(self) -> bool:
        return bool(self.label_smoothing) or self._counts_matter

    @property
    def _counts_matter(self) -> bool:
        return self.class_weights != "equal" or self.logit_adjustment != 0

    def check_data(self, dataset: Dataset) -> None:
        """Raise `UserError` for a data set without this head, with only one class, or with an
        unlabelled split."""
        self.check_head(dataset, "--task.head")
        check_measured(dataset, (self.head,))

    def check_head(self, dataset: Dataset, flag: str) -> None:
        """Check only the splits used in training; `flag` is the option for the head."""
        if self.head not in dataset.class_names:
            raise UserError(
                f"data set {dataset.name} has no labels '{self.head}'; it has "
                f"{', '.join(dataset.class_names) or 'none'}: choose one with {flag}"
            )
        if len(dataset.class_names[self.head]) < 2:
            raise UserError(
                f"data set {dataset.name}: all labels '{self.head}' are of one class; "
                "a classifier needs at least two classes"
            )
        if dataset.splits["train"].labels[self.head].ndim > 1:
            raise UserError(
                f"data set {dataset.name} has several labels '{self.head}' per image, or one per "
                "pixel; a classifier needs one per image: use another task, or another head with "
                f"{flag}"
            )
        unknown = (MISSING, UNKNOWN_CLASS)
        check_measured(dataset, (self.head,), ("train", "validation"), unknown)

    def num_outputs(self, dataset: Dataset) -> int:
        return len(dataset.class_names[self.head])

    def fitted(self, dataset: Dataset) -> Classification:
        """Return a task with the frequencies of the classes, if it needs them."""
        if not self._counts_matter:
            return self
        if type(self) is not Classification:
            raise UsageError(
                "--task.class-weights and --task.logit-adjustment are Classification's own: "
                f"override {type(self).__name__}.fitted, or leave them out"
            )
        labels = dataset.splits["train"].labels[self.head]
        counts = np.bincount(labels[labels >= 0], minlength=self.num_outputs(dataset))
        return CountedClassification(**vars(self), counts=tuple(counts.tolist()))

    def sums(self, outputs: jax.Array, labels: Mapping[str, jax.Array], weights: jax.Array) -> Sums:
        """Cross-entropy of the logits, float32 `[batch, classes]`, and accuracy.

        Labels are int32 `[batch]`: -1 if unlabelled; -2 if none of the classes, which counts as
        wrong but has no loss.
        """
        target = labels[self.head]
        known = jnp.where(target == MISSING, 0, weights)
        seen, target = self._seen(labels, weights)
        losses = optax.softmax_cross_entropy_with_integer_labels(outputs, target)
        hits = jnp.argmax(outputs, axis=-1) == target
        return {
            "loss": ((seen * losses).sum(), seen.sum()),
            "accuracy": ((seen * hits).sum(), known.sum()),
        }

    def training_loss(
        self, outputs: jax.Array, labels: Mapping[str, jax.Array], weights: jax.Array
    ) -> Sums:
        """Cross-entropy with label smoothing, class weights and logit adjustment."""
        if not self.has_training_loss:
            return super().training_loss(outputs, labels, weights)
        seen, target = self._seen(labels, weights)
        one_hot = jax.nn.one_hot(target, outputs.shape[-1])
        losses = optax.softmax_cross_entropy(
            self._adjusted(outputs), optax.smooth_labels(one_hot, self.label_smoothing)
        )
        seen = seen * self._weight_of(target)
        return {"loss": ((seen * losses).sum(), seen.sum())}

    def average_views(self, views: Sequence[jax.Array]) -> jax.Array:
        """Logarithm of the views' mean probabilities."""
        logs = jnp.stack([jax.nn.log_softmax(logits) for logits in views])
        return jax.nn.logsumexp(logs, axis=0) - jnp.log(len(views))

    def predictions(
        self, dataset: Dataset, split: str, outputs: np.ndarray, means: Mapping[str, float]
    ) -> dict[str, Predictions]:
        from cnn_research.tasks.class_predictions import ClassPredictions

        trained = dataset.splits["train"].labels[self.head]
        predicted = ClassPredictions(
            split=split,
            logits=outputs,
            labels=dataset.splits[split].labels[self.head],
            class_names=dataset.class_names[self.head],
            loss=means["loss"],
            training_counts=np.bincount(trained[trained >= 0], minlength=self.num_outputs(dataset)),
        )
        return {self.head: predicted}

    def output_spec(self, class_names: Mapping[str, tuple[str, ...]]) -> list[dict[str, Any]]:
        names = list(class_names[self.head])
        return [dict(name=self.head, kind="classes", start=0, stop=len(names), classes=names)]

    def _seen(
        self, labels: Mapping[str, jax.Array], weights: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Weights, 0 if the label is none of the classes, and labels that are valid indices."""
        target = labels[self.head]
        seen = target >= 0
        return jnp.where(seen, weights, 0), jnp.where(seen, target, 0)

    def _weight_of(self, target: jax.Array) -> jax.Array | float:
        return 1.0

    def _adjusted(self, outputs: jax.Array) -> jax.Array:
        return outputs


@register_config
@dataclasses.dataclass(frozen=True, kw_only=True)
class CountedClassification(Classification):
    """Classification that knows the class frequencies of the training split."""

    counts: tuple[int, ...]
    """Number of training examples of each class."""

    @property
    def weights(self) -> np.ndarray:
        """Weight of an example of each class, float64 `[classes]`."""
        counts = np.array(self.counts)
        if self.class_weights == "equal":
            return np.ones(len(counts))
        # scikit-learn's 'balanced': the weights of all examples sum to their number.
        return counts.sum() / (np.count_nonzero(counts) * np.maximum(counts, 1))

    @property
    def adjustments(self) -> np.ndarray:
        """Offset of each class's logit in training, float64 `[classes]`."""
        counts = np.maximum(self.counts, 1)
        return self.logit_adjustment * np.log(counts / counts.sum())

    def _weight_of(self, target: jax.Array) -> jax.Array | float:
        return jnp.array(self.weights, jnp.float32)[target]

    def _adjusted(self, outputs: jax.Array) -> jax.Array:
        return outputs + self.adjustments.astype(outputs.dtype)
