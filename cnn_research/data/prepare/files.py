"""Files of images: archives, folders, and the plan of which image is which example."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import functools
import io
import lzma
import os
import tarfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from cnn_research.core.errors import UsageError, UserError
from cnn_research.core.preemption import raise_if_interrupted
from cnn_research.core.progress import Tally
from cnn_research.data.images import printable
from cnn_research.data.prepare import cache

SPLIT_FOLDERS = {
    **dict.fromkeys(("train", "training", "training_set"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev", "eval"), "validation"),
    **dict.fromkeys(("test", "testing", "test_set"), "test"),
    "target": "target",
}
"""The names of folders, and of values in a column `split`, that mean a split."""

IS_UTF8 = 0x800
"""The flag of a file in a zip archive whose name is in UTF-8; others are in cp437."""
SPREADSHEETS = (".xlsx", ".xlsm")
TABLES = (".csv", ".tsv", *SPREADSHEETS)
"""The endings of tables."""

SYSTEM_NAMES = frozenset(
    {
        *("@eadir", "#recycle", "#snapshot", "@recycle", "$recycle.bin", "lost+found"),
        *("thumbs.db", "ehthumbs.db", "desktop.ini", "system volume information", "icon\r"),
    }
)
"""Folders and files that systems, network drives and archives put beside one's own, in small
letters."""


@dataclasses.dataclass(frozen=True, slots=True)
class Record:
    """One image to read.

    Attributes:
        path: of the file; text, since there may be a million of them.
        name: printable, relative to the source.
        split: the source's own split; `train` where it gives none.
        labels: per head, the class index, `MISSING` or `UNKNOWN_CLASS`; or the number, or NaN;
            or the indices of several labels, ascending.
        group: what stays on one side of drawn splits; "" for an image by itself.
    """

    path: str
    name: str
    split: str
    labels: Mapping[str, Any]
    group: str = ""


@dataclasses.dataclass(frozen=True)
class Plan:
    """Contents of a source, in a fixed order, before any image is opened.

    Attributes:
        notes: JSON values for the provenance.
        numbers: the heads of numbers.
        layout: how the folder or table was understood, in words.
        left_out: what is no example, by why it is not: as of `understood.left_out`.
    """

    records: Sequence[Record]
    class_names: Mapping[str, tuple[str, ...]]
    notes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    numbers: Sequence[str] = ()
    layout: str = ""
    left_out: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def check_groups(groups: Sequence[str], option: str, where: str) -> None:
    """Raise `UsageError` where `option` finds no group, or one alone, in what is named `where`."""
    different = set(groups) - {""}
    if not different:
        raise UsageError(f"{option} finds no group in any of {len(groups):,} {where}")
    if len(different) == 1 and "" not in groups:
        raise UsageError(
            f"{option} finds the same group '{different.pop()}' in all {len(groups):,} {where}: "
            "nothing could be held out; choose something that differs"
        )


_unpacked: dict[Path, Path] = {}
"""The folders of the archives that are open."""


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Path]:
    """The folder or table `path`; an archive is unpacked into a folder that is gone afterwards.

    An archive that is open already is not unpacked again. Raises `UserError` for one that is
    damaged, or for which the disk has no room.
    """
    if path in _unpacked or path.is_dir() or is_table(path):
        yield _unpacked.get(path, path)
        return
    if path.suffix.lower() in (".txt", ".xls", ".ods", ".json", ".jsonl", ".parquet"):
        raise UsageError(
            f"{printable(path)} is not an archive: if it is a table, save it as .csv or .xlsx "
            "(a .csv file may have commas, semicolons or tabs)"
        )
    with cache.unpacking() as folder:
        try:
            _unpack(path, folder)
        except (
            *(tarfile.TarError, zipfile.BadZipFile, lzma.LZMAError, zlib.error),
            *(EOFError, OSError, ValueError, RuntimeError),  # the last: encrypted, or packed oddly
        ) as error:
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise UserError(
                f"{printable(path)} is neither a folder nor a whole .tar, .tar.gz, .tar.xz or "
                f".zip archive ({error}): unpack it yourself, or copy or download it again"
            ) from error
        _unpacked[path] = folder
        try:
            yield folder
        finally:
            del _unpacked[path]


def _unpack(path: Path, folder: Path) -> None:
    """Write the files of an archive, zip or tar, into a folder."""
    what = f"unpacking {printable(path.name)}"

    def counted(members: Iterable[Any], total: int | None) -> Iterator[Any]:
        with Tally(what, total, " files") as tally:
            for member in members:
                raise_if_interrupted()
                yield member
                tally.advance()

    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as zipped:
            members = zipped.infolist()
            _separate_folders(members)
            cache.require_space(sum(member.file_size for member in members), what)
            zipped.extractall(folder, counted(members, len(members)))
        return
    # What a compressed tar takes is known at its end; of photographs it is hardly more.
    cache.require_space(path.stat().st_size, what)
    with tarfile.open(path) as archive:
        archive.extractall(folder, counted(archive, None), filter="data")
        _require_end(archive)


def _require_end(archive: tarfile.TarFile) -> None:
    """Read an archive to its end, after its members.

    A damaged header passes for the end, and checksums come last: an archive that is not whole would
    be taken for a smaller one. Raises `tarfile.ReadError`, or what a decompressor raises.
    """
    stream = archive.fileobj
    assert stream is not None
    if isinstance(stream, io.BufferedReader):  # of a compressed file, a checksum tells
        stream.seek(archive.offset)
        if any(stream.read(tarfile.BLOCKSIZE)):
            raise tarfile.ReadError("a header is damaged")
    while stream.read(1 << 20):
        pass


def _separate_folders(members: Sequence[zipfile.ZipInfo]) -> None:
    """Make backslashes separate folders, where a program for Windows wrote them for that; and read
    names as UTF-8, where a program, as that of macOS, does not say that they are."""
    slashes = any("/" in member.filename for member in members)
    for member in members:
        if member.create_system == 0 or not slashes:
            member.filename = member.filename.replace("\\", "/")
        if not member.flag_bits & IS_UTF8:
            with contextlib.suppress(UnicodeError):
                member.filename = member.filename.encode("cp437").decode()


def files_below(folder: Path) -> list[Path]:
    """Every file below `folder` that is not hidden or a system's, sorted; broken links are
    included."""
    return [folder / name for name in names_below(folder)]


def names_below(folder: Path) -> list[str]:
    """The files of `files_below` as seen from `folder`, `train/Coat/17.jpg`; text, because a
    million of them is listed in a fraction of the time of paths."""
    found: list[str] = []
    pending = [""]
    while pending:
        name = pending.pop()
        if name and not name.endswith("/"):
            found.append(name)
            continue
        # The last is taken first.
        entries = sorted(_shown(folder / name), key=lambda entry: entry.name, reverse=True)
        pending += [f"{name}{entry.name}{'/' * _is_folder(entry)}" for entry in entries]
    return found


def folders_in(folder: Path) -> list[str]:
    """The names of the folders right in `folder`, but hidden and a system's."""
    return [entry.name for entry in _shown(folder) if _is_folder(entry)]


