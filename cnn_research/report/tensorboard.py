"""TensorBoard beside the curves: histograms and images of a training, and mirrored pages."""

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
"""Above this, only some kernels, spread over the depth, have histograms."""
MOST_NUMBERS = 10_000
"""Values of a parameter in its histogram."""
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

    def __init__(self, events: Events | None, params: Any | None):
        """Take the parameters at the last evaluation, or initially; None where a run resumes
        between two."""
        self._events = events
        self._before = {} if params is None else sampled(params)

    def write(self, step: int, params: Any) -> None:
        """Write those of an evaluation."""
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
        # TensorBoard draws 30 bins whatever it is given.
        events.curves.add_histogram(tag, finite, step, bins=30)  # type: ignore


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


def show_training_images(events: Events, images: np.ndarray) -> None:
    """Show what the first step trains on, augmented: uint8 `[batch, height, width, channels]`."""
    small = thumbnails(images[:SHOWN_IMAGES], SHOWN_SIDE)
    border = ((0, 0), (0, 2), (0, 2), (0, 0))
    framed = np.pad(small, border, constant_values=255)
    events.curves.add_images("training_images", framed, 0, dataformats="NHWC")


def chosen(split: Split) -> np.ndarray:
    """The places of the images that the projector shows, all or at random: int `[images]`."""
    count = min(len(split), MOST_POINTS)
    return np.sort(np.random.default_rng(0).permutation(len(split))[:count])


def show_report(
    events: Events,
    page: Path,
    predictions: Mapping[str, Mapping[str, Predictions]],
    step: int,
) -> None:
    """Mirror a report: its page, its pictures, and curves of precision and recall."""
    pictures = {f"report/{file.stem}": file for file in sorted(page.parent.glob("*.png"))}
    show_page(events, page, pictures, step)
    for split, heads in predictions.items():
        for head, predicted in heads.items():
            where = f"{split} {head}" if len(heads) > 1 else split
            for name, members, probabilities in predicted.common_classes(MOST_CURVES):
                events.pages.add_pr_curve(f"{where}/{name}", members, probabilities, step)


def show_page(events: Events, page: Path, pictures: Mapping[str, Path], step: int) -> None:
    """Mirror a page's text, and its pictures under their tags."""
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
    """Show images as points in TensorBoard's projector, at principal components of their features.

    Images are uint8 `[images, height, width, channels]`, features float32 `[images, dimensions]`.
    """
    columns = list(dict.fromkeys(name for row in rows for name in row))
    # A tab or a line end in a name would end its cell.
    cells = [[" ".join(row.get(name, "").split()) for name in columns] for row in rows]
    # tensorboardX computes with what it finds in memory below the last row of pictures.
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
    """The principal components of features: float32 `[examples, at most 50]`."""
    from sklearn.decomposition import PCA

    count = min(DIMENSIONS, *features.shape)
    return PCA(count, random_state=0).fit_transform(features)


def rows_of(
    dataset: Dataset, split: Split, answers: Sequence[Mapping[str, str]]
) -> list[dict[str, str]]:
    """The projector's row for each image: its place, and per head its label and prediction."""
    rows = []
    for place, heads in enumerate(answers):
        row: dict[str, str] = {}
        for head, answer in heads.items():
            label = dataset.label(split, head, place)
            row |= {} if label is None else {head: str(label)}
            row[f"{head}: answer"] = answer
        row["image (file)" if "image" in heads else "image"] = str(
            place if split.names is None else split.names[place]
        )
        rows.append(row)
    return rows
