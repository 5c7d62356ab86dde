"""Paintings by artist: the layouts and the damaged names in which they are passed around.

Kaggle's 'Best Artworks of All Time' has `images/images/<Artist>/<Artist>_<N>.jpg` and, smaller,
`resized/resized/<Artist>_<N>.jpg`. The folder of Albrecht Dürer is in it twice, as
`Albrecht_Du\u0308rer` and with that name read twice in the wrong encoding, and other programs
unpack it to further variants.
"""

from __future__ import annotations

import dataclasses
import os
import re
import unicodedata
from pathlib import Path

from cnn_research.data.images import (
    Plan,
    Record,
    class_names,
    files_below,
    plan_folder,
    printable,
)

WRONG_ENCODINGS = ("cp437", "cp1252", "latin-1")
"""What programs take UTF-8 for; of zip archives without a flag that says so, the first."""

NUMBER = re.compile(r"_\d+$")
"""What follows the artist in the name of a file."""


def repaired(name: str) -> str:
    """A file's name in ASCII where it can be: UTF-8 that was read as another encoding is undone,
    as often as that was done, and accents are dropped, because not all copies have them."""
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
    """`text` with one wrong reading undone; None if there was none."""
    if text.isascii():
        return None
    for encoding in WRONG_ENCODINGS:
        try:
            return text.encode(encoding).decode("utf-8")
        except UnicodeError:
            pass
    return None


def plan(root: Path, shown: str) -> Plan:
    """The records of the paintings below `root`, one head, `label`: the artist.

    `images/<Artist>/*` is taken where it is there, otherwise `resized/<Artist>_<N>.*`, otherwise
    folders as `plan_folder` takes them. Names are repaired; of files that then have the same name
    the first is taken.

    Raises:
        UserError: no paintings, or of one artist only.
    """
    # With the name of `root`, which may be the folder `images` or `resized` itself.
    files = {path: path.relative_to(root.parent).parts for path, _ in files_below(root)}
    folders = [path.parents[1] for path, parts in files.items() if _is("images", parts[-3:-2])]
    flat = [path for path, parts in files.items() if _is("resized", parts[-2:-1])]
    flat = [path for path in flat if NUMBER.search(path.stem)]
    if flat and not folders:
        found = _plan_flat(flat, shown)
    else:
        found = plan_folder(folders[0] if folders else root, shown, repaired)
    named: dict[str, Record] = {}
    for record in found.records:
        name = "/".join(map(repaired, record.name.split("/")))
        named.setdefault(name, dataclasses.replace(record, name=name))
    return dataclasses.replace(
        found,
        records=[named[name] for name in sorted(named, key=lambda name: name.split("/"))],
        notes={**found.notes, "files_of_the_same_name": len(found.records) - len(named)},
    )


def _is(name: str, parts: tuple[str, ...]) -> bool:
    return [part.lower() for part in parts] == [name]


def _plan_flat(files: list[Path], shown: str) -> Plan:
    """The records of `<Artist>_<N>.*`."""
    artists = {path: NUMBER.sub("", repaired(path.stem)) for path in files}
    classes = class_names(artists.values(), shown)
    index = {name: at for at, name in enumerate(classes)}
    return Plan(
        records=[
            Record(path, f"{artist}/{printable(path.name)}", "train", {"label": index[artist]})
            for path, artist in artists.items()
        ],
        class_names={"label": classes},
        notes={},
    )
