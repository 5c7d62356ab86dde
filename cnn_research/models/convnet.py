"""A plain convolutional network: blocks of convolution and pooling, then linear layers."""

from __future__ import annotations

from typing import Literal

import jax
from flax import linen as nn

from cnn_research import ops
from cnn_research.core.config import register_config
from cnn_research.core.ranges import NonNegativeInt, PositiveInt
from cnn_research.models.layers import (
    Activation,
    BatchNorm,
    Classifier,
    Conv,
    Rate,
    Widths,
    activate,
    check_lengths,
    check_size,
)
from cnn_research.models.registry import register_model

POOLS = {"max": ops.max_pool, "average": ops.avg_pool, "min": ops.min_pool}


@register_config
class ConvNet(Classifier):
    """Blocks of convolution, batch normalisation, activation and 2x2 pool, then linear layers.

    The network of the Fashion-MNIST and painters papers and the classifier lecture, by its widths.
    """

    features: Widths = (12, 24)
    """Filters of each convolution; one block per entry."""
    padding: tuple[NonNegativeInt, ...] = (1, 0)
    """Zeros around the input of each convolution."""
    pool: tuple[bool, ...] = ()
    """Per block, True to halve height and width; empty for True in all blocks."""
    pooling: Literal["max", "average", "min", "stride"] = "max"
    """How they are halved: by a 2x2 pool at the end of the block, or a convolution of stride 2."""
    kernel_size: PositiveInt = 3
    """Height and width of every kernel."""
    batch_norm: bool = True
    """Follow each convolution by batch normalisation."""
    activation: Activation = "relu"
    """Activation after each convolution (or its batch normalisation)."""
    dense: Widths = (600, 100)
    """Units of the linear layers before the last."""
    dense_activation: Activation = "none"
    """Activation after each of those linear layers."""
    dropout: Rate = 0.4
    """Rate after each of those linear layers; survivors are scaled by 1 / (1 - rate)."""

    def check(self) -> None:
        """Raise `UsageError` for fields that do not fit together."""
        pool = {"pool": self.pool} if self.pool else {}
        check_lengths("convolution", features=self.features, padding=self.padding, **pool)

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        self.check()
        pools = self.pool or (True,) * len(self.features)
        check_size(self, images, self._least(pools))
        x = images.astype(self.dtype)
        for features, padding, pool in zip(self.features, self.padding, pools, strict=True):
            kernel = (self.kernel_size, self.kernel_size)
            strides = 2 if pool and self.pooling == "stride" else 1
            x = Conv(features, kernel, strides, padding=padding, dtype=self.dtype)(x)
            if self.batch_norm:
                x = BatchNorm(dtype=self.dtype)(x, use_running_average=not train)
            x = activate(self.activation)(x)
            if pool and self.pooling != "stride":
                x = POOLS[self.pooling](x, 2)
        x = x.reshape(x.shape[0], -1)
        for units in self.dense:
            x = nn.Dense(units, dtype=self.dtype)(x)
            x = activate(self.dense_activation)(x)
            x = nn.Dropout(self.dropout, deterministic=not train)(x)
        return self.logits(x)

    def _least(self, pools: tuple[bool, ...]) -> int:
        """Smallest image size, which leaves one pixel after the last block."""
        size = 1
        for padding, pool in reversed(list(zip(self.padding, pools, strict=True))):
            if pool:
                size = 2 * size - 1 if self.pooling == "stride" else 2 * size
            size = max(1, size + self.kernel_size - 1 - 2 * padding)
        return size


register_model(
    "convnet",
    ConvNet(),
    image_shape=(28, 28, 1),
    source="the documents; by default the Fashion-MNIST paper",
)
