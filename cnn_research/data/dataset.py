"""Common format of all image sources: uint8 arrays, labels and provenance.

The labels of a head are classes or, if it has no class names, numbers.
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
"""Class of an unlabelled example, which is not in losses and metrics. Missing numbers are NaN."""

UNKNOWN_CLASS = -2
"""Class of an example whose class occurs only in the split `target`. It cannot be predicted, so its
prediction counts as wrong."""

CHUNK = 256
"""Images of a memory map that are read before their memory is released."""

PALETTE = "palette"
"""Head whose labels are palettes: several colours per image."""


@dataclasses.dataclass(frozen=True, eq=False)
class Split:
    """Examples of one split, in a fixed order.

    Attributes:
        images: uint8 `[examples, height, width, channels]`, often a read-only memory map.
        labels: per head, one of: a class, int32 `[examples]`, `MISSING` (-1) if unlabelled and,
            outside of `train`, possibly `UNKNOWN_CLASS` (-2); several classes, int8
            `[examples, classes]`, 1 for those of an example; a number, float32 `[examples]`, NaN if
            missing; a class per pixel, uint8 `[examples, height, width]`; a palette, sRGB 0 to 1,
            float32 `[examples, most, 3]`, padded with NaN.
        names: file of each example (`train/Coat/17.jpg`), or None.
        groups: str `[examples]`, the subject of each example (a patient, a film), or None; examples
            of one group are alike. "" is a group of its own.
    """

    images: np.ndarray
    labels: Mapping[str, np.ndarray]
    names: np.ndarray | None = None
    groups: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.images)

    def take(self, indices: np.ndarray) -> Split:
        """Copy the examples at `indices` (int `[examples]`), in that order."""
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
        names: str `[examples]`, the file of each example.
        given: str `[examples]`, the source's own split; `train` if it has none.
        groups: str `[examples]`, groups that random splits keep together, "" for a group of its
            own; or None.
        by_name: draw splits by names instead of pixels: a file is in the same split at every image
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
        """Digest of each image's pixels."""
        return digests_of(self.images)

    @property
    def first_head(self) -> str | None:
        """Head by which splits are stratified; None if there are no classes."""
        return next(iter(self.class_names), None)

    @property
    def strata(self) -> np.ndarray:
        """Class of each example in the first head, int32 `[examples]`; `MISSING` without classes.

        With several labels per image it is the rarest one, so that rare classes are drawn in
        proportion.
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
        """Copy the examples at `indices`, in that order, to a split."""
        return Split(self.images, self.labels, self.names, self.groups).take(indices)


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """Named splits of one data set, which are checked on construction.

    Attributes:
        splits: `train` and `test`, optionally `validation`, and `target` to evaluate on another
            domain (the others are the source domain).
        class_names: names per head of classes, indexed by `labels`. Other heads have numbers.
        provenance: JSON values: source, version, checksums, how splits were made, exact duplicates
            across splits. Written to every run folder.
        window: height and width of the model's input if training images are larger: a random window
            is cropped from an image, and from its labels per pixel, each time it is drawn. The
            images of other splits have this size. None for whole images.
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
                    allowed = f"not one 0 or 1 for each of {len(self.class_names[head])} classes"
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
                        f"{allowed}; {wrong.size} labels are wrong: correct them"
                    )

    def label(self, split: Split, head: str, place: int) -> str | float | None:
        """Return the number or the class name or names of an example's label.

        None if it is missing, or of another kind.
        """
        labels = split.labels.get(head)
        if labels is None or labels.ndim > 2:  # the target is the image, or a map or palette
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
        """`(height, width, channels)` of the model's input."""
        _, height, width, channels = next(iter(self.splits.values())).images.shape
        return (*(self.window or (height, width)), channels)

    @property
    def windows(self) -> int:
        """Number of disjoint windows that fit into a training image; 1 without windows."""
        if self.window is None:
            return 1
        _, height, width, _ = self.splits["train"].images.shape
        return (height // self.window[0]) * (width // self.window[1])


def occurring(labels: np.ndarray) -> np.ndarray:
    """Classes that occur in labels, int `[classes]`, ascending; labels may be several per image."""
    if labels.ndim == 2:
        return np.flatnonzero(labels.any(axis=0))
    return np.unique(labels[labels >= 0])


def digests_of(images: np.ndarray) -> list[bytes]:
    """Return a digest of each image's pixels."""
    digests = []
    for start in range(0, len(images), CHUNK):
        for image in images[start : start + CHUNK]:
            digests.append(hashlib.blake2b(image.tobytes(), digest_size=16).digest())
        release(images)
    return digests


def check_window(window: tuple[int, int], dataset: Dataset) -> None:
    """Raise `UsageError` for a window, height and width, larger than the images."""
    height, width, _ = dataset.image_shape
    if not (1 <= window[0] <= height and 1 <= window[1] <= width):
        raise UsageError(
            f"data.window is {window}, but the images of {dataset.name} are {height}x{width}: "
            "choose a smaller window, or larger images"
        )
