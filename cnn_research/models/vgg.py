"""VGG: 3x3 convolutions and 2x2 pools, with and without batch normalisation."""

from __future__ import annotations

import functools
from typing import Literal

import jax
from flax import linen as nn

from cnn_research import ops
from cnn_research.core.config import register_config
from cnn_research.core.ranges import PositiveInt
from cnn_research.models.layers import BatchNorm, Conv, ImageNetClassifier, Rate, check_size
from cnn_research.models.registry import register_model

_INIT = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
_Conv = functools.partial(Conv, kernel_size=(3, 3), padding=1, kernel_init=_INIT)
_FEATURES = (64, 128, 256, 512, 512)
_CONVOLUTIONS = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}
_LINEAR = ("classifier.0", "classifier.3", "classifier.6")


class AdaptivePool(nn.Module):
    """Average a map of any size to `size` x `size`."""

    size: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return ops.adaptive_avg_pool(x, self.size)


@register_config
class VGG(ImageNetClassifier):
    """Simonyan and Zisserman, 'Very deep convolutional networks for large-scale image
    recognition' (2014). Modules have torchvision's names.
    """

    depth: Literal[11, 13, 16, 19] = 16
    """Layers with weights."""
    batch_norm: bool = False
    """Follow each convolution by batch normalisation."""
    small: bool = False
    """For images of about 32x32: the last map is averaged to one pixel instead of 7x7."""
    hidden: PositiveInt = 4096
    """Units of the two linear layers before the last."""
    dropout: Rate = 0.5
    """Rate after each of these; survivors are scaled by 1 / (1 - rate)."""

    @property
    def flattened(self) -> dict[str, tuple[int, int, int]]:
        """Linear layer over a flattened map -> the map's height, width and channels."""
        return {_LINEAR[0]: (self._pooled, self._pooled, _FEATURES[-1])}

    @property
    def other_names(self) -> tuple[dict[str, str], ...]:
        """Our module -> its name in Keras' files, and in those of timm."""
        keras = {f"features.{n}": f"block{b}_conv{i}" for n, b, i in self._convolutions()}
        keras |= dict(zip(_LINEAR, ("fc1", "fc2", "predictions"), strict=True))
        timm = dict(zip(_LINEAR, ("pre_logits.fc1", "pre_logits.fc2", "head.fc"), strict=True))
        return keras, timm

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        check_size(self, images, 32)
        x = images.astype(self.dtype)
        last = 1
        for index, block, _ in self._convolutions():
            if block != last:
                x = ops.max_pool(x, 2)
                last = block
            x = _Conv(_FEATURES[block - 1], dtype=self.dtype, name=f"features.{index}")(x)
            if self.batch_norm:
                norm = BatchNorm(dtype=self.dtype, name=f"features.{index + 1}")
                x = norm(x, use_running_average=not train)
            x = nn.relu(x)
        x = ops.max_pool(x, 2)
        x = AdaptivePool(self._pooled, name="avgpool")(x)
        x = x.reshape(x.shape[0], -1)
        for name in _LINEAR[:2]:
            x = nn.relu(nn.Dense(self.hidden, dtype=self.dtype, name=name)(x))
            x = nn.Dropout(self.dropout, deterministic=not train)(x)
        return self.logits(x, name=_LINEAR[2])

    @property
    def _pooled(self) -> int:
        return 1 if self.small else 7

    def _convolutions(self) -> list[tuple[int, int, int]]:
        """Each convolution's index in torchvision's `features`, block, and number in it from 1."""
        convolutions, index = [], 0
        for block, count in enumerate(_CONVOLUTIONS[self.depth], 1):
            for number in range(1, count + 1):
                convolutions.append((index, block, number))
                index += 3 if self.batch_norm else 2
            index += 1
        return convolutions


_SOURCE = "Simonyan and Zisserman 2014, arXiv:1409.1556"
_DEPTHS: tuple[Literal[11, 13, 16, 19], ...] = (11, 13, 16, 19)
for _depth in _DEPTHS:
    for _norm in (False, True):
        _name = f"vgg{_depth}_bn" if _norm else f"vgg{_depth}"
        _small = VGG(_depth, _norm, small=True, hidden=512, num_classes=10)
        register_model(_name, VGG(_depth, _norm), _small, source=_SOURCE)
