"""Max, min and average pools over images `[batch, height, width, channels]`.

On a CPU, XLA's gradient of a max pool (select-and-scatter) is ten to twenty times slower than
comparing windows and adding shifted views, as :func:`max_pool` and :func:`min_pool` do there. The
result is the same: on ties, the first of the equal values in the window, in row-major order, gets
the whole gradient.
"""

import functools
import math
from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from cnn_research.ops import platform
from cnn_research.ops.views import cut, views

Padding = Literal["VALID", "SAME"] | Sequence[tuple[int, int]]
_Pads = tuple[tuple[int, int], tuple[int, int]]
_Pair = tuple[int, int]
# XLA:CPU vectorises loops over multiples of this many channels.
_VECTOR = 8


def max_pool(
    x: jax.Array,
    window: int | Sequence[int],
    strides: int | Sequence[int] | None = None,
    padding: Padding = "VALID",
) -> jax.Array:
    """Largest value in each window, `[batch, out_height, out_width, channels]`.

    `x` is `[batch, height, width, channels]`, of any real dtype; the result has the same dtype.
    Strides default to the window. Padding is `'VALID'` (incomplete windows are dropped), `'SAME'`,
    or the padding before and after in height and width; it is never the maximum.

    Raises:
        ValueError: `x` is not an array of rank 4, or a size is not positive.
    """
    return _extreme_pool("max", *_arguments(x, window, strides, padding))


def min_pool(
    x: jax.Array,
    window: int | Sequence[int],
    strides: int | Sequence[int] | None = None,
    padding: Padding = "VALID",
) -> jax.Array:
    """Smallest value in each window. Arguments and result are those of :func:`max_pool`."""
    return _extreme_pool("min", *_arguments(x, window, strides, padding))


def avg_pool(
    x: jax.Array,
    window: int | Sequence[int],
    strides: int | Sequence[int] | None = None,
    padding: Padding = "VALID",
    count_include_pad: bool = True,
) -> jax.Array:
    """Mean of each window.

    Arguments and result are those of :func:`max_pool`, for floating dtypes. With
    `count_include_pad`, as in `flax.linen.avg_pool`, padding counts as zeros; otherwise the mean
    is over the values inside the image only.
    """
    x, window, strides, pads = _arguments(x, window, strides, padding)
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"avg_pool takes floating dtypes; got {x.dtype}")
    total = _sum_pool(x, window, strides, pads)
    if count_include_pad or not any(map(any, pads)):
        return total / math.prod(window)
    return total / _sum_pool(jnp.ones((1, *x.shape[1:3], 1), x.dtype), window, strides, pads)


