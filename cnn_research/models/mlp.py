"""A network without convolution."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import linen as nn

from cnn_research.core.config import register_config
from cnn_research.core.ranges import PositiveInt
from cnn_research.models.layers import Activation, Dtype, Rate, Widths, activate


@register_config
class MLP(nn.Module):
    """Linear layers over the flattened image (document 004's net without convolution)."""

    dense: Widths = (512,)
    """Units of each hidden layer."""
    activation: Activation = "relu"
    """After each hidden layer."""
    dropout: Rate = 0.0
    """Rate after each hidden layer; survivors are scaled by 1 / (1 - rate)."""
    dtype: Dtype = "float32"
    """What the layers compute in."""
    num_classes: PositiveInt = 10
    """Units of the last layer; set from the data."""

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        x = images.reshape(images.shape[0], -1).astype(self.dtype)
        for units in self.dense:
            x = activate(self.activation)(nn.Dense(units, dtype=self.dtype)(x))
            x = nn.Dropout(self.dropout, deterministic=not train)(x)
        return nn.Dense(self.num_classes, dtype=self.dtype)(x).astype(jnp.float32)
