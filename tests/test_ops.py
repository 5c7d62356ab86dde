"""Convolutions and pools against XLA's own, forward and backward, on one device and on eight."""

import os
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax import lax

from cnn_research import ops
from cnn_research.ops import convolution

CPU = ops.Formulation(
    sliced_weight_gradient=True,
    convolutions_as_products=True,
    gather_pool_gradient=True,
)
NHWC = ("NHWC", "HWIO", "NHWC")


@pytest.fixture(autouse=True)
def cpu_formulation():
    """The formulations under test, on whatever platform the tests run."""
    with ops.use_formulation(CPU):
        yield


@pytest.fixture
def small_slices(monkeypatch):
    """Slices of a few images, as large images would have."""
    monkeypatch.setattr(convolution, "_PATCH_BYTES", 60_000)


def normal(seed: int, *shape: int, dtype=np.float32) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def distinct(seed: int, *shape: int) -> jax.Array:
    """No two values alike, so no pool has a tie."""
    values = np.random.default_rng(seed).permutation(np.prod(shape))
    return jnp.asarray(values.reshape(shape) / np.prod(shape) - 0.5, np.float32)


def value_and_pullback(function, seed, *primals):
    """The value, and the gradients of its product with a fixed random array."""

    def both(*primals):
        value, pull = jax.vjp(function, *primals)
        weights = normal(seed, *value.shape, dtype=value.dtype)
        return value, pull(weights)

    return jax.jit(both)(*primals)


def assert_close(actual, expected, relative=1e-5):
    """Every leaf within `relative` of the largest entry of what is expected."""
    for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert a.dtype == e.dtype
        a, e = np.asarray(a, np.float64), np.asarray(e, np.float64)
        np.testing.assert_allclose(a, e, rtol=0, atol=relative * np.abs(e).max(initial=0))


CONVOLUTIONS = {
    # images [batch, height, width, in], kernel size, out, strides, padding
    "one channel": ((6, 9, 8, 1), (3, 3), 4, (1, 1), "SAME"),
    "three channels, strided": ((5, 11, 10, 3), (5, 4), 4, (2, 3), "SAME"),
    "three channels, unpadded": ((4, 8, 8, 3), (2, 2), 3, (2, 2), "VALID"),
    "three channels, long kernel": ((3, 20, 20, 3), (7, 7), 4, (2, 2), "SAME"),
    "1x1": ((4, 6, 5, 7), (1, 1), 3, (1, 1), "SAME"),
    "1x1, strided": ((4, 7, 6, 7), (1, 1), 3, (2, 3), "VALID"),
    "1x1, padded": ((4, 5, 5, 7), (1, 1), 3, (1, 1), ((1, 0), (0, 2))),
    "slices": ((7, 12, 12, 8), (3, 3), 6, (1, 1), "SAME"),
    "slices, strided": ((7, 13, 16, 8), (3, 3), 6, (2, 2), "SAME"),
    "slices, unpadded": ((9, 12, 12, 8), (3, 5), 6, (1, 2), "VALID"),
    "slices, uneven padding": ((7, 12, 12, 8), (3, 3), 6, (2, 2), ((0, 1), (2, 1))),
    "kernel larger than image": ((2, 2, 2, 4), (3, 3), 3, (1, 1), "VALID"),
}


@pytest.mark.parametrize("case", CONVOLUTIONS)
def test_convolution_is_that_of_lax(case, small_slices):
    shape, kernel_size, features, strides, padding = CONVOLUTIONS[case]
    x, kernel = normal(0, *shape), normal(1, *kernel_size, shape[3], features)
    actual, expected = (
        value_and_pullback(
            lambda x, kernel, f=f: f(x, kernel, strides, padding, dimension_numbers=NHWC),
            2,
            x,
            kernel,
        )
        for f in (ops.conv_general_dilated, lax.conv_general_dilated)
    )
    assert_close(actual, expected)


