"""Multi-label classification: loss and metrics; `label_predictions` reports them."""

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
    """Sigmoid cross-entropy on each label of one head; an image has any number of labels.

    The loss is the sum over the labels, the negative log-likelihood of an image's labels.
    """

    metrics: ClassVar = {"F1 at 0.5": "maximize", "loss": "minimize"}
    evaluation_metrics: ClassVar = {
        **dict.fromkeys(("mAP", "macro F1", "micro F1", "exact match"), "maximize"),
        **dict.fromkeys(("ECE", "ECE before calibration"), "minimize"),
    }

    def check_data(self, dataset: Dataset) -> None:
        """Raise `UserError` if the data set has no such labels or a split has no label at all, as
        it is then probably unlabelled."""
        heads = {h for h in dataset.class_names if dataset.splits["train"].labels[h].ndim == 2}
        if self.head not in heads:
            raise UserError(
                f"data set {dataset.name} has no label sets '{self.head}'; it has "
                f"{', '.join(sorted(heads)) or 'none'}: see --data.separator and --data.columns"
            )
        for name, split in dataset.splits.items():
            if not split.labels[self.head].any():
                raise UserError(
                    f"data set {dataset.name}: no image of the {name} split has a label "
                    f"'{self.head}', so nothing can be measured: label it, or use another split"
                )

    def num_outputs(self, dataset: Dataset) -> int:
        return len(dataset.class_names[self.head])

    def fitted(self, dataset: Dataset) -> SeveralLabels:
        return self

    def sums(self, outputs: jax.Array, labels: Mapping[str, jax.Array], weights: jax.Array) -> Sums:
        """Cross-entropy of the logits, float32 `[batch, labels]`, and micro F1 at threshold 0.5.

        Labels are int8 `[batch, labels]`, 1 for the labels of an image.
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
        """Logit of the views' mean probability."""
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
