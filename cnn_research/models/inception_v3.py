"""Inception v3: Inception modules with their large kernels taken apart."""

from __future__ import annotations

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

Convolution = tuple[str, int, int, int]
"""Name, filters, height and width of the kernel."""
Branch = tuple[tuple[Convolution, ...], ...]
"""Steps one after the other; the convolutions of a step take the same input, side by side."""


def _branch(*steps: Convolution | tuple[Convolution, ...]) -> Branch:
    return tuple(step if isinstance(step[0], tuple) else (step,) for step in steps)  # type: ignore


_DOUBLE = _branch(
    ("branch3x3dbl_1", 64, 1, 1), ("branch3x3dbl_2", 96, 3, 3), ("branch3x3dbl_3", 96, 3, 3)
)


def _fine(pooled: int) -> tuple[Branch, ...]:
    return (
        _branch(("branch1x1", 64, 1, 1)),
        _branch(("branch5x5_1", 48, 1, 1), ("branch5x5_2", 64, 5, 5)),
        _DOUBLE,
        _branch(("branch_pool", pooled, 1, 1)),
    )


def _middle(width: int) -> tuple[Branch, ...]:
    return (
        _branch(("branch1x1", 192, 1, 1)),
        _branch(
            ("branch7x7_1", width, 1, 1),
            ("branch7x7_2", width, 1, 7),
            ("branch7x7_3", 192, 7, 1),
        ),
        _branch(
            ("branch7x7dbl_1", width, 1, 1),
            ("branch7x7dbl_2", width, 7, 1),
            ("branch7x7dbl_3", width, 1, 7),
            ("branch7x7dbl_4", width, 7, 1),
            ("branch7x7dbl_5", 192, 1, 7),
        ),
        _branch(("branch_pool", 192, 1, 1)),
    )


_COARSE = (
    _branch(("branch1x1", 320, 1, 1)),
    _branch(
        ("branch3x3_1", 384, 1, 1),
        (("branch3x3_2a", 384, 1, 3), ("branch3x3_2b", 384, 3, 1)),
    ),
    _branch(
        ("branch3x3dbl_1", 448, 1, 1),
        ("branch3x3dbl_2", 384, 3, 3),
        (("branch3x3dbl_3a", 384, 1, 3), ("branch3x3dbl_3b", 384, 3, 1)),
    ),
    _branch(("branch_pool", 192, 1, 1)),
)

