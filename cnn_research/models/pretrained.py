"""Pretrained weights: from a file or the Hugging Face hub into a model's variables.

A model's modules are called as in torchvision, so that `layer1.0.conv1.weight` of a PyTorch file
is the leaf `layer1.0/conv1/kernel` here. Two properties, which a model may have, tell the rest:

* `other_names`: for each other library, our module -> the layer in its files, where they differ;
* `flattened`: each linear layer over a flattened map -> that map's (height, width, channels).
  Flattening here, and in Keras, is row by row; in PyTorch, channel by channel.
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
"""Maximum number of leaves of a kind that are named in an error."""
ANY_CLASSES = 99_991
"""Number of classes of a model whose data is not known yet: no layer has so many units."""


@register_config
@dataclasses.dataclass(frozen=True)
class Pretrained:
    """Weights that training starts from."""

    source: str = ""
    """A .safetensors, .pth, .th, .h5, .keras or .npz file, 'hub:OWNER/NAME[/FILE]', the folder of a
    run, or 'stage:NAME' for another stage of the same pipeline; '' for none."""
    fresh: tuple[str, ...] = ()
    """Leaves that keep their initial values, such as a new head: patterns of paths, as `fc`,
    `layer4.*` or `*/bias`; what is below a match is meant too."""
    channels: Literal["rgb", "bgr"] = "rgb"
    """The order of colours that the weights expect; the first kernel is turned round for bgr."""
    name: str = ""
    """Name of weights, as `python -m cnn_research.models` lists them, whose file is used where
    `source` is empty. `--pretrained=NAME` sets this field, and all others that belong to them."""

    @property
    def origin(self) -> str:
        """What is loaded: the source, or else the name; '' for nothing."""
        return self.source or self.name

    def check(self, model: nn.Module) -> None:
        """Raise `UsageError` for fields that do not go together, or not with the network's."""
        if self != Pretrained() and not self.origin:
            raise UsageError(
                "--pretrained.fresh and .channels mean nothing without --pretrained.source or .name"
            )
        # With another variant every shape fits, and the answers are wrong.
        wanted = named_weights(self.name).family.fields.get("variant") if self.name else None
        variant = getattr(model, "variant", None)
        if wanted and variant and variant != wanted:
            raise UsageError(
                f"--model.variant is {variant}, and the weights {self.name} were trained with "
                f"{wanted}: leave it out"
            )


@dataclasses.dataclass(frozen=True)
class Loaded:
    """The use of a file's weights."""

    source: str
    """Origin of the weights."""
    name: str
    """Name of the weights; empty for others than those that `Pretrained.name` knows."""
    repository: str
    """Repository of the hub, or package, that the file is of; empty for other files."""
    revision: str
    """Commit of that repository, or version of that package."""
    sha256: str
    """Checksum of the file; of a run, that of its checkpoint's list of checksums."""
    loaded: tuple[str, ...]
    """Paths of the leaves that have values of the file."""
    fresh: tuple[str, ...]
    """Paths of the leaves that kept theirs, as asked for."""
    skipped: tuple[str, ...]
    """Leaves of the file left out on request, by the paths that they would have."""

    def __str__(self) -> str:
        text = f"{len(self.loaded)} leaves loaded from {self.source}"
        if self.repository:
            text += f" ({self.repository}, {self.revision[:12]})"
        if self.fresh:
            text += f"; fresh: {', '.join(self.fresh)}"
        if self.skipped:
            text += f"; not used of the file: {', '.join(self.skipped)}"
        return text


def matches(path: str, patterns: Sequence[str]) -> bool:
    """Return whether a pattern fits the path of a leaf (`layer1.0/conv1/kernel`) or of its parents.

    It has `*` and `?` as in file names; `*` stands for slashes too. A dot and a slash are the same:
    `layer1`, `layer1.0`, `layer1/0/conv1` and `*/kernel` all fit that path.
    """
    parts = path.replace(".", "/").split("/")
    above = ["/".join(parts[:length]) for length in range(1, len(parts) + 1)]
    return any(
        fnmatch.fnmatchcase(each, pattern.replace(".", "/"))
        for pattern in patterns
        for each in above
    )


