"""Residual networks for ImageNet: 18 to 152 layers, as torchvision has them and as Keras does."""

from __future__ import annotations

import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn

from cnn_research import ops
from cnn_research.core.config import register_config
from cnn_research.core.ranges import PositiveInt
from cnn_research.models.layers import BatchNorm, Conv, Dtype, GlobalPool, Widths, check_lengths
from cnn_research.models.registry import register_model

Variant = Literal["torchvision", "keras"]

_INIT = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


def _layers(variant: Variant, dtype: Dtype):  # type: ignore[no-untyped-def]
    """Convolution and batch normalisation as the variant has them."""
    keras = variant == "keras"
    convolution = functools.partial(Conv, use_bias=keras, kernel_init=_INIT, dtype=dtype)
    return convolution, functools.partial(
        BatchNorm, epsilon=1.001e-5 if keras else 1e-5, dtype=dtype
    )


class BasicBlock(nn.Module):
    """Two 3x3 convolutions, and their input added."""

    features: int
    strides: int = 1
    variant: Variant = "torchvision"
    dtype: Dtype = "float32"

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        conv, norm = _layers(self.variant, self.dtype)
        y = conv(self.features, (3, 3), self.strides, padding=1, name="conv1")(x)
        y = nn.relu(norm(name="bn1")(y, use_running_average=not train))
        y = conv(self.features, (3, 3), padding=1, name="conv2")(y)
        y = norm(name="bn2")(y, use_running_average=not train)
        if x.shape != y.shape:
            x = conv(self.features, (1, 1), self.strides, padding=0, name="downsample.0")(x)
            x = norm(name="downsample.1")(x, use_running_average=not train)
        return nn.relu(x + y)


class Bottleneck(nn.Module):
    """A 1x1 convolution to few channels, a 3x3 one, a 1x1 to four times as many; input added.

    torchvision has the stride in the 3x3 convolution ('v1.5'), Keras, as the paper, in the first.
    """

    features: int
    strides: int = 1
    variant: Variant = "torchvision"
    dtype: Dtype = "float32"

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        conv, norm = _layers(self.variant, self.dtype)
        early, late = (self.strides, 1) if self.variant == "keras" else (1, self.strides)
        y = conv(self.features, (1, 1), early, padding=0, name="conv1")(x)
        y = nn.relu(norm(name="bn1")(y, use_running_average=not train))
        y = conv(self.features, (3, 3), late, padding=1, name="conv2")(y)
        y = nn.relu(norm(name="bn2")(y, use_running_average=not train))
        y = conv(4 * self.features, (1, 1), padding=0, name="conv3")(y)
        y = norm(name="bn3")(y, use_running_average=not train)
        if x.shape != y.shape:
            x = conv(4 * self.features, (1, 1), self.strides, padding=0, name="downsample.0")(x)
            x = norm(name="downsample.1")(x, use_running_average=not train)
        return nn.relu(x + y)


@register_config
class ResNet(nn.Module):
    """He, Zhang, Ren and Sun, 'Deep residual learning for image recognition' (2015).

    Images of any size.
    """

    blocks: Widths = (2, 2, 2, 2)
    """Residual blocks of each stage."""
    bottleneck: bool = False
    """Whether blocks are of three convolutions, from 50 layers up, or of two."""
    variant: Variant = "torchvision"
    """Whose details: Keras has biases, another epsilon, and halves in a block's first layer."""
    small: bool = False
    """For images of about 32x32: the stem is a 3x3 convolution, without stride and pool."""
    dtype: Dtype = "float32"
    """What the layers compute in."""
    num_classes: PositiveInt = 1000
    """Units of the last layer; set from the data."""

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
        """Raises `UsageError` for fields that do not fit together."""
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
            # Keras pads with zeros, which never win over what comes out of relu either.
            x = ops.max_pool(x, 3, 2, ((1, 1), (1, 1)))
        kind: Any = Bottleneck if self.bottleneck else BasicBlock
        for stage, blocks in enumerate(self.blocks):
            for block in range(blocks):
                x = kind(
                    64 * 2**stage,
                    2 if stage and not block else 1,
                    self.variant,
                    self.dtype,
                    name=f"layer{stage + 1}.{block}",
                )(x, train)
        x = GlobalPool(name="avgpool")(x)
        x = nn.Dense(self.num_classes, dtype=self.dtype, name="fc")(x)
        return x.astype(jnp.float32)


_SOURCE = "He et al. 2015, arXiv:1512.03385"
for _depth, _blocks in {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
}.items():
    _model = ResNet(_blocks, bottleneck=_depth >= 50)
    register_model(f"resnet{_depth}", _model, source=_SOURCE)
    register_model(
        f"resnet{_depth}_small",
        _model.clone(small=True, num_classes=10),
        image_shape=(32, 32, 3),
        source=_SOURCE,
    )
    if _depth >= 50:
        register_model(f"resnet{_depth}_keras", _model.clone(variant="keras"), source=_SOURCE)
