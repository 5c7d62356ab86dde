"""List and remove the contents of the folder of prepared data.

Only files of this project are considered; TensorFlow Datasets may store its own data there.
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
    "surveys": "image counts and sizes of archives",
    "clusters": "colour clusters of images",
}
"""Folders of many small files, listed as one entry each."""
SINGLE = ("*/*/prepared", "*/*/arrays/*", "*/*/*/arrays/*", "*/*/.*.incomplete", "features/*")
"""Patterns of single entries: official files and copies, decoded arrays, and cached features."""


@dataclasses.dataclass(frozen=True)
class Entry:
    """One folder of prepared or cached data.

    Attributes:
        name: path relative to the folder of prepared data.
        used: time of the last use, or of creation if it has no index, in seconds since 1970.
        unfinished: whether it is being written, or was left by a process that was stopped.
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
    """List all entries, sorted by name."""
    home = cache.data_dir()
    paths = {path for pattern in SINGLE for path in home.glob(pattern)}
    paths |= {path for name in (*TOGETHER, f"{cache.UNPACKED}/*") for path in home.glob(name)}
    return [_entry(path) for path in sorted(paths) if path.suffix != ".lock"]


def _entry(path: Path) -> Entry:
    home = cache.data_dir()
    name, index = path.relative_to(home).as_posix(), path / cache.INDEX
    unfinished = path.name.endswith(".incomplete") or path.parent == home / cache.UNPACKED
    if unfinished:
        text = "being written" if cache.is_held(path) else "incomplete, will be rebuilt"
    elif name in TOGETHER:
        text = TOGETHER[name]
    elif path.name == cache.PREPARED:
        text = "prepared files"
    else:
        text = _described(index)
    used = index if index.is_file() else path
    return Entry(name, text, bytes_below(path), used.stat().st_mtime, unfinished)


def _described(index: Path) -> str:
    """Describe an entry by its index."""
    try:
        content: dict[str, Any] = json.loads(index.read_text(encoding="utf-8"))
        if "of" in content:
            return str(content["of"])
        sizes = content["provenance"]["examples"].items()
        splits = ", ".join(f"{split} {count:,}" for split, count in sizes)
        return f"{content['provenance']['source']}; {splits}"
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return "damaged, or of an older version"


def chosen(names: Sequence[str]) -> list[Entry]:
    """Select the entries with these names, or below folders with these names.

    Raises:
        UsageError: a name matches nothing.
        UserError: an entry is being written.
    """
    existing = entries()
    selected: dict[str, Entry] = {}
    for name in (name.rstrip("/") for name in names):
        below = [e for e in existing if e.name == name or e.name.startswith(f"{name}/")]
        if not below:
            near = did_you_mean(name, [entry.name for entry in existing])
            raise UsageError(
                f"nothing in {cache.data_dir()} is named '{name}'{near}; "
                "`python -m cnn_research.data list` lists all names"
            )
        selected |= {entry.name: entry for entry in below}
    for entry in selected.values():
        if entry.unfinished and cache.is_held(entry.path):
            raise UserError(
                f"{entry.path} is being written by a process: wait for it to finish, or stop it"
            )
    return list(selected.values())


def remove(entry: Entry) -> None:
    """Remove an entry; a process that has opened its arrays can use them until it ends."""
    path, home = entry.path, cache.data_dir()
    if not path.is_dir():
        path.unlink()
    elif entry.unfinished:
        cache.discard(path)
    else:
        # Renamed first, so that no process sees half of it.
        gone = cache.unfinished(path)
        shutil.rmtree(gone, ignore_errors=True)
        shutil.rmtree(path.rename(gone))
    for folder in path.parents:
        if folder == home or any(folder.iterdir()):
            break
        folder.rmdir()
