"""Loads pretrained weights from a file or the Hugging Face hub into a model's variables.

A model's modules are named as in torchvision, so that `layer1.0.conv1.weight` of a PyTorch file
is the leaf `layer1.0/conv1/kernel` here. A model may have two properties for other files:

* `other_names`: for each other library, our module -> the layer in its files, where they differ;
* `flattened`: each linear layer over a flattened map -> that map's (height, width, channels).
  We flatten row by row, as Keras does; PyTorch flattens channel by channel.
"""

from __future__ import annotations

import dataclasses
import fnmatch
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import traverse_util

from cnn_research.core.config import register_config
from cnn_research.core.errors import UsageError, UserError
from cnn_research.models.named_weights import named_weights
from cnn_research.models.weights import Weights
from cnn_research.models.weights.fetch import HUB, hub_file

_COLLECTIONS = ("params", "batch_stats")
_SHOWN = 3
"""Maximum number of leaves of a kind that an error names."""
ANY_CLASSES = 99_991
"""Number of classes of a model whose data is not known yet; no layer has this many units."""


@register_config
@dataclasses.dataclass(frozen=True)
class Pretrained:
    """Weights that training starts from."""

    source: str = ""
    """A .safetensors, .pth, .th, .h5, .keras or .npz file, 'hub:OWNER/NAME[/FILE]', the folder of a
    run, or 'stage:NAME' for another stage of the same pipeline; '' for none."""
    fresh: tuple[str, ...] = ()
    """Leaves that keep their initial values, such as a new head: path patterns such as `fc`,
    `layer4.*` or `*/bias`, which include everything below a match."""
    channels: Literal["rgb", "bgr"] = "rgb"
    """Colour order that the weights expect; for bgr the first kernel is reversed."""
    name: str = ""
    """Name of weights listed by `python -m cnn_research.models`, used if `source` is empty.
    `--pretrained=NAME` sets this field and all others that belong to the weights."""

    @property
    def origin(self) -> str:
        """The source, or else the name; '' if nothing is loaded."""
        return self.source or self.name

    def check(self, model: nn.Module) -> None:
        """Raise `UsageError` for fields that contradict each other or those of the network."""
        if self != Pretrained() and not self.origin:
            raise UsageError(
                "--pretrained.fresh and .channels have no effect without --pretrained.source or "
                ".name"
            )
        # With a wrong variant all shapes fit, but the predictions are wrong.
        wanted = named_weights(self.name).family.fields.get("variant") if self.name else None
        variant = getattr(model, "variant", None)
        if wanted and variant and variant != wanted:
            raise UsageError(
                f"--model.variant is {variant}, but the weights {self.name} were trained with "
                f"{wanted}: omit it"
            )


@dataclasses.dataclass(frozen=True)
class Loaded:
    """Record of the weights that were loaded from a file."""

    source: str
    """Origin of the weights."""
    name: str
    """Name of the weights in `python -m cnn_research.models`; empty for others."""
    repository: str
    """Repository of the hub, or package; empty for other files."""
    revision: str
    """Commit of that repository, or version of that package."""
    sha256: str
    """Checksum of the file; for a run, that of its checkpoint's list of checksums."""
    loaded: tuple[str, ...]
    """Paths of the leaves that were loaded."""
    fresh: tuple[str, ...]
    """Paths of the leaves that kept their initial values, as configured."""
    skipped: tuple[str, ...]
    """Leaves of the file that were skipped, as configured, by the paths they would have."""

    def __str__(self) -> str:
        text = f"{len(self.loaded)} leaves loaded from {self.source}"
        if self.repository:
            text += f" ({self.repository}, {self.revision[:12]})"
        if self.fresh:
            text += f"; fresh: {', '.join(self.fresh)}"
        if self.skipped:
            text += f"; skipped: {', '.join(self.skipped)}"
        return text


def matches(path: str, patterns: Sequence[str]) -> bool:
    """Return whether a pattern matches the path of a leaf (`layer1.0/conv1/kernel`) or a parent.

    `*` and `?` work as in file names; `*` also matches slashes. Dots and slashes are equivalent:
    `layer1`, `layer1.0`, `layer1/0/conv1` and `*/kernel` all match that path.
    """
    parts = path.replace(".", "/").split("/")
    above = ["/".join(parts[:length]) for length in range(1, len(parts) + 1)]
    return any(
        fnmatch.fnmatchcase(each, pattern.replace(".", "/"))
        for pattern in patterns
        for each in above
    )


