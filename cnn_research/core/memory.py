"""The memory of this machine and process: how much is free, and whether freed memory is kept."""

import contextlib
import ctypes
import sys
from collections.abc import Iterator
from typing import Any

# From glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -3, -4, -8
_LARGE = 2**25
"""Bytes; glibc takes no higher threshold."""
_KEEPING = {_M_MMAP_MAX: 0, _M_MMAP_THRESHOLD: _LARGE, _M_TRIM_THRESHOLD: -1}
_DEFAULT = {_M_MMAP_MAX: 65_536, _M_MMAP_THRESHOLD: 2**17, _M_TRIM_THRESHOLD: 2**17}


def available_memory() -> float:
    """Bytes of the machine's memory that are free, or could be; infinite where unknown."""
    try:
        with open("/proc/meminfo") as file:
            lines = dict(line.split(":") for line in file)
        return float(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError):
        return float("inf")


def use_one_arena() -> None:
    """Let all threads of this process share one heap; called where a process starts, before JAX.

    Without it `keep_freed_memory` does nothing for blocks above 64 MB: only the first heap can grow
    to any size.
    """
    _set({_M_ARENA_MAX: 1})


def keep_freed_memory() -> None:
    """Keep memory that is freed from now on for reuse.

    By default glibc hands each large block back to the kernel, and the next train step takes it as
    new, zeroed page by page: over a third of a step on 244x244 images. No other C library has the
    setting.
    """
    # What came before lies between the blocks of the steps that follow, and would stay unused.
    _trim()
    _set(_KEEPING)


@contextlib.contextmanager
def freed_memory_kept() -> Iterator[None]:
    """Keep freed memory in the `with` block, and return it at its end.

    For train steps alone, whose blocks are the same each time: those of an evaluation between them
    would leave gaps that fit neither.
    """
    keep_freed_memory()
    try:
        yield
    finally:
        _set(_DEFAULT)
        _trim()


def _set(values: dict[int, int]) -> None:
    mallopt = _of_glibc("mallopt")
    if mallopt is not None:
        for name, value in values.items():
            mallopt(name, value)


def _trim() -> None:
    trim = _of_glibc("malloc_trim")
    if trim is not None:
        trim(0)


def _of_glibc(name: str) -> Any:
    return getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None
