"""Common format of all sources of images: uint8 arrays, labels and provenance.

The labels of a head are classes or, where it has no class names, numbers.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from cnn_research.core.errors import UsageError, UserError
from cnn_research.core.files import release

MISSING = -1
"""The class of an example whose class is not known: it has no loss and is not counted. A number
that is not known is NaN."""

UNKNOWN_CLASS = -2
"""The class of an example whose class is known but that no training example can have: a class that
only the split `target` has. No prediction of it can be right, so it is counted as wrong."""

CHUNK = 256
"""Images of a memory map that are read before their memory is given back."""

PALETTE = "palette"
"""Head of labels that are palettes: several colours for each image."""


@dataclasses.dataclass(frozen=True, eq=False)
class Split:
    """Examples of one split, in a fixed order.

    Attributes:
        images: uint8 `[examples, height, width, channels]`, often a read-only memory map.
        labels: per head, classes, int32 `[examples]`, `MISSING` (-1) where not known and, outside
            of `train`, `UNKNOWN_CLASS` (-2) where no class; or several of them, int8
            `[examples, classes]`, 1 for those that an example has; or numbers, float32
            `[examples]`, NaN where not known; or a class of each pixel, uint8 `[examples, height,
            width]`; or palettes, sRGB 0 to 1, float32 `[examples, most, 3]`, NaN where one has
            fewer colours.
        names: source of each example (`train/Coat/17.jpg`), or None.
        groups: text `[examples]`, what the example is of (a patient, a film), or None: examples of
            one group are alike; "" for an example by itself.
    """

    images: np.ndarray
    labels: Mapping[str, np.ndarray]
    names: np.ndarray | None = None
    groups: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.images)

    def take(self, indices: np.ndarray) -> Split:
        """The examples at `indices` (int `[examples]`), in that order, copied."""
        return Split(
            images=self.images[indices],
            labels={head: labels[indices] for head, labels in self.labels.items()},
            names=None if self.names is None else self.names[indices],
            groups=None if self.groups is None else self.groups[indices],
        )


@dataclasses.dataclass(frozen=True, eq=False)
class Examples:
    """A data set before it is split.

    Attributes:
        images: uint8 `[examples, height, width, channels]`.
        labels: per head, int32, int8 or float32, as in `Split`.
        class_names: names per head of classes; splits are stratified by the first head.
        names: str `[examples]`, the source of each example.
        given: str `[examples]`, the source's own split; `train` where it gives none.
        groups: str `[examples]`, what stays on one side of drawn splits, "" for an example by
            itself; or None.
        by_name: draw by names instead of pixels: the same files are in the same split at every
            size.
    """

    images: np.ndarray
    labels: Mapping[str, np.ndarray]
    class_names: Mapping[str, tuple[str, ...]]
    names: np.ndarray
    given: np.ndarray
    groups: np.ndarray | None = None
    by_name: bool = False

    @functools.cached_property
    def digests(self) -> list[bytes]:
        """A digest of each image's pixels."""
        return digests_of(self.images)

    @property
    def first_head(self) -> str | None:
        """The head by which splits are stratified; None where there are no classes."""
        return next(iter(self.class_names), None)

    @property
    def strata(self) -> np.ndarray:
        """The classes of the first head, int32 `[examples]`; `MISSING` without one.

        Of several labels it is the example's rarest, so that rare ones are drawn in proportion.
        """
        head = self.first_head
        if head is None:
            return np.full(len(self.images), MISSING)
        labels = self.labels[head]
        if labels.ndim == 1:
            return labels
        counts = labels.sum(axis=0, dtype=int)
        rarest = np.where(labels == 1, counts, len(labels) + 1).argmin(axis=1)
        return np.where(labels.any(axis=1), rarest, MISSING)

    def take(self, indices: np.ndarray) -> Split:
        """The examples at `indices`, in that order, as a split."""
        return Split(self.images, self.labels, self.names, self.groups).take(indices)


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """Named splits of one data set, checked as they are put together.

    Attributes:
        splits: `train` and `test`, optionally `validation`, and `target` for another domain to
            evaluate on (the others are the source).
        class_names: names per head of classes, indexed by `labels`. Other heads have numbers.
        provenance: JSON values: source, version, checksums, how it was split, exact duplicates
            found across splits. Written into every run's folder.
        window: height and width of the model's input, where training images are larger: each time
            one is drawn, a window is cut from it at random, and from its labels per pixel. The
            images of the other splits are of this size. None: whole images.
    """

    name: str
    splits: Mapping[str, Split]
    class_names: Mapping[str, tuple[str, ...]]
    provenance: Mapping[str, Any]
    window: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        for split_name, split in self.splits.items():
            where = f"data set {self.name}, split {split_name}"
            if split.images.dtype != np.uint8 or split.images.ndim != 4:
                raise UserError(
                    f"{where}: images are {split.images.dtype} with shape {split.images.shape}; "
                    "they must be uint8 [examples, height, width, channels]"
                )
            for head, labels in split.labels.items():
                if len(labels) != len(split.images):
                    raise UserError(
                        f"{where}: {len(split.images)} images but {len(labels)} labels '{head}'"
                    )
                if head in self.class_names and labels.ndim == 2:
                    allowed = f"not a 0 or 1 for each of {len(self.class_names[head])} classes"
                    fits = labels.shape[1] == len(self.class_names[head])
                    wrong = np.flatnonzero(~np.isin(labels, (0, 1)).all(axis=1) | (not fits))
                elif head in self.class_names:
                    classes = len(self.class_names[head])
                    allowed = f"outside 0..{classes - 1}"
                    lowest = MISSING if split_name == "train" else UNKNOWN_CLASS
                    wrong = np.flatnonzero((labels < lowest) | (labels >= classes))
                else:
                    allowed = "not a finite number"
                    wrong = np.flatnonzero(np.isinf(labels))
                if wrong.size:
                    first = int(wrong[0])
                    raise UserError(
                        f"{where}: label '{head}' of example {first} is {labels[first]}, "
                        f"{allowed}; {wrong.size} such labels: correct the labels"
                    )

    def label(self, split: Split, head: str, place: int) -> str | float | None:
        """Name or number of an example's label, or the names of several; None where unknown or
        none of these."""
        labels = split.labels.get(head)
        if labels is None or labels.ndim > 2:  # the image itself is the target, or its pixels are
            return None
        if labels.ndim == 2:
            names = self.class_names[head]
            return "; ".join(names[at] for at in np.flatnonzero(labels[place])) or "none"
        value = labels[place]
        if head not in self.class_names:
            return None if np.isnan(value) else float(value)
        return self.class_names[head][value] if value >= 0 else None

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """`(height, width, channels)` of every image that a model is given."""
        _, height, width, channels = next(iter(self.splits.values())).images.shape
        return (*(self.window or (height, width)), channels)

    @property
    def windows(self) -> int:
        """Number of adjacent windows that fit into a training image; 1 without windows."""
        if self.window is None:
            return 1
        _, height, width, _ = self.splits["train"].images.shape
        return (height // self.window[0]) * (width // self.window[1])


def occurring(labels: np.ndarray) -> np.ndarray:
    """The classes that occur among labels, those of one example or several: ascending, int."""
    if labels.ndim == 2:
        return np.flatnonzero(labels.any(axis=0))
    return np.unique(labels[labels >= 0])


def digests_of(images: np.ndarray) -> list[bytes]:
    """A digest of each image's pixels: the same for images of the same pixels only."""
    digests = []
    for start in range(0, len(images), CHUNK):
        for image in images[start : start + CHUNK]:
            digests.append(hashlib.blake2b(image.tobytes(), digest_size=16).digest())
        release(images)
    return digests


def check_window(window: tuple[int, int], dataset: Dataset) -> None:
    """Raise `UsageError` for a window, height and width, that the images have no room for."""
    height, width, _ = dataset.image_shape
    if not (1 <= window[0] <= height and 1 <= window[1] <= width):
        raise UsageError(
            f"data.window is {window}, and the images of {dataset.name} are of {height}x{width}: "
            "take a smaller window, or larger images"
        )
