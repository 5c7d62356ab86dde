"""Multilayer perceptron: a network without convolutions."""

from __future__ import annotations

import jax
from flax import linen as nn

from cnn_research.core.config import register_config
from cnn_research.models.layers import Activation, Classifier, Rate, Widths, activate


@register_config
class MLP(Classifier):
    """Linear layers over the flattened image: the Fashion-MNIST paper's MLP."""

    dense: Widths = (512,)
    """Units of each hidden layer."""
    activation: Activation = "relu"
    """Activation after each hidden layer."""
    dropout: Rate = 0.0
    """Rate after each hidden layer; survivors are scaled by 1 / (1 - rate)."""

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        x = images.reshape(images.shape[0], -1).astype(self.dtype)
        for units in self.dense:
            x = activate(self.activation)(nn.Dense(units, dtype=self.dtype)(x))
            x = nn.Dropout(self.dropout, deterministic=not train)(x)
        return self.logits(x)
