"""What came of estimating histograms: the cross-entropy between its bounds, and pictures."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

LEAST = 1e-12
"""Stands for a share of 0 under a logarithm."""


@dataclasses.dataclass(frozen=True, eq=False)
class HistogramPredictions:
    """What a model estimated for every image of a split.

    Attributes:
        split: `test`, or `validation` where there is no test split.
        colours: of each cluster, as hex.
        shares: the estimated share of each cluster, float64 `[examples, clusters]`.
        labels: the cluster of each pixel, uint8 `[examples, height, width]`.
        mean: the share of each cluster in all training pixels, float64 `[clusters]`.
        loss: the mean cross-entropy.
    """

    split: str
    colours: Sequence[str]
    shares: np.ndarray
    labels: np.ndarray
    mean: np.ndarray
    loss: float

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

    def text(self) -> str:
        """The figures, one per line."""
        return "".join(
            f"{value:>12,} {name}\n" if isinstance(value, int) else f"{value:>12.4f} {name}\n"
            for name, value in self.figures().items()
        )

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
