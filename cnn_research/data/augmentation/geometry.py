"""Geometric changes: affine warps, in which every pixel is taken from one place of the image.

Places are (row, column) in pixels, seen from the image's middle. A warp is float32
`[batch, 2, 3]`: the place to take a pixel from is `warp[:, :, :2] @ place + warp[:, :, 2]`, so that
a warp that doubles places halves the image.
"""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp

from cnn_research.data.augmentation.sample import AugmentationSample

CROP_ASPECT = (3 / 4, 4 / 3)

Fill = Literal["black", "edge", "reflect"]
"""Values outside of an image: black, its outermost pixels, or the image mirrored at them."""


def affine(rows: tuple[jax.Array, ...], columns: tuple[jax.Array, ...]) -> jax.Array:
    """The warp to (rows @ (row, column, 1), columns @ (row, column, 1)); three `[batch]` each."""
    return jnp.stack([jnp.stack(rows, axis=1), jnp.stack(columns, axis=1)], axis=1)


def scaling(rows: jax.Array, columns: jax.Array) -> jax.Array:
    """The warp that makes an image smaller by these factors, `[batch]` each; -1 mirrors."""
    none = jnp.zeros_like(rows)
    return affine((rows, none, none), (none, columns, none))


def rotation(degrees: jax.Array) -> jax.Array:
    """The warp that turns an image clockwise by `degrees`, `[batch]`."""
    angle = jnp.deg2rad(degrees)
    cos, sin, none = jnp.cos(angle), jnp.sin(angle), jnp.zeros_like(angle)
    return affine((cos, -sin, none), (sin, cos, none))


def translation(rows: jax.Array, columns: jax.Array) -> jax.Array:
    """The warp that takes pixels from so much further down and right: the image moves back."""
    one, none = jnp.ones_like(rows), jnp.zeros_like(rows)
    return affine((one, none, rows), (none, one, columns))


def compose(*warps: jax.Array) -> jax.Array:
    """One warp that does what these do one after the other, in this order."""
    total, *rest = warps
    for warp in rest:
        # Written out, since a matrix product may round to fewer digits on an accelerator.
        turned = total[:, :, 0, None] * warp[:, None, 0] + total[:, :, 1, None] * warp[:, None, 1]
        total = turned.at[:, :, 2].add(total[:, :, 2])
    return total


def warped(
    images: jax.Array, warp: jax.Array, size: tuple[int, int], fill: Fill = "black"
) -> jax.Array:
    """Images seen through a warp, interpolated linearly in both directions.

    A warp of whole pixels (by mirrors and moves) copies pixels exactly. Where an image is made
    smaller, pixels between the places are skipped, not averaged. Images are uint8 or float
    `[batch, height, width, channels]`, the warp float32 `[batch, 2, 3]`; integer results are
    rounded. `fill` applies further out than half a pixel from the middle of the outermost pixels.
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
    # Whole pixels are gathered, all channels at once: XLA's CPU compiler makes fast code of that.
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
    """The pixel before a place, the one after it, and how far in between it is."""
    places = jnp.clip(places, 0, length - 1)
    before = jnp.floor(places)
    first = before.astype(jnp.int32)
    return first, jnp.minimum(first + 1, length - 1), places - before


def _reflected(places: jax.Array, length: int) -> jax.Array:
    """Places between 0 and `length` - 1, back and forth."""
    last = max(length - 1, 1)
    # Not `%`, which takes longer than all the rest.
    return last - jnp.abs(places - 2 * last * jnp.floor(places / (2 * last)) - last)


def rounded(values: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """float32 pixels, 0 to 255, as `dtype`: rounded to the nearest where that is an integer's."""
    if jnp.issubdtype(dtype, jnp.integer):
        values = jnp.clip(jnp.round(values), 0, 255)
    return values.astype(dtype)


# Random changes ----------------------------------------------------------------------------------


def random_shift(sample: AugmentationSample, most: int) -> tuple[jax.Array, jax.Array]:
    """By how many pixels, `most` at most, images move down and right: float32 `[batch]` each."""
    down, right = (
        jnp.floor(sample.numbers[name] * (2 * most + 1)) - most
        for name in ("shift_down", "shift_right")
    )
    on = sample.applies("shift")
    return jnp.where(on, down, 0), jnp.where(on, right, 0)


def shifted(images: jax.Array, sample: AugmentationSample, most: int, fill: Fill) -> jax.Array:
    """Images `[batch, height, width, channels]` after `random_shift`: less work than a warp."""
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
    """The warp from a part of an image of this size to all of it; limits are of its area."""
    area = sample.amount("crop", limits)
    aspect = sample.amount("crop_aspect", CROP_ASPECT, log=True)
    on = sample.applies("crop")
    # Where a side would be longer than the image's, which others draw again, it is cut.
    sides = [
        jnp.where(on, jnp.minimum(jnp.sqrt(area * ratio), 1), 1) for ratio in (aspect, 1 / aspect)
    ]
    down, right = (
        (sample.numbers[name] - 0.5) * (1 - side) * length
        for name, side, length in zip(("crop_down", "crop_right"), sides, size)
    )
    return compose(translation(down, right), scaling(*sides))
