"""Wide residual networks: few layers, many channels."""

from __future__ import annotations

import functools

import jax
from flax import linen as nn

from cnn_research.core.config import register_config
from cnn_research.core.ranges import PositiveInt
from cnn_research.models.layers import (
    BatchNorm,
    Classifier,
    Conv,
    Dtype,
    GlobalPool,
    Rate,
    check_depth,
)
from cnn_research.models.registry import register_model

_INIT = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
_Conv = functools.partial(Conv, kernel_size=(3, 3), padding=1, use_bias=False, kernel_init=_INIT)


class WideBlock(nn.Module):
    """Normalisation, activation and a 3x3 convolution, twice, with a shortcut."""

    features: int
    strides: int = 1
    dropout: Rate = 0.0
    dtype: Dtype = "float32"

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        conv = functools.partial(_Conv, self.features, dtype=self.dtype)
        y = BatchNorm(dtype=self.dtype, name="bn1")(x, use_running_average=not train)
        y = nn.relu(y)
        if x.shape[3] != self.features:
            x = conv(strides=self.strides, kernel_size=(1, 1), padding=0, name="convShortcut")(y)
        y = conv(strides=self.strides, name="conv1")(y)
        y = BatchNorm(dtype=self.dtype, name="bn2")(y, use_running_average=not train)
        y = nn.Dropout(self.dropout, deterministic=not train)(nn.relu(y))
        return x + conv(name="conv2")(y)


@register_config
class WideResNet(Classifier):
    """Zagoruyko and Komodakis, 'Wide residual networks' (2016), for small images.

    Modules are named as in xternalman/WideResNet-pytorch.
    """

    depth: PositiveInt = 28
    """Convolutions: 6 n + 4 for n blocks in each of the three stages."""
    width: PositiveInt = 10
    """Multiplies the 16, 32 and 64 filters of the stages."""
    dropout: Rate = 0.0
    """Rate between a block's convolutions (the paper's is 0.3); survivors are scaled."""

    def check(self) -> None:
        """Raise `UsageError` for fields that do not fit together."""
        check_depth(self.depth, 6, 4, "16, 22 or 28")

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        x = _Conv(16, dtype=self.dtype, name="conv1")(images.astype(self.dtype))
        for stage in range(3):
            for block in range((self.depth - 4) // 6):
                x = WideBlock(
                    16 * 2**stage * self.width,
                    2 if stage and not block else 1,
                    self.dropout,
                    self.dtype,
                    name=f"block{stage + 1}.layer.{block}",
                )(x, train)
        x = nn.relu(BatchNorm(dtype=self.dtype, name="bn1")(x, use_running_average=not train))
        x = GlobalPool(name="avgpool")(x)
        return self.logits(x, name="fc")


for _depth, _width in ((28, 10), (16, 4)):
    register_model(
        f"wide_resnet{_depth}_{_width}",
        WideResNet(_depth, _width),
        image_shape=(32, 32, 3),
        source="Zagoruyko and Komodakis 2016, arXiv:1605.07146",
    )
