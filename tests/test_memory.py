"""Memory that is free, and freed memory that is kept between train steps."""

from __future__ import annotations

import math
import platform
import subprocess
import sys
import textwrap

import pytest

from cnn_research.core.memory import available_memory

FAULTS = """
    import ctypes, resource
    from cnn_research.core.memory import freed_memory_kept

    libc = ctypes.CDLL(None)
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.free.argtypes = [ctypes.c_void_p]

    def faults_of_a_large_block():
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        block = libc.malloc(100_000_000)
        ctypes.memset(block, 1, 100_000_000)
        libc.free(block)
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    def resident():
        return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()

    faults_of_a_large_block()
    print(faults_of_a_large_block())
    before = resident()
    with freed_memory_kept(enabled=True):
        faults_of_a_large_block()
        print(faults_of_a_large_block())
    print(faults_of_a_large_block(), resident() - before)
"""


@pytest.mark.skipif(
    not (sys.platform == "linux" and platform.libc_ver()[0] == "glibc"),
    reason="a setting of glibc's",
)
def test_freed_memory_is_kept_in_the_block_and_not_after_it():
    said = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(FAULTS)],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    ).stdout
    default, kept, after, more = map(int, said.split())
    assert kept * 10 < default and after > default / 2
    assert more < 10_000_000, "the block was kept"


def test_free_memory_is_known():
    assert 1e8 < available_memory() < math.inf
