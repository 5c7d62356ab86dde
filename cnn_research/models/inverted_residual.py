"""The building block of EfficientNet and MobileNetV3, with timm's layer names."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import jax
from flax import linen as nn

from cnn_research.models.layers import BatchNorm, Conv, Dtype, PooledClassifier, Rate

Variant = Literal["torch", "tensorflow"]
Function = Callable[[jax.Array], jax.Array]

_INIT = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
# In a depthwise convolution fan-in and fan-out are equal, but flax computes a larger fan-out.
_DEPTHWISE_INIT = nn.initializers.variance_scaling(2.0, "fan_in", "normal")


_NORMS = {
    "torch": BatchNorm,
    "tensorflow": functools.partial(BatchNorm, momentum=0.99, epsilon=1e-3),
}


def round_channels(channels: float) -> int:
    """Round to a multiple of 8, at least 8, that is not more than a tenth below `channels`."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * channels else rounded


def conv_norm(
    x: jax.Array,
    features: int,
    size: int,
    names: tuple[str, str],
    *,
    variant: Variant,
    dtype: Dtype,
    train: bool,
    strides: int = 1,
    depthwise: bool = False,
) -> jax.Array:
    """Apply a convolution without bias and its normalisation, named `names` in the calling module.

    With stride 2, TensorFlow pads an even side after the last pixel only.
    """
    convolution = Conv(
        features,
        (size, size),
        strides,
        padding="SAME" if variant == "tensorflow" else size // 2,
        feature_group_count=features if depthwise else 1,
        use_bias=False,
        kernel_init=_DEPTHWISE_INIT if depthwise else _INIT,
        dtype=dtype,
        name=names[0],
    )
    norm = _NORMS[variant](dtype=dtype, name=names[1])
    return norm(convolution(x), use_running_average=not train)


class Squeeze(NamedTuple):
    """Squeeze-and-excitation: units of its first layer, and the activation after each layer."""

    units: int
    activation: Function
    gate: Function


class SqueezeExcite(nn.Module):
    """Hu, Shen and Sun, 'Squeeze-and-excitation networks' (2017): scale each channel by a weight
    computed from the means of all channels."""

    squeeze: Squeeze
    dtype: Dtype = "float32"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        dense = functools.partial(nn.Dense, kernel_init=_INIT, dtype=self.dtype)
        weights = dense(self.squeeze.units, name="conv_reduce")(x.mean(axis=(1, 2)))
        weights = dense(x.shape[-1], name="conv_expand")(self.squeeze.activation(weights))
        return x * self.squeeze.gate(weights)[:, None, None]


class Block(NamedTuple):
    """A row of a paper's table."""

    size: int
    """Height and width of the depthwise kernel."""
    expanded: int
    """Channels of the depthwise convolution; if equal to the input's, there is no expansion."""
    features: int
    """Output channels."""
    strides: int
    activation: Function
    squeeze: Squeeze | None


class InvertedResidual(nn.Module):
    """A 1x1 convolution to many channels, a depthwise one, and a 1x1 convolution to few channels.

    The shortcut is there where the shapes allow; in training the block is then skipped for an image
    at the rate `drop_path` (stochastic depth, Huang et al. 2016).
    """

    block: Block
    variant: Variant = "torch"
    drop_path: Rate = 0.0
    dtype: Dtype = "float32"

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        size, expanded, features, strides, activation, squeeze = self.block
        layer = functools.partial(conv_norm, variant=self.variant, dtype=self.dtype, train=train)
        expands = expanded != x.shape[-1]
        norms = iter(("bn1", "bn2", "bn3"))
        y = x
        if expands:
            y = activation(layer(y, expanded, 1, ("conv_pw", next(norms))))
        names = ("conv_dw", next(norms))
        y = activation(layer(y, expanded, size, names, strides=strides, depthwise=True))
        if squeeze:
            y = SqueezeExcite(squeeze, self.dtype, name="se")(y)
        y = layer(y, features, 1, ("conv_pwl" if expands else "conv_pw", next(norms)))
        if strides > 1 or x.shape != y.shape:
            return y
        drop = nn.Dropout(self.drop_path, broadcast_dims=(1, 2, 3), name="drop_path")
        return x + drop(y, deterministic=not train)


def inverted_residuals(
    network: PooledClassifier,
    x: jax.Array,
    pooled: list[jax.Array],
    stages: Sequence[Sequence[Block]],
    drop_path: float,
    *,
    variant: Variant,
    dtype: Dtype,
    train: bool,
) -> tuple[jax.Array, list[jax.Array]]:
    """Apply the blocks of all stages of a network, and pool their outputs as it asks.

    The rate at which blocks are skipped grows from 0 to `drop_path`.
    """
    done, count = 0, sum(map(len, stages))
    for stage, blocks in enumerate(stages):
        for number, block in enumerate(blocks):
            name = f"blocks.{stage}.{number}"
            rate = drop_path * done / count
            x = InvertedResidual(block, variant, rate, dtype, name=name)(x, train)
            x, pooled = network.passed(x, pooled, name)
            done += 1
    return x, pooled
