"""TensorBoard beside the curves: histograms and images of a training, and mirrored reports."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from flax import traverse_util

from cnn_research.data.dataset import Dataset, Split
from cnn_research.report.html import MARKDOWN
from cnn_research.report.page import Predictions
from cnn_research.report.writers import MetricsWriter

MOST_HISTOGRAMS = 64
"""Of a network with more parameters, kernels spread over its depth are shown."""
MOST_NUMBERS = 10_000
"""Of a parameter, that a histogram is made of."""
SHOWN_IMAGES, SHOWN_SIDE = 36, 96
"""Training images that are shown, and the pixels of a side of each."""
MOST_CURVES = 20
"""Precision and recall are drawn of the most common classes."""
MOST_POINTS, POINT_SIDE = 1000, 32
"""Images in the projector, and the pixels of a side of each; TensorBoard takes squares of 8,192."""
DIMENSIONS = 50
"""Principal components of the features that the projector is given."""


class Histograms:
    """Histograms of parameters at each evaluation, and of their changes since the one before."""

    def __init__(self, writer: MetricsWriter, params: Any | None):
        """Takes the parameters at the last evaluation, or initially; None where they are not
        known, because the run resumes between two."""
        self._writer = writer
        self._before = {} if params is None else sampled(params)

    def write(self, step: int, params: Any) -> None:
        """Writes those of an evaluation."""
        now = sampled(params)
        for path, values in now.items():
            self._writer.histogram(f"parameters/{path}", values, step)
            if path in self._before:
                self._writer.histogram(f"changes/{path}", values - self._before[path], step)
        self._before = now


def sampled(params: Any) -> dict[str, np.ndarray]:
    """Numbers of each parameter by its path, at equal distances, copied: float32 `[numbers]`."""
    leaves = traverse_util.flatten_dict(params, sep="/")
    if len(leaves) > MOST_HISTOGRAMS:
        leaves = {path: leaf for path, leaf in leaves.items() if leaf.ndim > 1}
    paths = list(leaves)
    if len(paths) > MOST_HISTOGRAMS:
        chosen = np.linspace(0, len(paths) - 1, MOST_HISTOGRAMS).round().astype(int)
        paths = [paths[place] for place in chosen]
    samples = {}
    for path in paths:
        numbers = np.asarray(leaves[path]).ravel()
        samples[path] = np.array(numbers[:: -(-numbers.size // MOST_NUMBERS)], np.float32)
    return samples


def thumbnails(images: np.ndarray, side: int) -> np.ndarray:
    """Images in squares, on white where they are longer one way than the other.

    Args:
        images: uint8 `[images, height, width, channels]`.
        side: of a square at most, in pixels: small images are enlarged by a whole number.

    Returns:
        uint8 `[images, side, side, 3]`.
    """
    from PIL import Image, ImageOps

    longest = max(images.shape[1:3])
    enlarged = side >= longest
    how = Image.Resampling.NEAREST if enlarged else Image.Resampling.BILINEAR
    size = side // longest * longest if enlarged else side
    coloured = np.broadcast_to(images, (*images.shape[:3], 3))
    squares = (
        ImageOps.pad(Image.fromarray(image), (size, size), how, color="white") for image in coloured
    )
    return np.stack([np.asarray(square) for square in squares])


def show_training_images(writer: MetricsWriter, images: np.ndarray) -> None:
    """Shows what the first step trains on.

    Args:
        writer: the run's.
        images: uint8 `[batch, height, width, channels]`, augmented.
    """
    small = thumbnails(images[:SHOWN_IMAGES], SHOWN_SIDE)
    border = ((0, 0), (0, 2), (0, 2), (0, 0))
    writer.images("training_images", np.pad(small, border, constant_values=255), 0)


@dataclasses.dataclass(frozen=True)
class Points:
    """Images in the space of a network's features.

    Attributes:
        split: the images and their labels.
        features: float32 `[examples, dimensions]`.
        answers: the network's prediction for each, in words, per head.
    """

    split: Split
    features: np.ndarray
    answers: Sequence[Mapping[str, str]]


def chosen(split: Split) -> np.ndarray:
    """The places of the images that the projector shows, all or at random: int `[images]`."""
    count = min(len(split), MOST_POINTS)
    return np.sort(np.random.default_rng(0).permutation(len(split))[:count])


def show_report(
    writer: MetricsWriter,
    dataset: Dataset,
    page: Path,
    predictions: Mapping[str, Mapping[str, Predictions]],
    points: Points,
    step: int,
) -> None:
    """Mirrors a report: its page and pictures, curves of precision and recall for each class, and
    the images in the space of their features.

    Args:
        writer: the run's.
        dataset: that was trained on.
        page: of the report.
        predictions: of each split that the report shows, for each head.
        points: what the projector shows.
        step: of the reported state.
    """
    for picture in sorted(page.parent.glob("*.png")):
        writer.picture(f"report/{picture.stem}", picture, step)
    writer.text("report", page.with_name(MARKDOWN).read_text(encoding="utf-8"), step)
    for split, heads in predictions.items():
        for head, predicted in heads.items():
            where = f"{split} {head}" if len(heads) > 1 else split
            for name, members, probabilities in predicted.common_classes(MOST_CURVES):
                writer.precision_recall(f"{where}/{name}", members, probabilities, step)
    writer.points(
        "features",
        principal(points.features),
        rows_of(dataset, points),
        thumbnails(points.split.images, POINT_SIDE),
        step,
    )


def principal(features: np.ndarray) -> np.ndarray:
    """The principal components of features: float32 `[examples, at most 50]`."""
    from sklearn.decomposition import PCA

    count = min(DIMENSIONS, *features.shape)
    return PCA(count, random_state=0).fit_transform(features)


def rows_of(dataset: Dataset, points: Points) -> list[dict[str, str]]:
    """The projector's row for each image: its place, and per head its label and prediction."""
    rows = []
    for place, answers in enumerate(points.answers):
        row: dict[str, str] = {}
        for head, answer in answers.items():
            label = dataset.label(points.split, head, place)
            row |= {} if label is None else {head: str(label)}
            row[f"{head}: answer"] = answer
        row["image"] = str(place if points.split.names is None else points.split.names[place])
        rows.append(row)
    return rows