DEPTHWISE = {
    # images [batch, height, width, channels], kernel size, strides, padding
    "3x3": ((3, 9, 8, 6), (3, 3), (1, 1), ((1, 1), (1, 1))),
    "3x3, strided as in Keras": ((3, 10, 12, 6), (3, 3), (2, 2), ((0, 1), (0, 1))),
    "parts that do not divide": ((2, 19, 21, 4), (3, 3), (1, 1), "SAME"),
    "uneven": ((2, 7, 9, 5), (2, 4), (1, 3), "VALID"),
}


@pytest.mark.parametrize(
    ("case", "dtype"), [*((case, jnp.float32) for case in DEPTHWISE), ("3x3", jnp.bfloat16)]
)
def test_depthwise_convolution_is_that_of_lax(case, dtype):
    shape, kernel_size, strides, padding = DEPTHWISE[case]
    x = normal(0, *shape, dtype=dtype)
    kernel = normal(1, *kernel_size, 1, shape[3], dtype=dtype)

    def convolve(x, kernel):
        return ops.conv_general_dilated(
            x, kernel, strides, padding, dimension_numbers=NHWC, feature_group_count=shape[3]
        )

    actual = value_and_pullback(convolve, 2, x, kernel)
    assert "feature_group_count" not in str(jax.make_jaxpr(convolve)(x, kernel))
    with ops.use_formulation(ops.PLAIN):
        expected = value_and_pullback(convolve, 2, x, kernel)
    assert_close(actual, expected, relative=1e-5 if dtype == jnp.float32 else 0.02)


def test_slices_are_taken_and_cover_a_batch_they_do_not_divide():
    taken = []

    def of_slice(x, gradient):
        taken.append(x.shape[0])
        return jnp.einsum("bi,bj->ij", x, gradient)

    x, gradient = normal(0, 11, 3), normal(1, 11, 2)
    total = convolution._sum_over_slices(of_slice, x, gradient, patch_bytes=20_000, budget=60_000)
    assert taken == [3, 3, 3, 2]
    assert_close(total, x.T @ gradient)


def test_a_large_batch_compiles_a_bounded_number_of_slices():
    taken = []

    def of_slice(x, gradient):
        taken.append(x.shape[0])
        return x.sum() * gradient.sum()

    convolution._sum_over_slices(
        of_slice, jnp.ones((500, 1)), jnp.ones(500), patch_bytes=10**9, budget=60_000
    )
    assert sum(taken) == 500
    assert len(taken) <= convolution._MAX_SLICES


def test_bfloat16_slices_are_summed_in_float32():
    # A sum kept in bfloat16 stops growing at 256 when ones are added.
    def of_slice(x, gradient):
        return (x * gradient).sum().astype(jnp.bfloat16)

    ones = jnp.ones((20 * 32, 1), jnp.bfloat16)
    total = convolution._sum_over_slices(of_slice, ones, ones, patch_bytes=3_000, budget=60_000)
    assert total.dtype == jnp.bfloat16
    assert total == 640


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
@pytest.mark.parametrize("channels", [1, 8])
def test_flax_convolution_in_either_dtype(dtype, channels, small_slices):
    x = normal(0, 6, 12, 12, channels)
    results = []
    for convolve in (ops.conv_general_dilated, lax.conv_general_dilated):
        module = nn.Conv(5, (3, 3), dtype=dtype, conv_general_dilated=convolve)
        params = nn.Conv(5, (3, 3)).init(jax.random.key(0), x)
        loss = lambda params, module=module: (module.apply(params, x) ** 2).mean()  # noqa: E731
        results.append(jax.jit(jax.value_and_grad(loss))(params))
    assert_close(*results, relative=0.02 if dtype == jnp.bfloat16 else 1e-5)


