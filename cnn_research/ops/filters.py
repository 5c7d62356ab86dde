"""Filter images and signals with given rather than learned kernels."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

import jax
import jax.numpy as jnp
from jax import lax

Operation = Literal["correlation", "convolution"]
"""Correlation, which deep-learning libraries call convolution, uses the kernel as written;
convolution turns it by 180 degrees first, so that the response to a point is the kernel."""

Border = Literal["zeros", "edge"]
"""Values of the padding: zeros, or the image's outermost pixels, repeated."""

Kernel = tuple[tuple[float, ...], ...]

KERNELS: Mapping[str, Kernel] = {
    "identity": ((0, 0, 0), (0, 1, 0), (0, 0, 0)),
    "sharpen": ((0, -1, 0), (-1, 5, -1), (0, -1, 0)),
    "mean_blur": ((1 / 9,) * 3,) * 3,
    "gaussian_blur": ((1 / 16, 2 / 16, 1 / 16), (2 / 16, 4 / 16, 2 / 16), (1 / 16, 2 / 16, 1 / 16)),
    "laplacian": ((0, 1, 0), (1, -4, 1), (0, 1, 0)),
    "sobel_x": ((-1, 0, 1), (-2, 0, 2), (-1, 0, 1)),
    "sobel_y": ((-1, -2, -1), (0, 0, 0), (1, 2, 1)),
}
"""Kernels by name: the convolution lecture's five, and Sobel's two (gradients along x and y)."""


def output_size(size: int, kernel: int, padding: int = 0, stride: int = 1) -> int:
    """O = 1 + (2P + I - K) / S, floored: number of kernel positions along one side.

    I, K, P and S are the sizes of image, kernel, padding at either end, and stride. Raises
    `ValueError` for a number out of range, or a kernel longer than the padded image.
    """
    if size < 1 or kernel < 1 or stride < 1 or padding < 0:
        raise ValueError(
            f"size {size}, kernel {kernel} and stride {stride} must be 1 or more, "
            f"padding {padding} 0 or more"
        )
    if kernel > size + 2 * padding:
        raise ValueError(
            f"a kernel of {kernel} is longer than {size} pixels with {padding} added at either end"
        )
    return 1 + (2 * padding + size - kernel) // stride


def filter_image(
    images: jax.typing.ArrayLike,
    kernel: jax.typing.ArrayLike,
    *,
    stride: int = 1,
    padding: int = 0,
    border: Border = "zeros",
    operation: Operation = "correlation",
) -> jax.Array:
    """Filter each channel of each image with the same kernel, `[kernel_height, kernel_width]`.

    Maps `[batch, height, width, channels]`, of any real dtype, to float32
    `[batch, out_height, out_width, channels]`; `output_size` gives the sizes. `padding` pixels,
    chosen by `border`, are added on all four sides. Raises `ValueError` if an array has another
    rank, a number is out of range, or the kernel is larger than a padded image.
    """
    return _filtered(images, kernel, stride, (padding, padding), border, operation)


def filter_signal(
    signals: jax.typing.ArrayLike,
    kernel: jax.typing.ArrayLike,
    *,
    stride: int = 1,
    padding: int = 0,
    border: Border = "zeros",
    operation: Operation = "convolution",
) -> jax.Array:
    """Filter signals `[batch, length]` with a kernel `[kernel_length]`.

    The other arguments are those of `filter_image`; the result is float32 `[batch, out_length]`.
    """
    images, row = jnp.asarray(signals), jnp.asarray(kernel)
    if images.ndim != 2 or row.ndim != 1:
        raise ValueError(
            "filter_signal takes [batch, length] and [kernel_length]; got "
            f"{images.shape} and {row.shape}"
        )
    filtered = _filtered(
        images[:, None, :, None], row[None], stride, (0, padding), border, operation
    )
    return filtered[:, 0, :, 0]


def _filtered(images, kernel, stride, padding, border, operation) -> jax.Array:
    images, kernel = jnp.asarray(images, jnp.float32), jnp.asarray(kernel, jnp.float32)
    if images.ndim != 4 or kernel.ndim != 2:
        raise ValueError(
            "filter_image takes [batch, height, width, channels] and [kernel_height, "
            f"kernel_width]; got {images.shape} and {kernel.shape}"
        )
    batch, *sides, channels = images.shape
    out = [output_size(*each, stride) for each in zip(sides, kernel.shape, padding, strict=True)]
    pads = [(0, 0), *((pad, pad) for pad in padding), (0, 0)]
    mode = {"zeros": "constant", "edge": "edge"}[border]
    padded = jnp.pad(images, pads, mode=mode)
    if operation == "convolution":
        kernel = kernel[::-1, ::-1]
    # Each channel becomes an image of its own.
    planes = jnp.moveaxis(padded, 3, 1).reshape(batch * channels, *padded.shape[1:3], 1)
    filtered = lax.conv_general_dilated(
        planes,
        kernel[:, :, None, None],
        (stride, stride),
        "VALID",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision=lax.Precision.HIGHEST,
    )
    return jnp.moveaxis(filtered.reshape(batch, channels, *out), 1, 3)


def gaussian(length: int, sigma: float) -> tuple[float, ...]:
    """Sampled Gaussian of odd `length`: weights that sum to 1."""
    offsets = range(-(length // 2), length - length // 2)
    weights = [math.exp(-(x**2) / (2 * sigma**2)) for x in offsets]
    return tuple(weight / sum(weights) for weight in weights)
