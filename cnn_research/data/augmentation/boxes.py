"""Boxes of pixels."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def boxes(
    size: tuple[int, int], corner: tuple[jax.Array, jax.Array], shape: tuple[jax.Array, jax.Array]
) -> jax.Array:
    """Whether a pixel lies in its image's box; what of a box is outside of the image is left out.

    Args:
        size: height and width of the images.
        corner: the box's first row and first column, whole numbers `[batch]` each.
        shape: its height and width, whole numbers `[batch]` each.

    Returns:
        bool `[batch, *size]`.
    """
    inside = []
    for length, first, side in zip(size, corner, shape):
        places = jnp.arange(length)
        inside.append((places >= first[:, None]) & (places < (first + side)[:, None]))
    return inside[0][:, :, None] & inside[1][:, None, :]
