"""Several labels per image: loss and metrics; `label_predictions` is what a report shows."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import optax

from cnn_research.core.config import register_config
from cnn_research.core.errors import UserError
from cnn_research.data.dataset import Dataset
from cnn_research.report.page import Predictions
from cnn_research.tasks.task import FittedTask, SingleHeadTask, Sums


@register_config
@dataclasses.dataclass(frozen=True)
class SeveralLabels(SingleHeadTask, FittedTask):
    """Sigmoid cross-entropy on each label of one head, of which an image has any number.

    The loss is the sum over the labels: the negative logarithm of the probability of an image's
    labels, as the cross-entropy of classes is that of its class.
    """

    metrics: ClassVar = {"F1 at 0.5": "maximize", "loss": "minimize"}
    evaluation_metrics: ClassVar = {
        **dict.fromkeys(("mAP", "macro F1", "micro F1", "exact match"), "maximize"),
        **dict.fromkeys(("ECE", "ECE before calibration"), "minimize"),
    }

    def check_data(self, dataset: Dataset) -> None:
        """Raise `UserError` for a data set without labels of this kind, or with a split in which no
        image has any: there they are more likely unknown."""
        found = {h for h in dataset.class_names if dataset.splits["train"].labels[h].ndim == 2}
        if self.head not in found:
            raise UserError(
                f"data set {dataset.name} has no sets of labels '{self.head}'; it has "
                f"{', '.join(sorted(found)) or 'none'}: see --data.separator and --data.columns"
            )
        for name, split in dataset.splits.items():
            if not split.labels[self.head].any():
                raise UserError(
                    f"data set {dataset.name}: no image of its {name} split has a label of "
                    f"'{self.head}', so nothing can be measured: label it, or use another"
                )

    def num_outputs(self, dataset: Dataset) -> int:
        return len(dataset.class_names[self.head])

    def fitted(self, dataset: Dataset) -> SeveralLabels:
        return self

    def sums(self, outputs: jax.Array, labels: Mapping[str, jax.Array], weights: jax.Array) -> Sums:
        """Cross-entropy of the logits, float32 `[batch, labels]`, and F1 over all labels together,
        where those with a probability above 0.5 count as predicted.

        Labels are int8 `[batch, labels]`, 1 for those that an image has.
        """
        true = labels[self.head].astype(outputs.dtype)
        losses = optax.sigmoid_binary_cross_entropy(outputs, true).sum(axis=-1)
        predicted = (outputs > 0).astype(outputs.dtype)
        hits, both = (predicted * true).sum(axis=-1), (predicted + true).sum(axis=-1)
        return {
            "loss": ((weights * losses).sum(), weights.sum()),
            "F1 at 0.5": ((weights * 2 * hits).sum(), (weights * both).sum()),
        }

    def average_views(self, views: Sequence[jax.Array]) -> jax.Array:
        """The logit of the views' mean probability."""
        signs = (jnp.stack([sign * view for view in views]) for sign in (1, -1))
        present, absent = (jax.nn.logsumexp(jax.nn.log_sigmoid(each), axis=0) for each in signs)
        return present - absent

    def predictions(
        self, dataset: Dataset, split: str, outputs: np.ndarray, means: Mapping[str, float]
    ) -> dict[str, Predictions]:
        from cnn_research.tasks.label_predictions import LabelPredictions

        predicted = LabelPredictions(
            split=split,
            logits=outputs,
            labels=dataset.splits[split].labels[self.head],
            class_names=dataset.class_names[self.head],
            trained=dataset.splits["train"].labels[self.head].sum(axis=0, dtype=int),
            loss=means["loss"],
        )
        return {self.head: predicted}

    def output_spec(self, class_names: Mapping[str, tuple[str, ...]]) -> list[dict[str, Any]]:
        names = list(class_names[self.head])
        return [dict(name=self.head, kind="labels", start=0, stop=len(names), classes=names)]
