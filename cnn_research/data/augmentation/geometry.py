"""Geometric changes: affine warps, which map each output pixel to a position in the input.

Positions are (row, column) in pixels, relative to the image's centre. A warp is float32
`[batch, 2, 3]`: the input position is `warp[:, :, :2] @ position + warp[:, :, 2]`, so a warp that
doubles positions halves the image.
"""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp

from cnn_research.data.augmentation.sample import AugmentationSample

CROP_ASPECT = (3 / 4, 4 / 3)

Fill = Literal["black", "edge", "reflect"]
"""Pixels outside an image: black, its edge pixels, or its reflection."""


def affine(rows: tuple[jax.Array, ...], columns: tuple[jax.Array, ...]) -> jax.Array:
    """Make the warp to (rows @ (row, column, 1), columns @ (row, column, 1)), `[batch]` each."""
    return jnp.stack([jnp.stack(rows, axis=1), jnp.stack(columns, axis=1)], axis=1)


def scaling(rows: jax.Array, columns: jax.Array) -> jax.Array:
    """Make the warp that shrinks an image by these factors, `[batch]` each; -1 flips."""
    none = jnp.zeros_like(rows)
    return affine((rows, none, none), (none, columns, none))


def rotation(degrees: jax.Array) -> jax.Array:
    """Make the warp that rotates an image clockwise by `degrees`, `[batch]`."""
    angle = jnp.deg2rad(degrees)
    cos, sin, none = jnp.cos(angle), jnp.sin(angle), jnp.zeros_like(angle)
    return affine((cos, -sin, none), (sin, cos, none))


def translation(rows: jax.Array, columns: jax.Array) -> jax.Array:
    """Make the warp that adds `rows` and `columns` to positions: the image moves up and left."""
    one, none = jnp.ones_like(rows), jnp.zeros_like(rows)
    return affine((one, none, rows), (none, one, columns))


def compose(*warps: jax.Array) -> jax.Array:
    """Compose warps, applied in this order."""
    total, *rest = warps
    for warp in rest:
        # Written out, because matrix products have less precision on an accelerator.
        turned = total[:, :, 0, None] * warp[:, None, 0] + total[:, :, 1, None] * warp[:, None, 1]
        total = turned.at[:, :, 2].add(total[:, :, 2])
    return total


def warped(
    images: jax.Array, warp: jax.Array, size: tuple[int, int], fill: Fill = "black"
) -> jax.Array:
    """Warp images with bilinear interpolation.

    Flips and shifts by whole pixels copy pixels exactly. Shrinking skips pixels; it does not
    average them. Images are uint8 or float `[batch, height, width, channels]`, the warp float32
    `[batch, 2, 3]`; integer results are rounded. `fill` applies beyond the outer borders of the
    edge pixels.
    """
    return jax.vmap(lambda image, one: _warped(image, one, size, fill))(images, warp)


def _warped(image: jax.Array, warp: jax.Array, size: tuple[int, int], fill: Fill) -> jax.Array:
    height, width, channels = image.shape
    down = jnp.arange(size[0], dtype=jnp.float32)[:, None] - (size[0] - 1) / 2
    right = jnp.arange(size[1], dtype=jnp.float32) - (size[1] - 1) / 2
    rows, columns = (
        warp[axis, 0] * down + warp[axis, 1] * right + warp[axis, 2] + (length - 1) / 2
        for axis, length in enumerate((height, width))
    )
    outside = (jnp.abs(rows - (height - 1) / 2) > height / 2) | (
        jnp.abs(columns - (width - 1) / 2) > width / 2
    )
    if fill == "reflect":
        rows, columns = _reflected(rows, height), _reflected(columns, width)
    top, bottom, below = _neighbours(rows, height)
    left, right, beside = _neighbours(columns, width)
    # Gathering all channels of a pixel at once is fast on XLA:CPU.
    pixels = image.reshape(-1, channels)

    def at(row: jax.Array, column: jax.Array) -> jax.Array:
        found = pixels.at[row * width + column].get(mode="promise_in_bounds")
        return found.astype(jnp.float32)

    above, below = 1 - below, below
    if fill == "black":
        above, below = jnp.where(outside, 0, above), jnp.where(outside, 0, below)
    above, below, beside = above[..., None], below[..., None], beside[..., None]
    upper = at(top, left) * (1 - beside) + at(top, right) * beside
    lower = at(bottom, left) * (1 - beside) + at(bottom, right) * beside
    return rounded(upper * above + lower * below, image.dtype)


def _neighbours(places: jax.Array, length: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return the pixel before each position, the one after it, and the fraction in between."""
    places = jnp.clip(places, 0, length - 1)
    before = jnp.floor(places)
    first = before.astype(jnp.int32)
    return first, jnp.minimum(first + 1, length - 1), places - before


def _reflected(places: jax.Array, length: int) -> jax.Array:
    """Reflect positions into 0 to `length` - 1."""
    last = max(length - 1, 1)
    # Without `%`, which would be the slowest operation here.
    return last - jnp.abs(places - 2 * last * jnp.floor(places / (2 * last)) - last)


def rounded(values: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """Convert float32 pixels, 0 to 255, to `dtype`; round if it is an integer."""
    if jnp.issubdtype(dtype, jnp.integer):
        values = jnp.clip(jnp.round(values), 0, 255)
    return values.astype(dtype)


# Random changes ----------------------------------------------------------------------------------


def random_shift(sample: AugmentationSample, most: int) -> tuple[jax.Array, jax.Array]:
    """Draw shifts down and right by up to `most` pixels: float32 `[batch]` each."""
    down, right = (
        jnp.floor(sample.numbers[name] * (2 * most + 1)) - most
        for name in ("shift_down", "shift_right")
    )
    on = sample.applies("shift")
    return jnp.where(on, down, 0), jnp.where(on, right, 0)


def shifted(images: jax.Array, sample: AugmentationSample, most: int, fill: Fill) -> jax.Array:
    """Apply `random_shift` to images `[batch, height, width, channels]`, faster than by a warp."""
    down, right = random_shift(sample, most)
    mode = {"black": "constant", "edge": "edge", "reflect": "reflect"}[fill]
    wide = jnp.pad(images, ((0, 0), *((most, most),) * 2, (0, 0)), mode=mode)
    starts = jnp.stack([most - down, most - right], axis=1).astype(jnp.int32)
    cut = jax.vmap(
        lambda image, at: jax.lax.dynamic_slice(image, (at[0], at[1], 0), images.shape[1:])
    )
    return cut(wide, starts)


def random_crop(
    sample: AugmentationSample, limits: tuple[float, float], size: tuple[int, int]
) -> jax.Array:
    """Make the warp that enlarges a random part of the image, with these limits of its area."""
    area = sample.amount("crop", limits)
    aspect = sample.amount("crop_aspect", CROP_ASPECT, log=True)
    on = sample.applies("crop")
    # A side longer than the image's is shortened; other implementations draw again.
    sides = [
        jnp.where(on, jnp.minimum(jnp.sqrt(area * ratio), 1), 1) for ratio in (aspect, 1 / aspect)
    ]
    down, right = (
        (sample.numbers[name] - 0.5) * (1 - side) * length
        for name, side, length in zip(("crop_down", "crop_right"), sides, size)
    )
    return compose(translation(down, right), scaling(*sides))
