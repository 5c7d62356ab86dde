"""Files of images: archives, folders, and the plan of which image is which example."""

from __future__ import annotations

import contextlib
import dataclasses
import lzma
import os
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from cnn_research.core.errors import UsageError, UserError
from cnn_research.data.images import printable
from cnn_research.data.prepare import cache

SPLIT_FOLDERS = {
    **dict.fromkeys(("train", "training", "training_set"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev", "eval"), "validation"),
    **dict.fromkeys(("test", "testing", "test_set"), "test"),
    "target": "target",
}
"""The names of folders, and of values in a column `split`, that mean a split."""


@dataclasses.dataclass(frozen=True)
class Record:
    """One image to read.

    Attributes:
        name: printable, relative to the source.
        split: the source's own split; `train` where it gives none.
        labels: per head, the class index, `MISSING` or `UNKNOWN_CLASS`; or the number, or NaN.
    """

    path: Path
    name: str
    split: str
    labels: Mapping[str, float]


@dataclasses.dataclass(frozen=True)
class Plan:
    """Contents of a source, in a fixed order, before any image is opened.

    `notes` are JSON values for the provenance; `numbers` are the heads of numbers.
    """

    records: Sequence[Record]
    class_names: Mapping[str, tuple[str, ...]]
    notes: Mapping[str, Any]
    numbers: Sequence[str] = ()


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Path]:
    """The folder or table `path`; an archive is unpacked into a temporary folder."""
    if path.is_dir() or path.suffix.lower() == ".csv":
        yield path
        return
    if path.suffix.lower() in (".tsv", ".txt"):
        raise UsageError(
            f"{printable(path)} is not an archive: if it is a table, rename it to .csv (commas, "
            "semicolons and tabs are understood)"
        )
    with tempfile.TemporaryDirectory(prefix="cnn_research_") as folder:
        try:
            if zipfile.is_zipfile(path):
                with zipfile.ZipFile(path) as archive:
                    archive.extractall(folder)
            else:
                with tarfile.open(path) as archive:
                    archive.extractall(folder, filter="data")
        except (
            *(tarfile.TarError, zipfile.BadZipFile, lzma.LZMAError, zlib.error),
            *(EOFError, OSError, ValueError, RuntimeError),  # the last: encrypted, or packed oddly
        ) as error:
            raise UserError(
                f"{printable(path)} is neither a folder nor a whole .tar, .tar.gz, .tar.xz or "
                f".zip archive ({error})"
            ) from error
        yield Path(folder)


def files_below(folder: Path) -> list[Path]:
    """Every file below `folder` that is not hidden, sorted; broken links are included."""
    found, pending = [], [folder]
    while pending:
        for path in pending.pop().iterdir():
            if path.name.startswith((".", "__MACOSX")) or path.name == "Thumbs.db":
                continue
            if path.is_dir():
                pending.append(path)
            else:
                found.append(path)
    return sorted(found, key=lambda path: path.parts)


def existing(path: str) -> Path:
    """`path` made absolute; a `UserError` if it does not exist."""
    if not path:
        raise UsageError("--data.path is empty: name a folder, an archive or a CSV file of images")
    found = Path(path).expanduser().resolve()  # one name, from wherever it is named
    if not found.exists():
        raise UserError(f"{printable(found)} does not exist: check the path")
    return found


def fingerprint_of(files: Iterable[Path], start: Path) -> str:
    """A key that changes with any of the files, whose paths are relative to `start`."""
    return cache.key_of([_status(file, start) for file in files])


def _status(file: Path, start: Path) -> tuple[str, int, int]:
    name = os.fsencode(os.path.relpath(file, start)).hex()
    try:
        status = file.stat()
    except OSError:  # absent: reported when it is read
        return name, 0, 0
    return name, status.st_size, status.st_mtime_ns


def stem_of(path: str) -> str:
    return printable(Path(path).name.split(".")[0]) or "images"
