"""Residual networks for CIFAR-10: 20 to 110 narrow layers, shortcuts without parameters."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from flax import linen as nn

from cnn_research.core.config import register_config
from cnn_research.core.errors import UsageError
from cnn_research.core.ranges import PositiveInt
from cnn_research.models.layers import (
    BatchNorm,
    Classifier,
    Conv,
    Dtype,
    GlobalPool,
    Widths,
    check_depth,
)
from cnn_research.models.registry import register_model
from cnn_research.ops.views import cut

_INIT = nn.initializers.he_normal()
_Conv = functools.partial(Conv, kernel_size=(3, 3), padding=1, use_bias=False, kernel_init=_INIT)


class CifarBlock(nn.Module):
    """Two 3x3 convolutions with a shortcut; stride 2 halves height and width."""

    features: int
    strides: int = 1
    dtype: Dtype = "float32"

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        y = _Conv(self.features, strides=self.strides, dtype=self.dtype, name="conv1")(x)
        y = BatchNorm(dtype=self.dtype, name="bn1")(y, use_running_average=not train)
        y = _Conv(self.features, dtype=self.dtype, name="conv2")(nn.relu(y))
        y = BatchNorm(dtype=self.dtype, name="bn2")(y, use_running_average=not train)
        # The paper's option A: every other pixel, and zeros for the new channels.
        x = cut(x, (0, 0), y.shape[1:3], (self.strides, self.strides))
        new = self.features - x.shape[3]
        x = jnp.pad(x, ((0, 0), (0, 0), (0, 0), (new // 2, new - new // 2)))
        return nn.relu(x + y)


@register_config
class CifarResNet(Classifier):
    """He, Zhang, Ren and Sun, 'Deep residual learning for image recognition' (2015), section 4.2.

    Modules are named as in akamaster/pytorch_resnet_cifar10, whose weights can be loaded.
    """

    depth: PositiveInt = 20
    """Layers with weights: 6 n + 2 for n blocks in each of the three stages."""
    features: Widths = (16, 32, 64)
    """Filters of each stage."""

    def check(self) -> None:
        """Raise `UsageError` for fields that do not fit together."""
        check_depth(self.depth, 6, 2, "20, 32 or 56")
        if len(self.features) != 3 or list(self.features) != sorted(self.features):
            shown = " ".join(map(str, self.features))
            raise UsageError(f"--model.features is {shown}: must be three numbers, none decreasing")

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        x = images.astype(self.dtype)
        x = _Conv(self.features[0], dtype=self.dtype, name="conv1")(x)
        x = BatchNorm(dtype=self.dtype, name="bn1")(x, use_running_average=not train)
        x = nn.relu(x)
        for stage, features in enumerate(self.features, 1):
            for block in range((self.depth - 2) // 6):
                strides = 2 if stage > 1 and block == 0 else 1
                name = f"layer{stage}.{block}"
                x = CifarBlock(features, strides, self.dtype, name=name)(x, train)
        x = GlobalPool(name="avgpool")(x)
        return self.logits(x, kernel_init=_INIT, name="linear")


for _depth in (20, 32, 44, 56, 110):
    register_model(
        f"resnet{_depth}_cifar",
        CifarResNet(depth=_depth),
        image_shape=(32, 32, 3),
        source="He et al. 2015, arXiv:1512.03385, section 4.2",
    )