def read_pretrained(pretrained: Pretrained) -> Weights:
    """Read weights from a local file, an installed package or the hub.

    Raises:
        UserError: the file is missing and cannot be downloaded, has a wrong checksum, or holds no
            weights.
        UsageError: the name is unknown, or the hub's path malformed.
    """
    from cnn_research.models.weights.files import read_weights

    source = pretrained.source
    if source and not source.startswith(HUB):
        return read_weights(Path(source).expanduser())
    fetched = hub_file(source).newest() if source else named_weights(pretrained.name).source.fetch()
    weights = read_weights(fetched.path)
    return dataclasses.replace(weights, repository=fetched.repository, revision=fetched.revision)


def check_fits(
    model: nn.Module,
    image_shape: tuple[int, int, int],
    pretrained: Pretrained,
    weights: Weights,
) -> None:
    """Raise the errors of `load_pretrained` that do not depend on the number of classes.

    Nothing is computed. `image_shape` is `(height, width, channels)`.
    """
    model = model.clone(num_classes=ANY_CLASSES)
    images = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    variables = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), images)
    _assign(model, _leaves(variables), pretrained, weights)


def load_pretrained(
    model: nn.Module,
    variables: Mapping[str, Any],
    pretrained: Pretrained,
    weights: Weights | None = None,
) -> tuple[dict[str, Any], Loaded]:
    """Replace a model's variables, nested dicts of arrays, by pretrained values.

    Structure, shapes and dtypes stay; arrays become NumPy's. `weights` default to those that
    `read_pretrained` reads.

    Raises:
        UserError: a leaf that no pattern of `fresh` covers is missing in the file, has another
            shape there, or is unknown to the model.
        UsageError: a pattern of `fresh` matches nothing.
    """
    weights = weights or read_pretrained(pretrained)
    ours = _leaves(variables)
    arrays, fresh, skipped = _assign(model, ours, pretrained, weights)
    values = {leaf: np.asarray(value) for leaf, value in ours.items()}
    values |= {leaf: array.astype(ours[leaf].dtype) for leaf, array in arrays.items()}
    new = {
        collection: traverse_util.unflatten_dict(
            {leaf: values[leaf] for leaf in _leaves({collection: variables[collection]})}, sep="/"
        )
        for collection in _COLLECTIONS
        if collection in variables
    }
    loaded = Loaded(
        source=pretrained.origin,
        name=pretrained.name,
        repository=weights.repository,
        revision=weights.revision,
        sha256=weights.sha256,
        loaded=tuple(arrays),
        fresh=fresh,
        skipped=skipped,
    )
    return {**variables, **new}, loaded


