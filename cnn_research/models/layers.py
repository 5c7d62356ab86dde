"""Layers and fields that the models share."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn

from cnn_research import ops
from cnn_research.core.errors import UsageError
from cnn_research.core.ranges import PositiveInt, Range

Dtype = Literal["float32", "bfloat16"]
"""Floating-point type of a model's computation; parameters, statistics and logits are float32."""

Rate = Annotated[float, Range(minimum=0, below=1)]

Widths = tuple[PositiveInt, ...]
"""Filters or units of several layers."""

Activation = Literal["relu", "gelu", "silu", "tanh", "none"]

Conv = functools.partial(nn.Conv, conv_general_dilated=ops.conv_general_dilated)
"""flax's convolution in the fastest formulation of the platform."""

# PyTorch's defaults (its momentum of 0.1 is flax's 0.9), which the documents' networks use.
# Call it as BatchNorm(...)(x, use_running_average=not train), where frozen layers are intercepted.
BatchNorm = functools.partial(nn.BatchNorm, momentum=0.9, epsilon=1e-5)


class Classifier(nn.Module, kw_only=True):
    """Fields that all networks have."""

    dtype: Dtype = "float32"
    """Floating-point type of the computation."""
    num_classes: PositiveInt = 10
    """Units of the last layer; set from the data."""

    def logits(self, x: jax.Array, **options: Any) -> jax.Array:
        """Apply the last layer to `[batch, features]`: float32 `[batch, num_classes]`."""
        return nn.Dense(self.num_classes, dtype=self.dtype, **options)(x).astype(jnp.float32)


class ImageNetClassifier(Classifier, kw_only=True):
    """A network published with ImageNet's classes."""

    num_classes: PositiveInt = 1000
    """Units of the last layer; set from the data."""


def activate(name: Activation) -> Callable[[jax.Array], jax.Array]:
    functions: dict[str, Callable[[jax.Array], jax.Array]] = {
        "relu": nn.relu,
        "gelu": nn.gelu,
        "silu": nn.silu,
        "tanh": nn.tanh,
        "none": lambda x: x,
    }
    return functions[name]


class GlobalPool(nn.Module):
    """Mean of each channel over the whole map; a module, so that its output has a name.

    Maps `[batch, height, width, channels]` to `[batch, channels]`, and appends it to `others`, the
    pooled values of other maps.
    """

    maxima: bool = False
    """Append each channel's maximum to the means: `[batch, 2 * channels]`."""

    @nn.compact
    def __call__(self, x: jax.Array, others: Sequence[jax.Array] = ()) -> jax.Array:
        pooled = [*others, x.mean(axis=(1, 2))]
        if self.maxima:
            pooled.append(x.max(axis=(1, 2)))
        return jnp.concatenate(pooled, axis=-1) if len(pooled) > 1 else pooled[0]


class Passed(nn.Module):
    """Identity on a map and the pooled values so far; a module, so that its output has a name."""

    def __call__(self, x: jax.Array, pooled: list[jax.Array]) -> tuple[jax.Array, list[jax.Array]]:
        return x, pooled


class PooledClassifier(ImageNetClassifier, kw_only=True):
    """A network whose last layer may use more than the means of the last map."""

    pool: Literal["last", "all"] = "last"
    """Maps whose means the last layer uses: only the last map, or all of them. Lower maps hold
    colours and textures, by which a painter is recognised."""
    maxima: bool = False
    """Also use the maxima of these maps: a mean loses small details, such as a brand's sign."""
    standardise: bool = False
    """Standardise each pooled channel over the batch before the last layer, without a learned
    scale: a linear layer on frozen features is then well conditioned."""
    dropout: Rate = 0.0
    """Rate before the last layer; survivors are scaled by 1 / (1 - rate)."""

    def passed(
        self, x: jax.Array, pooled: list[jax.Array], name: str
    ) -> tuple[jax.Array, list[jax.Array]]:
        """Return the map; with `pool="all"`, also append its pooled values to `pooled`."""
        if self.pool == "last":
            return x, pooled
        return Passed(name=f"{name}_out")(x, [*pooled, GlobalPool(self.maxima)(x)])

    def pooled_logits(
        self, x: jax.Array, pooled: list[jax.Array], train: bool, *, pool: str, last: str
    ) -> jax.Array:
        """Compute logits from the last map and what `passed` pooled.

        `pool` and `last` name the layers.
        """
        x = GlobalPool(self.maxima, name=pool)(x, pooled[:-1])
        if self.standardise:
            plain = BatchNorm(use_scale=False, use_bias=False, dtype=self.dtype, name=f"{pool}_bn")
            x = plain(x, use_running_average=not train)
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        return self.logits(x, name=last)


def check_depth(depth: int, blocks: int, others: int, examples: str) -> None:
    """Raise `UsageError` for a depth that is not `blocks` n + `others`, such as `examples`."""
    if depth < blocks + others or (depth - others) % blocks:
        raise UsageError(
            f"--model.depth is {depth}: must be {blocks} n + {others}, such as {examples}"
        )


def check_lengths(part: str, **fields: tuple) -> None:
    """Raise `UsageError` unless all fields, by name, have one entry per part, and at least one."""
    if len({len(values) for values in fields.values()}) > 1 or not all(fields.values()):
        given = [f"--model.{name} is ({' '.join(map(str, v))})" for name, v in fields.items()]
        raise UsageError(f"{' and '.join(given)}: must have one entry per {part}, at least 1")


class ImageTooSmall(UsageError):
    """Images have fewer than `least` pixels in height or width."""

    def __init__(self, message: str, least: int):
        super().__init__(message)
        self.least = least


def check_size(model: nn.Module, images: jax.Array, least: int) -> None:
    """Raise `ImageTooSmall` for images too small for the architecture.

    Call it before any layer: `models.flops.least_size` calls a model with an image of one pixel.
    """
    height, width = images.shape[1:3]
    if min(height, width) < least:
        raise ImageTooSmall(
            f"{type(model).__name__} needs images of at least {least}x{least} pixels, these have "
            f"{height}x{width}: enlarge them (--data.image-size) or choose a small-image network",
            least,
        )
