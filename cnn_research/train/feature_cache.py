"""Cache of a frozen backbone's output, computed once per image to train the layers after it."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from cnn_research.core.config import did_you_mean
from cnn_research.core.errors import UsageError
from cnn_research.core.files import release
from cnn_research.core.preemption import raise_if_interrupted
from cnn_research.core.progress import Tally
from cnn_research.data.dataset import Split, digests_of
from cnn_research.data.prepare import cache
from cnn_research.ops.batching import map_batches
from cnn_research.train.transfer import by_path

BATCH = 32
"""Images per forward pass of the backbone."""
FEATURES = "features.npy"


class FromFeatures(nn.Module):
    """A model whose input is the output of one of its layers instead of images.

    An output of several arrays is joined into one vector. The variables are those of the model. The
    layers before are traced on images of NaN, so that a path around the layer gives NaN; under jit
    they are not computed.
    """

    model: nn.Module
    layer: str
    image_shape: tuple[int, int, int]

    def setup(self):
        nn.share_scope(self, self.model)

    def __call__(self, features: jax.Array, train: bool = False) -> jax.Array:
        """Compute the logits of `features`, `[batch, *layer output]` or `[batch, numbers]`."""

        def intercept(call, args, kwargs, context):
            output = call(*args, **kwargs)
            if _called(context) == self.layer:
                return _parted(features, output)
            return output

        with nn.intercept_methods(intercept):
            images = jnp.full((len(features), *self.image_shape), jnp.nan, jnp.float32)
            return self.model(images, train=train)


def before(model: nn.Module, image_shape: tuple[int, int, int], layer: str) -> tuple[str, ...]:
    """Return the paths of a layer and of all layers before it, as patterns to freeze.

    Raises `UsageError` if the model has no such layer, or its output does not determine the logits.
    """
    variables, cached, done = _traced(model, image_shape, layer)
    zeros, features = jax.tree.map(
        lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), (variables, cached)
    )
    tail = FromFeatures(model, layer, image_shape)
    logits = jax.jit(lambda v, x: tail.apply(v, x, train=False))(zeros, _joined(features))
    if not jnp.isfinite(logits).all():
        raise UsageError(
            f"--transfer.cache-after: the prediction does not depend on '{layer}' alone: name a "
            "layer through which all paths run"
        )
    return tuple(path for path in done[: done.index(layer) + 1] if path)


def feature_bytes(model: nn.Module, image_shape: tuple[int, int, int], layer: str) -> int:
    """Return the cached bytes per image of a layer's output; raises the errors of `before`."""
    _, output, _ = _traced(model, image_shape, layer)
    return 4 * sum(leaf.size for leaf in jax.tree.leaves(output))


def _traced(
    model: nn.Module, image_shape: tuple[int, int, int], layer: str
) -> tuple[Any, Any, list[str]]:
    """Return the shapes of the model's variables and of a layer's output for one image, and the
    paths of all modules in the order of completion.

    Raises `UsageError` if there is no such layer.
    """
    done: list[str] = []
    outputs: dict[str, Any] = {}

    def intercept(call, args, kwargs, context):
        output = call(*args, **kwargs)
        if (path := _called(context)) is not None:
            outputs.setdefault(path, output)
            done.append(path)
        return output

    def init(images):
        with nn.intercept_methods(intercept):
            return model.init(jax.random.key(0), images, train=False)

    variables = jax.eval_shape(init, jax.ShapeDtypeStruct((1, *image_shape), jnp.float32))
    if not layer or layer not in outputs:
        layers = [path for path in outputs if path and "/" not in path]
        raise UsageError(
            f"--transfer.cache-after: the network has no layer '{layer}'"
            f"{did_you_mean(layer, list(outputs))}; it has {', '.join(layers)}"
        )
    return variables, outputs[layer], done


