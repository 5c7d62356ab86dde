"""Distances of palettes to pixels and to each other; the order of colours does not matter.

Colours are CIELAB, float32, and may be differentiated. Differences are those of `DIFFERENCES`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

from cnn_research.ops.colours import ciede2000, lab_to_srgb, srgb_to_oklab
from cnn_research.ops.kmeans import kmeans

_TINY = 1e-6
FAR = 1e6
"""Stands for the difference to a colour that is not there."""


def _distance(first: jax.Array, second: jax.Array) -> jax.Array:
    return jnp.sqrt(((first - second) ** 2).sum(-1) + _TINY)


def _in_oklab(first: jax.Array, second: jax.Array) -> jax.Array:
    pair = (srgb_to_oklab(lab_to_srgb(colours)) for colours in (first, second))
    return 100 * _distance(*pair)


def _in_rgb(first: jax.Array, second: jax.Array) -> jax.Array:
    return 100 * _distance(lab_to_srgb(first), lab_to_srgb(second))


DIFFERENCES: Mapping[str, Callable[[jax.Array, jax.Array], jax.Array]] = {
    "ciede2000": ciede2000,
    "lab": _distance,
    "oklab": _in_oklab,
    "rgb": _in_rgb,
}
"""`[...]` of colours `[..., 3]`; black to white is 100 with all but `rgb`, where it is 173."""


def to_nearest(
    pixels: jax.Array, palette: jax.Array, difference: str = "ciede2000", power: float = 1.0
) -> jax.Array:
    """Mean difference of pixels `[batch, pixels, 3]` to the nearest colour, float32 `[batch]`.

    Nearest is in CIELAB, whatever the difference: so it has to be computed once for each pixel. For
    CIEDE2000 that is at least the difference to the nearest by CIEDE2000. The palette is
    `[batch, colours, 3]`. A `power` of the mean above 1 gives distant pixels more weight.
    """
    squares = ((pixels[:, :, None] - palette[:, None]) ** 2).sum(-1)
    index = jnp.argmin(jax.lax.stop_gradient(squares), axis=-1)
    own = jnp.take_along_axis(palette, index[..., None], axis=1)
    apart = DIFFERENCES[difference](pixels, own)
    if power == 1:
        return apart.mean(axis=-1)
    return ((apart**power).mean(axis=-1) + _TINY) ** (1 / power)


def between(
    first: jax.Array, second: jax.Array, known: jax.Array, difference: str = "ciede2000"
) -> jax.Array:
    """Minimum colour difference of two palettes, float32 `[batch]`.

    From each colour to the nearest of the other palette, the mean of the means of both directions:
    Q. Pan and S. Westland, "Comparative evaluation of color differences between color palettes",
    2018. Palettes are `[batch, colours, 3]`; `known`, bool `[batch, others]`, masks the second.
    """
    apart = DIFFERENCES[difference](first[:, :, None], second[:, None])
    there = jnp.where(known[:, None], apart, FAR).min(axis=2).mean(axis=1)
    back = (apart.min(axis=1) * known).sum(axis=1) / known.sum(axis=1)
    return (there + back) / 2


def found_by_kmeans(pixels: jax.Array, colours: int) -> jax.Array:
    """Palettes `[batch, colours, 3]` by k-means in CIELAB, at most 20 iterations, as constants."""

    def one(pixels: jax.Array) -> jax.Array:
        return kmeans(pixels, colours, jax.random.key(0), max_iterations=20).centroids

    return jax.lax.stop_gradient(jax.vmap(one)(jax.lax.stop_gradient(pixels)))


def transported(
    first: jax.Array,
    second: jax.Array,
    known: jax.Array,
    difference: str = "ciede2000",
) -> jax.Array:
    """The mean difference when one palette is moved to the other at the least cost, `[batch]`.

    All colours of a palette weigh the same. M. Cuturi, "Sinkhorn distances", 2013, with 50
    iterations and a blur of 2 units of the difference. The arguments are those of `between`.
    """
    apart = DIFFERENCES[difference](first[:, :, None], second[:, None])
    own = jnp.full(apart.shape[:2], -jnp.log(apart.shape[1]))
    theirs = jnp.where(known, -jnp.log(known.sum(axis=1, keepdims=True)), -jnp.inf)
    scores = jnp.where(known[:, None], -apart / 2.0, -FAR)

    def step(potentials: tuple[jax.Array, jax.Array], _: None) -> tuple[tuple, None]:
        rows, columns = potentials
        rows = own - jax.nn.logsumexp(scores + columns[:, None], axis=2)
        columns = theirs - jax.nn.logsumexp(scores + rows[:, :, None], axis=1)
        return (rows, jnp.where(known, columns, -FAR)), None

    start = jnp.zeros(apart.shape[:2]), jnp.where(known, 0.0, -FAR)
    (rows, columns), _ = jax.lax.scan(step, start, None, length=50)
    plan = jnp.exp(scores + rows[:, :, None] + columns[:, None])
    return (plan * apart).sum(axis=(1, 2))
