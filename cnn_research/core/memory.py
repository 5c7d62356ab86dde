"""Memory: how much is free, and whether the process keeps what it frees."""

import contextlib
import ctypes
import sys
from collections.abc import Iterator

# From glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -3, -4, -8
_LARGE = 2**25
"""Bytes; the highest threshold that glibc accepts."""
LARGE_STEP = 64e6
"""Bytes of working memory of a train step above which keeping it makes steps faster."""


def available_memory() -> float:
    """Available bytes of the machine's memory; infinite where unknown."""
    try:
        with open("/proc/meminfo", encoding="utf-8") as file:
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
    _call_glibc("malloc_trim", 0)
    _set({_M_MMAP_MAX: 0, _M_MMAP_THRESHOLD: _LARGE, _M_TRIM_THRESHOLD: -1})


@contextlib.contextmanager
def freed_memory_kept(*, enabled: bool) -> Iterator[None]:
    """Keep freed memory in the `with` block, and return it at its end, where `enabled`.

    For large train steps alone, whose blocks are the same each time: those of an evaluation
    between them would leave gaps that fit neither.
    """
    if not enabled:
        yield
        return
    keep_freed_memory()
    try:
        yield
    finally:
        _set({_M_MMAP_MAX: 65_536, _M_MMAP_THRESHOLD: 2**17, _M_TRIM_THRESHOLD: 2**17})
        _call_glibc("malloc_trim", 0)


def _set(values: dict[int, int]) -> None:
    for name, value in values.items():
        _call_glibc("mallopt", name, value)


def _call_glibc(name: str, *arguments: int) -> None:
    """Call a function of glibc; do nothing with another C library."""
    if sys.platform == "linux" and (function := getattr(ctypes.CDLL(None), name, None)):
        function(*arguments)
