"""The share of each cluster of colours in an image: the palette paper's first phase."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from cnn_research.core.config import register_config
from cnn_research.core.errors import UserError
from cnn_research.data.dataset import Dataset
from cnn_research.ops.kmeans import histogram
from cnn_research.report.page import Predictions
from cnn_research.report.pictures import Shown
from cnn_research.report.plots import GREY, blank_grid, saved, show_image
from cnn_research.tasks.task import FittedTask, SingleHeadTask, Sums

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_IMAGES = 24
LEAST = 1e-12
"""Replaces shares of 0 under a logarithm."""


@register_config
@dataclasses.dataclass(frozen=True)
class Histogram(SingleHeadTask):
    """Cross-entropy against the histogram of an image's pixels by cluster.

    E = -1/n sum_i sum_j p^_ij log p_ij in Jaramillo Ruiz (2023), where p^ is the histogram,
    normalised to 1, and p the network's estimate, a softmax over the clusters.
    """

    metrics: ClassVar = {"loss": "minimize"}
    evaluation_metrics: ClassVar = {"gap closed": "maximize", "overlap": "maximize"}

    head: str = "cluster"
    """Name of the labels, which are the cluster of each pixel."""

    def check_data(self, dataset: Dataset) -> None:
        """Raise `UserError` for a data set without one class per pixel."""
        labels = dataset.splits["train"].labels.get(self.head)
        if labels is None or labels.ndim != 3 or self.head not in dataset.class_names:
            raise UserError(
                f"data set {dataset.name} has no pixel clusters '{self.head}': use "
                "data=Clustered(source=...)"
            )

    def num_outputs(self, dataset: Dataset) -> int:
        return len(dataset.class_names[self.head])

    def fitted(self, dataset: Dataset) -> FittedHistogram:
        """Return the task with the histogram of all training pixels."""
        labels = dataset.splits["train"].labels[self.head]
        counts = np.bincount(labels.ravel(), minlength=self.num_outputs(dataset))
        return FittedHistogram(head=self.head, mean=tuple((counts / counts.sum()).tolist()))


@register_config
@dataclasses.dataclass(frozen=True, kw_only=True)
class FittedHistogram(Histogram, FittedTask):
    """A histogram task that knows its training split."""

    mean: tuple[float, ...]
    """Share of each cluster in all training pixels."""

    def sums(self, outputs: jax.Array, labels: Mapping[str, jax.Array], weights: jax.Array) -> Sums:
        """Cross-entropy of logits `[batch, clusters]` and clusters `[batch, height, width]`."""
        target = histogram(labels[self.head], outputs.shape[-1])
        losses = -(target * jax.nn.log_softmax(outputs)).sum(axis=-1)
        return {"loss": (jnp.sum(weights * losses), weights.sum())}

    def average_views(self, views: Sequence[jax.Array]) -> jax.Array:
        """Logarithm of the views' mean proportions."""
        return jnp.log(jnp.stack([jax.nn.softmax(view) for view in views]).mean(axis=0))

    def predictions(
        self, dataset: Dataset, split: str, outputs: np.ndarray, means: Mapping[str, float]
    ) -> dict[str, Predictions]:
        from scipy.special import softmax

        predicted = HistogramPredictions(
            split=split,
            colours=dataset.class_names[self.head],
            proportions=softmax(outputs.astype(np.float64), axis=-1),
            labels=dataset.splits[split].labels[self.head],
            mean=np.array(self.mean),
            loss=means["loss"],
        )
        return {self.head: predicted}

    def output_spec(self, class_names: Mapping[str, tuple[str, ...]]) -> list[dict[str, Any]]:
        names = list(class_names[self.head])
        return [dict(name=self.head, kind="shares", start=0, stop=len(names), classes=names)]


