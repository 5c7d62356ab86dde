"""CIFAR-10's official archives: find, download and read them."""

from __future__ import annotations

import itertools
import pickle
import tarfile
from pathlib import Path

import numpy as np

from cnn_research.core.errors import UserError
from cnn_research.core.files import sha256_of
from cnn_research.data.images import printable
from cnn_research.data.prepare.downloads import fetch, not_official

CLASSES = (
    *("airplane", "automobile", "bird", "cat", "deer"),
    *("dog", "frog", "horse", "ship", "truck"),
)

BINARY, PYTHON = "cifar-10-binary.tar.gz", "cifar-10-python.tar.gz"

SHA256 = {
    BINARY: "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
    PYTHON: "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce",
}
"""SHA-256 of the two official archives, which contain the same images in the same order."""

HOMEPAGE = "https://www.cs.toronto.edu/~kriz/"
BATCHES = {"train": [f"data_batch_{number}" for number in range(1, 6)], "test": ["test_batch"]}


def find(path: Path) -> Path | None:
    """Find the official archive: `path`, or a file below it; None if there is none.

    Raises `UserError` if an archive with an official name is not the official file, or the folder
    contains the batches without their archive.
    """
    if path.is_dir():
        held = [file for name in SHA256 for file in sorted(path.rglob(name))]
        if not held and any(path.rglob(f"{BATCHES['train'][0]}*")):
            raise UserError(
                f"{printable(path)} contains unpacked batches, which have no published checksums: "
                f"pass the archive itself, {BINARY} or {PYTHON}"
            )
        return find(held[0]) if held else None
    if sha256_of(path) in SHA256.values():
        return path
    if path.name in SHA256:
        raise not_official(printable(path), "CIFAR-10")
    return None


def gather(folder: Path, address: str) -> None:
    """Download the official archive from a URL (`file:` or a mirror) into `folder`."""
    advice = (
        f"pass a mirror with --source=https://..., or {BINARY} or {PYTHON} from "
        f"{HOMEPAGE}cifar.html with --source=FILE"
    )
    fetch(address, folder, SHA256, "CIFAR-10", advice)


def read(archive: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Read each split's images, uint8 `[examples, 32, 32, 3]`, and labels, int64 `[examples]`.

    The archive must have its official name and checksum.
    """
    read_batch = _read_binary if archive.name == BINARY else _read_python
    batches = {}
    with tarfile.open(archive) as tar:
        for member in tar:  # in the archive's order: seeking back would decompress it again
            name = Path(member.name).name.removesuffix(".bin")
            file = tar.extractfile(member)
            if file and name in itertools.chain(*BATCHES.values()):
                batches[name] = read_batch(file.read())
    return {
        split: (
            # Pixels are stored channel by channel.
            np.concatenate([batches[name][0] for name in names])
            .reshape(-1, 3, 32, 32)
            .transpose(0, 2, 3, 1),
            np.concatenate([batches[name][1] for name in names]),
        )
        for split, names in BATCHES.items()
    }


def _read_binary(content: bytes) -> tuple[np.ndarray, np.ndarray]:
    rows = np.frombuffer(content, np.uint8).reshape(-1, 1 + 3 * 32 * 32)
    return rows[:, 1:], rows[:, 0].astype(np.int64)


def _read_python(content: bytes) -> tuple[np.ndarray, np.ndarray]:
    # By its checksum this is the official pickle, which is safe to load.
    batch = pickle.loads(content, encoding="bytes")
    return batch[b"data"], np.array(batch[b"labels"], np.int64)