def adaptive_avg_pool(x: jax.Array, size: int | Sequence[int]) -> jax.Array:
    """Mean of each of `size` windows over images of any size, arranged as in PyTorch.

    Window i of n over a length l covers floor(i l / n) up to ceil((i + 1) l / n): windows overlap
    by one if n does not divide l, and repeat pixels if n is larger than l.

    Maps `[batch, height, width, channels]`, floating, to `[batch, *size, channels]`.
    """
    for axis, count in zip((1, 2), _pair("size", size), strict=True):
        length = x.shape[axis]
        if length == count:
            continue
        windows = [
            lax.slice_in_dim(x, i * length // count, -(-(i + 1) * length // count), axis=axis)
            for i in range(count)
        ]
        x = jnp.concatenate([window.mean(axis, keepdims=True) for window in windows], axis)
    return x


def _arguments(x, window, strides, padding) -> tuple[jax.Array, _Pair, _Pair, _Pads]:
    x = jnp.asarray(x)
    if x.ndim != 4:
        raise ValueError(f"a pool takes [batch, height, width, channels]; got shape {x.shape}")
    window = _pair("window", window)
    strides = window if strides is None else _pair("strides", strides)
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(x.shape[1:3], window, strides, padding)
    pads = tuple((int(low), int(high)) for low, high in padding)
    if len(pads) != 2 or min(map(min, pads)) < 0:
        raise ValueError(f"padding must be two pairs of numbers from 0 up; got {padding}")
    return x, window, strides, pads


def _pair(name: str, value: int | Sequence[int]) -> _Pair:
    pair = (value, value) if isinstance(value, int) else tuple(int(size) for size in value)
    if len(pair) != 2 or min(pair) < 1:
        raise ValueError(f"{name} must be a positive number or two of them; got {value}")
    return pair


def _sum_pool(x: jax.Array, window: _Pair, strides: _Pair, pads: _Pads) -> jax.Array:
    if window == strides and not any(map(any, pads)):
        height, width = (size // step for size, step in zip(x.shape[1:3], window, strict=True))
        x = cut(x, (0, 0), (height * window[0], width * window[1]))
        blocks = x.reshape(x.shape[0], height, window[0], width, window[1], x.shape[3])
        return blocks.sum((2, 4))
    return _reduce_windows(x, np.zeros((), x.dtype), lax.add, window, strides, pads)


def _reduce_windows(x, start, operation, window: _Pair, strides: _Pair, pads: _Pads) -> jax.Array:
    return lax.reduce_window(
        x, start, operation, (1, *window, 1), (1, *strides, 1), ((0, 0), *pads, (0, 0))
    )


def _extreme_pool(kind: str, x: jax.Array, window: _Pair, strides: _Pair, pads: _Pads) -> jax.Array:
    least = _never_wins(kind, x.dtype)
    fits = all(
        size + sum(pad) >= length
        for size, pad, length in zip(x.shape[1:3], pads, window, strict=True)
    )
    if platform.current_formulation().gather_pool_gradient and fits:
        if any(map(any, pads)):
            x = jnp.pad(x, ((0, 0), *pads, (0, 0)), constant_values=least)
        return _pool_of_views(kind, window, strides, x)
    pick = lax.max if kind == "max" else lax.min
    return _reduce_windows(x, least, pick, window, strides, pads)


def _never_wins(kind: str, dtype: jnp.dtype) -> np.ndarray:
    if jnp.issubdtype(dtype, jnp.floating):
        return np.asarray(-np.inf if kind == "max" else np.inf, dtype)
    limits = jnp.iinfo(dtype)
    return np.asarray(limits.min if kind == "max" else limits.max, dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _pool_of_views(kind: str, window: _Pair, strides: _Pair, x: jax.Array) -> jax.Array:
    pick = jnp.maximum if kind == "max" else jnp.minimum
    return functools.reduce(pick, views(x, window, strides))


def _forward(kind, window, strides, x):
    pooled = _pool_of_views(kind, window, strides, x)
    return pooled, (x, pooled)


def _backward(kind, window, strides, residuals, gradient):
    x, pooled = residuals
    if window == strides and x.shape[3] % _VECTOR:
        return (_spread_within_blocks(gradient, x, pooled, window),)
    parts = views(x, window, strides)
    winner = jnp.full(pooled.shape, len(parts) - 1, jnp.int32)
    for place in range(len(parts) - 2, -1, -1):
        winner = jnp.where(parts[place] == pooled, place, winner)
    return (_spread(gradient, winner, window, strides, x.shape),)


_pool_of_views.defvjp(_forward, _backward)


def _spread_within_blocks(
    gradient: jax.Array, x: jax.Array, pooled: jax.Array, window: _Pair
) -> jax.Array:
    """Do what `_spread` does for windows that do not overlap, each of which is its own block."""
    # Half as fast as `_spread` where the channels fill vectors, twice as fast where they do not.
    batch, height, width, channels = pooled.shape
    covered = x[:, : height * window[0], : width * window[1]]
    blocks = covered.reshape(batch, height, window[0], width, window[1], channels)
    last = window[0] * window[1] - 1
    place = jnp.arange(last + 1, dtype=jnp.int32).reshape(1, 1, window[0], 1, window[1], 1)
    # XLA computes a reduction once. Selections among views, and the layers before the pool, would
    # be fused into every loop that uses the gradient, once per view.
    won = blocks == pooled[:, :, None, :, None]
    winner = jnp.where(won, place, last).min((2, 4), keepdims=True)
    share = jnp.where(winner == place, gradient[:, :, None, :, None], 0).reshape(covered.shape)
    crops = [(0, size - have, 0) for size, have in zip(x.shape, share.shape, strict=True)]
    return lax.pad(share, np.zeros((), share.dtype), crops)


def _spread(
    gradient: jax.Array, winner: jax.Array, window: _Pair, strides: _Pair, shape: Sequence[int]
) -> jax.Array:
    """Add each window's gradient to the pixel that was its maximum.

    The image is divided into blocks of one stride each:
    `[batch, blocks, stride, blocks, stride, channels]`. A window covers its own block and, if it is
    longer than the stride, some of the next, so a block collects from its own window and from some
    before.
    """
    batch, height, width, channels = gradient.shape
    reach = tuple(-(-length // step) for length, step in zip(window, strides, strict=True))
    before = ((0, 0), *((blocks - 1, blocks - 1) for blocks in reach), (0, 0))
    if reach != (1, 1):
        gradient = jnp.pad(gradient, before)
        winner = jnp.pad(winner, before, constant_values=-1)
    rows, columns = height + reach[0] - 1, width + reach[1] - 1
    total = jnp.zeros((), gradient.dtype)
    for i in range(reach[0]):
        for j in range(reach[1]):
            down, right = reach[0] - 1 - i, reach[1] - 1 - j
            part = (slice(None), slice(down, down + rows), slice(right, right + columns))
            place = jnp.asarray(_places(window, strides, i, j), winner.dtype)
            won = winner[part][:, :, None, :, None] == place[:, None, :, None]
            share = jnp.where(won, gradient[part][:, :, None, :, None], 0)
            total = total + share
    image = total.reshape(batch, rows * strides[0], columns * strides[1], channels)
    crops = [(0, size - have, 0) for size, have in zip(shape, image.shape, strict=True)]
    return lax.pad(image, np.zeros((), image.dtype), crops)


def _places(window: _Pair, strides: _Pair, i: int, j: int) -> np.ndarray:
    """Index of each pixel of a block in the window that starts i, j blocks earlier.

    int `[stride, stride]`; -2, which is never a winner, outside the window.
    """
    row = (i * strides[0] + np.arange(strides[0]))[:, None]
    column = (j * strides[1] + np.arange(strides[1]))[None, :]
    return np.where((row < window[0]) & (column < window[1]), row * window[1] + column, -2)
