"""Reads PyTorch's files (.pth, .pt, .th, .bin) without PyTorch and without running code in them.

Such a file is a pickle, and a pickle may call any function. Here nothing that it names is imported
or called: tensors are read, and everything else becomes an inert object, so that weights are found
beside counters, paths, NumPy numbers and objects of the author's own classes. Functions of Python,
NumPy and PyTorch that do not represent data are rejected: a file that names them is malicious. Both
of PyTorch's formats are supported: the zip archive, and the older series of pickles followed by the
raw storages. Source: torch/serialization.py.
"""

from __future__ import annotations

import collections
import io
import math
import pickle
import re
import struct
import sys
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes  # noqa: F401, registers 'bfloat16' with NumPy; a dependency of jax
import numpy as np

from cnn_research.core.errors import UserError

OLD_FORMAT = pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2)
"""First bytes of a file in the older format."""

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
    "ComplexFloatStorage": "<c8",
    "ComplexDoubleStorage": "<c16",
    "QInt8Storage": "<i1",
    "QUInt8Storage": "<u1",
    "QInt32Storage": "<i4",
    "UntypedStorage": "<u1",
}
# Keys under which a checkpoint with several sets of weights usually stores the model's.
_USUAL_PLACES = ("state_dict", "model_state_dict", "model", "net", "weights")

# Packages whose names are rejected unless they represent data; others are harmless, because nothing
# is imported from them.
_KNOWN = sys.stdlib_module_names | {"__builtin__", "copy_reg", "numpy", "torch"}
_OF_DATA = re.compile(
    r"(builtins|__builtin__)\.(?!__|breakpoint|compile|eval|exec|input|open)\w+"
    r"|(copyreg|copy_reg)\.(_reconstructor|__newobj__|__newobj_ex__)|_codecs\.encode"
    r"|(argparse|array|collections|dataclasses|datetime|decimal|enum|fractions|functools|ipaddress"
    r"|itertools|logging|math|operator|pathlib|random|re|string|time|types|typing|uuid|zoneinfo)"
    r"\.[\w.]+"
    r"|numpy\.([\w.]+\.)?(_frombuffer|_reconstruct|dtype|ndarray|scalar"
    r"|(bool|complex|float|u?int|str)\w*)|numpy\.(dtypes|ma|random)\.[\w.]+"
    r"|torch\.([\w.]+\.)?(_get_layout|_rebuild_\w+|[A-Z]\w*)|torch\.(nn|_C\._nn)\.[\w.]+"
    r"|torch\.(device|strided|\w+_(affine\w*|format)|channels_last\w*"
    r"|(bool|b?float|complex|q?u?int)\w*)"
)


class _Storage(NamedTuple):
    key: str
    dtype: np.dtype
    size: int


class _Tensor(NamedTuple):
    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _Other(dict):
    """Any object but a tensor: it accepts what a pickle passes to an object, and does nothing.

    It has the entries of a dictionary and the `state` of a pickled object.
    """

    __hash__ = object.__hash__  # type: ignore[assignment]
    state: Any = None

    def __init__(self, *_: Any, **__: Any) -> None:
        super().__init__()

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __call__(self, *_: Any) -> _Other:
        return _Other()

    def append(self, _: Any) -> None:
        pass

    extend = add = append


def read_zip(path: Path) -> dict[str, np.ndarray]:
    """Read the state dict of a file in the zip format.

    Raises `UserError` if the file is damaged, tries to run code, or holds no state dict.
    """
    with zipfile.ZipFile(path) as archive:
        members = {info.filename: info for info in archive.infolist()}
        (folder,) = (name[: -len("data.pkl")] for name in members if name.endswith("/data.pkl"))
        if f"{folder}byteorder" in members and archive.read(f"{folder}byteorder") != b"little":
            raise UserError(f"{path}: its numbers are big-endian: save it on another machine")

        def storage_bytes(storage: _Storage) -> bytes:
            info = members[f"{folder}data/{storage.key}"]
            # PyTorch never compresses; refusing to decompress avoids zip bombs.
            if info.compress_type != zipfile.ZIP_STORED:
                raise ValueError("a compressed storage")
            return archive.read(info)

        tree = _unpickle(io.BytesIO(archive.read(f"{folder}data.pkl")), path)
        return _state_dict(tree, storage_bytes, path)


