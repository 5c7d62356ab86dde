"""Layers that every model is made of."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Literal

import jax
from flax import linen as nn

from cnn_research import ops
from cnn_research.errors import UsageError

Dtype = Literal["float32", "bfloat16"]
"""What a model computes in; parameters, statistics and logits stay float32."""

Activation = Literal["relu", "gelu", "silu", "none"]

Conv = functools.partial(nn.Conv, conv_general_dilated=ops.conv_general_dilated)
"""flax's convolution in the formulation that is fast on this platform."""

# PyTorch's defaults (its momentum of 0.1 is flax's 0.9), which the documents' networks use.
# Called as BatchNorm(...)(x, use_running_average=not train): a frozen layer is frozen there.
BatchNorm = functools.partial(nn.BatchNorm, momentum=0.9, epsilon=1e-5)


def activate(name: Activation) -> Callable[[jax.Array], jax.Array]:
    """The activation function of that name."""
    return {"relu": nn.relu, "gelu": nn.gelu, "silu": nn.silu, "none": lambda x: x}[name]


def check_size(model: nn.Module, images: jax.Array, least: int) -> None:
    """Raises `UsageError` for images too small for the architecture.

    Args:
        model: named in the message.
        images: `[batch, height, width, channels]`.
        least: pixels that height and width must have.
    """
    height, width = images.shape[1:3]
    if min(height, width) < least:
        raise UsageError(
            f"{type(model).__name__} needs images of {least}x{least} pixels at least, these are "
            f"{height}x{width}: give larger ones (--data.image-size), or a small-image network"
        )
