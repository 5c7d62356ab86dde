"""TensorBoard besides the curves: histograms, training images and reports."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from flax import traverse_util

from cnn_research.data.dataset import Dataset, Split
from cnn_research.report.html import MARKDOWN
from cnn_research.report.loggers import Events
from cnn_research.report.page import Predictions
from cnn_research.report.pictures import thumbnails

MOST_HISTOGRAMS = 64
"""Maximum number of parameters with histograms; above it, kernels spread over the depth."""
MOST_NUMBERS = 10_000
"""Maximum number of values of a parameter in its histogram."""
SHOWN_IMAGES, SHOWN_SIDE = 36, 96
"""Maximum number of training images shown, and their size in pixels."""
MOST_CURVES = 20
"""Maximum number of classes with precision-recall curves; the most common."""
MOST_POINTS, POINT_SIDE = 1000, 32
"""Maximum number of images in the projector, and their size in pixels; TensorBoard accepts one
picture of 8,192 x 8,192 pixels with all of them."""
DIMENSIONS = 50
"""Number of principal components of the features in the projector."""


class Histograms:
    """Histograms of parameters and of their changes between evaluations."""

    def __init__(self, events: Events | None, params: Any | None):
        """Take the parameters of the last evaluation or the initial ones; None if a run resumes
        between two evaluations."""
        self._events = events
        self._before = {} if params is None else sampled(params)

    def write(self, step: int, params: Any) -> None:
        """Write the histograms of an evaluation."""
        if self._events is None:
            return
        now = sampled(params)
        for path, values in now.items():
            _add(self._events, f"parameters/{path}", values, step)
            if path in self._before:
                _add(self._events, f"changes/{path}", values - self._before[path], step)
        self._before = now


def _add(events: Events, tag: str, values: np.ndarray, step: int) -> None:
    finite = values[np.isfinite(values)]
    if finite.size:
        # TensorBoard always draws 30 bins.
        events.curves.add_histogram(tag, finite, step, bins=30)  # type: ignore


def sampled(params: Any) -> dict[str, np.ndarray]:
    """Copy equally spaced values of each parameter by its path, float32 `[values]` each."""
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


def show_training_images(events: Events, images: np.ndarray) -> None:
    """Show the first batch after augmentation, uint8 `[batch, height, width, channels]`."""
    small = thumbnails(images[:SHOWN_IMAGES], SHOWN_SIDE)
    border = ((0, 0), (0, 2), (0, 2), (0, 0))
    framed = np.pad(small, border, constant_values=255)
    events.curves.add_images("training_images", framed, 0, dataformats="NHWC")


def chosen(split: Split) -> np.ndarray:
    """Choose the images for the projector, all or at random; return indices, int `[images]`."""
    count = min(len(split), MOST_POINTS)
    return np.sort(np.random.default_rng(0).permutation(len(split))[:count])


def show_report(
    events: Events,
    page: Path,
    predictions: Mapping[str, Mapping[str, Predictions]],
    step: int,
) -> None:
    """Show a report: its page, its pictures and precision-recall curves."""
    pictures = {f"report/{file.stem}": file for file in sorted(page.parent.glob("*.png"))}
    show_page(events, page, pictures, step)
    for split, heads in predictions.items():
        for head, predicted in heads.items():
            where = f"{split} {head}" if len(heads) > 1 else split
            for name, members, probabilities in predicted.common_classes(MOST_CURVES):
                events.pages.add_pr_curve(f"{where}/{name}", members, probabilities, step)


def show_page(events: Events, page: Path, pictures: Mapping[str, Path], step: int) -> None:
    """Show a page's text, and its pictures by their tags."""
    from PIL import Image

    for tag, file in pictures.items():
        pixels = np.asarray(Image.open(file).convert("RGB"))
        events.pages.add_image(tag, pixels, step, dataformats="HWC")
    events.pages.add_text("report", page.with_name(MARKDOWN).read_text(encoding="utf-8"), step)


def show_points(
    events: Events,
    features: np.ndarray,
    rows: Sequence[Mapping[str, str]],
    images: np.ndarray,
    step: int,
) -> None:
    """Show images in TensorBoard's projector, at the principal components of their features.

    Images are uint8 `[images, height, width, channels]`, features float32 `[images, dimensions]`.
    """
    columns = list(dict.fromkeys(name for row in rows for name in row))
    # A tab or a line break in a name would end its cell.
    cells = [[" ".join(row.get(name, "").split()) for name in columns] for row in rows]
    # tensorboardX computes with uninitialized memory below the last row of pictures.
    with np.errstate(over="ignore", invalid="ignore"):
        events.pages.add_embedding(
            np.round(principal(features).astype(np.float64), 4),
            metadata=cells,
            metadata_header=columns,
            label_img=thumbnails(images, POINT_SIDE).transpose(0, 3, 1, 2) / 255,
            global_step=step,
            tag="features",
        )


def principal(features: np.ndarray) -> np.ndarray:
    """Compute the principal components of features, float32 `[examples, at most 50]`."""
    from sklearn.decomposition import PCA

    count = min(DIMENSIONS, *features.shape)
    return PCA(count, random_state=0).fit_transform(features)


def rows_of(
    dataset: Dataset, split: Split, predictions: Sequence[Mapping[str, str]]
) -> list[dict[str, str]]:
    """Make the projector's row of each image: per head its label and prediction, and its name."""
    rows = []
    for index, heads in enumerate(predictions):
        row: dict[str, str] = {}
        for head, prediction in heads.items():
            label = dataset.label(split, head, index)
            row |= {} if label is None else {head: str(label)}
            row[f"{head}: prediction"] = prediction
        row["image (file)" if "image" in heads else "image"] = str(
            index if split.names is None else split.names[index]
        )
        rows.append(row)
    return rows
