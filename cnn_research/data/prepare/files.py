"""Image files: archives, folders, and the plan that assigns files to examples."""

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
"""Names of folders, and values of a column `split`, that denote a split."""

IS_UTF8 = 0x800
"""Flag in a zip archive of a file whose name is in UTF-8; other names are in cp437."""
SPREADSHEETS = (".xlsx", ".xlsm")
TABLES = (".csv", ".tsv", *SPREADSHEETS)
"""File extensions of tables."""

SYSTEM_NAMES = frozenset(
    {
        *("@eadir", "#recycle", "#snapshot", "@recycle", "$recycle.bin", "lost+found"),
        *("thumbs.db", "ehthumbs.db", "desktop.ini", "system volume information", "icon\r"),
    }
)
"""Folders and files created by operating systems, network drives and archivers, in lower case."""


@dataclasses.dataclass(frozen=True, slots=True)
class Record:
    """One image to read.

    Attributes:
        path: the file's path; a str, as there may be a million.
        name: printable, relative to the source.
        split: the source's own split; `train` if it has none.
        labels: per head, the class index, `MISSING` or `UNKNOWN_CLASS`; or the number, or NaN;
            or the indices of several labels, ascending.
        group: group that random splits keep together; "" for a group of its own.
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
        numbers: heads whose labels are numbers.
        layout: how the folder or table was interpreted, in words.
        left_out: what was skipped, by reason, as from `understood.left_out`.
    """

    records: Sequence[Record]
    class_names: Mapping[str, tuple[str, ...]]
    notes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    numbers: Sequence[str] = ()
    layout: str = ""
    left_out: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def check_groups(groups: Sequence[str], option: str, where: str) -> None:
    """Raise `UsageError` if `option` finds no group, or only one, in `where`."""
    different = set(groups) - {""}
    if not different:
        raise UsageError(f"{option} finds no group in any of {len(groups):,} {where}")
    if len(different) == 1 and "" not in groups:
        raise UsageError(
            f"{option} finds the same group '{different.pop()}' in all {len(groups):,} {where}, so "
            "no images can be held out: choose something that differs"
        )


_unpacked: dict[Path, Path] = {}
"""Folders of the archives that are currently open."""


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Path]:
    """Open a folder or table, or unpack an archive into a temporary folder; yield its path.

    An archive that is already open is not unpacked again. Raises `UserError` if it is damaged or
    the disk has no room for it.
    """
    if path in _unpacked or path.is_dir() or is_table(path):
        yield _unpacked.get(path, path)
        return
    if path.suffix.lower() in (".txt", ".xls", ".ods", ".json", ".jsonl", ".parquet"):
        raise UsageError(
            f"{printable(path)} is not an archive: if it is a table, save it as .csv or .xlsx "
            "(a .csv file may be separated by commas, semicolons or tabs)"
        )
    with cache.unpacking() as folder:
        try:
            _unpack(path, folder)
        except (
            *(tarfile.TarError, zipfile.BadZipFile, lzma.LZMAError, zlib.error),
            *(EOFError, OSError, ValueError, RuntimeError),  # the last: encrypted or unsupported
        ) as error:
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise UserError(
                f"{printable(path)} is neither a folder nor a complete .tar, .tar.gz, .tar.xz or "
                f".zip archive ({error}): unpack it yourself, or copy or download it again"
            ) from error
        _unpacked[path] = folder
        try:
            yield folder
        finally:
            del _unpacked[path]


def _unpack(path: Path, folder: Path) -> None:
    """Unpack a zip or tar archive into a folder."""
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
    # The unpacked size is known only at the end; for photographs it is about the same.
    cache.require_space(path.stat().st_size, what)
    with tarfile.open(path) as archive:
        archive.extractall(folder, counted(archive, None), filter="data")
        _require_end(archive)


def _require_end(archive: tarfile.TarFile) -> None:
    """Read an archive to its end, past its members.

    tarfile takes a damaged header for the end, and checksums come last, so an incomplete archive
    would pass for a smaller one. Raises `tarfile.ReadError` or the decompressor's errors.
    """
    stream = archive.fileobj
    assert stream is not None
    if isinstance(stream, io.BufferedReader):  # compressed files have a checksum instead
        stream.seek(archive.offset)
        if any(stream.read(tarfile.BLOCKSIZE)):
            raise tarfile.ReadError("a header is damaged")
    while stream.read(1 << 20):
        pass


