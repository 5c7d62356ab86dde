"""Paintings by artist, in the layouts and with the damaged names in which they are distributed.

Kaggle's 'Best Artworks of All Time' has `images/images/<Artist>/<Artist>_<N>.jpg` and, smaller,
`resized/resized/<Artist>_<N>.jpg`. It contains Albrecht Dürer's folder twice, as
`Albrecht_Du\u0308rer` and with that name decoded twice in the wrong encoding, and some programs
unpack it to further variants.
"""

from __future__ import annotations

import dataclasses
import os
import re
import unicodedata
from pathlib import Path
from typing import ClassVar

import numpy as np

from cnn_research.core.config import register_config
from cnn_research.core.errors import UsageError
from cnn_research.core.ranges import PositiveInt
from cnn_research.data.images import decode, printable, resized
from cnn_research.data.prepare.files import Plan, Record, files_below, stem_of
from cnn_research.data.sources.folder import class_names, plan_folder
from cnn_research.data.sources.loading import ImageFiles

PREPARED_SIZE = 256
"""Prepared paintings are first reduced to at most this height and width, the size of the smaller
copies that are distributed."""

WRONG_ENCODINGS = ("cp437", "cp1252", "latin-1")
"""Encodings in which programs wrongly decode UTF-8; the first, in zip archives without the flag."""

NUMBER = re.compile(r"_\d+$")
"""End of a file's name, after the artist."""


@register_config
@dataclasses.dataclass(frozen=True)
class Artworks(ImageFiles):
    """8,355 paintings by 50 artists.

    Prepared once by `python -m cnn_research.data prepare artworks` from one folder per artist or
    from Kaggle's archive 'Best Artworks of All Time', whose damaged names are repaired.
    """

    kind: ClassVar = "artworks"
    prepared: ClassVar = True

    path: str = ""
    """Folder or archive of paintings, prepared on first use; empty for the prepared paintings."""
    image_size: tuple[PositiveInt, PositiveInt] = (244, 244)
    """Height and width to which images are resized; at most 256 for the prepared paintings."""

    @property
    def description(self) -> str:
        which = f" of {stem_of(self.path)}" if self.path else ""
        return f"paintings{which} by artist, {self.shape}"

    def pixels(self, file: Path) -> np.ndarray:
        if self.path or self.fit != "stretch":  # the reduction below changes aspect ratios
            return super().pixels(file)
        whole = decode(file, None)
        height, width = (min(side, PREPARED_SIZE) for side in whole.shape[:2])
        return resized(resized(whole, (height, width)), self.image_size)

    def plan(self, folder: Path, shown: str) -> Plan:
        return self.grouped(plan(folder, shown), shown)

    def check(self) -> None:
        super().check()
        if not self.path and max(self.image_size) > PREPARED_SIZE:
            raise UsageError(
                f"--data.image-size is {self.image_size}, but the paintings were prepared with at "
                f"most {PREPARED_SIZE}: choose a smaller size, or name their folder or archive "
                "with --data.path"
            )


def repaired(name: str) -> str:
    """Repair a file's name: undo repeated wrong decoding of UTF-8, and remove accents."""
    raw = os.fsencode(name)
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        text = raw.decode("latin-1")
    while (undone := _undone(text)) is not None:
        text = undone
    decomposed = unicodedata.normalize("NFKD", text)
    return printable("".join(mark for mark in decomposed if not unicodedata.combining(mark)))


def _undone(text: str) -> str | None:
    """Undo one wrong decoding of `text`; return None if there was none."""
    if text.isascii():
        return None
    for encoding in WRONG_ENCODINGS:
        try:
            return text.encode(encoding).decode("utf-8")
        except UnicodeError:
            pass
    return None


def plan(root: Path, shown: str) -> Plan:
    """Plan the paintings below `root`, with one head, `label`: the artist.

    Uses `images/<Artist>/*` if it exists, else `resized/<Artist>_<N>.*`, else the folders that
    `plan_folder` finds. Names are repaired; of files with the same repaired name the first is used.

    Raises:
        UserError: there are no paintings, or those of only one artist.
    """
    # Relative to the parent, as `root` may be the folder `images` or `resized` itself.
    files = {path: path.relative_to(root.parent).parts for path in files_below(root)}
    folders = [path.parents[1] for path, parts in files.items() if _is("images", parts[-3:-2])]
    flat = [path for path, parts in files.items() if _is("resized", parts[-2:-1])]
    flat = [path for path in flat if NUMBER.search(path.stem)]
    if flat and not folders:
        planned = _plan_flat(flat, shown)
    else:
        planned = plan_folder(folders[0] if folders else root, shown, repaired)
    named: dict[str, Record] = {}
    for record in planned.records:
        name = "/".join(map(repaired, record.name.split("/")))
        named.setdefault(name, dataclasses.replace(record, name=name))
    return dataclasses.replace(
        planned,
        records=[named[name] for name in sorted(named, key=lambda name: name.split("/"))],
        notes={**planned.notes, "files_of_the_same_name": len(planned.records) - len(named)},
    )


def _is(name: str, parts: tuple[str, ...]) -> bool:
    return [part.lower() for part in parts] == [name]


def _plan_flat(files: list[Path], shown: str) -> Plan:
    artists = {path: NUMBER.sub("", repaired(path.stem)) for path in files}
    classes = class_names(artists.values(), shown)
    index = {name: at for at, name in enumerate(classes)}
    return Plan(
        records=[
            Record(str(path), f"{artist}/{printable(path.name)}", "train", {"label": index[artist]})
            for path, artist in artists.items()
        ],
        class_names={"label": classes},
        layout="one file per painting, named after the artist",
    )
