"""One class per image."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from cnn_research.core.config import register_config
from cnn_research.core.errors import UsageError, UserError
from cnn_research.data.dataset import MISSING
from cnn_research.tasks.class_predictions import ClassPredictions
from cnn_research.tasks.shares import softmax
from cnn_research.tasks.task import Answer, FittedTask, Predictions, Sums

if TYPE_CHECKING:
    import jax

    from cnn_research.data.dataset import Dataset

TOP = 5
"""Classes that an answer names."""
OTHERS = 3
"""Of them on the terminal."""


def check_measured(dataset: Dataset, heads: Sequence[str]) -> None:
    """Raises `UserError` if the test or target split has no label of any of these heads.

    Before training: the report, which comes after it, has nothing to say without one.
    """
    for name in ("test", "target"):
        split = dataset.splits.get(name)
        if split is not None and not any(np.any(split.labels[h] != MISSING) for h in heads):
            named = " or ".join(f"'{head}'" for head in heads)
            raise UserError(
                f"data set {dataset.name}: no image of its {name} split has a known label {named}, "
                "so that nothing can be measured: take another split or head"
            )


@register_config
@dataclasses.dataclass(frozen=True)
class Classification(FittedTask):
    """Softmax cross-entropy on the classes of one head."""

    metrics: ClassVar = {"accuracy": "maximize", "loss": "minimize"}
    evaluation_metrics: ClassVar = dict.fromkeys(
        (
            *("macro precision", "macro recall", "macro F1", "accuracy of seen labels"),
            *("weighted precision", "weighted recall", "weighted F1"),
        ),
        "maximize",
    )

    head: str = "label"
    """Which of the data set's labels."""
    label_smoothing: float = 0.0
    """Share of the target that is spread evenly over all classes, in training only."""
    class_weights: Literal["equal", "balanced"] = "equal"
    """What an example's class weighs in training: all the same, or as much less as the class has
    more training examples."""
    logit_adjustment: float = 0.0
    """In training, add so many times the logarithm of each class's share of the examples to its
    logit (Menon et al. 2021): rare classes are predicted more often, at 1 as if all were as common.
    """

    @property
    def heads(self) -> tuple[str, ...]:
        return (self.head,)

    @property
    def own_objective(self) -> bool:
        return bool(self.label_smoothing) or self._counts_matter

    @property
    def _counts_matter(self) -> bool:
        return self.class_weights != "equal" or self.logit_adjustment != 0

    def check(self) -> None:
        """Raises `UsageError` for a field out of range."""
        if not 0 <= self.label_smoothing < 1:
            raise UsageError(f"task.label-smoothing is {self.label_smoothing}: 0 to below 1")
        if not 0 <= self.logit_adjustment < math.inf:
            raise UsageError(f"task.logit-adjustment is {self.logit_adjustment}: must be 0 or more")

    def check_data(self, dataset: Dataset) -> None:
        """Raises `UserError` for a data set without this head, or with labels of one class.

        Or with a split in which none is known.
        """
        self.check_head(dataset, "--task.head")
        check_measured(dataset, (self.head,))

    def check_head(self, dataset: Dataset, flag: str) -> None:
        """`check_data` without the splits that training does not see; `flag` names the head."""
        if self.head not in dataset.class_names:
            raise UserError(
                f"data set {dataset.name} has no labels '{self.head}'; it has "
                f"{', '.join(dataset.class_names) or 'none'}: name one with {flag}"
            )
        if len(dataset.class_names[self.head]) < 2:
            raise UserError(
                f"data set {dataset.name}: all labels '{self.head}' are of one class; "
                "a classifier needs at least two"
            )
        for name in ("train", "validation"):
            split = dataset.splits.get(name)
            if split is not None and not np.any(split.labels[self.head] >= 0):
                raise UserError(
                    f"data set {dataset.name}: no image of its {name} split has a known label "
                    f"'{self.head}', so that nothing can be measured: take another split or head"
                )

    def outputs(self, dataset: Dataset) -> int:
        """One per class."""
        return len(dataset.class_names[self.head])

    def fitted(self, dataset: Dataset) -> Classification:
        """The classification that knows how common each class is, where that matters."""
        if not self._counts_matter:
            return self
        labels = dataset.splits["train"].labels[self.head]
        counts = np.bincount(labels[labels >= 0], minlength=self.outputs(dataset))
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return CountedClassification(**fields, counts=tuple(counts.tolist()))

    def sums(self, outputs: jax.Array, labels: Mapping[str, jax.Array], weights: jax.Array) -> Sums:
        """Cross-entropy and accuracy as sums and counts.

        A label that training cannot have seen is a wrong answer without a loss.

        Args:
            outputs: the logits, float32 `[batch, classes]`.
            labels: per head, int32 `[batch]`; -1 where not known, -2 where not one of the classes.
            weights: float32 `[batch]`: 0 for padding, and for a mixed image the label's share.
        """
        import jax.numpy as jnp
        import optax

        target = labels[self.head]
        known = jnp.where(target == MISSING, 0, weights)
        seen, target = self._seen(labels, weights)
        losses = optax.softmax_cross_entropy_with_integer_labels(outputs, target)
        hits = jnp.argmax(outputs, axis=-1) == target
        return {
            "loss": ((seen * losses).sum(), seen.sum()),
            "accuracy": ((seen * hits).sum(), known.sum()),
        }

    def objective(
        self, outputs: jax.Array, labels: Mapping[str, jax.Array], weights: jax.Array
    ) -> Sums:
        """Cross-entropy with smoothed labels, weights of the classes and adjusted logits."""
        import jax.nn
        import optax

        if not self.own_objective:
            return super().objective(outputs, labels, weights)
        seen, target = self._seen(labels, weights)
        one_hot = jax.nn.one_hot(target, outputs.shape[-1])
        losses = optax.softmax_cross_entropy(
            self._adjusted(outputs), optax.smooth_labels(one_hot, self.label_smoothing)
        )
        seen = seen * self._weight_of(target)
        return {"loss": ((seen * losses).sum(), seen.sum())}

    def averaged(self, views: Sequence[jax.Array]) -> jax.Array:
        """The logarithm of the views' mean probability."""
        import jax
        import jax.numpy as jnp

        logs = jnp.stack([jax.nn.log_softmax(logits) for logits in views])
        return jax.nn.logsumexp(logs, axis=0) - jnp.log(len(views))

    def predictions(
        self, dataset: Dataset, split: str, outputs: np.ndarray, means: Mapping[str, float]
    ) -> dict[str, Predictions]:
        trained = dataset.splits["train"].labels[self.head]
        predicted = ClassPredictions(
            split=split,
            logits=outputs,
            labels=dataset.splits[split].labels[self.head],
            class_names=dataset.class_names[self.head],
            loss=means["loss"],
            trained=np.isin(np.arange(self.outputs(dataset)), trained),
        )
        return {self.head: predicted}

    def answers(
        self, outputs: np.ndarray, class_names: Mapping[str, tuple[str, ...]]
    ) -> list[dict[str, Answer]]:
        names = class_names[self.head]
        answers = []
        for share in softmax(outputs):
            best = np.argsort(-share, kind="stable")[:TOP]
            first = names[best[0]]
            probability = round(float(share[best[0]]), 4)
            top = {names[index]: round(float(share[index]), 4) for index in best}
            answer = Answer(
                text=f"{first} {probability:.0%}",
                values={"class": first, "probability": probability, "top": top},
                columns={"": first, "probability": probability},
                others=", ".join(f"{name} {each:.0%}" for name, each in [*top.items()][1:OTHERS]),
            )
            answers.append({self.head: answer})
        return answers

    def described(self, class_names: Mapping[str, tuple[str, ...]]) -> list[dict[str, Any]]:
        names = list(class_names[self.head])
        head = {"name": self.head, "kind": "classes", "start": 0, "stop": len(names)}
        return [{**head, "classes": names}]

    def _seen(
        self, labels: Mapping[str, jax.Array], weights: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Weights, 0 where the label is none of the classes, and labels that index into them."""
        import jax.numpy as jnp

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
    """A classification that knows how common each class is among the training examples."""

    counts: tuple[int, ...]
    """Training examples of each class."""

    @property
    def weights(self) -> np.ndarray:
        """What an example of each class weighs, float64 `[classes]`."""
        counts = np.array(self.counts)
        if self.class_weights == "equal":
            return np.ones(len(counts))
        # scikit-learn's 'balanced': the weights of all examples add up to their number.
        return counts.sum() / (np.count_nonzero(counts) * np.maximum(counts, 1))

    @property
    def adjustments(self) -> np.ndarray:
        """What is added to the logit of each class in training, float64 `[classes]`."""
        counts = np.maximum(self.counts, 1)
        return self.logit_adjustment * np.log(counts / counts.sum())

    def _weight_of(self, target: jax.Array) -> jax.Array | float:
        import jax.numpy as jnp

        return jnp.array(self.weights, jnp.float32)[target]

    def _adjusted(self, outputs: jax.Array) -> jax.Array:
        return outputs + self.adjustments.astype(outputs.dtype)
