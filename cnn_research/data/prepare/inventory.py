"""All that lies in the folder of prepared data: what it is of, its size, and removing it.

Only what this project writes is looked at: TensorFlow Datasets may keep its own data there.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cnn_research.core.config import did_you_mean
from cnn_research.core.errors import UsageError, UserError
from cnn_research.core.files import bytes_below
from cnn_research.data.prepare import cache

TOGETHER = {
    "surveys": "counts and sizes of archives' images",
    "clusters": "colours of images, in clusters",
}
"""Folders of many small parts."""
SINGLE = ("*/*/prepared", "*/*/arrays/*", "*/*/*/arrays/*", "*/*/.*.incomplete", "features/*")
"""Folders of one part each: of official files and copies, decoded arrays, and cached features."""


@dataclasses.dataclass(frozen=True)
class Entry:
    """One part.

    Attributes:
        name: its path as seen from the folder of prepared data.
        used: seconds since 1970, of its last use; of one without an index, of its making.
        unfinished: it is being written, or was left by a process that was stopped.
    """

    name: str
    text: str
    bytes: int
    used: float
    unfinished: bool = False

    @property
    def path(self) -> Path:
        return cache.data_dir() / self.name


def entries() -> list[Entry]:
    """Every part, by name."""
    home = cache.data_dir()
    paths = {path for pattern in SINGLE for path in home.glob(pattern)}
    paths |= {path for name in (*TOGETHER, f"{cache.UNPACKED}/*") for path in home.glob(name)}
    return [_entry(path) for path in sorted(paths) if path.suffix != ".lock"]


def _entry(path: Path) -> Entry:
    home = cache.data_dir()
    name, index = path.relative_to(home).as_posix(), path / cache.INDEX
    unfinished = path.name.endswith(".incomplete") or path.parent == home / cache.UNPACKED
    if unfinished:
        text = "being written" if cache.is_held(path) else "interrupted: it is made again"
    elif name in TOGETHER:
        text = TOGETHER[name]
    elif path.name == cache.PREPARED:
        text = "files, prepared once"
    else:
        text = _described(index)
    used = index if index.is_file() else path
    return Entry(name, text, bytes_below(path), used.stat().st_mtime, unfinished)


def _described(index: Path) -> str:
    """The text of a part, from its index."""
    try:
        told: dict[str, Any] = json.loads(index.read_text())
        if "of" in told:
            return str(told["of"])
        sizes = told["provenance"]["examples"].items()
        splits = ", ".join(f"{split} {count:,}" for split, count in sizes)
        return f"{told['provenance']['source']}; {splits}"
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return "damaged, or of an older version"


def chosen(names: Sequence[str]) -> list[Entry]:
    """The parts of these names, or below folders of these names.

    Raises:
        UsageError: there is none of a name.
        UserError: one is being written.
    """
    there = entries()
    found: dict[str, Entry] = {}
    for name in (name.rstrip("/") for name in names):
        below = [e for e in there if e.name == name or e.name.startswith(f"{name}/")]
        if not below:
            near = did_you_mean(name, [entry.name for entry in there])
            raise UsageError(
                f"nothing in {cache.data_dir()} is named '{name}'{near}; "
                "`python -m cnn_research.data list` shows all"
            )
        found |= {entry.name: entry for entry in below}
    for entry in found.values():
        if entry.unfinished and cache.is_held(entry.path):
            raise UserError(
                f"{entry.path} is being written by a process: wait for its end, or stop it first"
            )
    return list(found.values())


def remove(entry: Entry) -> None:
    """Remove a part; a process that has opened its arrays keeps them until it ends."""
    path, home = entry.path, cache.data_dir()
    if not path.is_dir():
        path.unlink()
    elif entry.unfinished:
        cache.discard(path)
    else:
        # At once, so that nobody finds a half of it.
        gone = cache.unfinished(path)
        shutil.rmtree(gone, ignore_errors=True)
        shutil.rmtree(path.rename(gone))
    for folder in path.parents:
        if folder == home or any(folder.iterdir()):
            break
        folder.rmdir()
