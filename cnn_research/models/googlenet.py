"""GoogLeNet (Inception v1): blocks of parallel convolutions of several sizes."""

from __future__ import annotations

from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn

from cnn_research import ops
from cnn_research.core.config import register_config
from cnn_research.core.ranges import NonNegativeFloat
from cnn_research.models.layers import (
    BatchNorm,
    Conv,
    Dtype,
    GlobalPool,
    ImageNetClassifier,
    Rate,
    check_size,
)
from cnn_research.models.registry import register_model

_INIT = nn.initializers.he_normal()
_AUXILIARY_DROPOUT = 0.7
_BLOCKS = {
    # 1x1, 3x3 reduction, 3x3, 5x5 reduction, 5x5, after the pool
    "3a": (64, 96, 128, 16, 32, 32),
    "3b": (128, 128, 192, 32, 96, 64),
    "4a": (192, 96, 208, 16, 48, 64),
    "4b": (160, 112, 224, 24, 64, 64),
    "4c": (128, 128, 256, 24, 64, 64),
    "4d": (112, 144, 288, 32, 64, 64),
    "4e": (256, 160, 320, 32, 128, 128),
    "5a": (256, 160, 320, 32, 128, 128),
    "5b": (384, 192, 384, 48, 128, 128),
}
_POOLED_AFTER = {"3b": 3, "4e": 2}
"""Modules followed by a max pool of stride 2 -> its window."""
_AUXILIARY_AFTER = {"4a": "aux1", "4d": "aux2"}


class ConvNorm(nn.Module):
    """A convolution, batch normalisation if `norm`, and a ReLU."""

    features: int
    kernel_size: tuple[int, int] = (1, 1)
    strides: int = 1
    padded: bool = True
    """Pad with zeros by half the kernel size, so that only strides shrink the map."""
    norm: bool = True
    scale: bool = True
    dtype: Dtype = "float32"

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        pads = [size // 2 if self.padded else 0 for size in self.kernel_size]
        x = Conv(
            self.features,
            self.kernel_size,
            self.strides,
            padding=[(pad, pad) for pad in pads],
            use_bias=not self.norm,
            kernel_init=_INIT,
            dtype=self.dtype,
            name="conv",
        )(x)
        if self.norm:
            norm = BatchNorm(epsilon=1e-3, use_scale=self.scale, dtype=self.dtype, name="bn")
            x = norm(x, use_running_average=not train)
        return nn.relu(x)


class Inception(nn.Module):
    """Four branches over the same input, with concatenated channels."""

    features: tuple[int, ...]
    largest: int
    norm: bool
    dtype: Dtype

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        one, three_reduced, three, five_reduced, five, pooled = self.features

        def convolution(x: jax.Array, features: int, size: int, name: str) -> jax.Array:
            layer = ConvNorm(features, (size, size), norm=self.norm, dtype=self.dtype, name=name)
            return layer(x, train)

        around = ops.max_pool(x, 3, 1, ((1, 1), (1, 1)))
        branches = [
            convolution(x, one, 1, "branch1"),
            convolution(convolution(x, three_reduced, 1, "branch2.0"), three, 3, "branch2.1"),
            convolution(
                convolution(x, five_reduced, 1, "branch3.0"), five, self.largest, "branch3.1"
            ),
            convolution(around, pooled, 1, "branch4.1"),
        ]
        return jnp.concatenate(branches, axis=-1)


class AuxiliaryHead(nn.Module):
    """A small classifier halfway through, which adds a gradient to the lower layers."""

    num_classes: int
    norm: bool
    dtype: Dtype

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        x = ops.adaptive_avg_pool(x, 4)
        x = ConvNorm(128, norm=self.norm, dtype=self.dtype, name="conv")(x, train)
        x = nn.Dense(1024, dtype=self.dtype, name="fc1")(x.reshape(x.shape[0], -1))
        x = nn.Dropout(_AUXILIARY_DROPOUT, deterministic=not train)(nn.relu(x))
        return nn.Dense(self.num_classes, dtype=self.dtype, name="fc2")(x).astype(jnp.float32)


@register_config
class GoogLeNet(ImageNetClassifier):
    """Szegedy et al., 'Going deeper with convolutions' (2014).

    Modules are named as in torchvision, whose weights can be loaded.
    """

    variant: Literal["torchvision", "paper"] = "torchvision"
    """torchvision's has batch normalisation, and 3x3 kernels instead of 5x5; the paper's has biases
    and local response normalisation after the first and third convolution."""
    auxiliary_weight: NonNegativeFloat = 0.3
    """Weight of each of the two auxiliary heads in the objective; 0 for no heads."""
    dropout: Rate = 0.2
    """Rate before the last layer (the paper's is 0.4); survivors are scaled by 1 / (1 - rate)."""
    small: bool = False
    """For images of about 32x32: the first three strides are left out."""

    @property
    def flattened(self) -> dict[str, tuple[int, int, int]]:
        """Linear layers over a flattened map -> the map's height, width and channels."""
        return {f"{head}.fc1": (4, 4, 128) for head in _AUXILIARY_AFTER.values()}

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        check_size(self, images, 2 if self.small else 15)
        norm = self.variant == "torchvision"
        options: dict[str, Any] = {"norm": norm, "dtype": self.dtype}

        def responses(x: jax.Array) -> jax.Array:
            return x if norm else ops.local_response_norm(x)

        x = images.astype(self.dtype)
        if self.small:
            x = ConvNorm(64, (3, 3), name="conv1", **options)(x, train)
        else:
            x = ConvNorm(64, (7, 7), 2, name="conv1", **options)(x, train)
            x = _pool_to_the_edge(x, 3)
        x = responses(x)
        x = ConvNorm(64, name="conv2", **options)(x, train)
        x = ConvNorm(192, (3, 3), name="conv3", **options)(x, train)
        x = responses(x)
        if not self.small:
            x = _pool_to_the_edge(x, 3)
        for block, features in _BLOCKS.items():
            layer = Inception(features, 3 if norm else 5, name=f"inception{block}", **options)
            x = layer(x, train)
            auxiliary = self.auxiliary_weight and (train or self.is_initializing())
            if block in _AUXILIARY_AFTER and auxiliary:
                name = _AUXILIARY_AFTER[block]
                logits = AuxiliaryHead(self.num_classes, name=name, **options)(x, train)
                if train:
                    self.sow("auxiliary", f"{name}_logits", (self.auxiliary_weight, logits))
            if block in _POOLED_AFTER:
                x = _pool_to_the_edge(x, _POOLED_AFTER[block])
        x = GlobalPool(name="avgpool")(x)
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        return self.logits(x, name="fc")


def _pool_to_the_edge(x: jax.Array, window: int) -> jax.Array:
    """Max pool of stride 2 whose last windows may extend beyond the edge."""
    over = []
    for size in x.shape[1:3]:
        count = max(1, -(-(size - window) // 2) + 1)
        over.append((0, max(0, (count - 1) * 2 + window - size)))
    return ops.max_pool(x, window, 2, over)


_SOURCE = "Szegedy et al. 2014, arXiv:1409.4842"
register_model(
    "googlenet",
    GoogLeNet(),
    GoogLeNet(small=True, auxiliary_weight=0.0, num_classes=10),
    source=_SOURCE,
)
register_model("googlenet_lrn", GoogLeNet(variant="paper", dropout=0.4), source=_SOURCE)
