"""One class per image."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING

from cnn_research.errors import UsageError, UserError

if TYPE_CHECKING:
    import jax
    from flax import linen as nn

    from cnn_research.data.dataset import Dataset

Sums = Mapping[str, tuple["jax.Array", "jax.Array"]]
"""Per metric (sum, count), float32 `[]` each: sums of parts add up, and divide at the end."""


@dataclasses.dataclass(frozen=True)
class Classification:
    """Softmax cross-entropy on the classes of one head."""

    head: str = "label"
    """Which of the data set's labels."""
    label_smoothing: float = 0.0
    """Share of the target that is spread evenly over all classes, in training only."""

    def check(self) -> None:
        """Raises `UsageError` for a field out of range."""
        if not 0 <= self.label_smoothing < 1:
            raise UsageError(f"task.label-smoothing is {self.label_smoothing}: must be 0 to 1")

    def check_data(self, dataset: Dataset) -> None:
        """Raises `UserError` for a data set without this head, or with labels of one class."""
        if self.head not in dataset.class_names:
            raise UserError(
                f"data set {dataset.name} has no labels '{self.head}'; it has "
                f"{', '.join(dataset.class_names)}: name one with --task.head"
            )
        if len(dataset.class_names[self.head]) < 2:
            raise UserError(
                f"data set {dataset.name}: all labels '{self.head}' are of one class; "
                "a classifier needs at least two"
            )

    def bind(self, model: nn.Module, dataset: Dataset) -> nn.Module:
        """The model with one output per class."""
        return model.clone(num_classes=len(dataset.class_names[self.head]))

    def sums(self, logits: jax.Array, labels: Mapping[str, jax.Array], mask: jax.Array) -> Sums:
        """Cross-entropy and accuracy as sums and counts.

        Args:
            logits: float32 `[batch, classes]`.
            labels: per head, int32 `[batch]`; -1 where not known.
            mask: bool `[batch]`, false for padding.
        """
        import jax.numpy as jnp
        import optax

        known, target = self._known(labels, mask)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, target)
        hits = jnp.argmax(logits, axis=-1) == target
        count = known.sum().astype(jnp.float32)
        return {
            "loss": (jnp.where(known, losses, 0).sum(), count),
            "accuracy": (jnp.where(known, hits, False).sum().astype(jnp.float32), count),
        }

    def objective(
        self, logits: jax.Array, labels: Mapping[str, jax.Array], mask: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """What training minimises, as (sum, count): cross-entropy with smoothed labels."""
        import jax.nn
        import jax.numpy as jnp
        import optax

        if not self.label_smoothing:
            return self.sums(logits, labels, mask)["loss"]
        known, target = self._known(labels, mask)
        one_hot = jax.nn.one_hot(target, logits.shape[-1])
        smooth = optax.smooth_labels(one_hot, self.label_smoothing)
        losses = optax.softmax_cross_entropy(logits, smooth)
        return jnp.where(known, losses, 0).sum(), known.sum().astype(jnp.float32)

    def _known(
        self, labels: Mapping[str, jax.Array], mask: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        import jax.numpy as jnp

        target = labels[self.head]
        known = mask & (target >= 0)
        return known, jnp.where(known, target, 0)