def read_pretrained(pretrained: Pretrained) -> Weights:
    """Read the file of weights that is named: of this machine, of an installed package or the hub.

    Raises:
        UserError: it is not there and cannot be fetched, has a wrong checksum, or is not of
            weights.
        UsageError: there are no weights of that name, or the hub's is written otherwise.
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

    Nothing is computed; images are `(height, width, channels)`.
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
    """Replace a model's variables, nested dicts of arrays, by the values of weights.

    Structure, shapes and dtypes stay; arrays are NumPy's. The file is read, as `read_pretrained`
    does, unless its `weights` are given.

    Raises:
        UserError: a leaf is missing in the file, has another shape there, or the file has more, and
            no pattern of `fresh` covers it.
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
    """Parameters and statistics by their paths, in the order of a file's collections."""
    parts = (variables.get(collection, {}) for collection in _COLLECTIONS)
    return {k: v for part in parts for k, v in traverse_util.flatten_dict(part, sep="/").items()}


def _assign(
    model: nn.Module, ours: Mapping[str, Any], pretrained: Pretrained, weights: Weights
) -> tuple[dict[str, np.ndarray], tuple[str, ...], tuple[str, ...]]:
    """The weights' arrays by the leaves that take them, those that stay fresh, and what is skipped.

    `ours` has arrays, or their shapes; the errors are those of `load_pretrained`.
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
    # What no leaf takes, by the path that it would have here.
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
        _turn_first_kernel(ours, arrays)
    return arrays, tuple(fresh), tuple(skipped)


def _same(theirs: tuple[int, ...], ours: tuple[int, ...]) -> bool:
    """Whether shapes are equal, as far as they do not depend on the number of classes."""
    return len(theirs) == len(ours) and all(
        a == b or b == ANY_CLASSES for a, b in zip(theirs, ours, strict=True)
    )


def _module(leaf: str) -> str:
    return leaf.rpartition("/")[0].replace("/", ".")


def _key(leaf: str, names: Mapping[str, str]) -> tuple[str, str]:
    return names.get(_module(leaf), _module(leaf)), leaf.rpartition("/")[2]


def _best_names(model: nn.Module, ours: Mapping[str, Any], weights: Weights) -> Mapping[str, str]:
    """The library's names by which most of our leaves are in the file; our own where equal."""
    candidates = [{}, *getattr(model, "other_names", ())]
    return max(
        candidates, key=lambda names: sum(_key(leaf, names) in weights.arrays for leaf in ours)
    )


def _as_ours(
    array: np.ndarray, value: Any, layout: str, flattened: tuple[int, int, int] | None
) -> np.ndarray:
    """A file's array in flax's layout; of another shape than `value` where it does not fit."""
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
    # A linear layer is a convolution whose kernel covers the whole map.
    if array.ndim == 4 and value.ndim == 2:
        return array.reshape(-1, array.shape[3])
    if array.ndim == 2 and value.ndim == 4 and _same(array.shape, value.shape[2:]):
        return array.reshape(1, 1, *array.shape)
    return array


def _turn_first_kernel(ours: Mapping[str, Any], arrays: dict[str, np.ndarray]) -> None:
    first = [leaf for leaf, value in ours.items() if value.ndim == 4 and value.shape[2] == 3]
    if len(first) != 1:
        raise UsageError("--pretrained.channels=bgr needs a model with one convolution of colours")
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
            f"{pretrained.origin} is for {theirs} classes, the model has {ours}: a new head "
            f"replaces the file's by --pretrained.fresh {' '.join((*pretrained.fresh, *heads))}"
        )
    shapes = [f"{leaf}: file {a}, model {b}" for leaf, (a, b) in differing.items()]
    reasons = [
        f"{what}: {len(leaves)} ({'; '.join(leaves[:_SHOWN])}{' ...' * (len(leaves) > _SHOWN)})"
        for leaves, what in (
            (missing, "leaves that the file lacks"),
            (shapes, "of another shape"),
            (unknown, "of the file, not in the model"),
        )
        if leaves
    ]
    return (
        f"{pretrained.origin} does not fit {type(model).__name__}; {', '.join(reasons)}; take the "
        "model that the weights are of, or leave something out by --pretrained.fresh PATTERNS"
    )


def _heads(differing: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]]) -> list[str]:
    """Modules that differ only in the number of outputs; others follow a layer of another width."""
    outputs = {(theirs[-1:], ours[-1:]) for theirs, ours in differing.values()}
    inputs_differ = any(theirs[:-1] != ours[:-1] for theirs, ours in differing.values())
    if len(outputs) != 1 or inputs_differ:
        return []
    return sorted({_module(leaf) for leaf in differing})
