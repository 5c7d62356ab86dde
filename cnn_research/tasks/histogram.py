"""The share of each cluster of colours in an image: document 000's first phase."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from scipy.special import softmax

from cnn_research.core.config import register_config
from cnn_research.core.errors import UserError
from cnn_research.report.page import Predictions
from cnn_research.tasks.task import FittedTask, Sums, Task

if TYPE_CHECKING:
    import jax

    from cnn_research.data.dataset import Dataset

LEAST = 1e-12
"""Stands for a share of 0 under a logarithm."""


@register_config
@dataclasses.dataclass(frozen=True)
class Histogram(Task):
    """Cross-entropy against the histogram of an image's pixels by cluster.

    E = -1/n sum_i sum_j p^_ij log p_ij of document 000, where p^ is the histogram, normalised to 1,
    and p what the network says, a softmax over the clusters.
    """

    metrics: ClassVar = {"loss": "minimize"}
    evaluation_metrics: ClassVar = {"gap closed": "maximize", "overlap": "maximize"}

    head: str = "cluster"
    """The labels with the cluster of each pixel."""

    @property
    def heads(self) -> tuple[str, ...]:
        return (self.head,)

    def check(self) -> None:
        """Nothing can be wrong."""

    def check_data(self, dataset: Dataset) -> None:
        """Raises `UserError` for a data set without a class of each pixel."""
        labels = dataset.splits["train"].labels.get(self.head)
        if labels is None or labels.ndim != 3 or self.head not in dataset.class_names:
            raise UserError(
                f"data set {dataset.name} has no clusters of pixels '{self.head}': it needs "
                "data=Clustered(source=...)"
            )

    def outputs(self, dataset: Dataset) -> int:
        """One per cluster."""
        return len(dataset.class_names[self.head])

    def fitted(self, dataset: Dataset) -> FittedHistogram:
        """The task that knows the histogram of all training pixels."""
        labels = dataset.splits["train"].labels[self.head]
        counts = np.bincount(labels.ravel(), minlength=self.outputs(dataset))
        return FittedHistogram(head=self.head, mean=tuple((counts / counts.sum()).tolist()))


@register_config
@dataclasses.dataclass(frozen=True, kw_only=True)
class FittedHistogram(Histogram, FittedTask):
    """A histogram task that knows its training split."""

    mean: tuple[float, ...]
    """The share of each cluster in all training pixels."""

    def sums(self, outputs: jax.Array, labels: Mapping[str, jax.Array], weights: jax.Array) -> Sums:
        """The cross-entropy.

        Args:
            outputs: logits of the clusters, float32 `[batch, clusters]`.
            labels: per head, the cluster of each pixel, integers `[batch, height, width]`.
            weights: float32 `[batch]`: 0 for padding, and for a mixed image the label's share.
        """
        import jax
        import jax.numpy as jnp

        from cnn_research.ops.kmeans import histogram

        target = histogram(labels[self.head], outputs.shape[-1])
        losses = -(target * jax.nn.log_softmax(outputs)).sum(axis=-1)
        return {"loss": (jnp.sum(weights * losses), weights.sum())}

    def averaged(self, views: Sequence[jax.Array]) -> jax.Array:
        """The logarithm of the views' mean shares."""
        import jax
        import jax.numpy as jnp

        return jnp.log(jnp.stack([jax.nn.softmax(view) for view in views]).mean(axis=0))

    def predictions(
        self, dataset: Dataset, split: str, outputs: np.ndarray, means: Mapping[str, float]
    ) -> dict[str, Predictions]:
        predicted = HistogramPredictions(
            split=split,
            colours=dataset.class_names[self.head],
            shares=softmax(outputs.astype(np.float64), axis=-1),
            labels=dataset.splits[split].labels[self.head],
            mean=np.array(self.mean),
            loss=means["loss"],
        )
        return {self.head: predicted}

    def described(self, class_names: Mapping[str, tuple[str, ...]]) -> list[dict[str, Any]]:
        names = list(class_names[self.head])
        head = {"name": self.head, "kind": "shares", "start": 0, "stop": len(names)}
        return [{**head, "classes": names}]


@dataclasses.dataclass(frozen=True, eq=False)
class HistogramPredictions(Predictions):
    """What a model estimated for every image of a split.

    Attributes:
        colours: of each cluster, as hex.
        shares: the estimated share of each cluster, float64 `[examples, clusters]`.
        labels: the cluster of each pixel, uint8 `[examples, height, width]`.
        mean: the share of each cluster in all training pixels, float64 `[clusters]`.
    """

    colours: Sequence[str]
    shares: np.ndarray
    labels: np.ndarray
    mean: np.ndarray

    def __len__(self) -> int:
        return len(self.shares)

    @functools.cached_property
    def true(self) -> np.ndarray:
        """The true share of each cluster, float64 `[examples, clusters]`."""
        flat = self.labels.reshape(len(self), -1).astype(np.int64)
        clusters = len(self.colours)
        flat += clusters * np.arange(len(self))[:, None]
        counts = np.bincount(flat.ravel(), minlength=len(self) * clusters)
        return counts.reshape(len(self), clusters) / flat.shape[1]

    def figures(self) -> dict[str, float | int]:
        """The cross-entropy; its least value, the mean entropy of the true histograms; that of
        always saying the training pixels' histogram; the share of the way from there to the least
        value; and the mean overlap of true and estimated histograms.
        """
        least = -(self.true * np.log(np.maximum(self.true, LEAST))).sum(axis=1).mean()
        constant = -(self.true @ np.log(np.maximum(self.mean, LEAST))).mean()
        figures: dict[str, float | int] = {
            "loss": self.loss,
            "entropy": float(least),
            "loss of the mean histogram": float(constant),
        }
        if constant > least:
            figures["gap closed"] = float((constant - self.loss) / (constant - least))
        figures["overlap"] = float(np.minimum(self.true, self.shares).sum(axis=1).mean())
        return {**figures, "count": len(self)}

    def page(self, folder: Path, suffix: str, images: np.ndarray | None) -> Iterator[str]:
        """The clusters in the cube of colours, and histograms beside their images."""
        from cnn_research.report import plots as figures

        name = f"clusters{suffix}.png"
        figures.colour_cube(self.colours, self.mean).savefig(folder / name)
        yield (
            "The loss is the cross-entropy, which no estimate can bring below the entropy of the "
            "true histograms. `gap closed` is the share of the way from always saying the training "
            "images' histogram to that bound; `overlap` what true and estimated shares have in "
            "common."
        )
        yield f"The {len(self.colours)} clusters, as large as their share of the training pixels:"
        yield f"![Clusters in the cube of colours]({name})"
        if images is not None:
            name = f"histograms{suffix}.png"
            figures.histograms(images, self.true, self.shares, self.colours).savefig(folder / name)
            yield "Images, their histograms, and below what was estimated, from good to bad:"
            yield f"![Images with true and estimated histograms]({name})"
