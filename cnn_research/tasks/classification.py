"""One class per image."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

from cnn_research.errors import UsageError, UserError
from cnn_research.tasks.class_predictions import ClassPredictions
from cnn_research.tasks.task import Sums, Task

if TYPE_CHECKING:
    import jax
    import numpy as np
    from flax import linen as nn

    from cnn_research.data.dataset import Dataset


@dataclasses.dataclass(frozen=True)
class Classification(Task):
    """Softmax cross-entropy on the classes of one head."""

    metrics: ClassVar = ("accuracy", "loss")

    label_smoothing: float = 0.0
    """Share of the target that is spread evenly over all classes, in training only."""

    @property
    def own_objective(self) -> bool:
        return bool(self.label_smoothing)

    def check(self) -> None:
        """Raises `UsageError` for a field out of range."""
        if not 0 <= self.label_smoothing < 1:
            raise UsageError(f"task.label-smoothing is {self.label_smoothing}: must be 0 to 1")

    def check_data(self, dataset: Dataset) -> None:
        """Raises `UserError` for a data set without this head, or with labels of one class."""
        if self.head not in dataset.class_names:
            raise UserError(
                f"data set {dataset.name} has no labels '{self.head}'; it has "
                f"{', '.join(dataset.class_names) or 'none'}: name one with --task.head"
            )
        if len(dataset.class_names[self.head]) < 2:
            raise UserError(
                f"data set {dataset.name}: all labels '{self.head}' are of one class; "
                "a classifier needs at least two"
            )

    def bind(self, model: nn.Module, dataset: Dataset) -> nn.Module:
        """The model with one output per class."""
        return model.clone(num_classes=len(dataset.class_names[self.head]))

    def sums(self, outputs: jax.Array, labels: Mapping[str, jax.Array], mask: jax.Array) -> Sums:
        """Cross-entropy and accuracy as sums and counts.

        Args:
            outputs: the logits, float32 `[batch, classes]`.
            labels: per head, int32 `[batch]`; -1 where not known.
            mask: bool `[batch]`, false for padding.
        """
        import jax.numpy as jnp
        import optax

        known, target = self._known(labels, mask)
        losses = optax.softmax_cross_entropy_with_integer_labels(outputs, target)
        hits = jnp.argmax(outputs, axis=-1) == target
        count = known.sum().astype(jnp.float32)
        return {
            "loss": (jnp.where(known, losses, 0).sum(), count),
            "accuracy": (jnp.where(known, hits, False).sum().astype(jnp.float32), count),
        }

    def objective(
        self, outputs: jax.Array, labels: Mapping[str, jax.Array], mask: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """What training minimises, as (sum, count): cross-entropy with smoothed labels."""
        import jax.nn
        import jax.numpy as jnp
        import optax

        if not self.label_smoothing:
            return self.sums(outputs, labels, mask)["loss"]
        known, target = self._known(labels, mask)
        one_hot = jax.nn.one_hot(target, outputs.shape[-1])
        smooth = optax.smooth_labels(one_hot, self.label_smoothing)
        losses = optax.softmax_cross_entropy(outputs, smooth)
        return jnp.where(known, losses, 0).sum(), known.sum().astype(jnp.float32)

    def averaged(self, views: Sequence[jax.Array]) -> jax.Array:
        """The logarithm of the views' mean probability."""
        import jax
        import jax.numpy as jnp

        logs = jnp.stack([jax.nn.log_softmax(logits) for logits in views])
        return jax.nn.logsumexp(logs, axis=0) - jnp.log(len(views))

    def predictions(
        self, dataset: Dataset, split: str, outputs: np.ndarray, loss: float
    ) -> ClassPredictions:
        return ClassPredictions(
            split=split,
            logits=outputs,
            labels=dataset.splits[split].labels[self.head],
            class_names=dataset.class_names[self.head],
            loss=loss,
        )

    def _known(
        self, labels: Mapping[str, jax.Array], mask: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        import jax.numpy as jnp

        target = labels[self.head]
        known = mask & (target >= 0)
        return known, jnp.where(known, target, 0)