def _leaves(variables: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters, then statistics, by path."""
    parts = (variables.get(collection, {}) for collection in _COLLECTIONS)
    return {k: v for part in parts for k, v in traverse_util.flatten_dict(part, sep="/").items()}


def _assign(
    model: nn.Module, ours: Mapping[str, Any], pretrained: Pretrained, weights: Weights
) -> tuple[dict[str, np.ndarray], tuple[str, ...], tuple[str, ...]]:
    """Return the file's arrays by our leaves, the fresh leaves, and the skipped leaves of the file.

    `ours` has arrays or their shapes; the errors are those of `load_pretrained`.
    """
    names = _best_names(model, ours, weights)
    fresh = [leaf for leaf in ours if matches(leaf, pretrained.fresh)]
    wanted = {leaf: _key(leaf, names) for leaf in ours if leaf not in fresh}
    maps = getattr(model, "flattened", {})
    arrays = {
        leaf: _as_ours(weights.arrays[key], ours[leaf], weights.layout, maps.get(_module(leaf)))
        for leaf, key in wanted.items()
        if key in weights.arrays
    }
    # Unused arrays by the paths they would have here.
    modules, taken = {name: module for module, name in names.items()}, set(wanted.values())
    unused = {
        f"{modules.get(layer, layer)}/{weight}": array
        for (layer, weight), array in weights.arrays.items()
        if (layer, weight) not in taken
    }
    skipped = [path for path in unused if matches(path, pretrained.fresh)]

    _check_patterns(pretrained.fresh, [*ours, *unused], model)
    missing = [f"{leaf} {ours[leaf].shape}" for leaf in wanted if leaf not in arrays]
    unknown = [f"{path} {array.shape}" for path, array in unused.items() if path not in skipped]
    differing = {
        leaf: (array.shape, ours[leaf].shape)
        for leaf, array in arrays.items()
        if not _same(array.shape, ours[leaf].shape)
    }
    if missing or differing or unknown:
        why_not = _why_not(model, pretrained, missing, differing, unknown)
        raise UserError(why_not.replace(str(ANY_CLASSES), "classes"))
    if pretrained.channels == "bgr":
        _reverse_first_kernel(ours, arrays)
    return arrays, tuple(fresh), tuple(skipped)


def _same(theirs: tuple[int, ...], ours: tuple[int, ...]) -> bool:
    """Return whether shapes are equal, apart from the number of classes if it is unknown."""
    return len(theirs) == len(ours) and all(
        a == b or b == ANY_CLASSES for a, b in zip(theirs, ours, strict=True)
    )


def _module(leaf: str) -> str:
    return leaf.rpartition("/")[0].replace("/", ".")


def _key(leaf: str, names: Mapping[str, str]) -> tuple[str, str]:
    return names.get(_module(leaf), _module(leaf)), leaf.rpartition("/")[2]


def _best_names(model: nn.Module, ours: Mapping[str, Any], weights: Weights) -> Mapping[str, str]:
    """Return the library's names under which most leaves are in the file; on ties, our own."""
    candidates = [{}, *getattr(model, "other_names", ())]
    return max(
        candidates, key=lambda names: sum(_key(leaf, names) in weights.arrays for leaf in ours)
    )


def _as_ours(
    array: np.ndarray, value: Any, layout: str, flattened: tuple[int, int, int] | None
) -> np.ndarray:
    """Convert a file's array to flax's layout; its shape differs from `value`'s if unsuitable."""
    if layout == "torch" and array.ndim == 2 and flattened:
        height, width, channels = flattened
        if array.shape[1] == height * width * channels:
            array = array.reshape(-1, channels, height, width)
    if layout == "torch" and array.ndim == 4:
        array = array.transpose(2, 3, 1, 0)
    elif layout == "torch" and array.ndim == 2:
        array = array.T
    elif array.ndim == 4 and value.ndim == 4 and value.shape[2] == 1:
        # Keras' depthwise kernels are [height, width, in, multiplier].
        array = array.reshape(*array.shape[:2], 1, -1)
    # A linear layer equals a convolution whose kernel covers the whole map.
    if array.ndim == 4 and value.ndim == 2:
        return array.reshape(-1, array.shape[3])
    if array.ndim == 2 and value.ndim == 4 and _same(array.shape, value.shape[2:]):
        return array.reshape(1, 1, *array.shape)
    return array


def _reverse_first_kernel(ours: Mapping[str, Any], arrays: dict[str, np.ndarray]) -> None:
    first = [leaf for leaf, value in ours.items() if value.ndim == 4 and value.shape[2] == 3]
    if len(first) != 1:
        raise UsageError(
            "--pretrained.channels=bgr needs a model with one convolution over colours"
        )
    if first[0] in arrays:
        arrays[first[0]] = arrays[first[0]][:, :, ::-1]


def _check_patterns(patterns: Sequence[str], paths: Sequence[str], model: nn.Module) -> None:
    for pattern in patterns:
        if not any(matches(path, [pattern]) for path in paths):
            modules = sorted({path.split("/")[0] for path in paths})
            raise UsageError(
                f"--pretrained.fresh {pattern} matches nothing in {type(model).__name__} or the "
                f"file: its modules are {', '.join(modules)}"
            )


def _why_not(
    model: nn.Module,
    pretrained: Pretrained,
    missing: Sequence[str],
    differing: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]],
    unknown: Sequence[str],
) -> str:
    if not missing and not unknown and (heads := _heads(differing)):
        ((theirs, ours),) = {(a[-1], b[-1]) for a, b in differing.values()}
        return (
            f"{pretrained.origin} is for {theirs} classes, the model has {ours}: train a new head "
            f"with --pretrained.fresh {' '.join((*pretrained.fresh, *heads))}"
        )
    shapes = [f"{leaf}: file {a}, model {b}" for leaf, (a, b) in differing.items()]
    reasons = [
        f"{what}: {len(leaves)} ({'; '.join(leaves[:_SHOWN])}{' ...' * (len(leaves) > _SHOWN)})"
        for leaves, what in (
            (missing, "missing in the file"),
            (shapes, "of another shape"),
            (unknown, "missing in the model"),
        )
        if leaves
    ]
    return (
        f"{pretrained.origin} does not fit {type(model).__name__}; {', '.join(reasons)}; choose "
        "the model of the weights, or exclude leaves with --pretrained.fresh PATTERNS"
    )


def _heads(differing: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]]) -> list[str]:
    """Modules to replace if the leaves differ only in one number of outputs; empty otherwise."""
    outputs = {(theirs[-1:], ours[-1:]) for theirs, ours in differing.values()}
    inputs_differ = any(theirs[:-1] != ours[:-1] for theirs, ours in differing.values())
    if len(outputs) != 1 or inputs_differ:
        return []
    return sorted({_module(leaf) for leaf in differing})
