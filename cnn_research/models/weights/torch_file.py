"""PyTorch's files (.pth, .pt, .th, .bin), read without PyTorch and without running what they hold.

Such a file is a pickle, and a pickle may call any function. Here nothing that it names is imported
or called: tensors are read, and of everything else an inert object is made, so that the weights are
found beside counters, paths, numbers of NumPy and objects of the author's own classes. Functions of
Python, NumPy and PyTorch that do not stand for data are refused: a file that asks for them was made
to do harm. Both of PyTorch's formats are read: the zip archive, and the one before it, a row of
pickles followed by the raw storages. Source: torch/serialization.py.
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
    "ComplexFloatStorage": "<c8",
    "ComplexDoubleStorage": "<c16",
    "QInt8Storage": "<i1",
    "QUInt8Storage": "<u1",
    "QInt32Storage": "<i4",
    "UntypedStorage": "<u1",
}
# Where a checkpoint keeps its weights, when it keeps those of others as well.
_USUAL_PLACES = ("state_dict", "model_state_dict", "model", "net", "weights")

# Packages of which names are refused, unless they are of data; a package that nobody knows here may
# be named, as nothing of it is imported.
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
    """An object that is no tensor: it takes what a pickle gives to an object, and does nothing.

    It has the entries of a dictionary, and the `state` of an object that was stored whole.
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
            asked = f"{module}.{name}"
            if module in ("torch", "torch.storage") and name in _DTYPES:
                return name
            if module.partition(".")[0] in _KNOWN and not _OF_DATA.fullmatch(asked):
                raise UserError(
                    f"{path} is not read: it asks for {asked}, which is not a weight; save only "
                    "the state dict, preferably as .safetensors"
                )
            return read.get(asked, Other)

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
    """The weights of a checkpoint: itself, or those in it that have the usual name, or no rival."""
    found = _weights(tree, (), set())
    least = min(map(len, found), default=0)
    for name in _USUAL_PLACES:
        for place, tensors in found.items():
            if len(place) == least and place[-1:] == (name,):
                return tensors
    if len(found) != 1:
        several = ", ".join(sorted(".".join(place) for place in found))
        raise UserError(
            f"{path} holds no state dict: it needs names with tensors, or 'state_dict' with them"
            + (f"; it has several ({several}): save only one of them" if found else "")
        )
    return next(iter(found.values()))


def _weights(
    tree: Any, place: tuple[str, ...], seen: set[int]
) -> dict[tuple[str, ...], dict[str, _Tensor]]:
    """Each set of weights in a checkpoint by the names that lead to it; `seen` are the ids of what
    was looked into."""
    if id(tree) in seen:
        return {}
    seen.add(id(tree))
    entries = {key: value for key, value in _entries(tree).items() if isinstance(key, str)}
    own = {key: value for key, value in entries.items() if isinstance(value, _Tensor)}
    below: dict[tuple[str, ...], dict[str, _Tensor]] = {}
    for key, value in entries.items():
        if "optim" not in key.lower():
            below |= _weights(value, (*place, key), seen)
    # Beside weights there may be a loss, a best accuracy, a history, or the state of a generator.
    real = any(each.shape and each.storage.dtype.kind not in "iub" for each in own.values())
    if real and len(own) > max(map(len, below.values()), default=0):
        return {place: own}
    return below


def _entries(value: Any) -> Mapping[Any, Any]:
    """The entries of a dictionary, the dictionaries in a list, or what would be the state dict of a
    module that was stored whole."""
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
