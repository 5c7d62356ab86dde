"""k-means against scikit-learn's, and its edges."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn import cluster

from cnn_research.ops import kmeans as ops

KEY = jax.random.key(0)


def blobs(count: int, k: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    centres = rng.uniform(0, 1, (k, 3))
    return (centres[rng.integers(0, k, count)] + rng.normal(0, 0.05, (count, 3))).astype(np.float32)


@pytest.mark.parametrize("count", [500, ops.BLOCK + 77])
def test_from_the_same_start_it_is_scikit_learns(count):
    points, start = blobs(count, 6), blobs(6, 6, seed=1)
    found = ops.kmeans(jnp.asarray(points), 6, KEY, start=jnp.asarray(start))
    theirs = cluster.KMeans(6, init=start, n_init=1, tol=0, algorithm="lloyd").fit(points)
    np.testing.assert_allclose(found.centroids, theirs.cluster_centers_, atol=1e-5)
    np.testing.assert_array_equal(found.assignments, theirs.labels_)
    assert float(found.inertia) == pytest.approx(theirs.inertia_, rel=1e-4)


def test_it_stops_where_no_assignment_changes_and_not_before():
    points = jnp.asarray(blobs(800, 8))
    found = ops.kmeans(points, 8, KEY)
    assert 2 < int(found.iterations) < 300
    indices, squares = ops.nearest(points, found.centroids)
    np.testing.assert_array_equal(indices, found.assignments)
    assert float(squares.sum()) == pytest.approx(float(found.inertia))
    for cluster_index in range(8):
        members = np.asarray(points)[np.asarray(indices) == cluster_index]
        np.testing.assert_allclose(members.mean(0), found.centroids[cluster_index], atol=1e-5)
    cut = ops.kmeans(points, 8, KEY, max_iterations=2)
    assert int(cut.iterations) == 2 and float(cut.inertia) > float(found.inertia)


def test_a_weight_stands_for_as_many_points():
    points = blobs(60, 4)
    weights = np.random.default_rng(2).integers(0, 4, 60)
    start = jnp.asarray(points[:4])
    weighted = ops.kmeans(
        jnp.asarray(points), 4, KEY, weights=jnp.asarray(weights, jnp.float32), start=start
    )
    repeated = ops.kmeans(jnp.asarray(np.repeat(points, weights, axis=0)), 4, KEY, start=start)
    np.testing.assert_allclose(weighted.centroids, repeated.centroids, atol=1e-5)
    assert float(weighted.inertia) == pytest.approx(float(repeated.inertia), rel=1e-4)


def test_an_empty_cluster_goes_on_from_a_far_point():
    points = np.concatenate([blobs(200, 3), [[9, 9, 9]]]).astype(np.float32)
    start = jnp.asarray([[0.5, 0.5, 0.5], [-50, 0, 0], [0, -50, 0]], jnp.float32)
    found = ops.kmeans(jnp.asarray(points), 3, KEY, start=start)
    assert set(np.asarray(found.assignments).tolist()) == {0, 1, 2}
    np.testing.assert_allclose(found.centroids[found.assignments[-1]], [9, 9, 9], atol=1e-5)


@pytest.mark.parametrize("different", [1, 3])
def test_fewer_different_points_than_clusters(different):
    points = jnp.asarray(np.repeat(blobs(different, 3), 20, axis=0))
    found = ops.kmeans(points, 8, KEY)
    assert float(found.inertia) == pytest.approx(0, abs=1e-9)
    assert np.isfinite(found.centroids).all()


def test_several_starts_keep_the_best_and_a_key_decides():
    points = jnp.asarray(blobs(400, 12))
    runs = [ops.kmeans(points, 12, key) for key in jax.random.split(KEY, 5)]
    best = ops.kmeans(points, 12, KEY, starts=5)
    assert float(best.inertia) == pytest.approx(min(float(run.inertia) for run in runs))
    again = ops.kmeans(points, 12, KEY, starts=5)
    np.testing.assert_array_equal(best.centroids, again.centroids)
    assert len({float(run.inertia) for run in runs}) > 1


def test_plus_plus_draws_far_points_and_no_point_without_weight():
    points = jnp.asarray([[0.0, 0, 0]] * 50 + [[1, 0, 0]] + [[5, 5, 5]])
    weights = jnp.ones(52).at[-1].set(0)
    for key in jax.random.split(KEY, 5):
        centroids = ops.kmeans_plus_plus(points, 2, key, weights)
        assert sorted(np.asarray(centroids)[:, 0].tolist()) == [0, 1]


def test_minibatches_come_near_to_all_points():
    points = blobs(20_000, 10)
    centroids = ops.minibatch_kmeans(jnp.asarray(points), 10, KEY, batch_size=512, steps=200)
    _, squares = ops.nearest(jnp.asarray(points), centroids)
    best = cluster.KMeans(10, n_init=5, random_state=0).fit(points).inertia_
    assert float(squares.sum()) < 1.1 * best
    again = ops.minibatch_kmeans(jnp.asarray(points), 10, KEY, batch_size=512, steps=200)
    np.testing.assert_array_equal(centroids, again)


def test_histogram_is_the_share_of_each_cluster():
    assignments = np.random.default_rng(0).integers(0, 128, (3, 37, 37)).astype(np.uint8)
    found = ops.histogram(jnp.asarray(assignments), 128)
    for row, pixels in zip(found, assignments, strict=True):
        expected = np.bincount(pixels.ravel(), minlength=128) / pixels.size
        np.testing.assert_allclose(row, expected, atol=1e-7)
