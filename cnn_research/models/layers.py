"""Layers that every model is made of."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from flax import linen as nn

from cnn_research import ops

Dtype = Literal["float32", "bfloat16"]
"""What a model computes in; parameters, statistics and logits stay float32."""

Activation = Literal["relu", "gelu", "silu", "none"]

Conv = functools.partial(nn.Conv, conv_general_dilated=ops.conv_general_dilated)
"""flax's convolution in the formulation that is fast on this platform."""


class BatchNorm(nn.Module):
    """flax's batch normalisation, its names included, in the formulation of this platform.

    The defaults are PyTorch's (its momentum of 0.1 is 0.9 here), which the documents' networks use.
    """

    use_running_average: bool
    """Normalise by the averages of training instead of the batch's own statistics."""
    momentum: float = 0.9
    """Share of the old running average that stays in each step."""
    epsilon: float = 1e-5
    """Added to the variance."""
    dtype: Dtype = "float32"
    """Of the output; statistics are float32."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        channels = (x.shape[-1],)
        mean = self.variable("batch_stats", "mean", jnp.zeros, channels, jnp.float32)
        variance = self.variable("batch_stats", "var", jnp.ones, channels, jnp.float32)
        scale = self.param("scale", nn.initializers.ones, channels, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, channels, jnp.float32)
        x = x.astype(self.dtype)
        if self.use_running_average:
            factor = jax.lax.rsqrt(variance.value + self.epsilon) * scale
            return ((x - mean.value) * factor + bias).astype(self.dtype)
        y, batch_mean, batch_variance = ops.batch_norm(x, scale, bias, self.epsilon)
        if not self.is_initializing():
            mean.value += (1 - self.momentum) * (batch_mean - mean.value)
            variance.value += (1 - self.momentum) * (batch_variance - variance.value)
        return y


def activate(name: Activation) -> Callable[[jax.Array], jax.Array]:
    """The activation function of that name."""
    return {"relu": nn.relu, "gelu": nn.gelu, "silu": nn.silu, "none": lambda x: x}[name]
