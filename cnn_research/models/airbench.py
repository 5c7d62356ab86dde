"""Airbench's network: high accuracy on small images at low cost."""

from __future__ import annotations

import functools
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from cnn_research import ops
from cnn_research.core.config import register_config
from cnn_research.core.ranges import PositiveFloat
from cnn_research.models.layers import (
    Activation,
    Classifier,
    Conv,
    Widths,
    activate,
    check_lengths,
    check_size,
)
from cnn_research.models.registry import register_model

# Runs are short, so the statistics must adapt quickly; the next normalisation would undo a scale.
_Norm = functools.partial(nn.BatchNorm, momentum=0.6, epsilon=1e-5, use_scale=False)


@register_config
class Airbench(Classifier):
    """A whitening layer, three blocks of two convolutions, and one linear layer.

    After Jordan, '94% on CIFAR-10 in 3.29 seconds' (2024). The first layer is not trained: its
    filters are the principal directions of the training images' patches, scaled to unit variance.
    It must be frozen: `Transfer(freeze=("whiten/kernel",))`. The other convolutions are initialised
    as the identity on their input channels.
    """

    init_images: ClassVar[int] = 5000
    """Number of training images from which `with_images` sets initial parameters."""

    features: Widths = (64, 256, 256)
    """Filters of both convolutions of each block; a 2x2 pool follows the first."""
    activation: Activation = "gelu"
    """Activation after the first layer and after each normalisation."""
    output_scale: PositiveFloat = 1 / 9
    """Multiplies the logits."""

    def check(self) -> None:
        """Raise `UsageError` for fields that do not fit together."""
        check_lengths("block", features=self.features)

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        check_size(self, images, 2 ** len(self.features) + 1)
        act = activate(self.activation)
        x = images.astype(self.dtype)
        conv = functools.partial(Conv, use_bias=False, kernel_init=partly_identity)
        filters = 2 * 2 * 2 * images.shape[-1]
        x = act(Conv(filters, (2, 2), padding="VALID", dtype=self.dtype, name="whiten")(x))
        for number, features in enumerate(self.features, 1):
            for part in (1, 2):
                x = conv(features, (3, 3), dtype=self.dtype, name=f"conv{number}_{part}")(x)
                if part == 1:
                    x = ops.max_pool(x, 2)
                norm = _Norm(dtype=self.dtype, name=f"norm{number}_{part}")
                x = act(norm(x, use_running_average=not train))
        x = x.max(axis=(1, 2))
        return self.logits(x, use_bias=False, name="linear") * self.output_scale

    def with_images(self, params: dict[str, Any], images: jax.Array) -> dict[str, Any]:
        """Replace the first layer by one that whitens patches of preprocessed images, float32."""
        kernel = whitening_kernel(np.asarray(images))
        return {**params, "whiten": {**params["whiten"], "kernel": jnp.asarray(kernel)}}


def partly_identity(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
    """Initialise filters `[3, 3, channels, filters]`: the identity first, then random ones."""
    _, _, channels, filters = shape
    # PyTorch's default for convolutions, for which the recipe was tuned.
    uniform = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
    kernel = uniform(key, shape, dtype)
    same = min(channels, filters)
    identity = (
        jnp.zeros((3, 3, channels, same), dtype).at[1, 1, :same].set(jnp.eye(same, dtype=dtype))
    )
    return jnp.concatenate([identity, kernel[..., same:]], axis=-1)


def whitening_kernel(images: np.ndarray, epsilon: float = 5e-4) -> np.ndarray:
    """Compute filters over 2x2 patches whose outputs are uncorrelated and have unit variance.

    float32 `[2, 2, channels, 8 * channels]`: each filter and its negative. `epsilon` is added to
    the variances, so that noise is not amplified.
    """
    windows = np.lib.stride_tricks.sliding_window_view(images, (2, 2), axis=(1, 2))
    patches = windows.transpose(0, 1, 2, 4, 5, 3).reshape(-1, 4 * images.shape[-1])
    variances, directions = np.linalg.eigh(patches.T @ patches / len(patches))
    kernel = (directions / np.sqrt(variances + epsilon)).reshape(2, 2, images.shape[-1], -1)
    return np.concatenate([kernel, -kernel], axis=-1).astype(np.float32)


register_model("airbench", Airbench(), image_shape=(32, 32, 3), source="Jordan 2024")
