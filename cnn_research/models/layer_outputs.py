"""Outputs of a network's layers: feature maps, top activating images, Grad-CAM.

A model is called as `model(images, train=False)`, with its parameters and statistics as
`variables`; images are `[batch, height, width, channels]` as the model sees them.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from cnn_research.ops.batching import apply_in_batches

BATCH = 32
"""Images in one forward pass of the search for top activations."""
MAX_FEATURES = 2048
"""Features of more numbers than this are reduced to a count sketch."""


@dataclasses.dataclass(frozen=True)
class Layer:
    """A module whose output is a map."""

    path: str
    """Its place in the network, `layer1/0/conv1`."""
    shape: tuple[int, int, int]
    """Height, width and units of its output."""
    kernel: tuple[int, int, int] | None
    """Height, width and inputs of its kernels; None for what is no convolution."""


@dataclasses.dataclass(frozen=True)
class TopActivations:
    """The images with the largest activations of a layer's first units, and where those are."""

    indices: np.ndarray
    """int `[units, best]`, the strongest first."""
    values: np.ndarray
    """float32 `[units, best]`, the layer's output there."""
    places: np.ndarray
    """float32 `[units, best, 2]`, row and column in the image, in pixels."""


def layers(
    model: nn.Module, variables: Mapping[str, Any], image_shape: tuple[int, int, int]
) -> list[Layer]:
    """Every module of a network whose output is a map, in the order of computation.

    Of `variables` the shapes are enough; `image_shape` is `(height, width, channels)`.
    """
    by_path: dict[str, Layer] = {}

    def see(module: nn.Module, path: str, output: jax.Array) -> jax.Array:
        _, height, width, units = output.shape
        kernel = None
        if isinstance(module, nn.Conv):
            tall, wide, inputs, _ = kernel_of(variables, path).shape
            kernel = (tall, wide, inputs)
        by_path.setdefault(path, Layer(path, (height, width, units), kernel))
        return output

    images = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    with _seen(see):
        jax.eval_shape(lambda v, x: model.apply(v, x, train=False), variables, images)
    return list(by_path.values())


def kernel_of(variables: Mapping[str, Any], path: str) -> jax.Array:
    """The kernels of the convolution at `path`, `[height, width, inputs, units]`."""
    place = variables["params"]
    for name in path.split("/"):
        place = place[name]
    return place["kernel"]


def maps(
    model: nn.Module, variables: Mapping[str, Any], images: jax.Array, paths: Sequence[str]
) -> tuple[jax.Array, list[jax.Array]]:
    """Outputs, float32 `[batch, outputs]`, and maps of the modules at `paths`, of their first call.

    Maps are float32 `[batch, height, width, units]` each.
    """
    outputs_at: dict[str, jax.Array] = {}

    def keep(module: nn.Module, path: str, output: jax.Array) -> jax.Array:
        if path in paths:
            outputs_at.setdefault(path, output.astype(jnp.float32))
        return output

    with _seen(keep):
        outputs = model.apply(variables, images, train=False)
    return outputs, [outputs_at[path] for path in paths]  # type: ignore[return-value]


