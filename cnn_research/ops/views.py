"""Slices of images `[batch, height, width, channels]`.

They use `lax.slice`, as indexing becomes a gather where the batch size is not fixed (in an export).
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
from jax import lax


def cut(
    x: jax.Array, corner: tuple[int, int], size: Sequence[int], strides: Sequence[int] = (1, 1)
) -> jax.Array:
    """Take every `strides`-th row and column from `corner` on: `[batch, *size, channels]`."""
    last = [
        first + (count - 1) * stride + 1
        for first, count, stride in zip(corner, size, strides, strict=True)
    ]
    return lax.slice(
        x, (0, *corner, 0), (x.shape[0], *last, x.shape[3]), (1, strides[0], strides[1], 1)
    )


def views(x: jax.Array, window: Sequence[int], strides: Sequence[int]) -> list[jax.Array]:
    """For each position in the window, in row-major order, the values of all windows there."""
    size = [
        (length - side) // stride + 1
        for length, side, stride in zip(x.shape[1:3], window, strides, strict=True)
    ]
    return [
        cut(x, (row, column), size, strides)
        for row in range(window[0])
        for column in range(window[1])
    ]
