"""MobileNetV1: depthwise separable convolutions."""

from __future__ import annotations

import functools
from typing import Annotated, Any, Literal

import jax
from flax import linen as nn

from cnn_research.core.config import register_config
from cnn_research.core.ranges import Range
from cnn_research.models.layers import (
    BatchNorm,
    Conv,
    PooledClassifier,
    Rate,
    check_size,
)
from cnn_research.models.registry import register_model

_Conv = functools.partial(Conv, use_bias=False, kernel_init=nn.initializers.he_normal())
_FEATURES = (64, 128, 128, 256, 256, 512, 512, 512, 512, 512, 512, 1024, 1024)
"""Filters of each block's 1x1 convolution."""
_HALVING = (2, 4, 6, 12)
"""Blocks, counted from 1, that halve height and width."""


@register_config
class MobileNetV1(PooledClassifier):
    """Howard et al., 'MobileNets: efficient convolutional neural networks for mobile vision
    applications' (2017).

    Layer names, padding and epsilon are those of Keras, whose weights can be loaded.
    """

    width: Annotated[float, Range(minimum=1 / 32)] = 1.0
    """Multiplies the filters of every layer."""
    last: Literal["conv_pw_13", "conv_dw_13"] = "conv_pw_13"
    """The last convolution: the paper's, or the one before it."""
    dropout: Rate = 0.001
    """Rate before the last layer; survivors are scaled by 1 / (1 - rate)."""
    small: bool = False
    """For images of about 32x32: the first two strides are left out."""

    @property
    def other_names(self) -> tuple[dict[str, str], ...]:
        """Our module -> its name in Keras' files."""
        return ({"predictions": "conv_preds"},)

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        check_size(self, images, 8 if self.small else 31)

        def filters(features: int) -> int:
            return int(self.width * features)

        def step(
            x: jax.Array,
            pooled: list[jax.Array],
            features: int,
            name: str,
            size: int,
            **options: Any,
        ) -> tuple[jax.Array, list[jax.Array]]:
            """Convolve, normalise and activate, and pool the result with `pool="all"`."""
            x = _Conv(features, (size, size), dtype=self.dtype, name=name, **options)(x)
            norm = BatchNorm(epsilon=1e-3, dtype=self.dtype, name=f"{name}_bn")
            x = nn.relu6(norm(x, use_running_average=not train))
            return self.passed(x, pooled, name)

        x = images.astype(self.dtype)
        pooled: list[jax.Array] = []
        strides = 1 if self.small else 2
        # As in Keras: an odd height or width is padded on both sides.
        x, pooled = step(x, pooled, filters(32), "conv1", 3, strides=strides, padding="SAME")
        for block, features in enumerate(_FEATURES, 1):
            halves = block in _HALVING and not (self.small and block == _HALVING[0])
            channels = x.shape[3]
            x, pooled = step(
                x,
                pooled,
                channels,
                f"conv_dw_{block}",
                3,
                feature_group_count=channels,
                strides=2 if halves else 1,
                padding=((0, 1), (0, 1)) if halves else 1,
            )
            if self.last == f"conv_dw_{block}":
                break
            x, pooled = step(x, pooled, filters(features), f"conv_pw_{block}", 1)
        return self.pooled_logits(x, pooled, train, pool="pool", last="predictions")


_SOURCE = "Howard et al. 2017, arXiv:1704.04861"
register_model(
    "mobilenet_v1", MobileNetV1(), MobileNetV1(small=True, num_classes=10), source=_SOURCE
)
