"""k-means on all points or on mini-batches, for the palette paper's clusters of colours.

The key determines the result. Points may have weights: a colour of a thousand pixels is one point
of weight 1,000.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

BLOCK = 16_384
"""Points compared with all centroids at once, so that the distances stay in cache."""


class KMeans(NamedTuple):
    """Result of k-means."""

    centroids: jax.Array
    """float32 `[k, dimensions]`."""
    assignments: jax.Array
    """Index of each point's nearest centroid, int32 `[points]`."""
    inertia: jax.Array
    """Weighted sum of the squared distances to them, float32 `[]`."""
    iterations: jax.Array
    """Number of assignment steps, int32 `[]`."""


def nearest(points: jax.Array, centroids: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return each point's nearest centroid, int32 `[points]`, and squared distance, float32.

    `points` and `centroids` are float32 `[..., dimensions]`. Ties go to the first centroid.
    """

    def of_block(block):
        products = jnp.matmul(block, centroids.T, precision="highest")
        # The point's own square is the same for all centroids.
        scores = (centroids**2).sum(-1) - 2 * products
        index = jnp.argmin(scores, axis=-1).astype(jnp.int32)
        return index, ((block - centroids[index]) ** 2).sum(-1)

    count, dimensions = points.shape
    if count <= BLOCK:
        return of_block(points)
    blocks = -(-count // BLOCK)
    padded = jnp.pad(points, ((0, blocks * BLOCK - count), (0, 0)))
    indices, squares = jax.lax.map(of_block, padded.reshape(blocks, BLOCK, dimensions))
    return indices.reshape(-1)[:count], squares.reshape(-1)[:count]


@functools.partial(jax.jit, static_argnames=("k", "starts", "max_iterations"))
def kmeans(
    points: jax.Array,
    k: int,
    key: jax.Array,
    *,
    weights: jax.Array | None = None,
    start: jax.Array | None = None,
    starts: int = 1,
    max_iterations: int = 300,
) -> KMeans:
    """Run Lloyd's algorithm until no assignment changes; return the best of several starts.

    Jaramillo Ruiz (2023), section 'Generacion de histogramas'. An empty cluster restarts from the
    point that is farthest from its centroid. Points are float32 `[points, dimensions]`, weights
    float32 `[points]`, 0 or above (default 1). Centroids start from `start`, float32
    `[k, dimensions]`, or from `starts` draws of k-means++ if it is None. Some coincide if fewer
    than `k` points differ.
    """
    weights = jnp.ones(len(points), jnp.float32) if weights is None else weights

    def once(key):
        centroids = kmeans_plus_plus(points, k, key, weights) if start is None else start
        return _lloyd(points, weights, centroids, max_iterations)

    if start is not None or starts == 1:
        return once(key)
    runs = jax.lax.map(once, jax.random.split(key, starts))
    best = jnp.argmin(runs.inertia)
    return jax.tree.map(lambda values: values[best], runs)


def _lloyd(
    points: jax.Array, weights: jax.Array, centroids: jax.Array, max_iterations: int
) -> KMeans:
    k = len(centroids)

    def unfinished(carry):
        *_, changed, iterations = carry
        return changed & (iterations < max_iterations)

    def step(carry):
        _, assignments, squares, _, iterations = carry
        totals = jax.ops.segment_sum(points * weights[:, None], assignments, k)
        counts = jax.ops.segment_sum(weights, assignments, k)
        means = totals / jnp.maximum(counts, 1e-9)[:, None]
        centroids = _reseeded(points, squares * (weights > 0), means, counts == 0)
        new, squares = nearest(points, centroids)
        return centroids, new, squares, jnp.any(new != assignments), iterations + 1

    assignments, squares = nearest(points, centroids)
    carry = centroids, assignments, squares, jnp.bool(True), jnp.int32(1)
    centroids, assignments, squares, _, iterations = jax.lax.while_loop(unfinished, step, carry)
    return KMeans(centroids, assignments, (weights * squares).sum(), iterations)


def _reseeded(
    points: jax.Array, squares: jax.Array, centroids: jax.Array, empty: jax.Array
) -> jax.Array:
    """Move the centroids of empty clusters to the points that are farthest from their own."""

    def moved():
        _, far = jax.lax.top_k(squares, min(len(centroids), len(points)))
        rank = jnp.clip(jnp.cumsum(empty) - 1, 0, len(far) - 1)
        return jnp.where(empty[:, None], points[far[rank]], centroids)

    return jax.lax.cond(jnp.any(empty), moved, lambda: centroids)


def kmeans_plus_plus(points: jax.Array, k: int, key: jax.Array, weights: jax.Array) -> jax.Array:
    """Draw `k` initial centroids, each in proportion to the squared distance to those before.

    D. Arthur and S. Vassilvitskii, "k-means++: the advantages of careful seeding", 2007.
    """

    def drawn(key, chances):
        # Once all distinct points are drawn, any will do.
        chances = jnp.where(chances.sum() > 0, chances, weights)
        sums = jnp.cumsum(chances)
        index = jnp.searchsorted(sums, jax.random.uniform(key) * sums[-1], side="right")
        return points[jnp.minimum(index, len(points) - 1)]

    def add(index, carry):
        centroids, squares = carry
        point = drawn(jax.random.fold_in(key, index), weights * squares)
        squares = jnp.minimum(squares, ((points - point) ** 2).sum(-1))
        return centroids.at[index].set(point), squares

    first = drawn(jax.random.fold_in(key, 0), weights)
    centroids = jnp.zeros((k, points.shape[1]), points.dtype).at[0].set(first)
    centroids, _ = jax.lax.fori_loop(1, k, add, (centroids, ((points - first) ** 2).sum(-1)))
    return centroids


@functools.partial(jax.jit, static_argnames=("k", "batch_size", "steps"))
def minibatch_kmeans(
    points: jax.Array, k: int, key: jax.Array, *, batch_size: int = 4096, steps: int = 300
) -> jax.Array:
    """Approximate k-means centroids, float32 `[k, dimensions]`, from random batches.

    D. Sculley, "Web-scale k-means clustering", 2010: each centroid is the mean of all points ever
    assigned to it. A centroid to which none of the last 100 k points was assigned restarts from the
    point of the batch that is farthest from its own. Points are float32 `[points, dimensions]`.
    """

    def batch(key):
        return points[jax.random.randint(key, (batch_size,), 0, len(points))]

    def step(index, carry):
        centroids, counts, idle = carry
        drawn = batch(jax.random.fold_in(key, index))
        assignments, squares = nearest(drawn, centroids)
        ones = jnp.ones(batch_size, jnp.float32)
        new = jax.ops.segment_sum(ones, assignments, k)
        totals = jax.ops.segment_sum(drawn, assignments, k)
        counts = counts + new
        centroids += (totals - new[:, None] * centroids) / jnp.maximum(counts, 1)[:, None]
        idle = jnp.where(new > 0, 0, idle + 1)
        lost = idle * batch_size > 100 * k
        centroids = _reseeded(drawn, squares, centroids, lost)
        return centroids, jnp.where(lost, 0, counts), jnp.where(lost, 0, idle)

    first = batch(jax.random.fold_in(key, steps))
    start = kmeans_plus_plus(first, k, jax.random.fold_in(key, steps + 1), jnp.ones(batch_size))
    zeros = jnp.zeros(k)
    centroids, _, _ = jax.lax.fori_loop(0, steps, step, (start, zeros, zeros))
    return centroids


def histogram(assignments: jax.Array, k: int) -> jax.Array:
    """Share of each cluster, float32 `[batch, k]`, in assignments, integers `[batch, ...]`."""
    flat = assignments.reshape(len(assignments), -1).astype(jnp.int32)
    places = flat + k * jnp.arange(len(flat))[:, None]
    counts = jnp.zeros(len(flat) * k, jnp.float32).at[places.reshape(-1)].add(1.0)
    return counts.reshape(len(flat), k) / flat.shape[1]
