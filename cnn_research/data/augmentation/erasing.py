"""Cutout and random erasing of boxes in training images."""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp

from cnn_research.core.random import fold_name
from cnn_research.data.augmentation.geometry import rounded
from cnn_research.data.augmentation.sample import AugmentationSample

EraseFill = Literal["black", "mean", "noise"]


def boxes(
    size: tuple[int, int], corner: tuple[jax.Array, jax.Array], shape: tuple[jax.Array, jax.Array]
) -> jax.Array:
    """Mask the pixels inside each image's box (clipped to the image), bool `[batch, *size]`.

    `corner` (first row, first column) and `shape` (height, width) are integral, `[batch]` each.
    """
    inside = []
    for length, first, side in zip(size, corner, shape):
        places = jnp.arange(length)
        inside.append((places >= first[:, None]) & (places < (first + side)[:, None]))
    return inside[0][:, :, None] & inside[1][:, None, :]


def cutout(sample: AugmentationSample, size: tuple[int, int], side: int) -> jax.Array:
    """Mask a square of `side` pixels with its centre anywhere, as `boxes` does."""
    sides = jnp.where(sample.applies("cutout"), side, 0)
    top, left = (
        jnp.floor(sample.numbers[name] * length) - side // 2
        for name, length in zip(("cutout_down", "cutout_right"), size)
    )
    return boxes(size, (top, left), (sides, sides))


def random_erasing(
    sample: AugmentationSample,
    size: tuple[int, int],
    chance: float,
    areas: tuple[float, float],
    aspects: tuple[float, float],
) -> jax.Array:
    """Mask a box inside the image, as `boxes` does.

    A side that is too long is shortened; the paper draws again.
    """
    area = sample.amount("erasing_area", areas)
    aspect = sample.amount("erasing_aspect", aspects, log=True)
    height, width = (
        jnp.clip(jnp.round(length * jnp.sqrt(area * ratio)), 1, length)
        for length, ratio in zip(size, (aspect, 1 / aspect))
    )
    top, left = (
        jnp.floor(sample.numbers[name] * (length - side + 1))
        for name, length, side in zip(("erasing_down", "erasing_right"), size, (height, width))
    )
    hole = boxes(size, (top, left), (height, width))
    return hole & sample.applies("erasing", chance)[:, None, None]


def filled(images: jax.Array, hole: jax.Array, fill: EraseFill, keys: jax.Array) -> jax.Array:
    """Fill the masked boxes of images `[batch, height, width, channels]`."""
    return jnp.where(hole[..., None], _filling(images, fill, keys), images)


def _filling(images: jax.Array, fill: EraseFill, keys: jax.Array) -> jax.Array:
    """Values for erased pixels; they broadcast to `images`."""
    if fill == "black":
        return jnp.zeros((), images.dtype)
    if fill == "mean":
        mean = images.mean(axis=(1, 2), keepdims=True, dtype=jnp.float32)
        return rounded(mean, images.dtype)
    # One word for all channels of a pixel: random bits are the slowest part.
    words = jax.vmap(lambda key: jax.random.bits(key, images.shape[1:3], "uint32"))
    noise = jax.lax.bitcast_convert_type(words(fold_name(keys, "noise")), jnp.uint8)
    return noise[..., : images.shape[-1]].astype(images.dtype)
