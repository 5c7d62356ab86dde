"""Memory that is free, and freed memory that is kept between train steps."""

from __future__ import annotations

import math
import platform
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from cnn_research.core.files import release
from cnn_research.core.memory import available_memory
from cnn_research.data.dataset import digests_of
from cnn_research.data.prepare.likeness import near_duplicates

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


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_what_reads_all_images_of_a_memory_map_gives_their_memory_back(tmp_path):
    drawn = np.random.default_rng(0).integers(0, 256, (600, 128, 128, 3), np.uint8)
    np.save(tmp_path / "images.npy", drawn)
    images = np.load(tmp_path / "images.npy", mmap_mode="r")

    def resident() -> float:
        """Bytes of the map that are in this process's memory."""
        with open("/proc/self/smaps") as maps:
            lines = iter(maps)
            next(line for line in lines if line.rstrip().endswith("images.npy"))
            size = next(line for line in lines if line.startswith("Rss:"))
        return 1024 * int(size.split()[1])

    assert np.array_equal(images, drawn) and resident() == pytest.approx(images.nbytes, rel=0.01)
    release(images)
    assert np.array_equal(images, drawn), "it is read again"
    digests_of(images)
    assert resident() < images.nbytes / 2
    near_duplicates(images, np.arange(0, 600, 2))
    assert resident() < images.nbytes / 2
    release(np.ones(3))