_MODULES = {
    "Mixed_5b": _fine(32),
    "Mixed_5c": _fine(64),
    "Mixed_5d": _fine(64),
    "Mixed_6a": (
        _branch(("branch3x3", 384, 3, 3)),
        _DOUBLE,
    ),
    "Mixed_6b": _middle(128),
    "Mixed_6c": _middle(160),
    "Mixed_6d": _middle(160),
    "Mixed_6e": _middle(192),
    "Mixed_7a": (
        _branch(("branch3x3_1", 192, 1, 1), ("branch3x3_2", 320, 3, 3)),
        _branch(
            ("branch7x7x3_1", 192, 1, 1),
            ("branch7x7x3_2", 192, 1, 7),
            ("branch7x7x3_3", 192, 7, 1),
            ("branch7x7x3_4", 192, 3, 3),
        ),
    ),
    "Mixed_7b": _COARSE,
    "Mixed_7c": _COARSE,
}
_HALVING = ("Mixed_6a", "Mixed_7a")
_AUXILIARY_AFTER = "Mixed_6e"
_STEM = ("Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "Conv2d_3b_1x1", "Conv2d_4a_3x3")


class Mixed(nn.Module):
    """Branches of convolutions and a pooled one, their channels side by side.

    Where it halves height and width, each branch's last convolution does, and the pooled branch is
    a max pool and nothing else.
    """

    branches: tuple[Branch, ...]
    halves: bool
    keras: bool
    dtype: Dtype

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        found = []
        for branch in self.branches:
            y = x
            if branch[0][0][0] == "branch_pool":
                y = ops.avg_pool(x, 3, 1, ((1, 1), (1, 1)), count_include_pad=not self.keras)
            for step in branch:
                halves = self.halves and step is branch[-1]
                outputs = [
                    ConvNorm(
                        features,
                        (height, width),
                        strides=2 if halves else 1,
                        padding=(0, 0) if halves else (height // 2, width // 2),
                        scale=not self.keras,
                        dtype=self.dtype,
                        name=name,
                    )(y, train)
                    for name, features, height, width in step
                ]
                y = outputs[0] if len(outputs) == 1 else jnp.concatenate(outputs, axis=-1)
            found.append(y)
        if self.halves:
            found.append(ops.max_pool(x, 3, 2))
        return jnp.concatenate(found, axis=-1)


class AuxiliaryHead(nn.Module):
    """A small classifier over the 17x17 map, which sends a gradient into the lower layers."""

    num_classes: int
    dtype: Dtype

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        x = ops.avg_pool(x, 5, 3)
        x = ConvNorm(128, dtype=self.dtype, name="conv0")(x, train)
        x = ConvNorm(768, (5, 5), dtype=self.dtype, name="conv1")(x, train)
        x = x.mean(axis=(1, 2))
        return nn.Dense(self.num_classes, dtype=self.dtype, name="fc")(x).astype(jnp.float32)


@register_config
class InceptionV3(ImageNetClassifier):
    """Szegedy et al., 'Rethinking the Inception architecture for computer vision' (2015).

    Modules are called as in torchvision; its weights fit, and Keras' fit the variant `keras`.
    """

    variant: Literal["torchvision", "keras"] = "torchvision"
    """Keras' has no scale in its batch normalisation, no auxiliary head, and averages over the
    pixels inside the image only."""
    auxiliary_weight: NonNegativeFloat = 0.4
    """Weight of the auxiliary head in the objective; 0 for no such head."""
    dropout: Rate = 0.5
    """Rate before the last layer; survivors are scaled by 1 / (1 - rate)."""
    small: bool = False
    """For images of about 32x32: the stem halves height and width once instead of three times."""

    @property
    def other_names(self) -> tuple[dict[str, str], ...]:
        """Our module -> its name in Keras' files, which number convolutions as they are made."""
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

        def convolution(x, features, size, strides=1, padding=0):
            layer = ConvNorm(
                features,
                (size, size),
                strides,
                (padding, padding),
                scale=not keras,
                dtype=self.dtype,
                name=next(stem),
            )
            return layer(x, train)

        stem = iter(_STEM)
        inner = 1 if self.small else 0
        x = images.astype(self.dtype)
        x = convolution(x, 32, 3, strides=1 if self.small else 2, padding=inner)
        x = convolution(x, 32, 3, padding=inner)
        x = convolution(x, 64, 3, padding=1)
        if not self.small:
            x = ops.max_pool(x, 3, 2)
        x = convolution(x, 80, 1)
        x = convolution(x, 192, 3, padding=inner)
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
        """The image's size, from that of the map that the last halving or the head needs."""
        size = 2 * (2 * last + 1) + 1
        return size if self.small else 2 * (2 * (size + 2) + 1 + 2) + 1


def _convolutions() -> Iterator[str]:
    """Every convolution outside the auxiliary head, in the order in which Keras makes them."""
    yield from _STEM
    for name, branches in _MODULES.items():
        for branch in branches:
            for step in branch:
                for convolution in step:
                    yield f"{name}.{convolution[0]}"


_SOURCE = "Szegedy et al. 2015, arXiv:1512.00567"
register_model("inception_v3", InceptionV3(), image_shape=(299, 299, 3), source=_SOURCE)
register_model(
    "inception_v3_keras", InceptionV3(variant="keras"), image_shape=(299, 299, 3), source=_SOURCE
)
register_model(
    "inception_v3_small",
    InceptionV3(small=True, auxiliary_weight=0.0, num_classes=10),
    image_shape=(32, 32, 3),
    source=_SOURCE,
)