def last_features(
    model: nn.Module, variables: Mapping[str, Any], images: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Outputs, float32 `[batch, outputs]`, and the input of the last linear layer.

    The latter are features of unit length, float32 `[batch, at most 2,048]`; for a network without
    a linear layer they are its outputs.
    """
    seen = []

    def intercept(call, args, kwargs, context):
        if context.method_name == "__call__" and isinstance(context.module, nn.Dense):
            seen.append(args[0])
        return call(*args, **kwargs)

    with nn.intercept_methods(intercept):
        outputs: Any = model.apply(variables, images, train=False)
    return outputs, count_sketch(seen[-1] if seen else outputs)


def count_sketch(features: jax.Array) -> jax.Array:
    """Features, float `[batch, ...]`, at unit length: float32 `[batch, min(size, 2048)]`.

    More are added up in groups drawn once, with signs drawn once: a count sketch (Charikar, Chen
    and Farach-Colton 2002), which keeps inner products but for noise.
    """
    flat = features.reshape(len(features), -1).astype(jnp.float32)
    size = flat.shape[1]
    if size > MAX_FEATURES:
        random = np.random.default_rng(0)
        order = random.permutation(size)
        signs = random.choice(np.array([-1.0, 1.0], np.float32), size)
        rows = -(-size // MAX_FEATURES)
        mixed = jnp.pad(flat[:, order] * signs, ((0, 0), (0, rows * MAX_FEATURES - size)))
        flat = mixed.reshape(len(flat), rows, MAX_FEATURES).sum(axis=1)
    return flat / jnp.maximum(jnp.linalg.norm(flat, axis=1, keepdims=True), 1e-12)


def top_activating_images(
    model: nn.Module,
    variables: Mapping[str, Any],
    images: np.ndarray,
    searched: np.ndarray,
    preprocess: Callable[[jax.Array], jax.Array],
    chosen: Sequence[Layer],
    *,
    units: int,
    best: int,
) -> list[TopActivations]:
    """Find the images with the largest activation anywhere, for the first units of each layer.

    Images are uint8 `[examples, height, width, channels]`; `searched` has the indices to look at,
    and `preprocess` maps uint8 images to the model's input. There are up to `best` images for up to
    `units` units.
    """

    @jax.jit
    def strongest(variables, images):
        _, layer_maps = maps(model, variables, preprocess(images), [layer.path for layer in chosen])
        flat = [x[..., :units].reshape(len(x), -1, min(units, x.shape[3])) for x in layer_maps]
        return [(x.max(axis=1), x.argmax(axis=1)) for x in flat]

    peaks = apply_in_batches(lambda at: strongest(variables, images[at]), searched, BATCH)
    results = []
    for layer, (values, at) in zip(chosen, peaks, strict=True):
        # Of equals, the earlier image.
        order = np.argsort(-values, axis=0, kind="stable")[:best]
        at = np.take_along_axis(at, order, axis=0).T
        rows, columns = at // layer.shape[1], at % layer.shape[1]
        scale = np.array(images.shape[1:3]) / np.array(layer.shape[:2])
        places = (np.stack([rows, columns], axis=-1) + 0.5) * scale - 0.5
        results.append(
            TopActivations(
                indices=searched[order.T],
                values=np.take_along_axis(values, order, axis=0).T,
                places=places.astype(np.float32),
            )
        )
    return results


def grad_cam(
    model: nn.Module, variables: Mapping[str, Any], images: jax.Array, targets: jax.Array, path: str
) -> tuple[jax.Array, jax.Array]:
    """Gradient-weighted class activation maps.

    L = ReLU(sum over k of alpha_k A^k), where A^k are the layer's maps and alpha_k is the mean over
    places of the gradient of the output before the softmax by A^k: equations 1 and 2 of Selvaraju
    et al., 'Grad-CAM' (2017). `targets`, int `[batch]`, selects an output of each image.

    Returns:
        float32 `[batch, map_height, map_width]`, 0 and above; and the model's outputs, float32
        `[batch, outputs]`.
    """
    shape = jax.eval_shape(lambda: maps(model, variables, images, [path])[1][0]).shape

    def score(added):
        captured = []

        def add(module: nn.Module, at: str, output: jax.Array) -> jax.Array:
            if at != path or captured:
                return output
            captured.append(output.astype(jnp.float32))
            return output + added.astype(output.dtype)

        with _seen(add):
            outputs = model.apply(variables, images, train=False)
        # Without batch statistics an image's outputs depend on no other image: one sum will do.
        return jnp.take_along_axis(outputs, targets[:, None], axis=1).sum(), (captured[0], outputs)

    gradient, (activations, outputs) = jax.grad(score, has_aux=True)(jnp.zeros(shape))
    weights = gradient.mean(axis=(1, 2))
    return nn.relu(jnp.einsum("bhwk,bk->bhw", activations, weights)), outputs


@contextlib.contextmanager
def _seen(change: Callable[[nn.Module, str, jax.Array], jax.Array]) -> Iterator[None]:
    """Within the block, `change(module, path, output)` stands in for every output that is a map."""

    def intercept(call, args, kwargs, context):
        output = call(*args, **kwargs)
        is_map = isinstance(output, jax.Array) and output.ndim == 4
        if context.method_name != "__call__" or not context.module.path or not is_map:
            return output
        return change(context.module, "/".join(context.module.path), output)

    with nn.intercept_methods(intercept):
        yield
