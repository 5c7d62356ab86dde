"""The official archives of CIFAR-10: found, fetched and read."""

from __future__ import annotations

import http.client
import io
import itertools
import pickle
import tarfile
from pathlib import Path
from typing import Any

import numpy as np

from cnn_research.core.errors import UserError
from cnn_research.core.run_folder import sha256_of
from cnn_research.data.images import printable
from cnn_research.data.prepare.downloads import fetch

CLASSES = (
    *("airplane", "automobile", "bird", "cat", "deer"),
    *("dog", "frog", "horse", "ship", "truck"),
)

BINARY, PYTHON = "cifar-10-binary.tar.gz", "cifar-10-python.tar.gz"

SHA256 = {
    BINARY: "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
    PYTHON: "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce",
}
"""Of the two official archives, which hold the same images in the same order."""

HOMEPAGE = "https://www.cs.toronto.edu/~kriz/"
BATCHES = {"train": [f"data_batch_{number}" for number in range(1, 6)], "test": ["test_batch"]}
_RECONSTRUCT = np.empty(0).__reduce__()[0]
"""Start of every pickled array: it makes an empty one."""


def find(path: Path) -> Path | None:
    """The official archive that `path` is or, if it is a folder, holds; None if there is none.

    Raises `UserError` if an archive with an official name is not the official file, or the folder
    holds the batches without their archive.
    """
    if path.is_dir():
        held = [file for name in SHA256 for file in sorted(path.rglob(name))]
        if not held and any(path.rglob(f"{BATCHES['train'][0]}*")):
            raise UserError(
                f"{printable(path)} holds unpacked batches, which have no published checksum: "
                f"pass the archive itself, {BINARY} or {PYTHON}"
            )
        return find(held[0]) if held else None
    if sha256_of(path) in SHA256.values():
        return path
    if path.name in SHA256:
        raise UserError(_not_official(printable(path)))
    return None


def kind_of(archive: Path) -> str:
    """The official name of an archive that `find` found, whatever its file is called."""
    digest = sha256_of(archive)
    return next(name for name, known in SHA256.items() if known == digest)


def gather(folder: Path, address: str) -> None:
    """Download the official archive from an address (`file:` or a mirror) into `folder`.

    Raises `UserError` if the download fails, or it is not the official file.
    """
    try:
        fetch(address, folder, SHA256, _not_official(address))
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise UserError(
            f"CIFAR-10 could not be downloaded from {address} ({error}): pass a mirror with "
            f"--source=https://..., or the file {BINARY} or {PYTHON} of {HOMEPAGE}cifar.html with "
            "--source=FILE"
        ) from error


def read(archive: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Images, uint8 `[examples, 32, 32, 3]`, and labels, int64 `[examples]`, of each split, in
    order."""
    read_batch = _read_binary if kind_of(archive) == BINARY else _read_python
    found = {}
    with tarfile.open(archive) as tar:
        for member in tar:  # in the archive's order: going back would unpack it again
            name = Path(member.name).name.removesuffix(".bin")
            file = tar.extractfile(member)
            if file and name in itertools.chain(*BATCHES.values()):
                found[name] = read_batch(file.read())
    return {
        split: (
            # Pixels stand channel by channel.
            np.concatenate([found[name][0] for name in names])
            .reshape(-1, 3, 32, 32)
            .transpose(0, 2, 3, 1),
            np.concatenate([found[name][1] for name in names]),
        )
        for split, names in BATCHES.items()
    }


def _read_binary(content: bytes) -> tuple[np.ndarray, np.ndarray]:
    rows = np.frombuffer(content, np.uint8).reshape(-1, 1 + 3 * 32 * 32)
    return rows[:, 1:], rows[:, 0].astype(np.int64)


def _read_python(content: bytes) -> tuple[np.ndarray, np.ndarray]:
    batch = ArrayUnpickler(io.BytesIO(content), encoding="bytes").load()
    return batch[b"data"], np.array(batch[b"labels"], np.int64)


class ArrayUnpickler(pickle.Unpickler):
    """Reads NumPy arrays and Python's own containers, texts and numbers; calls nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        array_parts = {
            "numpy ndarray": np.ndarray,
            "numpy dtype": np.dtype,
            # Where NumPy 1 has it, which wrote the official files, and where NumPy 2 has it.
            "numpy.core.multiarray _reconstruct": _RECONSTRUCT,
            "numpy._core.multiarray _reconstruct": _RECONSTRUCT,
        }
        try:
            return array_parts[f"{module} {name}"]
        except KeyError:
            raise UserError(
                f"a batch of CIFAR-10 asks for {module}.{name}, which is no part of an array: "
                "it is not read"
            ) from None


def _not_official(where: str) -> str:
    return (
        f"{where} is neither official archive of CIFAR-10 (its SHA-256 differs): it is damaged, "
        f"incomplete or another version; fetch it again from {HOMEPAGE}cifar.html"
    )
