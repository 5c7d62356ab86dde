"""Keras' weight files: .h5 of any version, .weights.h5 and .keras of Keras 3, and .npz."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

_WEIGHT = re.compile(
    r"(depthwise_kernel|kernel|bias|gamma|beta"
    r"|moving_mean|moving_variance|running_mean|running_std|[Wb])(_\d+)?$"
)
_FLAX_NAMES = {
    "depthwise_kernel": "kernel",
    "W": "kernel",
    "b": "bias",
    "gamma": "scale",
    "beta": "bias",
    "moving_mean": "mean",
    "running_mean": "mean",
    "moving_variance": "var",
    "running_std": "var",  # Keras 1 stored the variance under this name
}
# Keras 3 numbers a layer's arrays; these are the meanings of rank-1 arrays, by their count.
_NORMS = {4: ("scale", "bias", "mean", "var"), 3: ("bias", "mean", "var")}
# Keras numbers generated names through a whole process: 'conv2d_94' may be a model's first.
_GENERATED = re.compile(r"(conv2d|batch_normalization|dense)(?:_(\d+))?$")

Arrays = dict[tuple[str, str], np.ndarray]
"""By (layer, weight): the layer's name in Keras; weights are kernel, bias, scale, mean and var."""


def read_h5(file: Path | io.BytesIO) -> Arrays:
    """Read an HDF5 file of Keras 1 to 3, of a model or of weights only."""
    import h5py

    with h5py.File(file) as root:
        group = root.get("model_weights", root)
        if "layer_names" in group.attrs:
            return _renumbered(_by_layer(group))
        return _renumbered(_by_number(group))


def of_npz(arrays: dict[str, np.ndarray]) -> Arrays:
    """Sort the arrays of an .npz file.

    Raises `ValueError` for names other than `layer__weight` or `layer/weight`.
    """
    arrays_by_name = {}
    for key, array in arrays.items():
        layer, weight = re.split(r"__|/", key.removesuffix(":0"), maxsplit=1)
        arrays_by_name[layer, _weight(weight)] = array
    return arrays_by_name


def _weight(name: str) -> str:
    """Translate Keras' `block1_conv1_W_1:0` or `conv1/kernel:0` to flax's name of the weight."""
    match = _WEIGHT.search(name.split(":")[0])
    if match is None:
        raise ValueError(f"unknown weight '{name}'")
    return _FLAX_NAMES.get(match[1], match[1])


def _by_layer(root: Any) -> Arrays:
    arrays_by_name: Arrays = {}
    for layer in _texts(root.attrs["layer_names"]):
        names = _texts(root[layer].attrs["weight_names"])
        # A nested model is one layer here; its weights have the layer's name before the last /.
        nested = len({_weight(name) for name in names}) < len(names)
        for name in names:
            owner = name.split("/")[-2] if nested else layer
            arrays_by_name[owner, _weight(name)] = np.asarray(root[layer][name])
    return arrays_by_name


def _by_number(root: Any) -> Arrays:
    import h5py

    arrays_by_name: Arrays = {}

    def visit(path: str, group: Any) -> None:
        *above, last = path.split("/")
        if not isinstance(group, h5py.Group) or last != "vars" or not len(group):
            return
        if {"optimizer", "seed_generator"} & set(above):
            return
        # Groups are named after the layer's class; the layer's own name is an attribute.
        layer = str(group.attrs.get("name", above[-1] if above else ""))
        arrays = [np.asarray(group[str(number)]) for number in range(len(group))]
        weights: Iterable[str] = ("kernel", "bias")
        if arrays[0].ndim == 1:
            weights = _NORMS[len(arrays)]
        for weight, array in zip(weights, arrays, strict=False):
            arrays_by_name[layer, weight] = array

    root.visititems(visit)
    return arrays_by_name


def _texts(names: Any) -> list[str]:
    return [name.decode() if isinstance(name, bytes) else str(name) for name in names]


def _renumbered(arrays_by_name: Arrays) -> Arrays:
    """Renumber generated names from 0, in order: conv2d_0, conv2d_1, ..."""
    matches = {layer: _GENERATED.match(layer) for layer, _ in arrays_by_name}
    numbers: dict[str, list[int]] = {}
    for match in matches.values():
        if match:
            numbers.setdefault(match[1], []).append(int(match[2] or 0))
    new = {
        layer: f"{match[1]}_{sorted(numbers[match[1]]).index(int(match[2] or 0))}"
        if match
        else layer
        for layer, match in matches.items()
    }
    return {(new[layer], weight): array for (layer, weight), array in arrays_by_name.items()}
