"""Memory: available bytes, and settings of glibc's allocator."""

import contextlib
import ctypes
import sys
from collections.abc import Iterator

# From glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -3, -4, -8
_LARGE = 2**25
"""Maximum threshold in bytes that glibc accepts."""
LARGE_STEP = 64e6
"""Working memory of a train step, in bytes, above which keeping freed memory is faster."""


def available_memory() -> float:
    """Return the available bytes of memory; infinity if unknown."""
    try:
        with open("/proc/meminfo", encoding="utf-8") as file:
            lines = dict(line.split(":") for line in file)
        return float(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError):
        return float("inf")


def use_one_arena() -> None:
    """Let all threads of this process share one heap; call it at the start, before JAX.

    Without it, `keep_freed_memory` has no effect on blocks above 64 MB, as only the first heap can
    grow to any size.
    """
    _set({_M_ARENA_MAX: 1})


def keep_freed_memory() -> None:
    """Keep freed memory for reuse from now on.

    By default, glibc returns large blocks to the kernel, and the next train step gets new pages,
    which the kernel zeroes: over a third of the time of a step on 244x244 images. Other C libraries
    do not have the setting.
    """
    # Earlier free blocks would remain unused between the blocks of the following steps.
    _call_glibc("malloc_trim", 0)
    _set({_M_MMAP_MAX: 0, _M_MMAP_THRESHOLD: _LARGE, _M_TRIM_THRESHOLD: -1})


@contextlib.contextmanager
def freed_memory_kept(*, enabled: bool) -> Iterator[None]:
    """Keep freed memory in the `with` block, and release it at the end, if `enabled`.

    Use it only for large train steps, which always need the same blocks; blocks of an evaluation in
    between would leave gaps that fit neither.
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
    """Call a function of glibc; do nothing with other C libraries."""
    if sys.platform == "linux" and (function := getattr(ctypes.CDLL(None), name, None)):
        function(*arguments)
