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
"""The folder that contains the package: a checkout or site-packages."""
_INSTALLED = ROOT / "cnn_research" / "experiments"
EXPERIMENTS = _INSTALLED if _INSTALLED.is_dir() else ROOT / "experiments"
"""The folder of the registered experiments and their files."""


def sha256_of(file: Path) -> str:
    """Compute the SHA-256 checksum of a file as `sha256sum` prints it."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def write_text(file: Path, text: str) -> None:
    """Write a file atomically, even if the machine stops."""
    temporary = file.with_name(f"{file.name}.tmp")
    with temporary.open("w", encoding="utf-8", newline="\n") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(temporary, file)


def release(array: np.ndarray) -> None:
    """Release the pages read from a memory map; reading them again uses the disk or the system's
    cache. Does nothing for other arrays."""
    if isinstance(array.base, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        array.base.madvise(mmap.MADV_DONTNEED)


def nearest_existing(path: Path) -> Path:
    """Return the path, or its nearest existing parent."""
    return next(each for each in (path.absolute(), *path.absolute().parents) if each.exists())


def free_bytes(folder: Path) -> int:
    """Return the free bytes on the disk of a folder, which need not exist."""
    return shutil.disk_usage(nearest_existing(folder)).free


def size_text(size: float) -> str:
    """Format a number of bytes as `6.3 GB`, `184 MB` or `2.1 kB`."""
    unit, name = (1e9, "GB") if size >= 1e9 else (1e6, "MB") if size >= 1e6 else (1e3, "kB")
    value = size / unit
    return f"{value:,.1f} {name}" if value < 100 else f"{value:,.0f} {name}"


def bytes_below(path: Path) -> int:
    """Return the size in bytes of a file, or of all files in a folder and its subfolders."""
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.lstat().st_size for file in files if not file.is_dir())