@dataclasses.dataclass(frozen=True, eq=False)
class HistogramPredictions(Predictions):
    """Predicted histograms of all images of a split."""

    colours: Sequence[str]
    proportions: np.ndarray
    """Predicted share of each cluster, float64 `[examples, clusters]`."""
    labels: np.ndarray
    """Cluster of each pixel, uint8 `[examples, height, width]`."""
    mean: np.ndarray
    """Share of each cluster in all training pixels, float64 `[clusters]`."""

    def __len__(self) -> int:
        return len(self.proportions)

    @functools.cached_property
    def true(self) -> np.ndarray:
        """True share of each cluster, float64 `[examples, clusters]`."""
        pixels = self.labels.reshape(len(self), -1)
        counts = [np.bincount(row, minlength=len(self.colours)) for row in pixels]
        return np.stack(counts) / pixels.shape[1]

    def metrics(self) -> dict[str, float | int]:
        """Metrics of the predicted histograms.

        The cross-entropy, its minimum (the mean entropy of the true histograms), that of always
        predicting the histogram of all training pixels, the share of the gap between these two that
        is closed, and the mean overlap of true and predicted histograms.
        """
        least = -(self.true * np.log(np.maximum(self.true, LEAST))).sum(axis=1).mean()
        constant = -(self.true @ np.log(np.maximum(self.mean, LEAST))).mean()
        metrics: dict[str, float | int] = {
            "loss": self.loss,
            "entropy": float(least),
            "loss of the mean histogram": float(constant),
        }
        if constant > least:
            metrics["gap closed"] = float((constant - self.loss) / (constant - least))
        metrics["overlap"] = float(np.minimum(self.true, self.proportions).sum(axis=1).mean())
        return {**metrics, "count": len(self)}

    def page(self, folder: Path, suffix: str, shown: Shown | None) -> Iterator[str]:
        """Show the clusters in the RGB cube, and images with their histograms."""
        yield (
            "The loss is the cross-entropy, whose lower bound is the entropy of the true "
            "histograms. Always predicting the histogram of all training images gives another "
            "cross-entropy: `gap closed` is the share of the gap between these two that the "
            "network closes. `overlap` is the overlap of true and predicted proportions."
        )
        yield f"The {len(self.colours)} clusters, with areas by their share of training pixels:"
        cube = colour_cube_plot(self.colours, self.mean)
        yield saved(cube, folder / f"clusters{suffix}.png", "Clusters in the RGB cube")
        if shown is not None:
            figure = histograms_plot(shown.images, self.true, self.proportions, self.colours)
            yield "Images with their true histograms above the predicted ones, from good to bad:"
            alt = "Images with true and predicted histograms"
            yield saved(figure, folder / f"histograms{suffix}.png", alt)


def colour_cube_plot(colours: Sequence[str], proportions: np.ndarray) -> Figure:
    """Plot clusters in the RGB cube, sized by proportions (Jaramillo Ruiz 2023, figure 5)."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4.6), dpi=144, layout="constrained")
    points = np.array([[int(hexed[at : at + 2], 16) for at in (1, 3, 5)] for hexed in colours])
    for place, azimuth in enumerate((35, 125), 1):
        axes: Any = figure.add_subplot(1, 2, place, projection="3d")
        areas = 12 + 120 * proportions / proportions.max()
        axes.scatter(
            *points.T, c=list(colours), s=areas, edgecolors=GREY, linewidths=0.3, depthshade=False
        )
        axes.set_box_aspect((1, 1, 1), zoom=0.82)  # otherwise a label is cut off
        axes.view_init(elev=22, azim=azimuth)
        for name in "xyz":
            axes.set(**{f"{name}lim": (0, 255), f"{name}ticks": (0, 128, 255)})
        axes.set_xlabel("red")
        axes.set_ylabel("green")
        axes.set_zlabel("blue")
        axes.tick_params(labelsize=7)
    return figure


def histograms_plot(
    images: np.ndarray, true: np.ndarray, estimated: np.ndarray, colours: Sequence[str]
) -> Figure:
    """Draw images, uint8 `[examples, height, width, 3]`, with histograms, `[examples, clusters]`.

    Histograms are strips of colour, the predicted one below. The images are evenly spaced in the
    ranking by overlap, the best first.
    """
    overlap = np.minimum(true, estimated).sum(axis=1)
    order = np.argsort(-overlap, kind="stable")
    shown = order[np.linspace(0, len(order) - 1, min(MOST_IMAGES, len(order))).astype(int)]
    columns = 3
    rows = -(-len(shown) // columns)
    size = (3.6 * columns, 1.15 * rows)
    figure, grid = blank_grid(rows, 2 * columns, size, width_ratios=[1, 2.6] * columns)
    for index, (picture, strips) in zip(shown, grid.reshape(-1, 2), strict=False):
        show_image(picture, images[index])
        strips.set_title(f"overlap {overlap[index]:.0%}", fontsize=7.5, loc="left", pad=2)
        for y, widths in ((1, true[index]), (0, estimated[index])):
            left = np.cumsum(widths) - widths
            strips.barh(y, widths, left=left, height=0.9, color=list(colours))
        strips.set_xlim(0, 1)
    return figure
