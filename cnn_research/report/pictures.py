"""Thumbnails of a split's images in a report's tables, linked to the image files."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cnn_research.report.markdown import markdown_table
from cnn_research.report.names import shortened

SIDE = 96
"""Side of a thumbnail in pixels."""
MOST_LISTED = 50
"""Maximum number of mistakes in a table."""
LONGEST_FILE = 60
"""Maximum length of a file's name in a table; the .csv files have the full name."""


@dataclasses.dataclass(frozen=True, eq=False)
class Shown:
    """The images of a split and their files.

    Attributes:
        images: uint8 `[examples, height, width, channels]`, of which few are read.
        names: name of each image relative to `folder`, or None.
        folder: folder of the files; None if they are not in one, but for example in an archive.
        groups: group of each image; those of one group are alike. None if there are no groups.
    """

    images: np.ndarray
    names: np.ndarray | None = None
    folder: Path | None = None
    groups: np.ndarray | None = None

    def name(self, place: int) -> str:
        """Name of an image's file, or its position in the split."""
        return f"image {place}" if self.names is None else str(self.names[place])

    def file(self, place: int) -> Path | None:
        """Path of an image's file, if it exists."""
        if self.folder is None or self.names is None:
            return None
        file = self.folder / str(self.names[place])
        return file if file.is_file() else None


def pictures_table(
    shown: Shown,
    places: Sequence[int],
    folder: Path,
    name: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
) -> str:
    """Make a Markdown table with one row per image: thumbnail, cells, and file name.

    Writes the thumbnails to `folder/name`. On the page they are links to the files, which are the
    titles of the pictures.
    """
    from PIL import Image

    (folder / name).mkdir()
    table = []
    small = thumbnails(shown.images[np.asarray(places, int)], SIDE)
    for number, (place, pixels, cells) in enumerate(zip(places, small, rows, strict=True), 1):
        thumbnail = f"{name}/{number}.webp"
        Image.fromarray(pixels).save(folder / thumbnail, quality=80)
        file = shown.file(place)
        title = f' "{file.as_uri()}"' if file else ""
        text = shortened(shown.name(place), LONGEST_FILE)
        table.append((f"![{number}]({thumbnail}{title})", *cells, text))
    return markdown_table(("picture", *columns, "file"), table)


def thumbnails(images: np.ndarray, side: int) -> np.ndarray:
    """Resize images to white-padded squares, uint8 `[images, side, side, 3]`.

    Small images are enlarged by an integer factor, so the side may be shorter.
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