def _shown(folder: Path) -> list[os.DirEntry[str]]:
    """What is right in a folder and is not hidden or a system's."""
    with os.scandir(folder) as scanned:
        entries = [e for e in scanned if not e.name.startswith((".", "__MACOSX"))]
    return [entry for entry in entries if entry.name.lower() not in SYSTEM_NAMES]


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """Return whether an entry is a folder; not a link to itself or back to where it is in."""
    if not entry.is_symlink():
        return entry.is_dir()
    target = Path(os.path.realpath(entry))
    above = {os.path.realpath(folder) for folder in Path(entry.path).parents}
    return target.is_dir() and not any(Path(place).is_relative_to(target) for place in above)


def _is_table(entry: os.DirEntry[str]) -> bool:
    return is_table(entry.name) and entry.is_file()


def is_table(path: str | Path) -> bool:
    """Return whether a file's name is a table's."""
    return os.path.splitext(path)[1].lower() in TABLES


def folders_state(path: Path) -> tuple[tuple[str, int], ...]:
    """Another value when a file comes into a folder, leaves it, or a table changes; known at once,
    since no other file is looked at."""
    found, pending = [], [os.fspath(path)]
    while pending:
        each = pending.pop()
        found.append((each, os.stat(each).st_mtime_ns))
        if os.path.isdir(each):
            with os.scandir(each) as entries:
                shown = [entry for entry in entries if not entry.name.startswith(".")]
            pending += [entry.path for entry in shown if _is_folder(entry) or _is_table(entry)]
    return tuple(sorted(found))


def existing(path: str) -> Path:
    """`path` made absolute; a `UserError` if it does not exist."""
    if not path:
        raise UsageError("--data.path is empty: name a folder, an archive or a CSV file of images")
    found = Path(path).expanduser().resolve()  # one name, from wherever it is named
    if not found.exists():
        raise UserError(f"{printable(found)} does not exist: check the path")
    return found


def fingerprint_of(files: Iterable[str | Path], start: Path) -> str:
    """A name for the state of files, as seen from `start`: another one when one has changed."""

    @functools.cache
    def relative(folder: str) -> str:
        seen = os.path.relpath(folder, start)
        return "" if seen == "." else f"{seen}/"

    def status(file: str | Path) -> tuple[str, int, int]:
        folder, name = os.path.split(file)
        seen = "." if file == start else f"{relative(folder)}{name}"
        try:
            found = os.stat(file)
        except (OSError, ValueError):  # absent, or no name of a file: reported when it is read
            return os.fsencode(seen).hex(), 0, 0
        return os.fsencode(seen).hex(), found.st_size, found.st_mtime_ns

    return cache.key_of([status(file) for file in files])


def stem_of(path: str) -> str:
    return printable(Path(path).name.split(".")[0]) or "images"
