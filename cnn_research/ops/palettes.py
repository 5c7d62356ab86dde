"""Differentiable distances between palettes, and from pixels to palettes.

The order of a palette's colours does not matter. Colours are CIELAB, float32; `difference` is a key
of `DIFFERENCES`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

from cnn_research.ops.colours import ciede2000, lab_to_srgb, srgb_to_oklab
from cnn_research.ops.kmeans import kmeans

_TINY = 1e-6
FAR = 1e6
"""Difference to a colour that is masked out."""


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
"""From colours `[..., 3]` to `[...]`; black to white is 100, with `rgb` 173."""


def to_nearest(
    pixels: jax.Array, palette: jax.Array, difference: str = "ciede2000", power: float = 1.0
) -> jax.Array:
    """Mean difference of pixels `[batch, pixels, 3]` to the nearest colour, float32 `[batch]`.

    The nearest colour is found in CIELAB, so that the difference is computed once per pixel; for
    CIEDE2000 it is therefore an upper bound. The palette is `[batch, colours, 3]`. With a `power`
    above 1 (a power mean), distant pixels have more weight.
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

    The mean difference of each colour to the nearest of the other palette, averaged over both
    directions: Q. Pan and S. Westland, "Comparative evaluation of color differences between color
    palettes", 2018. Palettes are `[batch, colours, 3]`; `known`, bool `[batch, others]`, masks the
    second.
    """
    apart = DIFFERENCES[difference](first[:, :, None], second[:, None])
    there = jnp.where(known[:, None], apart, FAR).min(axis=2).mean(axis=1)
    back = (apart.min(axis=1) * known).sum(axis=1) / known.sum(axis=1)
    return (there + back) / 2


def found_by_kmeans(pixels: jax.Array, colours: int) -> jax.Array:
    """Find palettes `[batch, colours, 3]` by at most 20 iterations of k-means in CIELAB.

    They have no gradient.
    """

    def one(pixels: jax.Array) -> jax.Array:
        return kmeans(pixels, colours, jax.random.key(0), max_iterations=20).centroids

    return jax.lax.stop_gradient(jax.vmap(one)(jax.lax.stop_gradient(pixels)))


def transported(
    first: jax.Array,
    second: jax.Array,
    known: jax.Array,
    difference: str = "ciede2000",
) -> jax.Array:
    """Optimal-transport distance of two palettes whose colours weigh the same, `[batch]`.

    M. Cuturi, "Sinkhorn distances", 2013, with 50 iterations and a regularisation of 2 units of
    the difference. The arguments are those of `between`.
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