def read_old(path: Path) -> dict[str, np.ndarray]:
    """Do the same as `read_zip` for the older format."""
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
    """Load the next pickle of a file, with a `_Tensor` for every tensor; fill `storages` by key."""
    by_key = {} if storages is None else storages

    # Defined here, so that changes by a pickle do not outlive this call.
    class Other(_Other):
        pass

    def tensor(storage: _Storage, offset: int, shape: Any, strides: Any, *_: Any) -> _Tensor:
        if not isinstance(storage, _Storage):
            raise pickle.UnpicklingError("a tensor without storage")
        return _Tensor(storage, offset, tuple(shape), tuple(strides))

    read: dict[str, Callable[..., Any]] = {
        "torch._utils._rebuild_tensor": tensor,
        "torch._utils._rebuild_tensor_v2": tensor,
        "torch._utils._rebuild_parameter": lambda data, *_: data,
        "torch._utils._rebuild_parameter_with_state": lambda data, *_: data,
        "torch._tensor._rebuild_from_type_v2": lambda make, kind, arguments, *_: make(*arguments),
        "torch.Size": tuple,
        "builtins.set": set,
        "__builtin__.set": set,
        "collections.OrderedDict": collections.OrderedDict,
    }

    class Reader(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            full_name = f"{module}.{name}"
            if module in ("torch", "torch.storage") and name in _DTYPES:
                return name
            if module.partition(".")[0] in _KNOWN and not _OF_DATA.fullmatch(full_name):
                raise UserError(
                    f"{path} was not read, as it refers to {full_name}, which is not data: save "
                    "only the state dict, preferably as .safetensors"
                )
            return read.get(full_name, Other)

        def persistent_load(self, pid: Any) -> _Storage:
            kind, storage_type, key, _, size, *view = pid
            if kind != "storage" or any(view):
                raise pickle.UnpicklingError("an unknown kind of storage")
            by_key[key] = _Storage(str(key), np.dtype(_DTYPES[storage_type]), int(size))
            return by_key[key]

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
            raise ValueError("a tensor larger than its storage")
        if count and last >= len(values):
            raise ValueError("a tensor extends beyond its storage")
        in_bytes = [step * storage.dtype.itemsize for step in strides]
        view = np.lib.stride_tricks.as_strided(values[offset:], shape, in_bytes, writeable=False)
        return np.array(view)

    return {key: array(tensor) for key, tensor in tensors.items()}


def _tensors(tree: Any, path: Path) -> Mapping[str, _Tensor]:
    """Return the weights of a checkpoint: those under a usual name, or the only ones."""
    by_place = _weights(tree, (), set())
    shallowest = min(map(len, by_place), default=0)
    for name in _USUAL_PLACES:
        for place, tensors in by_place.items():
            if len(place) == shallowest and place[-1:] == (name,):
                return tensors
    if len(by_place) != 1:
        several = ", ".join(sorted(".".join(place) for place in by_place))
        raise UserError(
            f"{path} contains no state dict: it needs tensors by name, or 'state_dict' with them"
            + (f"; it has several ({several}): save only one of them" if by_place else "")
        )
    return next(iter(by_place.values()))


def _weights(
    tree: Any, place: tuple[str, ...], seen: set[int]
) -> dict[tuple[str, ...], dict[str, _Tensor]]:
    """Find the sets of weights in a checkpoint by their keys; `seen` has the ids of objects
    searched so far."""
    if id(tree) in seen:
        return {}
    seen.add(id(tree))
    entries = {key: value for key, value in _entries(tree).items() if isinstance(key, str)}
    own = {key: value for key, value in entries.items() if isinstance(value, _Tensor)}
    below: dict[tuple[str, ...], dict[str, _Tensor]] = {}
    for key, value in entries.items():
        if "optim" not in key.lower():
            below |= _weights(value, (*place, key), seen)
    # Other tensors may be a loss, a best accuracy, a history, or a random generator's state.
    real = any(each.shape and each.storage.dtype.kind not in "iub" for each in own.values())
    if real and len(own) > max(map(len, below.values()), default=0):
        return {place: own}
    return below


def _entries(value: Any) -> Mapping[Any, Any]:
    """Return the entries of a dictionary, the dictionaries in a list, or the state dict of a
    pickled module."""
    if isinstance(value, list | tuple):
        return {str(at): each for at, each in enumerate(value) if isinstance(each, dict)}
    if not isinstance(value, _Other) or not isinstance(value.state, dict):
        return value if isinstance(value, dict) else {}
    state = value.state
    passing = state.get("_non_persistent_buffers_set", ())
    buffers = {k: v for k, v in state.get("_buffers", {}).items() if k not in passing}
    entries = {**state.get("_parameters", {}), **buffers}
    for name, module in state.get("_modules", {}).items():
        entries |= {f"{name}.{key}": inner for key, inner in _entries(module).items()}
    return entries or value
