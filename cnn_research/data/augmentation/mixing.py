"""Mixup and CutMix: mixtures of two training images and their labels."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from cnn_research.core.random import fold_name
from cnn_research.data.augmentation.erasing import boxes
from cnn_research.data.augmentation.geometry import rounded


def mixup(
    keys: jax.Array, images: jax.Array, others: jax.Array, alpha: float
) -> tuple[jax.Array, jax.Array]:
    """Return weighted sums of images and others (Zhang et al. 2018), and the images' weights.

    Images are uint8 or float `[batch, height, width, channels]`, or features, float `[batch, ...]`,
    as in manifold mixup (Verma et al. 2019). Weights, float32 `[batch]`, are drawn from
    Beta(alpha, alpha).
    """
    share = _beta(fold_name(keys, "mixup"), alpha)
    weight = share.reshape(-1, *(1,) * (images.ndim - 1))
    values = weight * images.astype(jnp.float32) + (1 - weight) * others.astype(jnp.float32)
    return rounded(values, images.dtype), share


def cutmix(
    keys: jax.Array, images: jax.Array, others: jax.Array, alpha: float
) -> tuple[jax.Array, jax.Array]:
    """Replace a box in each image by that of another (Yun et al. 2019).

    The box has the image's aspect ratio and its centre anywhere, so part of it may be outside.
    Arguments and results are those of `mixup`, but weights are the fractions of pixels that stay.
    """
    size = (images.shape[1], images.shape[2])
    keys = fold_name(keys, "cutmix")
    side = jnp.sqrt(1 - _beta(keys, alpha))
    height, width = (jnp.floor(side * length) for length in size)
    draw = jax.vmap(lambda key: jax.random.uniform(key, (2,)))(fold_name(keys, "middle"))
    top, left = (
        jnp.floor(draw[:, axis] * length) - shape // 2
        for axis, (length, shape) in enumerate(zip(size, (height, width)))
    )
    box = boxes(size, (top, left), (height, width))
    share = 1 - jnp.mean(box, axis=(1, 2), dtype=jnp.float32)
    return jnp.where(box[..., None], others, images), share


def _beta(keys: jax.Array, alpha: float) -> jax.Array:
    """Draw a number from Beta(alpha, alpha) per key, float32 `[batch]`."""
    return jax.vmap(lambda key: jax.random.beta(key, alpha, alpha))(keys)
