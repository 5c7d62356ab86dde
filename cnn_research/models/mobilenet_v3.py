"""MobileNetV3: inverted residuals, found by an architecture search for phones."""

from __future__ import annotations

from typing import Any, Literal

import jax
from flax import linen as nn

from cnn_research.core.config import register_config
from cnn_research.models.inverted_residual import (
    Block,
    Squeeze,
    Variant,
    conv_norm,
    inverted_residuals,
    round_channels,
)
from cnn_research.models.layers import PooledClassifier, Rate
from cnn_research.models.registry import register_model


def _block(size: int, expanded: int, features: int, options: str = "", strides: int = 1) -> Block:
    """A row of the paper's tables.

    `options` may contain SE (squeeze-and-excitation) and RE (ReLU instead of h-swish).
    """
    return Block(
        size,
        expanded,
        features,
        strides,
        nn.relu if "RE" in options else nn.hard_swish,
        Squeeze(round_channels(expanded / 4), nn.relu, nn.hard_sigmoid)
        if "SE" in options
        else None,
    )


_STAGES = {
    "small": (
        (_block(3, 16, 16, "SE RE", strides=2),),
        (_block(3, 72, 24, "RE", strides=2), _block(3, 88, 24, "RE")),
        (_block(5, 96, 40, "SE", strides=2), *[_block(5, 240, 40, "SE")] * 2),
        (_block(5, 120, 48, "SE"), _block(5, 144, 48, "SE")),
        (_block(5, 288, 96, "SE", strides=2), *[_block(5, 576, 96, "SE")] * 2),
    ),
    "large": (
        (_block(3, 16, 16, "RE"),),
        (_block(3, 64, 24, "RE", strides=2), _block(3, 72, 24, "RE")),
        (_block(5, 72, 40, "SE RE", strides=2), *[_block(5, 120, 40, "SE RE")] * 2),
        (
            _block(3, 240, 80, strides=2),
            _block(3, 200, 80),
            *[_block(3, 184, 80)] * 2,
        ),
        (_block(3, 480, 112, "SE"), _block(3, 672, 112, "SE")),
        (_block(5, 672, 160, "SE", strides=2), *[_block(5, 960, 160, "SE")] * 2),
    ),
}
_LAST = {"small": (576, 1024), "large": (960, 1280)}
"""Channels of the last convolution, and units of the layer before the logits."""


@register_config
class MobileNetV3(PooledClassifier):
    """Howard et al., 'Searching for MobileNetV3' (2019), for images of any size.

    Layers are named as in timm, whose weights can be loaded; those of its `tf_mobilenetv3_*` were
    trained with TensorFlow and need the variant `tensorflow`.
    """

    size: Literal["small", "large"] = "small"
    """One of the paper's two networks."""
    variant: Variant = "torch"
    """Library with which the weights were trained, and whose padding of strided convolutions and
    momentum and epsilon of batch normalisation are used."""
    dropout: Rate = 0.2
    """Rate before the last layer; survivors are scaled by 1 / (1 - rate)."""
    drop_path: Rate = 0.0
    """Stochastic depth: rate at which training skips the last block for an image; earlier blocks
    have linearly lower rates, from 0 for the first."""

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        options: Any = {"variant": self.variant, "dtype": self.dtype, "train": train}
        stages, (channels, units) = _STAGES[self.size], _LAST[self.size]
        x = images.astype(self.dtype)
        x = nn.hard_swish(conv_norm(x, 16, 3, ("conv_stem", "bn1"), strides=2, **options))
        x, pooled = self.passed(x, [], "conv_stem")
        x, pooled = inverted_residuals(self, x, pooled, stages, self.drop_path, **options)
        last = f"blocks.{len(stages)}.0"
        x = nn.hard_swish(conv_norm(x, channels, 1, (f"{last}.conv", f"{last}.bn1"), **options))
        x = nn.hard_swish(nn.Dense(units, dtype=self.dtype, name="conv_head")(x.mean(axis=(1, 2))))
        # A map of one pixel, used like the last map of other networks.
        x, pooled = self.passed(x[:, None, None], pooled, "conv_head")
        return self.pooled_logits(x, pooled, train, pool="global_pool", last="classifier")


for _size in ("small", "large"):
    register_model(
        f"mobilenet_v3_{_size}",
        MobileNetV3(size=_size),  # type: ignore[arg-type]
        source="Howard et al. 2019, arXiv:1905.02244",
    )
