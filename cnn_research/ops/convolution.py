"""A 2-D convolution with the results of `jax.lax.conv_general_dilated`, but faster on a CPU.

XLA:CPU is slow in four cases, each of which is computed differently here:

* over one to three channels, the forward pass spends nearly all its time gathering pixels. It is
  faster to concatenate shifted views of the images and multiply them by the kernel as a matrix;
* a depthwise convolution (one kernel per channel) is thirty times slower than the sum of shifted
  views of the images, each multiplied by its row of the kernel;
* a 1x1 convolution *is* a matrix product, and its weight gradient is several times faster as one;
* the weight gradient of any other convolution gathers a patch for every output pixel of the batch,
  all of which pass through main memory. A few images at a time, the patches stay in cache.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from cnn_research.ops import platform
from cnn_research.ops.views import views

DATA_AXIS = "data"
"""The mesh axis over which a batch is sharded."""

_NHWC = lax.conv_dimension_numbers((1, 1, 1, 1), (1, 1, 1, 1), ("NHWC", "HWIO", "NHWC"))
_FEW_CHANNELS = 3
# With more inputs per output pixel than this, XLA's forward pass is faster (measured: 5x5 over 3
# channels gains, 7x7 over 3 loses).
_LONGEST_PRODUCT = 80
_PATCH_BYTES = 8 * 2**20
# Matrix products of short patches gain from even smaller slices (measured for 12, 16 and 32
# channels under 3x3 kernels; 64 and more lose).
_SHORT_PATCH = 300
_SHORT_PATCH_BYTES = 2**20
# Each slice is one more convolution to compile.
_MAX_SLICES = 32

_Pads = tuple[tuple[int, int], tuple[int, int]]


def conv_general_dilated(
    lhs: jax.Array,
    rhs: jax.Array,
    window_strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    dimension_numbers: lax.ConvGeneralDilatedDimensionNumbers = None,
    feature_group_count: int = 1,
    batch_group_count: int = 1,
    precision: lax.PrecisionLike = None,
    preferred_element_type: jax.typing.DTypeLike | None = None,
    **kwargs: Any,
) -> jax.Array:
    """Convolve `lhs` with `rhs`: a drop-in replacement for `jax.lax.conv_general_dilated`.

    Pass it as `flax.linen.Conv(conv_general_dilated=...)`. Images `[batch, height, width, in]`
    with a kernel `[height, width, in, out]` or, depthwise, `[height, width, 1, in]` in as many
    groups, both of the same floating dtype and without dilation, use the formulation of
    :mod:`cnn_research.ops.platform`. All else is passed on to `jax.lax`, which also raises the
    errors for inconsistent arguments.

    Under a mesh whose axis `'data'` has more than one device (`jax.set_mesh`), the batch is
    assumed to be sharded over that axis: each device computes the weight gradient of its own
    images, and these are summed. A batch that the axis does not divide uses XLA's gradient.

    Returns:
        `[batch, out_height, out_width, out]`, of the dtype of `lhs`.
    """
    plain: Callable[..., jax.Array] = functools.partial(
        lax.conv_general_dilated,
        window_strides=window_strides,
        padding=padding,
        lhs_dilation=lhs_dilation,
        rhs_dilation=rhs_dilation,
        dimension_numbers=dimension_numbers,
        feature_group_count=feature_group_count,
        batch_group_count=batch_group_count,
        precision=precision,
        preferred_element_type=preferred_element_type,
        **kwargs,
    )
    supported = (
        _is_of_images(lhs, rhs, dimension_numbers, feature_group_count)
        and preferred_element_type in (None, lhs.dtype)
        and set(lhs_dilation or (1,)) == set(rhs_dilation or (1,)) == {1}
        and batch_group_count == 1
        and not any(value is not None for value in kwargs.values())
        and len(window_strides) == 2
    )
    strides = tuple(window_strides)
    pads = _pads(lhs, rhs.shape[:2], strides, padding) if supported else None
    if pads is None:
        return plain(lhs, rhs)
    return _by_formulation(plain, lhs, rhs, strides, pads, feature_group_count > 1, precision)


def _is_of_images(lhs, rhs, dimension_numbers, groups: int) -> bool:
    """Return whether these are images and a kernel, with one group or one group per channel."""
    return (
        jnp.ndim(lhs) == jnp.ndim(rhs) == 4
        and lax.conv_dimension_numbers(lhs.shape, rhs.shape, dimension_numbers) == _NHWC
        and lhs.shape[3] == rhs.shape[2] * groups
        and lhs.dtype == rhs.dtype
        and jnp.issubdtype(lhs.dtype, jnp.floating)
        and (groups == 1 or (rhs.shape[3] == groups and rhs.shape[2] == 1))
        and 0 not in lhs.shape + rhs.shape
    )


def _pads(lhs, kernel_size, strides, padding) -> _Pads | None:
    """Padding before and after along each side; None if it is negative or the output is empty."""
    sides: Sequence[tuple[int, int]] = (
        lax.padtype_to_pads(lhs.shape[1:3], kernel_size, strides, padding)
        if isinstance(padding, str)
        else padding
    )
    if len(sides) != 2:
        return None
    (top, bottom), (left, right) = sides
    pads = ((int(top), int(bottom)), (int(left), int(right)))
    padded = [size + sum(pad) for size, pad in zip(lhs.shape[1:3], pads, strict=True)]
    fits = padded[0] >= kernel_size[0] and padded[1] >= kernel_size[1]
    return pads if min(min(pads)) >= 0 and fits else None


def _by_formulation(plain, lhs, rhs, strides, pads: _Pads, depthwise: bool, precision):
    """Convolve with the fastest formulation of the platform."""
    formulation = platform.current_formulation()
    as_products = formulation.convolutions_as_products
    if depthwise:
        return _depthwise(lhs, rhs, strides, pads) if as_products else plain(lhs, rhs)
    if as_products:
        if rhs.shape[:2] == (1, 1) and pads == ((0, 0), (0, 0)):
            return _product(lhs, rhs, strides, pads, precision)
        if lhs.shape[3] <= _FEW_CHANNELS and math.prod(rhs.shape[:3]) <= _LONGEST_PRODUCT:
            return _with_weight_gradient(_product, lhs, rhs, strides, pads, precision)
    if formulation.sliced_weight_gradient:
        return _with_weight_gradient(_plain, lhs, rhs, strides, pads, precision)
    return plain(lhs, rhs)


def _plain(x, kernel, strides, pads, precision):
    return lax.conv_general_dilated(
        x, kernel, strides, pads, dimension_numbers=_NHWC, precision=precision
    )


def _views(
    x: jax.Array, kernel_size: Sequence[int], strides: Sequence[int], pads: _Pads
) -> list[jax.Array]:
    """For each position in the kernel, in row-major order, the pixels under it (output-sized)."""
    if any(map(any, pads)):
        x = jnp.pad(x, ((0, 0), *pads, (0, 0)))
    return views(x, kernel_size, strides)


def _product(x, kernel, strides, pads, precision):
    """Convolve by one matrix product, whose derivatives are matrix products, too."""
    parts = _views(x, kernel.shape[:2], strides, pads)
    # [batch, out_height, out_width, kernel_height * kernel_width * channels]
    patches = parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=-1)
    matrix = kernel.reshape(-1, kernel.shape[3])
    return lax.dot_general(patches, matrix, (((3,), (0,)), ((), ())), precision=precision)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 3, 4, 5))
def _with_weight_gradient(convolve, x, kernel, strides, pads, precision):
    """`_plain` or `_product`, with the weight gradient computed in slices."""
    return convolve(x, kernel, strides, pads, precision)


def _forward(convolve, x, kernel, strides, pads, precision):
    return convolve(x, kernel, strides, pads, precision), (x, kernel)


def _backward(_, strides, pads, precision, residuals, gradient):
    x, kernel = residuals
    # In a first layer the gradient by the images is dead code, which jit removes.
    (x_gradient,) = jax.linear_transpose(lambda x: _plain(x, kernel, strides, pads, precision), x)(
        gradient
    )
    return x_gradient, _weight_gradient(x, kernel, gradient, strides, pads, precision)


_with_weight_gradient.defvjp(_forward, _backward)


def _sum_of_shifts(x, kernel, strides, pads):
    wide = jnp.promote_types(x.dtype, jnp.float32)
    parts = _views(x.astype(wide), kernel.shape[:2], strides, pads)
    rows = kernel.astype(wide).reshape(len(parts), -1)
    return sum(part * row for part, row in zip(parts, rows, strict=True)).astype(x.dtype)


_depthwise = jax.custom_vjp(_sum_of_shifts, nondiff_argnums=(2, 3))


def _depthwise_forward(x, kernel, strides, pads):
    return _sum_of_shifts(x, kernel, strides, pads), (x, kernel)


def _depthwise_backward(strides, pads, residuals, gradient):
    x, kernel = residuals
    (x_gradient,) = jax.linear_transpose(lambda x: _sum_of_shifts(x, kernel, strides, pads), x)(
        gradient
    )
    wide = jnp.promote_types(x.dtype, jnp.float32)
    parts = _views(x.astype(wide), kernel.shape[:2], strides, pads)
    folded = [_folded(part * gradient.astype(wide)) for part in parts]
    # XLA vectorises a plain reduction, but not one fused with the products.
    sums = [part.sum((0, 1, 2)) for part in jax.lax.optimization_barrier(folded)]
    return x_gradient, jnp.stack(sums).reshape(kernel.shape).astype(kernel.dtype)


_depthwise.defvjp(_depthwise_forward, _depthwise_backward)


def _folded(x: jax.Array) -> jax.Array:
    """Add up parts of images: the sum over pixels stays, with up to 16 times fewer pixels.

    This is vectorised, and stays on the device where the batch is sharded.
    """
    for axis, most in ((1, 8), (2, 2)):
        parts = min(most, x.shape[axis])
        length = x.shape[axis] // parts
        rest = lax.slice_in_dim(x, parts * length, x.shape[axis], axis=axis)
        total = sum(
            lax.slice_in_dim(x, part * length, (part + 1) * length, axis=axis)
            for part in range(parts)
        )
        x = jnp.concatenate([total, rest], axis)
    return x


def _weight_gradient(x, kernel, gradient, strides, pads, precision):
    def of_slice(x, gradient):
        transpose = jax.linear_transpose(
            lambda kernel: _plain(x, kernel, strides, pads, precision),
            jax.ShapeDtypeStruct(kernel.shape, kernel.dtype),
        )
        return transpose(gradient)[0]

    # Few-channel convolutions are fast in one piece, and their patches are small.
    short = kernel.shape[2] > _FEW_CHANNELS and math.prod(kernel.shape[:3]) <= _SHORT_PATCH
    in_slices = functools.partial(
        _sum_over_slices,
        of_slice,
        # Of one image.
        patch_bytes=math.prod(gradient.shape[1:3])
        * math.prod(kernel.shape[:3])
        * gradient.dtype.itemsize,
        budget=min(_PATCH_BYTES, _SHORT_PATCH_BYTES) if short else _PATCH_BYTES,
    )
    mesh = jax.sharding.get_abstract_mesh()
    devices = mesh.shape.get(DATA_AXIS, 1)
    axis_type = dict(zip(mesh.axis_names, mesh.axis_types, strict=True)).get(DATA_AXIS)
    if devices == 1 or axis_type == AxisType.Manual:
        return in_slices(x, gradient)
    if x.shape[0] % devices or axis_type != AxisType.Auto:
        return of_slice(x, gradient)
    # A slice of the whole batch would lie on one device and be sent to the others. With check_vma,
    # transposing over the replicated kernel would sum over the devices for every slice; here that
    # is done once, after the slices.
    return jax.shard_map(
        lambda x, gradient: lax.psum(in_slices(x, gradient), DATA_AXIS),
        in_specs=(P(DATA_AXIS), P(DATA_AXIS)),
        out_specs=P(),
        axis_names={DATA_AXIS},
        check_vma=False,
    )(x, gradient)


def _sum_over_slices(of_slice, x, gradient, *, patch_bytes, budget):
    batch = x.shape[0]
    images = max(1, budget // patch_bytes, -(-batch // _MAX_SLICES))
    if images >= batch:
        return of_slice(x, gradient)
    # A loop in the compiled program would be shorter, but XLA:CPU runs convolutions in loops tens
    # of times slower.
    wide = jnp.promote_types(x.dtype, jnp.float32)
    total = sum(
        of_slice(x[start : start + images], gradient[start : start + images]).astype(wide)
        for start in range(0, batch, images)
    )
    return total.astype(x.dtype)
