"""Residual networks for ImageNet: 18 to 152 layers, in torchvision's form and in Keras'."""

from __future__ import annotations

import functools
from typing import Literal

import jax
from flax import linen as nn

from cnn_research import ops
from cnn_research.core.config import register_config
from cnn_research.models.layers import (
    BatchNorm,
    Conv,
    Dtype,
    GlobalPool,
    ImageNetClassifier,
    Widths,
    check_lengths,
)
from cnn_research.models.registry import register_model

Variant = Literal["torchvision", "keras"]

_INIT = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


def _layers(variant: Variant, dtype: Dtype):  # type: ignore[no-untyped-def]
    keras = variant == "keras"
    convolution = functools.partial(Conv, use_bias=keras, kernel_init=_INIT, dtype=dtype)
    return convolution, functools.partial(
        BatchNorm, epsilon=1.001e-5 if keras else 1e-5, dtype=dtype
    )


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions, or a bottleneck (1x1 to few channels, 3x3, 1x1 to four times as many),
    with a shortcut.

    The stride of a bottleneck is in its 3x3 convolution in torchvision ('v1.5'), and in the first
    one in Keras and the paper.
    """

    features: int
    strides: int
    bottleneck: bool
    variant: Variant
    dtype: Dtype

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        conv, norm = _layers(self.variant, self.dtype)
        few, strides = self.features, self.strides
        early, late = (strides, 1) if self.variant == "keras" else (1, strides)
        steps = [(few, 3, strides), (few, 3, 1)]
        if self.bottleneck:
            steps = [(few, 1, early), (few, 3, late), (4 * few, 1, 1)]
        y = x
        for number, (features, size, stride) in enumerate(steps, 1):
            y = nn.relu(y) if number > 1 else y
            y = conv(features, (size, size), stride, padding=size // 2, name=f"conv{number}")(y)
            y = norm(name=f"bn{number}")(y, use_running_average=not train)
        if x.shape != y.shape:
            x = conv(y.shape[-1], (1, 1), strides, padding=0, name="downsample.0")(x)
            x = norm(name="downsample.1")(x, use_running_average=not train)
        return nn.relu(x + y)


@register_config
class ResNet(ImageNetClassifier):
    """He, Zhang, Ren and Sun, 'Deep residual learning for image recognition' (2015).

    Images of any size.
    """

    blocks: Widths = (2, 2, 2, 2)
    """Residual blocks of each stage."""
    bottleneck: bool = False
    """Use blocks of three convolutions, as networks of 50 and more layers do, instead of two."""
    variant: Variant = "torchvision"
    """Implementation to follow: Keras has biases, another epsilon, and a block's stride in its
    first layer."""
    small: bool = False
    """For images of about 32x32: the stem is a 3x3 convolution without stride or pool."""

    @property
    def other_names(self) -> tuple[dict[str, str], ...]:
        """Our module -> its name in Keras' files, and in those of transformers."""
        keras = {"conv1": "conv1_conv", "bn1": "conv1_bn", "fc": "predictions"}
        stem = "resnet.embedder.embedder"
        transformers = {
            "conv1": f"{stem}.convolution",
            "bn1": f"{stem}.normalization",
            "fc": "classifier.1",
        }
        for stage, blocks in enumerate(self.blocks):
            for block in range(blocks):
                ours = f"layer{stage + 1}.{block}"
                in_keras = f"conv{stage + 2}_block{block + 1}"
                theirs = f"resnet.encoder.stages.{stage}.layers.{block}"
                for i, part in enumerate(("conv", "bn")):
                    kind = ("convolution", "normalization")[i]
                    keras[f"{ours}.downsample.{i}"] = f"{in_keras}_0_{part}"
                    transformers[f"{ours}.downsample.{i}"] = f"{theirs}.shortcut.{kind}"
                    for n in (1, 2, 3):
                        keras[f"{ours}.{part}{n}"] = f"{in_keras}_{n}_{part}"
                        transformers[f"{ours}.{part}{n}"] = f"{theirs}.layer.{n - 1}.{kind}"
        return keras, transformers

    def check(self) -> None:
        """Raise `UsageError` for fields that do not fit together."""
        check_lengths("stage", blocks=self.blocks)

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        conv, norm = _layers(self.variant, self.dtype)
        x = images.astype(self.dtype)
        if self.small:
            x = conv(64, (3, 3), padding=1, name="conv1")(x)
        else:
            x = conv(64, (7, 7), 2, padding=3, name="conv1")(x)
        x = nn.relu(norm(name="bn1")(x, use_running_average=not train))
        if not self.small:
            # Keras pads with zeros, which makes no difference after a ReLU.
            x = ops.max_pool(x, 3, 2, ((1, 1), (1, 1)))
        for stage, blocks in enumerate(self.blocks):
            for block in range(blocks):
                x = ResidualBlock(
                    64 * 2**stage,
                    2 if stage and not block else 1,
                    self.bottleneck,
                    self.variant,
                    self.dtype,
                    name=f"layer{stage + 1}.{block}",
                )(x, train)
        x = GlobalPool(name="avgpool")(x)
        return self.logits(x, name="fc")


_SOURCE = "He et al. 2015, arXiv:1512.03385"
for _depth, _blocks in {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
}.items():
    _model = ResNet(_blocks, bottleneck=_depth >= 50)
    _small = _model.clone(small=True, num_classes=10)
    register_model(f"resnet{_depth}", _model, _small, source=_SOURCE)
    if _depth >= 50:
        register_model(f"resnet{_depth}_keras", _model.clone(variant="keras"), source=_SOURCE)
