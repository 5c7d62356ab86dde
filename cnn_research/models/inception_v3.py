"""Inception v3: Inception modules with factorised kernels."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Literal

import jax
import jax.numpy as jnp
from flax import linen as nn

from cnn_research import ops
from cnn_research.core.config import register_config
from cnn_research.core.ranges import NonNegativeFloat
from cnn_research.models.googlenet import ConvNorm
from cnn_research.models.layers import Dtype, GlobalPool, ImageNetClassifier, Rate, check_size
from cnn_research.models.registry import register_model

Convolution = tuple[int, int, int]
"""Filters, height and width of the kernel."""
Branch = tuple[tuple[tuple[str, int, tuple[int, int]], ...], ...]
"""Consecutive steps; the convolutions of a step (name, filters, height and width of the kernel)
have the same input and are concatenated."""


def _branch(name: str, *steps: Convolution | tuple[Convolution, Convolution]) -> Branch:
    """Name the convolutions of a branch: numbers if there are several, letters in parallel."""
    branch = []
    for number, step in enumerate(steps, 1):
        numbered = f"{name}_{number}" if len(steps) > 1 else name
        beside = {"": step} if isinstance(step[0], int) else dict(zip("ab", step, strict=True))
        branch.append(tuple((numbered + x, n, (h, w)) for x, (n, h, w) in beside.items()))
    return tuple(branch)


_DOUBLE = _branch("branch3x3dbl", (64, 1, 1), (96, 3, 3), (96, 3, 3))


def _fine(pooled: int) -> tuple[Branch, ...]:
    return (
        _branch("branch1x1", (64, 1, 1)),
        _branch("branch5x5", (48, 1, 1), (64, 5, 5)),
        _DOUBLE,
        _branch("branch_pool", (pooled, 1, 1)),
    )


def _middle(few: int) -> tuple[Branch, ...]:
    return (
        _branch("branch1x1", (192, 1, 1)),
        _branch("branch7x7", (few, 1, 1), (few, 1, 7), (192, 7, 1)),
        _branch("branch7x7dbl", (few, 1, 1), (few, 7, 1), (few, 1, 7), (few, 7, 1), (192, 1, 7)),
        _branch("branch_pool", (192, 1, 1)),
    )


_FORK = ((384, 1, 3), (384, 3, 1))
_COARSE = (
    _branch("branch1x1", (320, 1, 1)),
    _branch("branch3x3", (384, 1, 1), _FORK),
    _branch("branch3x3dbl", (448, 1, 1), (384, 3, 3), _FORK),
    _branch("branch_pool", (192, 1, 1)),
)

_MODULES = {
    "Mixed_5b": _fine(32),
    "Mixed_5c": _fine(64),
    "Mixed_5d": _fine(64),
    "Mixed_6a": (_branch("branch3x3", (384, 3, 3)), _DOUBLE),
    "Mixed_6b": _middle(128),
    "Mixed_6c": _middle(160),
    "Mixed_6d": _middle(160),
    "Mixed_6e": _middle(192),
    "Mixed_7a": (
        _branch("branch3x3", (192, 1, 1), (320, 3, 3)),
        _branch("branch7x7x3", (192, 1, 1), (192, 1, 7), (192, 7, 1), (192, 3, 3)),
    ),
    "Mixed_7b": _COARSE,
    "Mixed_7c": _COARSE,
}
_HALVING = ("Mixed_6a", "Mixed_7a")
_AUXILIARY_AFTER = "Mixed_6e"
_STEM = ("Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "Conv2d_3b_1x1", "Conv2d_4a_3x3")


class Mixed(nn.Module):
    """Branches of convolutions and a pooled branch, with concatenated channels.

    To halve height and width, the last convolution of each branch has stride 2, and the pooled
    branch is only a max pool.
    """

    branches: tuple[Branch, ...]
    halves: bool
    keras: bool
    dtype: Dtype

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        conv = functools.partial(ConvNorm, scale=not self.keras, dtype=self.dtype)
        maps = []
        for branch in self.branches:
            y = x
            if branch[0][0][0] == "branch_pool":
                y = ops.avg_pool(x, 3, 1, ((1, 1), (1, 1)), count_include_pad=not self.keras)
            for step in branch:
                halves = self.halves and step is branch[-1]
                outputs = [
                    conv(features, size, 2 if halves else 1, not halves, name=name)(y, train)
                    for name, features, size in step
                ]
                y = outputs[0] if len(outputs) == 1 else jnp.concatenate(outputs, axis=-1)
            maps.append(y)
        if self.halves:
            maps.append(ops.max_pool(x, 3, 2))
        return jnp.concatenate(maps, axis=-1)


class AuxiliaryHead(nn.Module):
    """A small classifier over the 17x17 map, which adds a gradient to the lower layers."""

    num_classes: int
    dtype: Dtype

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        x = ops.avg_pool(x, 5, 3)
        x = ConvNorm(128, dtype=self.dtype, name="conv0")(x, train)
        x = ConvNorm(768, (5, 5), padded=False, dtype=self.dtype, name="conv1")(x, train)
        x = x.mean(axis=(1, 2))
        return nn.Dense(self.num_classes, dtype=self.dtype, name="fc")(x).astype(jnp.float32)


@register_config
class InceptionV3(ImageNetClassifier):
    """Szegedy et al., 'Rethinking the Inception architecture for computer vision' (2015).

    Modules are named as in torchvision, whose weights can be loaded; Keras' need the variant
    `keras`.
    """

    variant: Literal["torchvision", "keras"] = "torchvision"
    """Keras' has no scale in batch normalisation, no auxiliary head, and average pools that ignore
    padding."""
    auxiliary_weight: NonNegativeFloat = 0.4
    """Weight of the auxiliary head in the objective; 0 for no head."""
    dropout: Rate = 0.5
    """Rate before the last layer; survivors are scaled by 1 / (1 - rate)."""
    small: bool = False
    """For images of about 32x32: the stem halves height and width once instead of three times."""

    @property
    def other_names(self) -> tuple[dict[str, str], ...]:
        """Our module -> its name in Keras' files, which number layers by creation."""
        names = {"fc": "predictions"}
        for number, module in enumerate(_convolutions()):
            names[f"{module}.conv"] = f"conv2d_{number}"
            names[f"{module}.bn"] = f"batch_normalization_{number}"
        return (names,)

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        auxiliary = bool(self.auxiliary_weight) and self.variant == "torchvision"
        check_size(self, images, self._least(17 if auxiliary else 3))
        keras = self.variant == "keras"

        conv = functools.partial(ConvNorm, scale=not keras, dtype=self.dtype)

        def convolution(x, features, size, strides=1, padded=True):
            return conv(features, (size, size), strides, padded, name=next(stem))(x, train)

        stem = iter(_STEM)
        x = images.astype(self.dtype)
        x = convolution(x, 32, 3, strides=1 if self.small else 2, padded=self.small)
        x = convolution(x, 32, 3, padded=self.small)
        x = convolution(x, 64, 3)
        if not self.small:
            x = ops.max_pool(x, 3, 2)
        x = convolution(x, 80, 1)
        x = convolution(x, 192, 3, padded=self.small)
        x = ops.max_pool(x, 3, 2)
        for name, branches in _MODULES.items():
            x = Mixed(branches, name in _HALVING, keras, self.dtype, name=name)(x, train)
            if name == _AUXILIARY_AFTER and auxiliary and (train or self.is_initializing()):
                logits = AuxiliaryHead(self.num_classes, self.dtype, name="AuxLogits")(x, train)
                if train:
                    self.sow("auxiliary", "AuxLogits_logits", (self.auxiliary_weight, logits))
        x = GlobalPool(name="avgpool")(x)
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        return self.logits(x, name="fc")

    def _least(self, last: int) -> int:
        """Smallest image size for a map of size `last` before the last halving or the head."""
        size = 2 * (2 * last + 1) + 1
        return size if self.small else 2 * (2 * (size + 2) + 1 + 2) + 1


def _convolutions() -> Iterator[str]:
    """Yield every convolution outside the auxiliary head, in Keras' order of creation."""
    yield from _STEM
    for name, branches in _MODULES.items():
        for branch in branches:
            for step in branch:
                for convolution in step:
                    yield f"{name}.{convolution[0]}"


_SOURCE = "Szegedy et al. 2015, arXiv:1512.00567"
register_model(
    "inception_v3",
    InceptionV3(),
    InceptionV3(small=True, auxiliary_weight=0.0, num_classes=10),
    image_shape=(299, 299, 3),
    source=_SOURCE,
)
register_model(
    "inception_v3_keras", InceptionV3(variant="keras"), image_shape=(299, 299, 3), source=_SOURCE
)
