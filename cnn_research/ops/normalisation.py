"""Normalisation across channels."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax


def local_response_norm(
    x: jax.Array, size: int = 5, k: float = 2.0, alpha: float = 1e-4, beta: float = 0.75
) -> jax.Array:
    """Divide each value by (k + alpha / size * the sum of squares around it) ** beta.

    The sum is over `size` neighbouring channels of the same pixel, fewer at either end (if `size`
    is even, one more before than after), in float32 or wider. Krizhevsky et al. 2012 (section 3.3),
    whose constants are the defaults, multiply the sum by alpha; PyTorch and Caffe, as here, by
    alpha / size. `x` is `[..., channels]`, floating; the result has its shape and dtype.
    """
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    around = [(0, 0)] * (x.ndim - 1) + [(size // 2, (size - 1) // 2)]
    window, zero = (1,) * (x.ndim - 1) + (size,), np.zeros((), wide.dtype)
    total = lax.reduce_window(wide**2, zero, lax.add, window, (1,) * x.ndim, around)
    divisor = k + alpha / size * total
    if beta == 0.75:  # on a CPU, roots are ten times faster than a power
        root = lax.rsqrt(divisor)
        return (wide * root * jnp.sqrt(root)).astype(x.dtype)
    return (wide * divisor**-beta).astype(x.dtype)
