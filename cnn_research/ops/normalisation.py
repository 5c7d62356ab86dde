"""Normalisation across channels."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax


def local_response_norm(
    x: jax.Array, size: int = 5, k: float = 2.0, alpha: float = 1e-4, beta: float = 0.75
) -> jax.Array:
    """Divides each value by (k + alpha / size * the sum of squares around it) ** beta.

    The sum is over `size` neighbouring channels at the same pixel, fewer at either end. Krizhevsky
    et al. 2012 (section 3.3), whose numbers are the defaults here, multiply the sum by alpha;
    PyTorch and Caffe, as here, by alpha / size.

    Args:
        x: `[..., channels]`, floating; the sum is taken in float32 at least.
        size: how many channels; of an even number, one more lies before than after.
        k: keeps the divisor away from zero.
        alpha: weight of the sum.
        beta: exponent.

    Returns:
        An array of the shape and dtype of `x`.
    """
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    # A product with a band of ones: XLA sums windows of channels many times slower on a CPU.
    distance = np.arange(x.shape[-1])[:, None] - np.arange(x.shape[-1])
    band = ((-(size // 2) <= distance) & (distance <= (size - 1) // 2)).astype(wide.dtype)
    total = jnp.matmul(wide**2, band, precision="highest")
    divisor = k + alpha / size * total
    if beta == 0.75:  # roots take a tenth of the time of a power
        root = lax.rsqrt(divisor)
        return (wide * root * jnp.sqrt(root)).astype(x.dtype)
    return (wide * divisor**-beta).astype(x.dtype)
