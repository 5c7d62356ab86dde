"""Colour changes by factors and by lookup tables.

Images are `[batch, height, width, channels]` with 1 or 3 channels and pixels of 0 to 255, float32
unless noted. Factors are float32 `[batch]`: 1 changes nothing, others interpolate between another
image and this one or extrapolate, as in Pillow's ImageEnhance and torchvision. Tables are int32
`[batch, channels, 256]`: the new level for each old one.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from cnn_research.data.images import LUMA


def _away_from(other: jax.Array | float, images: jax.Array, factor: jax.Array) -> jax.Array:
    """Interpolate from `other` at factor 0 to `images` at 1 and beyond; clip to 0 to 255."""
    return jnp.clip(other + factor[:, None, None, None] * (images - other), 0, 255)


def grey(images: jax.Array) -> jax.Array:
    """Luma of each pixel, float32 `[batch, height, width, 1]`."""
    if images.shape[-1] == 1:
        return images
    red, green, blue = (images[..., c : c + 1] for c in range(3))
    return LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue


def brightness(images: jax.Array, factor: jax.Array) -> jax.Array:
    """Change the difference from black."""
    return _away_from(0.0, images, factor)


def contrast(images: jax.Array, factor: jax.Array) -> jax.Array:
    """Change the difference from the image's mean grey."""
    return _away_from(grey(images).mean(axis=(1, 2, 3), keepdims=True), images, factor)


def saturation(images: jax.Array, factor: jax.Array) -> jax.Array:
    """Change the difference from the grey image."""
    return _away_from(grey(images), images, factor)


def sharpness(images: jax.Array, factor: jax.Array) -> jax.Array:
    """Change the difference from the image blurred by (1 1 1; 1 5 1; 1 1 1) / 13.

    Border pixels stay.
    """
    height, width = images.shape[1:3]
    rows = images[:, :-2] + images[:, 1:-1] + images[:, 2:]
    block = rows[:, :, :-2] + rows[:, :, 1:-1] + rows[:, :, 2:]
    blurred = (block + 4 * images[:, 1:-1, 1:-1]) / 13
    edge_rows, edge_columns = jnp.arange(height), jnp.arange(width)
    border = ((edge_rows == 0) | (edge_rows == height - 1))[:, None] | (
        (edge_columns == 0) | (edge_columns == width - 1)
    )
    inner = jnp.pad(blurred, ((0, 0), (1, 1), (1, 1), (0, 0)))
    return _away_from(jnp.where(border[..., None], images, inner), images, factor)


# Tables ------------------------------------------------------------------------------------------


def histogram(images: jax.Array) -> jax.Array:
    """Count the pixels at each level of uint8 images: int32 `[batch, channels, 256]`."""
    channels = images.shape[-1]
    places = images.reshape(len(images), -1, channels).astype(jnp.int32)
    places += 256 * jnp.arange(channels, dtype=jnp.int32)

    def count(one: jax.Array) -> jax.Array:
        none = jnp.zeros(256 * channels, jnp.int32)
        return none.at[one.reshape(-1)].add(1, mode="promise_in_bounds")

    return jax.vmap(count)(places).reshape(len(images), channels, 256)


def histogram_after(counts: jax.Array, table: jax.Array) -> jax.Array:
    """Compute the histogram after applying a table."""
    move = jax.vmap(jax.vmap(lambda one, to: jnp.zeros_like(one).at[to].add(one)))
    return move(counts, table)


def looked_up(images: jax.Array, table: jax.Array) -> jax.Array:
    """Apply tables to uint8 images."""
    channels = images.shape[-1]
    first = 256 * jnp.arange(channels, dtype=jnp.int32)

    def replace(image: jax.Array, levels: jax.Array) -> jax.Array:
        places = image.astype(jnp.int32) + first
        return levels.reshape(-1).at[places].get(mode="promise_in_bounds")

    return jax.vmap(replace)(images, table.astype(jnp.uint8))


def then(first: jax.Array, second: jax.Array) -> jax.Array:
    """Compose two tables, applied in this order."""
    return jnp.take_along_axis(second, first, axis=-1)


def unchanged(counts: jax.Array) -> jax.Array:
    return jnp.broadcast_to(jnp.arange(256, dtype=jnp.int32), counts.shape)


def autocontrast(counts: jax.Array) -> jax.Array:
    """Stretch each channel's levels to 0 to 255; a channel with one level stays."""
    levels = unchanged(counts)
    low = jnp.where(counts > 0, levels, 255).min(axis=-1, keepdims=True)
    high = jnp.where(counts > 0, levels, 0).max(axis=-1, keepdims=True)
    stretched = (levels - low) * 255.0 / jnp.maximum(high - low, 1)
    return jnp.where(high > low, _levels(stretched), levels)


def equalised(counts: jax.Array) -> jax.Array:
    """Equalise each channel's histogram, as Pillow's `equalize` does."""
    levels = unchanged(counts)
    last = jnp.where(counts > 0, levels, 0).max(axis=-1, keepdims=True)
    without_last = counts.sum(axis=-1, keepdims=True) - jnp.take_along_axis(counts, last, axis=-1)
    step = without_last // 255
    below = jnp.cumsum(counts, axis=-1) - counts
    even = (step // 2 + below) // jnp.maximum(step, 1)
    return jnp.where(step > 0, jnp.clip(even, 0, 255), levels)


def solarised(counts: jax.Array, threshold: jax.Array) -> jax.Array:
    """Invert levels from `threshold`, `[batch]`, upwards."""
    levels = unchanged(counts)
    return jnp.where(levels < threshold[:, None, None], levels, 255 - levels)


def posterised(counts: jax.Array, bits: jax.Array) -> jax.Array:
    """Keep the highest `bits`, int `[batch]`, of each level's eight."""
    dropped = (8 - bits)[:, None, None]
    return (unchanged(counts) >> dropped) << dropped


def brightened(counts: jax.Array, factor: jax.Array) -> jax.Array:
    return _levels(unchanged(counts) * factor[:, None, None])


def contrasted(counts: jax.Array, factor: jax.Array) -> jax.Array:
    levels = unchanged(counts).astype(jnp.float32)
    means = (counts * levels).sum(axis=-1) / counts.sum(axis=-1)
    weights = jnp.array(LUMA if counts.shape[1] == 3 else (1.0,))
    mean = (means * weights).sum(axis=-1)[:, None, None]
    return _levels(mean + factor[:, None, None] * (levels - mean))


def _levels(values: jax.Array) -> jax.Array:
    return jnp.clip(jnp.round(values), 0, 255).astype(jnp.int32)
