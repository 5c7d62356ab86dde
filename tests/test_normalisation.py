"""Batch normalisation against flax's own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from cnn_research import ops
from cnn_research.models.layers import BatchNorm


def both(x, dtype, train):
    """(ours, flax's): output, gradients of images and parameters, and the running averages."""
    random = np.random.default_rng(1)
    channels = x.shape[-1]
    params = {
        "scale": jnp.asarray(random.normal(1, 0.3, channels), jnp.float32),
        "bias": jnp.asarray(random.normal(0, 0.3, channels), jnp.float32),
    }
    stats = {
        "mean": jnp.asarray(random.normal(0, 1, channels), jnp.float32),
        "var": jnp.asarray(random.uniform(0.5, 2, channels), jnp.float32),
    }
    target = jnp.asarray(random.normal(0, 1, x.shape), jnp.float32)
    modules = (
        BatchNorm(use_running_average=not train, dtype=dtype),
        nn.BatchNorm(use_running_average=not train, momentum=0.9, epsilon=1e-5, dtype=dtype),
    )

    def results(module):
        def loss(x, params):
            variables = {"params": params, "batch_stats": stats}
            y, updated = module.apply(variables, x, mutable=["batch_stats"])
            return (y.astype(jnp.float32) * target).sum(), (y, updated)

        gradients, (y, updated) = jax.grad(loss, (0, 1), has_aux=True)(x, params)
        return {"y": y, "gradients": gradients, "updated": updated}

    return [jax.jit(results, static_argnums=0)(module) for module in modules]


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 2e-5), ("bfloat16", 4e-2)])
def test_agrees_with_flax(dtype, tolerance, train):
    x = jnp.asarray(np.random.default_rng(0).normal(3, 2, (8, 7, 5, 12)), dtype)
    ours, flax = both(x, dtype, train)
    assert jax.tree.structure(ours) == jax.tree.structure(flax)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(flax), strict=True):
        assert a.dtype == b.dtype
        a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
        assert np.abs(a - b).max() <= tolerance * max(1.0, np.abs(b).max())


def test_gradient_by_hand_is_the_derivative():
    x = jnp.asarray(np.random.default_rng(0).normal(50, 1, (4, 6, 6, 3)), jnp.float32)
    scale, bias = jnp.array([1.0, 0.5, -2.0]), jnp.array([0.0, 1.0, 2.0])
    target = jnp.asarray(np.random.default_rng(1).normal(0, 1, x.shape), jnp.float32)

    def gradient():
        def loss(*inputs):
            return (jnp.sin(ops.batch_norm(*inputs, 1e-5)[0]) * target).sum()

        return jax.grad(loss, (0, 1, 2))(x, scale, bias)

    by_hand = gradient()
    with ops.use_formulation(ops.PLAIN):
        by_jax = gradient()
    for a, b in zip(by_hand, by_jax, strict=True):
        # A mean of 50 standard deviations costs the variance three digits, in both.
        np.testing.assert_allclose(a, b, rtol=0, atol=3e-3 * float(jnp.abs(b).max()))


def test_constant_channel_does_not_divide_by_zero():
    x = jnp.full((4, 3, 3, 2), 7.0)
    y, mean, variance = ops.batch_norm(x, jnp.ones(2), jnp.zeros(2), 1e-5)
    gradient = jax.grad(lambda x: ops.batch_norm(x, jnp.ones(2), jnp.zeros(2), 1e-5)[0].sum())(x)
    np.testing.assert_array_equal(y, jnp.zeros_like(x))
    np.testing.assert_array_equal((mean, variance), ([7.0, 7.0], [0.0, 0.0]))
    assert np.isfinite(gradient).all()
