"""Cutout and random erasing: boxes of an image that training does not see."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from cnn_research.core.random import fold_name
from cnn_research.data.augmentation.boxes import boxes
from cnn_research.data.augmentation.sample import Draws
from cnn_research.data.augmentation.warp import rounded

if TYPE_CHECKING:
    from cnn_research.data.augmentation.config import Augmentation


def erased(how: Augmentation, draws: Draws, keys: jax.Array, images: jax.Array) -> jax.Array:
    """Images `[batch, height, width, channels]` without their boxes, which keep `how.erase_fill`.

    The box of `erasing` is inside its image: where the paper draws again until it fits, its longer
    side is cut.
    """
    size = (images.shape[1], images.shape[2])
    holes = []
    if "cutout" in how.changes:
        side = jnp.where(draws.happens("cutout"), how.cutout, 0)
        top, left = (
            jnp.floor(draws.numbers[name] * length) - how.cutout // 2
            for name, length in zip(("cutout_down", "cutout_right"), size)
        )
        holes.append(boxes(size, (top, left), (side, side)))
    if "erasing" in how.changes:
        area = draws.amount("erasing_area", how.erasing_area)
        aspect = draws.amount("erasing_aspect", how.erasing_aspect, log=True)
        height, width = (
            jnp.clip(jnp.round(length * jnp.sqrt(area * ratio)), 1, length)
            for length, ratio in zip(size, (aspect, 1 / aspect))
        )
        top, left = (
            jnp.floor(draws.numbers[name] * (length - side + 1))
            for name, length, side in zip(("erasing_down", "erasing_right"), size, (height, width))
        )
        hole = boxes(size, (top, left), (height, width))
        holes.append(hole & draws.happens("erasing", how.erasing)[:, None, None])
    for hole in holes:
        images = jnp.where(hole[..., None], _filling(how, keys, images), images)
    return images


def _filling(how: Augmentation, keys: jax.Array, images: jax.Array) -> jax.Array:
    """What is left of boxes; broadcasts to `images`."""
    if how.erase_fill == "black":
        return jnp.zeros((), images.dtype)
    if how.erase_fill == "mean":
        mean = images.mean(axis=(1, 2), keepdims=True, dtype=jnp.float32)
        return rounded(mean, images.dtype)
    # All channels of a pixel from one word, since random bits take longer than all the rest.
    words = jax.vmap(lambda key: jax.random.bits(key, images.shape[1:3], "uint32"))
    noise = jax.lax.bitcast_convert_type(words(fold_name(keys, "noise")), jnp.uint8)
    return noise[..., : images.shape[-1]].astype(images.dtype)
