"""Images with palettes made by people, divided into folds."""

from __future__ import annotations

import dataclasses
import hashlib
import re
from pathlib import Path
from typing import Annotated

import numpy as np

from cnn_research.core.config import register_config
from cnn_research.core.errors import UsageError, UserError
from cnn_research.core.ranges import NonNegativeInt, PositiveInt, Range, Seed, check_ranges
from cnn_research.data.dataset import PALETTE, Dataset, Split
from cnn_research.data.images import printable
from cnn_research.data.prepare.files import existing, opened, stem_of
from cnn_research.data.prepare.tables import find_table, read_table
from cnn_research.data.sources.folder import Photos
from cnn_research.data.sources.loading import Share
from cnn_research.data.sources.rows import check_columns

IMAGE, COLOURS = "image", "colours"
"""Columns of the table: an image's file name, and its hex colours separated by spaces."""


@register_config
@dataclasses.dataclass(frozen=True)
class Palettes:
    """Images, and a table with columns `image` (file name) and `colours` (hex) of their palettes.

    The images are divided into folds. One is the test split; a fraction of the others is the
    validation split. Over all folds, every image is a test image once.
    """

    path: str = ""
    """Folder or archive with the images and one .csv file, anywhere in it."""
    image_size: tuple[PositiveInt, PositiveInt] = (128, 128)
    """Height and width to which images are stretched."""
    folds: Annotated[int, Range(minimum=2)] = 5
    """Number of folds."""
    fold: NonNegativeInt = 0
    """Fold that is the test split, from 0."""
    validation: Share = 0.125
    """Fraction of the other folds held out for validation; 0 for none."""
    split_seed: Seed = 0
    """Seed of the assignment of images to folds."""

    @property
    def description(self) -> str:
        fold = f"fold {self.fold + 1} of {self.folds}"
        return f"images of {stem_of(self.path)} with people's palettes, {fold}"

    def check(self) -> None:
        """Raise `UsageError` for fields that contradict each other."""
        if not self.path:
            raise UsageError("--data.path is empty: name the folder or archive of the palettes")
        if self.fold >= self.folds:
            raise UsageError(
                f"--data.fold is {self.fold}: must be below --data.folds={self.folds}, as folds "
                "are numbered from 0"
            )

    def load(self) -> Dataset:
        """Load images, uint8 `[examples, *image_size, 3]`, and labels `palette`, as in `Split`.

        Raises:
            UsageError: the path is empty, or there is no such fold.
            UserError: an image has no row, or a row no colours.
        """
        check_ranges(self, "data.")
        self.check()
        dataset = Photos(self.path, self.image_size, validation=0.0, test=0.0).load()
        everything = dataset.splits["train"]
        assert everything.names is not None, "files have names"
        if len(everything) < self.folds:
            raise UsageError(
                f"--data.folds is {self.folds}, but there are {len(everything)} images: use fewer "
                "folds"
            )
        labels = self._labels([Path(str(name)).name for name in everything.names])
        order = np.random.default_rng(self.split_seed).permutation(len(everything))
        test = np.sort(order[self.fold :: self.folds])
        others = order[~np.isin(order, test)]
        held_out = min(round(self.validation * len(others)), len(others) - 1)
        chosen = {"train": np.sort(others[held_out:]), "test": test}
        if held_out:
            chosen["validation"] = np.sort(others[:held_out])
        whole = Split(everything.images, {PALETTE: labels}, everything.names)
        return Dataset(
            name="palettes",
            splits={name: whole.take(indices) for name, indices in chosen.items()},
            class_names={},
            provenance={
                "source": self.description,
                "path": dataset.provenance["path"],
                "content": dataset.provenance["content"],
                "palettes": hashlib.sha256(labels.tobytes()).hexdigest(),
                "examples": {name: len(indices) for name, indices in chosen.items()},
                "folds": {"folds": self.folds, "test": self.fold, "seed": self.split_seed},
            },
        )

    def _labels(self, names: list[str]) -> np.ndarray:
        """Read the palette of each image, as in `Split`."""
        with opened(existing(self.path)) as folder:
            shown = printable(self.path)
            rows = read_table(find_table(folder, shown), shown)
        check_columns(rows, shown, (IMAGE, COLOURS))
        files = [printable(Path(name).name) for name in rows[IMAGE]]
        palettes = {file: text.split() for file, text in zip(files, rows[COLOURS], strict=True)}
        if len(palettes) < len(rows):
            twice = next(file for file in files if files.count(file) > 1)
            raise UserError(f"{shown}: the table has two rows for {twice}")
        for name in names:
            if name not in palettes:
                raise UserError(f"{shown}: the table has no palette for {name}")
            wrong = [code for code in palettes[name] if not re.fullmatch("#[0-9a-fA-F]{6}", code)]
            if wrong or not palettes[name]:
                raise UserError(
                    f"{shown}: the colours of {name} are '{' '.join(palettes[name])}': write them "
                    "as #rrggbb, separated by spaces"
                )
        labels = np.full((len(names), max(len(palettes[name]) for name in names), 3), np.nan)
        for row, name in enumerate(names):
            colours = [list(bytes.fromhex(code[1:])) for code in palettes[name]]
            labels[row, : len(colours)] = np.array(colours) / 255
        return labels.astype(np.float32)
