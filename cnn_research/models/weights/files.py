"""Weight files of every kind, distinguished by content."""

from __future__ import annotations

import dataclasses
import io
import zipfile
from pathlib import Path

import numpy as np

from cnn_research.core.errors import UserError, one_line
from cnn_research.core.files import sha256_of
from cnn_research.models.weights import Weights, keras_file, torch_file

_KINDS = ".safetensors, .pth, .pt, .th, .h5, .keras or .npz"
_FLAX_NAMES = {"running_mean": "mean", "running_var": "var"}
# Counts of batches seen by a normalisation and of averaged states, from which nothing is computed.
_UNUSED = ("num_batches_tracked", "n_averaged")
# Prefixes that DataParallel, Lightning and others add to every name.
_WRAPPERS = ("module.", "_orig_mod.", "model.", "net.", "network.")


def read_weights(path: Path) -> Weights:
    """Read a weight file, whose kind is determined by its content, not its name.

    Raises `UserError` if the file is missing, of an unknown kind, damaged, or tries to run code.
    """
    if not path.is_file():
        raise UserError(f"there is no weight file {path}")
    with open(path, "rb") as file:
        start = file.read(16)
    try:
        if (weights := _read(path, start)) is not None:
            return dataclasses.replace(weights, sha256=sha256_of(path))
    except UserError:
        raise
    except Exception as error:  # each reader raises its own kinds
        raise UserError(
            f"{path} is damaged or incomplete: download it again ({one_line(error)[:200]})"
        ) from error
    raise UserError(f"{path} is not a known kind of weight file: give a {_KINDS} file")


def _read(path: Path, start: bytes) -> Weights | None:
    """Read a file that starts with the bytes `start`; return None if its kind is unknown."""
    if start[8:9] == b"{":
        from safetensors.numpy import load_file

        return _of_torch(load_file(path))
    if start.startswith(torch_file.OLD_FORMAT):
        return _of_torch(torch_file.read_old(path))
    if start.startswith(b"\x89HDF"):
        return Weights(keras_file.read_h5(path), "keras")
    if start.startswith(b"PK"):
        return _of_zip(path)
    return None


def _of_zip(path: Path) -> Weights:
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        if "model.weights.h5" in names:
            file = io.BytesIO(archive.read("model.weights.h5"))
            return Weights(keras_file.read_h5(file), "keras")
    if any(name.endswith("/data.pkl") for name in names):
        return _of_torch(torch_file.read_zip(path))
    if names and all(name.endswith(".npy") for name in names):
        with np.load(path, allow_pickle=False) as arrays:
            return Weights(keras_file.of_npz(dict(arrays)), "keras")
    raise UserError(f"{path} is an archive without weights: give a {_KINDS} file")


def _of_torch(arrays: dict[str, np.ndarray]) -> Weights:
    if not arrays:
        raise ValueError("it is empty")
    arrays = {key: a for key, a in arrays.items() if key.rpartition(".")[2] not in _UNUSED}
    for prefix in _WRAPPERS:
        if all(key.startswith(prefix) for key in arrays):
            return _of_torch({key.removeprefix(prefix): array for key, array in arrays.items()})
    by_name = {}
    for key, array in arrays.items():
        layer, _, weight = key.rpartition(".")
        if weight == "weight":
            weight = "scale" if array.ndim == 1 else "kernel"
        by_name[layer, _FLAX_NAMES.get(weight, weight)] = array
    return Weights(by_name, "torch")
