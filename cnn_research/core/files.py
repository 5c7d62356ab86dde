"""Files: checksums, atomic writes, and disk space."""

from __future__ import annotations

import hashlib
import mmap
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

ROOT = Path(__file__).resolve().parents[2]
"""The folder that holds the package: a checkout, or where packages are installed."""
_INSTALLED = ROOT / "cnn_research" / "experiments"
EXPERIMENTS = _INSTALLED if _INSTALLED.is_dir() else ROOT / "experiments"
"""The folder of the registered experiments, and of the files that belong to them."""


def sha256_of(file: Path) -> str:
    """The checksum of a file, as `sha256sum` prints it."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def write_text(file: Path, text: str) -> None:
    """Write the file atomically: whole or not at all, even if the machine stops."""
    temporary = file.with_name(f"{file.name}.tmp")
    with temporary.open("w", encoding="utf-8", newline="\n") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(temporary, file)


def release(array: np.ndarray) -> None:
    """Give back the memory of what was read of a memory map; what is read again is read from the
    disk, or the system's cache of it. Other arrays stay as they are."""
    if isinstance(array.base, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        array.base.madvise(mmap.MADV_DONTNEED)


def nearest_existing(path: Path) -> Path:
    """The path, or the first folder above it that exists."""
    return next(each for each in (path.absolute(), *path.absolute().parents) if each.exists())


def free_bytes(folder: Path) -> int:
    """Free bytes on the disk of a folder, which need not exist yet."""
    return shutil.disk_usage(nearest_existing(folder)).free


def size_text(size: float) -> str:
    """A number of bytes as `6.3 GB`, `184 MB` or `2.1 kB`."""
    unit, name = (1e9, "GB") if size >= 1e9 else (1e6, "MB") if size >= 1e6 else (1e3, "kB")
    value = size / unit
    return f"{value:,.1f} {name}" if value < 100 else f"{value:,.0f} {name}"


def bytes_below(path: Path) -> int:
    """Bytes of a file, or of all files below a folder."""
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.lstat().st_size for file in files if not file.is_dir())
