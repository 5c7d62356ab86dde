"""PyTorch's files (.pth, .pt, .th, .bin), read without PyTorch and without running what they hold.

Such a file is a pickle, and a pickle may call any function. Here it can name a handful of things
only, each of which stands for data; everything else is refused. Both of PyTorch's formats are read:
the zip archive, and the one before it, a row of pickles followed by the raw storages.
Source: torch/serialization.py.
"""

from __future__ import annotations

import collections
import io
import math
import pickle
import struct
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes  # noqa: F401, by which NumPy knows 'bfloat16'; jax brings it
import numpy as np

from cnn_research.core.errors import UserError

OLD_FORMAT = pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2)
"""First bytes of a file in the format without zip."""

_DTYPES = {
    "DoubleStorage": "<f8",
    "FloatStorage": "<f4",
    "HalfStorage": "<f2",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "<i8",
    "IntStorage": "<i4",
    "ShortStorage": "<i2",
    "CharStorage": "<i1",
    "ByteStorage": "<u1",
    "BoolStorage": "?",
}
# Where a checkpoint keeps its weights, when it keeps other tensors as well.
_USUAL_PLACES = ("state_dict", "model_state_dict", "model", "net", "weights")


class _Storage(NamedTuple):
    key: str
    dtype: np.dtype
    size: int


class _Tensor(NamedTuple):
    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def read_zip(path: Path) -> dict[str, np.ndarray]:
    """State dict of a file in the zip format.

    Raises `UserError` if the file is damaged, tries to run code, or holds no state dict.
    """
    with zipfile.ZipFile(path) as archive:
        members = {info.filename: info for info in archive.infolist()}
        (folder,) = (name[: -len("data.pkl")] for name in members if name.endswith("/data.pkl"))
        if f"{folder}byteorder" in members and archive.read(f"{folder}byteorder") != b"little":
            raise UserError(f"{path}: its numbers are big-endian: save it on another machine")

        def storage_bytes(storage: _Storage) -> bytes:
            info = members[f"{folder}data/{storage.key}"]
            # PyTorch never compresses: a small file cannot unpack into all of the memory.
            if info.compress_type != zipfile.ZIP_STORED:
                raise ValueError("a compressed storage")
            return archive.read(info)

        tree = _unpickle(io.BytesIO(archive.read(f"{folder}data.pkl")), path)
        return _state_dict(tree, storage_bytes, path)


def read_old(path: Path) -> dict[str, np.ndarray]:
    """As `read_zip`, for the earlier format."""
    with open(path, "rb") as file:
        # The magic number, the version and the sizes of types.
        _, _, system = (_unpickle(file, path) for _ in range(3))
        if not system["little_endian"]:
            raise UserError(f"{path}: its numbers are big-endian: save it on another machine")
        storages: dict[str, _Storage] = {}
        tree = _unpickle(file, path, storages)
        contents = {}
        for key in _unpickle(file, path):
            (size,) = struct.unpack("<q", file.read(8))
            if size != storages[key].size:
                raise ValueError(f"storage {key} has {size} numbers, not {storages[key].size}")
            contents[key] = file.read(size * storages[key].dtype.itemsize)
        return _state_dict(tree, lambda storage: contents[storage.key], path)


def _unpickle(file: Any, path: Path, storages: dict[str, _Storage] | None = None) -> Any:
    """The next pickle of a file, with a `_Tensor` for every tensor."""
    found = {} if storages is None else storages

    # Defined here, so that nothing that a pickle does to them outlives this call.
    def tensor(storage: _Storage, offset: int, shape: Any, strides: Any, *_: Any) -> _Tensor:
        if not isinstance(storage, _Storage):
            raise pickle.UnpicklingError("a tensor without storage")
        return _Tensor(storage, offset, tuple(shape), tuple(strides))

    harmless: dict[str, Callable[..., Any]] = {
        "torch._utils._rebuild_tensor": tensor,
        "torch._utils._rebuild_tensor_v2": tensor,
        "torch._utils._rebuild_parameter": lambda data, *_: data,
        "collections.OrderedDict": collections.OrderedDict,
    }

    class Reader(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            if module == "torch" and name in _DTYPES:
                return name
            if f"{module}.{name}" not in harmless:
                raise UserError(
                    f"{path} is not read: it asks for {module}.{name}, which is not a weight; save "
                    "the state dict alone, best as .safetensors"
                )
            return harmless[f"{module}.{name}"]

        def persistent_load(self, pid: Any) -> _Storage:
            kind, storage_type, key, _, size, *view = pid
            if kind != "storage" or any(view):
                raise pickle.UnpicklingError("an unknown kind of storage")
            found[key] = _Storage(str(key), np.dtype(_DTYPES[storage_type]), int(size))
            return found[key]

    return Reader(file, encoding="utf-8").load()


def _state_dict(
    tree: Any, storage_bytes: Callable[[_Storage], bytes], path: Path
) -> dict[str, np.ndarray]:
    tensors = _tensors(tree, path)
    read: dict[str, np.ndarray] = {}

    def array(tensor: _Tensor) -> np.ndarray:
        storage, offset, shape, strides = tensor
        if storage.key not in read:
            read[storage.key] = np.frombuffer(storage_bytes(storage), storage.dtype)
        values = read[storage.key]
        last = offset + sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
        count = math.prod(shape)
        if min((0, offset, *shape, *strides)) < 0 or count > len(values):
            raise ValueError("a tensor that its storage cannot hold")
        if count and last >= len(values):
            raise ValueError("a tensor that reaches beyond its storage")
        in_bytes = [step * storage.dtype.itemsize for step in strides]
        view = np.lib.stride_tricks.as_strided(values[offset:], shape, in_bytes, writeable=False)
        return np.array(view)

    return {key: array(tensor) for key, tensor in tensors.items()}


def _tensors(tree: Any, path: Path) -> Mapping[str, _Tensor]:
    """The dictionary of tensors in a checkpoint: itself, or the one that is an entry of it."""
    entries = tree.items() if isinstance(tree, dict) else ()
    own = {str(key): value for key, value in entries if isinstance(value, _Tensor)}
    if own:
        return own
    inner = {
        str(key): value
        for key, value in entries
        if isinstance(value, dict) and any(isinstance(x, _Tensor) for x in value.values())
    }
    for name in _USUAL_PLACES:
        if name in inner:
            return _tensors(inner[name], path)
    if len(inner) != 1:
        raise UserError(
            f"{path} holds no state dict: it needs names with tensors, or 'state_dict' with them"
            + (f"; it has several ({', '.join(sorted(inner))})" if inner else "")
        )
    return _tensors(next(iter(inner.values())), path)
