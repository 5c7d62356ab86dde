"""The random changes of where an image's pixels are, all of them in one step."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from cnn_research.data.augmentation import warp
from cnn_research.data.augmentation.rand_augment import RandAugment
from cnn_research.data.augmentation.sample import Draws

if TYPE_CHECKING:
    from cnn_research.data.augmentation.config import Augmentation

CROP_ASPECT = (3 / 4, 4 / 3)
_SIMPLE = {"mirror", "flip", "shift"}
_PLACING = {"crop", "zoom", "rotation", "left", "right", "up", "down", "rand_augment"}


def placed(
    how: Augmentation, draws: Draws, drawn: RandAugment | None, images: jax.Array
) -> jax.Array:
    """Images `[batch, height, width, channels]` after all geometric changes, of size `how.size`."""
    size = (images.shape[1], images.shape[2])
    out = (how.size[0], how.size[1]) if how.size else size
    if _PLACING & set(how.changes) or out != size:
        return warp.warped(images, _warp(how, draws, drawn, size, out), out, how.fill)
    # Mirrors and whole pixels alone are much less work.
    for name, axis in (("mirror", 2), ("flip", 1)):
        if name in how.changes:
            turn = draws.happens(name, 0.5)[:, None, None, None]
            images = jnp.where(turn, jnp.flip(images, axis), images)
    return _moved(images, *_shift(how, draws), how) if how.shift else images


def _moved(images: jax.Array, down: jax.Array, right: jax.Array, how: Augmentation) -> jax.Array:
    """Images moved by whole pixels, `[batch]` each and `how.shift` at most."""
    mode = {"black": "constant", "edge": "edge", "reflect": "reflect"}[how.fill]
    wide = jnp.pad(images, ((0, 0), *((how.shift, how.shift),) * 2, (0, 0)), mode=mode)
    starts = jnp.stack([how.shift - down, how.shift - right], axis=1).astype(jnp.int32)
    cut = jax.vmap(
        lambda image, at: jax.lax.dynamic_slice(image, (at[0], at[1], 0), images.shape[1:])
    )
    return cut(wide, starts)


def _shift(how: Augmentation, draws: Draws) -> tuple[jax.Array, jax.Array]:
    """By how many pixels `shift` moves down and right, float32 `[batch]` each."""
    down, right = (
        jnp.floor(draws.numbers[name] * (2 * how.shift + 1)) - how.shift
        for name in ("shift_down", "shift_right")
    )
    on = draws.happens("shift")
    return jnp.where(on, down, 0), jnp.where(on, right, 0)


def _warp(
    how: Augmentation,
    draws: Draws,
    drawn: RandAugment | None,
    size: tuple[int, int],
    out: tuple[int, int],
) -> jax.Array:
    """All geometric changes in one, from images of one size to another: `[batch, 2, 3]`."""
    (height, width), batch = size, draws.batch
    one, none = jnp.ones(batch), jnp.zeros(batch)
    warps = []
    if {"mirror", "flip"} & set(how.changes):
        flip, mirror = (
            jnp.where(draws.happens(name, 0.5), -1.0, 1.0) if name in how.changes else one
            for name in ("flip", "mirror")
        )
        warps.append(warp.scaling(flip, mirror))
    if "crop" in how.changes:
        warps.append(_crop(how, draws, size))
    if "zoom" in how.changes:
        smaller = 1 / draws.amount_or(1.0, "zoom", how.zoom)
        warps.append(warp.scaling(smaller, smaller))
    if "rotation" in how.changes:
        limits = (-how.rotation, how.rotation)
        warps.append(warp.rotation(draws.amount_or(0.0, "rotation", limits)))
    moves = {"left": width, "right": width, "up": height, "down": height}
    if {"shift", *moves} & set(how.changes):
        by = {
            name: jnp.round(length * draws.amount_or(0.0, name, (0, getattr(how, name))))
            for name, length in moves.items()
            if name in how.changes
        }
        down, right = _shift(how, draws) if how.shift else (none, none)
        down += by.get("down", none) - by.get("up", none)
        right += by.get("right", none) - by.get("left", none)
        warps.append(warp.translation(-down, -right))
    if drawn is not None:
        warps.append(drawn.warp(size))
    if out != size:
        warps.append(warp.scaling(one * (height / out[0]), one * (width / out[1])))
    return warp.compose(*warps)


def _crop(how: Augmentation, draws: Draws, size: tuple[int, int]) -> jax.Array:
    """The warp from a part of an image to all of it."""
    area = draws.amount("crop", how.crop)
    aspect = draws.amount("crop_aspect", CROP_ASPECT, log=True)
    on = draws.happens("crop")
    # Where a side would be longer than the image's, which others draw again, it is cut.
    sides = [
        jnp.where(on, jnp.minimum(jnp.sqrt(area * ratio), 1), 1) for ratio in (aspect, 1 / aspect)
    ]
    down, right = (
        (draws.numbers[name] - 0.5) * (1 - side) * length
        for name, side, length in zip(("crop_down", "crop_right"), sides, size)
    )
    return warp.compose(warp.translation(down, right), warp.scaling(*sides))