def _separate_folders(members: Sequence[zipfile.ZipInfo]) -> None:
    """Fix names in a zip archive: backslashes from Windows programs, and UTF-8 without the flag, as
    from macOS."""
    slashes = any("/" in member.filename for member in members)
    for member in members:
        if member.create_system == 0 or not slashes:
            member.filename = member.filename.replace("\\", "/")
        if not member.flag_bits & IS_UTF8:
            with contextlib.suppress(UnicodeError):
                member.filename = member.filename.encode("cp437").decode()


def files_below(folder: Path) -> list[Path]:
    """List all files below `folder`, sorted, except hidden and system files.

    Broken links are included.
    """
    return [folder / name for name in names_below(folder)]


def names_below(folder: Path) -> list[str]:
    """List the files of `files_below` relative to `folder`, as `train/Coat/17.jpg`.

    For a million files this is many times faster than listing `Path` objects.
    """
    names: list[str] = []
    pending = [""]
    while pending:
        name = pending.pop()
        if name and not name.endswith("/"):
            names.append(name)
            continue
        # Reversed, as the last is popped first.
        entries = sorted(_visible(folder / name), key=lambda entry: entry.name, reverse=True)
        pending += [f"{name}{entry.name}{'/' * _is_folder(entry)}" for entry in entries]
    return names


def folders_in(folder: Path) -> list[str]:
    """List the folders directly in `folder`, except hidden and system ones."""
    return [entry.name for entry in _visible(folder) if _is_folder(entry)]


def _visible(folder: Path) -> list[os.DirEntry[str]]:
    """List the entries of a folder, except hidden and system ones."""
    with os.scandir(folder) as scanned:
        entries = [e for e in scanned if not e.name.startswith((".", "__MACOSX"))]
    return [entry for entry in entries if entry.name.lower() not in SYSTEM_NAMES]


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """Return whether an entry is a folder, but not a link to itself or one of its parents."""
    if not entry.is_symlink():
        return entry.is_dir()
    target = Path(os.path.realpath(entry))
    above = {os.path.realpath(folder) for folder in Path(entry.path).parents}
    return target.is_dir() and not any(Path(place).is_relative_to(target) for place in above)


def _is_table(entry: os.DirEntry[str]) -> bool:
    return is_table(entry.name) and entry.is_file()


def is_table(path: str | Path) -> bool:
    """Return whether a file has the extension of a table."""
    return os.path.splitext(path)[1].lower() in TABLES


def folders_state(path: Path) -> tuple[tuple[str, int], ...]:
    """Modification times of all folders and tables below `path`.

    They change when a file is added or removed or a table is edited. Fast, because no other file is
    examined.
    """
    times, pending = [], [os.fspath(path)]
    while pending:
        each = pending.pop()
        times.append((each, os.stat(each).st_mtime_ns))
        if os.path.isdir(each):
            with os.scandir(each) as entries:
                shown = [entry for entry in entries if not entry.name.startswith(".")]
            pending += [entry.path for entry in shown if _is_folder(entry) or _is_table(entry)]
    return tuple(sorted(times))


def existing(path: str) -> Path:
    """Make a path absolute; raise `UserError` if it does not exist."""
    if not path:
        raise UsageError("--data.path is empty: name a folder, an archive or a CSV file of images")
    absolute = Path(path).expanduser().resolve()
    if not absolute.exists():
        raise UserError(f"{printable(absolute)} does not exist: check the path")
    return absolute


def fingerprint_of(files: Iterable[str | Path], start: Path) -> str:
    """Hash the names, relative to `start`, sizes and modification times of files."""

    @functools.cache
    def relative(folder: str) -> str:
        seen = os.path.relpath(folder, start)
        return "" if seen == "." else f"{seen}/"

    def status(file: str | Path) -> tuple[str, int, int]:
        folder, name = os.path.split(file)
        seen = "." if file == start else f"{relative(folder)}{name}"
        try:
            stat = os.stat(file)
        except (OSError, ValueError):  # absent, or not a file name: reported when it is read
            return os.fsencode(seen).hex(), 0, 0
        return os.fsencode(seen).hex(), stat.st_size, stat.st_mtime_ns

    return cache.key_of([status(file) for file in files])


def stem_of(path: str) -> str:
    return printable(Path(path).name.split(".")[0]) or "images"
