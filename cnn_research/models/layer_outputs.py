"""Outputs of a network's layers: feature maps, top-activating images, Grad-CAM.

A model is called as `model(images, train=False)` with its parameters and statistics in `variables`;
images are `[batch, height, width, channels]`, preprocessed.
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
"""Images per forward pass in the search for top activations."""
MAX_FEATURES = 2048
"""Longer feature vectors are reduced to this length by a count sketch."""


@dataclasses.dataclass(frozen=True)
class Layer:
    """A module whose output is a map."""

    path: str
    """Path in the network, such as `layer1/0/conv1`."""
    shape: tuple[int, int, int]
    """Height, width and units of its output."""
    kernel: tuple[int, int, int] | None
    """Height, width and inputs of its kernels; None for other modules than convolutions."""


@dataclasses.dataclass(frozen=True)
class TopActivations:
    """Images with the largest activations of a layer's first units, and the positions of these."""

    indices: np.ndarray
    """int `[units, best]`, strongest first."""
    values: np.ndarray
    """float32 `[units, best]`, the activations."""
    places: np.ndarray
    """float32 `[units, best, 2]`, row and column in the image, in pixels."""


def layers(
    model: nn.Module, variables: Mapping[str, Any], image_shape: tuple[int, int, int]
) -> list[Layer]:
    """List the modules of a network whose output is a map, in the order of computation.

    `variables` may be shapes; `image_shape` is `(height, width, channels)`.
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
    """Return the kernels of the convolution at `path`, `[height, width, inputs, units]`."""
    place = variables["params"]
    for name in path.split("/"):
        place = place[name]
    return place["kernel"]


def maps(
    model: nn.Module, variables: Mapping[str, Any], images: jax.Array, paths: Sequence[str]
) -> tuple[jax.Array, list[jax.Array]]:
    """Return the outputs, float32 `[batch, outputs]`, and the maps of the modules at `paths`.

    Maps are those of a module's first call, float32 `[batch, height, width, units]` each.
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
    """Return the outputs, float32 `[batch, outputs]`, and the features before the last layer.

    The features are the last linear layer's input (without one, the outputs), scaled to unit
    length: float32 `[batch, at most 2,048]`.
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
    """Scale features, float `[batch, ...]`, to unit length: float32 `[batch, min(size, 2048)]`.

    Longer vectors are summed in fixed random groups with fixed random signs: a count sketch
    (Charikar, Chen and Farach-Colton 2002), which preserves inner products up to noise.
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
    """Find the images with the largest activation at any position, for the first units of layers.

    Images are uint8 `[examples, height, width, channels]`; `searched` has the indices of those to
    search, and `preprocess` maps uint8 images to the model's input. Returns up to `best` images for
    each of up to `units` units.
    """

    @jax.jit
    def strongest(variables, images):
        _, layer_maps = maps(model, variables, preprocess(images), [layer.path for layer in chosen])
        flat = [x[..., :units].reshape(len(x), -1, min(units, x.shape[3])) for x in layer_maps]
        return [(x.max(axis=1), x.argmax(axis=1)) for x in flat]

    peaks = apply_in_batches(lambda at: strongest(variables, images[at]), searched, BATCH)
    results = []
    for layer, (values, at) in zip(chosen, peaks, strict=True):
        # On ties, the earlier image first.
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

    L = ReLU(sum over k of alpha_k A^k), where A^k are the layer's maps and alpha_k is the gradient
    of the output before the softmax with respect to A^k, averaged over positions: equations 1 and 2
    of Selvaraju et al., 'Grad-CAM' (2017). `targets`, int `[batch]`, selects each image's output.

    Returns:
        float32 `[batch, map_height, map_width]`, non-negative; and the model's outputs, float32
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
        # Without batch statistics, images are independent: one sum gives all gradients.
        return jnp.take_along_axis(outputs, targets[:, None], axis=1).sum(), (captured[0], outputs)

    gradient, (activations, outputs) = jax.grad(score, has_aux=True)(jnp.zeros(shape))
    weights = gradient.mean(axis=(1, 2))
    return nn.relu(jnp.einsum("bhwk,bk->bhw", activations, weights)), outputs


@contextlib.contextmanager
def _seen(change: Callable[[nn.Module, str, jax.Array], jax.Array]) -> Iterator[None]:
    """Within the block, replace every output that is a map by `change(module, path, output)`."""

    def intercept(call, args, kwargs, context):
        output = call(*args, **kwargs)
        is_map = isinstance(output, jax.Array) and output.ndim == 4
        if context.method_name != "__call__" or not context.module.path or not is_map:
            return output
        return change(context.module, "/".join(context.module.path), output)

    with nn.intercept_methods(intercept):
        yield
