"""Labelled crops of photographs: the palette paper's second phase learns colour names from them."""

from __future__ import annotations

import csv
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from cnn_research.core.config import register_config
from cnn_research.core.errors import UserError
from cnn_research.core.files import EXPERIMENTS
from cnn_research.core.ranges import PositiveInt, Seed, check_ranges
from cnn_research.data.dataset import MISSING, Dataset, Split, check_window, digests_of
from cnn_research.data.sources.loading import Share
from cnn_research.data.sources.table import Products


@register_config
@dataclasses.dataclass(frozen=True)
class Crops:
    """Windows of another source's images, each with its image's label.

    Each training image yields a grid of evenly spaced windows, which overlap if there is too little
    room; images of other splits yield their central window.
    """

    source: Any = Products(label=("colour",), target=(), rows=())
    """Source of the images."""
    test_list: str = ""
    """CSV file whose column `id` lists the images of the test split (file names without folder and
    extension), which are then in no other split. A relative path starts from the parent of the
    folder `experiments/`. Empty for the source's test split."""
    validation_list: str = ""
    """The same for the validation split."""
    window: tuple[PositiveInt, PositiveInt] = (37, 37)
    """Height and width of a window."""
    grid: tuple[PositiveInt, PositiveInt] = (3, 2)
    """Rows and columns of windows in a training image."""
    keep_mask_file: str = ""
    """A .npy file, bool `[training windows]`: windows that are False count as unlabelled. Empty
    to keep all."""
    label_noise: Share = 0.0
    """Fraction of training images that are deliberately mislabelled."""
    seed: Seed = 0
    """Seed of the choice of these images and their labels."""

    @property
    def description(self) -> str:
        return f"{self.source.description}, windows of {self.window[0]}x{self.window[1]}"

    def load(self) -> Dataset:
        """Load windows, uint8 `[examples, *window, 3]`.

        Raises:
            UsageError: a window is larger than the images, or a field is out of range.
            UserError: a listed image does not exist.
        """
        check_ranges(self, "data.")
        dataset = self.source.load()
        check_window(self.window, dataset)
        splits = dict(dataset.splits)
        for name, listing in (("test", self.test_list), ("validation", self.validation_list)):
            if listing:
                splits = with_listed(splits, name, listed(EXPERIMENTS.parent / listing))
        rng = np.random.default_rng(self.seed)
        train = splits["train"]
        labels = {
            head: self._noisy(values, len(dataset.class_names[head]), rng)
            for head, values in train.labels.items()
        }
        splits["train"] = self._labelled(in_grid(train, labels, self.window, self.grid))
        for name in splits.keys() - {"train"}:
            splits[name] = in_grid(splits[name], splits[name].labels, self.window, (1, 1))
        return dataclasses.replace(dataset, splits=splits)

    def _noisy(self, labels: np.ndarray, classes: int, rng: np.random.Generator) -> np.ndarray:
        known = np.flatnonzero(labels >= 0)
        wrong = rng.permutation(known)[: round(self.label_noise * len(known))]
        labels = np.array(labels)
        labels[wrong] = (labels[wrong] + rng.integers(1, classes, len(wrong))) % classes
        return labels

    def _labelled(self, train: Split) -> Split:
        if not self.keep_mask_file:
            return train
        try:
            mask = np.load(self.keep_mask_file)
        except (OSError, ValueError) as error:
            raise UserError(f"{self.keep_mask_file} cannot be read ({error})") from error
        if mask.shape != (len(train),):
            raise UserError(
                f"{self.keep_mask_file} has {len(mask)} entries for {len(train)} training windows: "
                "it was made for other data"
            )
        labels = {head: np.where(mask, values, MISSING) for head, values in train.labels.items()}
        return dataclasses.replace(train, labels=labels)


def listed(file: Path) -> list[str]:
    """Read the column `id` of a CSV file; lines that start with # are comments."""
    try:
        lines = [
            line
            for line in file.read_text(encoding="utf-8").splitlines()
            if not line.startswith("#")
        ]
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}") from error
    return [row["id"] for row in csv.DictReader(lines)]


def with_listed(splits: Mapping[str, Split], name: str, names: list[str]) -> dict[str, Split]:
    """Make the images `names` the split `name`, and remove them and their copies elsewhere.

    The former images of that split join the training split. Raises `UserError` if a name is
    unknown.
    """
    places = {
        PurePosixPath(str(name)).stem: (split, index)
        for split, content in splits.items()
        for index, name in enumerate(content.names if content.names is not None else ())
    }
    missing = [name for name in names if name not in places]
    if missing:
        raise UserError(
            f"{len(missing)} of the {len(names)} listed {name} images are not in the data, the "
            f"first {missing[0]}: prepare the whole data set, or leave --data.{name}-list empty"
        )
    found = [places[name] for name in names]
    listing = _concatenated([splits[split].take(np.array([index])) for split, index in found])
    digests = set(digests_of(listing.images))

    def others(split: Split) -> Split:
        places = [i for i, digest in enumerate(digests_of(split.images)) if digest not in digests]
        return split.take(np.array(places, dtype=int))

    rest = {split: others(content) for split, content in splits.items()}
    if name in rest:
        rest["train"] = _concatenated([rest["train"], rest.pop(name)])
    return {**rest, name: listing}


def _concatenated(parts: Sequence[Split]) -> Split:
    """Concatenate splits with the same heads."""
    return Split(
        images=np.concatenate([part.images for part in parts]),
        labels={
            head: np.concatenate([part.labels[head] for part in parts]) for head in parts[0].labels
        },
        names=np.concatenate([part.names for part in parts if part.names is not None]),
    )


def in_grid(
    split: Split, labels: Mapping[str, np.ndarray], window: tuple[int, int], grid: tuple[int, int]
) -> Split:
    """Crop a grid of windows from each image, image by image, row by row.

    A single row or column is centred.
    """
    corners = [
        np.rint(np.linspace(0, size - part, count) if count > 1 else [(size - part) / 2])
        for size, part, count in zip(split.images.shape[1:3], window, grid, strict=True)
    ]
    places = [(int(row), int(column)) for row in corners[0] for column in corners[1]]
    images = np.empty((len(split), len(places), *window, split.images.shape[3]), np.uint8)
    for number, (row, column) in enumerate(places):
        images[:, number] = split.images[:, row : row + window[0], column : column + window[1]]
    names = split.names
    if names is not None and len(places) > 1:
        marks = np.tile([f" {row},{column}" for row, column in places], len(split))
        names = np.char.add(np.repeat(names, len(places)), marks)
    return Split(
        images=images.reshape(-1, *images.shape[2:]),
        labels={head: np.repeat(values, len(places)) for head, values in labels.items()},
        names=names,
    )