class FeatureCache:
    """A layer's output for the images of splits, computed once and cached on disk.

    Features are float32 `[examples, views, *output]`, of the image and, with `mirror`, of its
    mirror image. The cache key depends on the images and the weights of the `frozen` leaves, but
    not on the split, the head or the seed; `python -m cnn_research.data list` shows `of`, the
    images' description. The layer must have been accepted by `before`.
    """

    def __init__(
        self,
        model: nn.Module,
        variables: Mapping[str, Any],
        layer: str,
        splits: Mapping[str, Split],
        preprocess: Callable[[jax.Array], jax.Array],
        *,
        mirror: bool,
        frozen: Callable[[str], bool],
        of: str,
    ):
        self._splits, self._of = splits, of
        self._names = {split: _digests(content.images) for split, content in splits.items()}
        self._wanted = np.unique(np.concatenate(list(self._names.values())))
        self._what = f"the output of {layer} for {len(self._wanted):,} images"
        self._forward = functools.partial(
            _forward,
            variables,
            model=model,
            layer=layer,
            preprocess=preprocess,
            views=2 if mirror else 1,
        )
        # Identified by its output, not its config, which also depends on the layers above.
        shape = next(iter(splits.values())).images.shape[1:]
        self._probe = np.random.default_rng(0).integers(0, 256, (BATCH, *shape), np.uint8)
        output = np.asarray(self._forward(self._probe))
        self._shape = output.shape[1:]
        key = hashlib.blake2b(output.tobytes(), digest_size=8)
        leaves = {path: leaf for tree in variables.values() for path, leaf in by_path(tree).items()}
        for path in sorted(filter(frozen, leaves)):
            key.update(np.asarray(leaves[path]).tobytes())
        key.update(self._wanted.tobytes())
        self._folder = cache.data_dir() / "features" / key.hexdigest()

    @property
    def views(self) -> int:
        """Number of views per image, 1 or 2."""
        return self._shape[0]

    @property
    def numbers(self) -> int:
        """Number of features per view."""
        return math.prod(self._shape[1:])

    def seconds(self) -> float:
        """Estimate the seconds of computing from one batch; 0 if all features are cached."""
        if self._folder.is_dir():
            return 0.0
        started = time.monotonic()
        jax.block_until_ready(self._forward(self._probe))
        return (time.monotonic() - started) * len(self._wanted) / BATCH

    def blank(self) -> dict[str, Split]:
        """Return the splits with zeros for features; steps on them take equally long."""
        return {
            split: dataclasses.replace(
                content, images=np.broadcast_to(np.float32(0), (len(content), *self._shape))
            )
            for split, content in self._splits.items()
        }

    def read(self, say: Callable[[str], None]) -> dict[str, Split]:
        """Return the splits with features for images; `say` announces their computation."""

        def write(temporary: Path) -> None:
            say(f"Computing {self._what}, once.")
            self._compute(temporary / FEATURES)
            index = json.dumps({"of": f"{self._what}: {self._of}"})
            (temporary / cache.INDEX).write_text(index, encoding="utf-8")

        cache.write_once(self._folder, write)
        cache.mark_used(self._folder)
        stored = np.load(self._folder / FEATURES, mmap_mode="r")
        return {
            split: dataclasses.replace(
                content, images=stored[np.searchsorted(self._wanted, self._names[split])]
            )
            for split, content in self._splits.items()
        }

    def _compute(self, file: Path) -> None:
        """Write the layer's output for the wanted images, in order."""
        names = self._names
        where = {name: (split, i) for split in names for i, name in enumerate(names[split])}
        places = [where[name] for name in self._wanted]

        def features(rows: np.ndarray) -> jax.Array:
            raise_if_interrupted()
            chosen = (places[row] for row in rows)
            images = np.stack([self._splits[split].images[i] for split, i in chosen])
            for content in self._splits.values():
                release(content.images)
            return self._forward(images)

        with open(file, "wb") as stream, Tally("computing features", len(places)) as tally:
            for rows in map_batches(features, np.arange(len(places)), BATCH):
                if not stream.tell():
                    cache.require_space(len(places) * rows[:1].nbytes, self._what)
                    shape = (len(places), *rows.shape[1:])
                    header = {"descr": rows.dtype.str, "fortran_order": False, "shape": shape}
                    np.lib.format.write_array_header_1_0(stream, header)
                stream.write(rows.tobytes())  # unlike in a memory map, a full disk is an error here
                tally.advance(len(rows))


def one_view(keys: jax.Array, features: jax.Array) -> jax.Array:
    """Choose the features of each image or its mirror image by its key, `[batch, *output]`."""
    views = features.shape[1]
    view = jax.vmap(lambda key: jax.random.randint(key, (), 0, views))(keys)
    return jax.vmap(lambda each, number: each[number])(features, view)


# Compiled once for all caches of a network.
@functools.partial(jax.jit, static_argnames=("model", "layer", "preprocess", "views"))
def _forward(
    variables: Mapping[str, Any],
    images: jax.Array,
    *,
    model: nn.Module,
    layer: str,
    preprocess: Callable[[jax.Array], jax.Array],
    views: int,
) -> jax.Array:
    """Compute a layer's output for uint8 images, float32 `[batch, views, *output]`."""

    def is_layer(module: nn.Module, method: str) -> bool:
        return method == "__call__" and "/".join(module.path) == layer

    outputs = []
    for view in (images, images[:, :, ::-1])[:views]:
        _, seen = model.apply(
            variables,
            preprocess(view),
            train=False,
            capture_intermediates=is_layer,
            mutable=["intermediates"],
        )
        outputs.append(_joined(seen["intermediates"]))
    return jnp.stack(outputs, axis=1)


def _joined(output: Any) -> jax.Array:
    """Return a layer's output as one float32 array; several are joined, `[batch, numbers]`."""
    leaves = [leaf.astype(jnp.float32) for leaf in jax.tree.leaves(output)]
    if len(leaves) == 1:
        return leaves[0]
    return jnp.concatenate([leaf.reshape(len(leaf), -1) for leaf in leaves], axis=1)


def _parted(features: jax.Array, like: Any) -> Any:
    """Undo `_joined`: arrays in the shapes of `like`."""
    leaves, tree = jax.tree.flatten(like)
    if len(leaves) == 1:
        return jax.tree.unflatten(tree, [features])
    ends = np.cumsum([math.prod(leaf.shape[1:]) for leaf in leaves])[:-1]
    parts = zip(jnp.split(features, ends, axis=1), leaves, strict=True)
    return jax.tree.unflatten(tree, [part.reshape(leaf.shape) for part, leaf in parts])


def _digests(images: np.ndarray) -> np.ndarray:
    """Compute a digest of each image's content, str `[examples]`."""
    return np.array([digest.hex() for digest in digests_of(images)])


def _called(context: nn.module.InterceptorContext) -> str | None:
    """Return the path of the module being called; None for methods other than `__call__`."""
    return "/".join(context.module.path) if context.method_name == "__call__" else None
