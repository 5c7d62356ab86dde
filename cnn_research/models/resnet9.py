"""A short residual network for small images, which trains quickly to a high accuracy."""

from __future__ import annotations

import functools
from typing import Literal

import jax
import jax.numpy as jnp
from flax import linen as nn

from cnn_research import ops
from cnn_research.core.config import register_config
from cnn_research.models.layers import (
    Activation,
    BatchNorm,
    Classifier,
    Conv,
    Widths,
    activate,
    check_lengths,
    check_size,
)
from cnn_research.models.registry import register_model

_INIT = nn.initializers.he_normal()
_Conv = functools.partial(Conv, kernel_size=(3, 3), use_bias=False, kernel_init=_INIT)


@register_config
class ResNet9(Classifier):
    """Stages of one convolution each, some with a 2x2 pool, some with a residual pair.

    After Page's ResNet-9 ('How to train your ResNet', 2018), with its widths as fields. Pooling
    precedes normalisation and activation, as in Jordan's airbench (2024): max pooling commutes with
    both for positive scales, and they then process a quarter of the pixels.
    """

    features: Widths = (32, 64, 128)
    """Filters of each stage."""
    pool: tuple[bool, ...] = (False, True, True)
    """Per stage, True to halve height and width."""
    residual: tuple[bool, ...] = (False, False, True)
    """Per stage, True to add two more convolutions with a skip connection."""
    means: Literal["last", "all"] = "last"
    """Stages whose mean maps the last layer uses. Lower maps hold colours and textures."""
    activation: Activation = "relu"
    """Activation after each normalisation."""

    def check(self) -> None:
        """Raise `UsageError` for fields that do not fit together."""
        check_lengths("stage", features=self.features, pool=self.pool, residual=self.residual)

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        check_size(self, images, 2 ** sum(self.pool))
        x, means = images.astype(self.dtype), []
        for features, pool, residual in zip(self.features, self.pool, self.residual, strict=True):
            x = self._convolution(x, features, train, pool)
            if residual:
                inner = self._convolution(x, features, train)
                x = x + self._convolution(inner, features, train)
            means.append(x.mean(axis=(1, 2)))
        x = means[-1] if self.means == "last" else jnp.concatenate(means, axis=-1)
        return self.logits(x)

    def _convolution(
        self, x: jax.Array, features: int, train: bool, pool: bool = False
    ) -> jax.Array:
        x = _Conv(features, dtype=self.dtype)(x)
        if pool:
            x = ops.max_pool(x, 2)
        x = BatchNorm(dtype=self.dtype)(x, use_running_average=not train)
        return activate(self.activation)(x)


register_model("resnet9", ResNet9(), image_shape=(32, 32, 3), source="Page 2018")