@pytest.mark.parametrize(
    "options",
    [
        {"rhs_dilation": (2, 2)},
        {"lhs_dilation": (2, 1)},
        {"feature_group_count": 2},
        {"feature_group_count": 2, "rhs_dilation": (2, 2)},
        {"dimension_numbers": ("NCHW", "HWIO", "NHWC")},
    ],
    ids=str,
)
def test_what_is_not_a_plain_convolution_goes_to_lax(options):
    groups = options.get("feature_group_count", 1)
    shape = (3, 4, 9, 9) if options.get("dimension_numbers") else (3, 9, 9, 4)
    x, kernel = normal(0, *shape), normal(1, 3, 3, 4 // groups, 6)
    options = {"dimension_numbers": NHWC} | options
    pads = ((1, 1), (1, 1))
    np.testing.assert_array_equal(
        ops.conv_general_dilated(x, kernel, (1, 1), pads, **options),
        lax.conv_general_dilated(x, kernel, (1, 1), pads, **options),
    )


def test_one_dimensional_convolution_goes_to_lax():
    x, kernel = normal(0, 3, 9, 4), normal(1, 3, 4, 6)
    arguments = (x, kernel, (1,), "SAME", None, None, ("NWC", "WIO", "NWC"))
    np.testing.assert_array_equal(
        ops.conv_general_dilated(*arguments), lax.conv_general_dilated(*arguments)
    )


@pytest.mark.parametrize(("channels", "groups"), [(1, 1), (8, 1), (8, 8)])
def test_replicas_under_vmap(channels, groups, small_slices):
    x, kernels = normal(0, 5, 10, 10, channels), normal(1, 3, 3, 3, channels // groups, 8)

    def gradients(convolve, x, kernel):
        def loss(x, kernel):
            options = {"dimension_numbers": NHWC, "feature_group_count": groups}
            return (convolve(x, kernel, (1, 1), "SAME", **options) ** 2).sum()

        return jax.grad(loss, (0, 1))(x, kernel)

    actual, expected = (
        jax.jit(jax.vmap(lambda kernel, f=f: gradients(f, x, kernel)))(kernels)
        for f in (ops.conv_general_dilated, lax.conv_general_dilated)
    )
    assert_close(actual, expected)


POOLS = {
    # images [batch, height, width, channels], window, strides, padding
    "halves": ((3, 8, 6, 5), 2, None, "VALID"),
    "halves, full vectors": ((3, 8, 7, 16), 2, None, "VALID"),
    "halves, odd": ((3, 9, 7, 5), 2, None, "VALID"),
    "halves, odd, padded": ((3, 9, 7, 5), 2, None, "SAME"),
    "uneven window": ((2, 9, 10, 3), (3, 2), None, "VALID"),
    "3x3 stride 2": ((2, 11, 12, 3), 3, 2, "VALID"),
    "3x3 stride 2, padded": ((2, 11, 12, 3), 3, 2, "SAME"),
    "3x3 stride 1": ((2, 6, 7, 3), 3, 1, "SAME"),
    "5x4 stride 2x3": ((2, 13, 14, 3), (5, 4), (2, 3), ((2, 1), (0, 3))),
    "gaps": ((2, 9, 11, 3), 2, 3, "VALID"),
    "whole image": ((2, 6, 5, 3), (6, 5), None, "VALID"),
    "one image row": ((2, 2, 9, 3), (2, 3), (1, 2), "SAME"),
}


def flax_min_pool(x, window, strides, padding):
    return -nn.max_pool(-x, window, strides, padding)


@pytest.mark.parametrize("case", POOLS)
@pytest.mark.parametrize("kind", ["max", "min", "avg"])
def test_pool_is_that_of_flax(kind, case):
    shape, window, strides, padding = POOLS[case]
    x = distinct(0, *shape)
    window_pair = (window, window) if isinstance(window, int) else window
    strides_pair = (strides, strides) if isinstance(strides, int) else strides or window_pair
    ours = {"max": ops.max_pool, "min": ops.min_pool, "avg": ops.avg_pool}[kind]
    theirs = {"max": nn.max_pool, "min": flax_min_pool, "avg": nn.avg_pool}[kind]
    actual = value_and_pullback(lambda x: ours(x, window, strides, padding), 1, x)
    expected = value_and_pullback(lambda x: theirs(x, window_pair, strides_pair, padding), 1, x)
    assert_close(actual, expected, relative=1e-6)


@pytest.mark.parametrize(("window", "strides"), [(2, 2), (3, 2), (3, 1)])
@pytest.mark.parametrize("pool", [ops.max_pool, ops.min_pool])
@pytest.mark.parametrize("channels", [5, 8])
def test_a_tie_goes_where_xla_sends_it(channels, pool, window, strides):
    # Zeros in plenty, as after a ReLU.
    x = jnp.maximum(jnp.round(normal(0, 4, 9, 9, channels)), 0)

    def pullback(x):
        return value_and_pullback(lambda x: pool(x, window, strides), 1, x)

    actual = pullback(x)
    with ops.use_formulation(ops.PLAIN):
        expected = pullback(x)
    assert_close(actual, expected, relative=1e-6)


def test_the_first_of_equals_gets_the_gradient():
    x = jnp.full((1, 2, 2, 1), 3.0)
    gradient = jax.grad(lambda x: ops.max_pool(x, 2).sum())(x)
    np.testing.assert_array_equal(gradient[0, :, :, 0], [[1, 0], [0, 0]])


def test_average_without_padding_in_the_count():
    x = jnp.ones((1, 5, 4, 2))
    np.testing.assert_allclose(ops.avg_pool(x, 3, 2, "SAME", count_include_pad=False), 1)
    assert ops.avg_pool(x, 3, 2, "SAME")[0, 0, 0, 0] == pytest.approx(6 / 9)


@pytest.mark.parametrize("size", [(4, 4), (7, 3), 1, (2, 12)])
def test_adaptive_average_is_a_mean_of_windows(size):
    x = normal(0, 2, 7, 9, 3)
    height, width = (size, size) if isinstance(size, int) else size
    expected = np.zeros((2, height, width, 3), np.float32)
    for i in range(height):
        for j in range(width):
            rows = slice(i * 7 // height, -(-(i + 1) * 7 // height))
            columns = slice(j * 9 // width, -(-(j + 1) * 9 // width))
            expected[:, i, j] = np.asarray(x)[:, rows, columns].mean((1, 2))
    assert_close(ops.adaptive_avg_pool(x, size), expected, relative=1e-6)


@pytest.mark.parametrize("size", [1, 4, 5])
def test_local_response_norm_is_that_of_a_loop(size):
    x = normal(0, 2, 3, 4, 7)
    k, alpha, beta = 2.0, 0.3, 0.75
    values, expected = np.asarray(x, np.float64), np.zeros(x.shape)
    for channel in range(7):
        first = channel - size // 2
        around = values[..., max(first, 0) : first + size]
        divisor = k + alpha / size * (around**2).sum(-1)
        expected[..., channel] = values[..., channel] / divisor**beta
    actual = ops.local_response_norm(x, size, k, alpha, beta)
    assert_close(actual, expected.astype(np.float32), relative=1e-6)
    half = ops.local_response_norm(x.astype(jnp.bfloat16), size, k, alpha, beta)
    assert half.dtype == jnp.bfloat16


def test_pools_of_whole_numbers():
    x = jnp.arange(16, dtype=jnp.uint8).reshape(1, 4, 4, 1)
    assert ops.max_pool(x, 2)[0, :, :, 0].tolist() == [[5, 7], [13, 15]]
    assert ops.min_pool(x, 3, 2, "SAME")[0, :, :, 0].tolist() == [[0, 2], [8, 10]]
    assert ops.min_pool(x, 2).dtype == jnp.uint8


def test_a_pool_passes_nan_on():
    x = jnp.zeros((1, 2, 2, 1)).at[0, 1, 0, 0].set(jnp.nan)
    assert jnp.isnan(ops.max_pool(x, 2)).all()
    assert jnp.isnan(ops.min_pool(x, 2)).all()


def test_max_pool_in_bfloat16():
    x = distinct(0, 2, 8, 8, 2).astype(jnp.bfloat16)
    pooled, (gradient,) = value_and_pullback(lambda x: ops.max_pool(x, 3, 2), 1, x)
    with ops.use_formulation(ops.PLAIN):
        expected = ops.max_pool(x, 3, 2)
    assert pooled.dtype == gradient.dtype == jnp.bfloat16
    np.testing.assert_array_equal(pooled, expected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((jnp.ones((4, 4, 1)), 2), r"\[batch, height, width, channels\]; got shape \(4, 4, 1\)"),
        ((jnp.ones((1, 4, 4, 1)), 0), "window must be a positive number"),
        ((jnp.ones((1, 4, 4, 1)), 2, (1, 2, 3)), "strides must be a positive number"),
        ((jnp.ones((1, 4, 4, 1)), 2, 2, ((-1, 0), (0, 0))), "padding must be two pairs"),
    ],
)
def test_a_pool_says_what_is_wrong(arguments, message):
    with pytest.raises(ValueError, match=message):
        ops.max_pool(*arguments)


def test_average_of_whole_numbers_is_refused():
    with pytest.raises(ValueError, match="floating dtypes; got uint8"):
        ops.avg_pool(jnp.ones((1, 4, 4, 1), jnp.uint8), 2)


def test_plain_formulation_retraces_a_compiled_function():
    @jax.jit
    def pull(x):
        return jax.grad(lambda x: ops.max_pool(x, 2).sum())(x)

    x = jnp.ones((1, 4, 4, 1))
    assert "select_and_scatter" not in pull.lower(x).as_text()
    with ops.use_formulation(ops.PLAIN):
        assert "select_and_scatter" in pull.lower(x).as_text()
    assert "select_and_scatter" not in pull.lower(x).as_text()


def test_formulations_nest_and_end():
    with ops.use_formulation(ops.PLAIN):
        assert ops.current_formulation() == ops.PLAIN
        with ops.use_formulation(CPU):
            assert ops.current_formulation() == CPU
        assert ops.current_formulation() == ops.PLAIN
    assert ops.current_formulation() == CPU


SHARDED = """
    import jax, jax.numpy as jnp, numpy as np
    from jax.sharding import NamedSharding, PartitionSpec as P
    from cnn_research import ops
    from cnn_research.ops import convolution

    convolution._PATCH_BYTES = 20_000
    formulation = ops.Formulation(
        sliced_weight_gradient=True,
        convolutions_as_products=True,
        gather_pool_gradient=True,
    )
    random = np.random.default_rng(0)
    x = jnp.asarray(random.normal(size=(24, 10, 10, 3)), jnp.float32)
    kernels = [
        jnp.asarray(random.normal(size=shape) / 5, jnp.float32)
        for shape in [(3, 3, 3, 8), (3, 3, 1, 8), (3, 3, 8, 8), (1, 1, 8, 4)]
    ]

    def loss(kernels, x):
        for kernel in kernels:
            x = ops.conv_general_dilated(
                x,
                kernel,
                (1, 1),
                "SAME",
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
                feature_group_count=x.shape[3] // kernel.shape[2],
            )
            x = ops.max_pool(jnp.tanh(x), 3, 2, "SAME")
        return (x**2).sum()

    gradient = jax.jit(jax.grad(loss, (0, 1)))
    with ops.use_formulation(ops.PLAIN):
        expected = gradient(kernels, x), gradient(kernels[:1], x[:20])

    def assert_close(actual, expected):
        for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(a, e, rtol=0, atol=1e-5 * float(jnp.abs(e).max()))

    assert jax.device_count() == 8
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    with jax.set_mesh(mesh), ops.use_formulation(formulation):
        everywhere = jax.device_put(kernels, NamedSharding(mesh, P()))
        sharded = jax.device_put(x, NamedSharding(mesh, P("data")))
        compiled = gradient.lower(everywhere, sharded).compile()
        assert_close(compiled(everywhere, sharded), expected[0])
        program = compiled.as_text()
        # Each device keeps its images: nothing is gathered, sent on, or traded.
        for moved in ("all-gather", "all-to-all", "collective-permute"):
            assert moved not in program, moved
        assert "all-reduce" in program
        # 8 devices do not divide 20 images.
        assert_close(gradient(everywhere[:1], x[:20]), expected[1])
    print("same gradients")
"""


@pytest.mark.slow
def test_eight_devices_give_the_gradients_of_one():
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
    }
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(SHARDED)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "same gradients\n"
