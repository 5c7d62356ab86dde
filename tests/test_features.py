"""What a network's layers respond to, against computations by hand; and the pages that show it."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from cnn_research.cli.run import run
from cnn_research.core.errors import UsageError, UserError
from cnn_research.core.experiment import lookup
from cnn_research.data.dataset import Dataset, Split
from cnn_research.models.convnet import ConvNet
from cnn_research.models.layer_outputs import (
    grad_cam,
    kernel_of,
    layers,
    maps,
    top_activating_images,
)
from cnn_research.models.layers import BatchNorm, Conv
from cnn_research.tasks.regression import Regression
from cnn_research.train.config import Training
from cnn_research.train.evaluator import scaled
from cnn_research.train.trained import TrainedModel
from cnn_research.workflows.galleries import features as gallery
from cnn_research.workflows.galleries.feature_pictures import filter_slices, overlaid, stretched
from cnn_research.workflows.galleries.features import Features, cam_layer, spread

RNG = np.random.default_rng(0)


class PooledLinear(nn.Module):
    """Convolution, ReLU, mean over places, linear: where Grad-CAM is CAM."""

    @nn.compact
    def __call__(self, images, train=False):
        x = Conv(4, (3, 3), name="conv")(images)
        return nn.Dense(3, name="fc")(x.mean(axis=(1, 2)))


class Rectified(nn.Module):
    """Convolution, ReLU, linear over the flattened map."""

    @nn.compact
    def __call__(self, images, train=False):
        x = nn.relu(Conv(4, (3, 3), name="conv")(images))
        return nn.Dense(3, name="fc")(x.reshape(len(x), -1))


class Block(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        x = Conv(4, (3, 3), name="conv1")(x)
        x = BatchNorm(name="bn1")(x, use_running_average=not train)
        return nn.relu(Conv(4, (3, 3), strides=2, name="conv2")(x))


class Deep(nn.Module):
    """Nested blocks, a depthwise and a 1x1 convolution that ends at a single place."""

    @nn.compact
    def __call__(self, images, train=False):
        x = Block(name="layer1")(images, train)
        x = Block(name="layer2")(x, train)
        x = Conv(4, (2, 2), feature_group_count=4, padding="VALID", name="depthwise")(x)
        x = Conv(5, (1, 1), name="last")(x)
        return nn.Dense(3, name="fc")(x.reshape(len(x), -1))


def made(model, shape=(6, 8, 2), batch=3):
    images = jnp.asarray(RNG.normal(size=(batch, *shape)), jnp.float32)
    return model.init(jax.random.key(0), images), images


# Numbers -----------------------------------------------------------------------------------------


def test_grad_cam_is_cam_under_a_linear_head_on_pooled_maps():
    """alpha_k = w_k / places, so that the map is CAM's (Zhou et al. 2016) over their number."""
    model = PooledLinear()
    variables, images = made(model)
    targets = jnp.array([2, 0, 1])
    cams, outputs = grad_cam(model, variables, images, targets, "conv")
    np.testing.assert_array_equal(outputs, model.apply(variables, images))
    (_, (activations,)) = maps(model, variables, images, ["conv"])
    weights = np.asarray(variables["params"]["fc"]["kernel"])
    for cam, activation, target in zip(cams, activations, targets, strict=True):
        expected = np.maximum(activation @ weights[:, target], 0) / (6 * 8)
        assert expected.max() > 0
        np.testing.assert_allclose(cam, expected, rtol=1e-5, atol=1e-7)


def test_grad_cam_averages_gradients_over_places():
    """The gradient by a map before ReLU is the linear layer's weight where the map is positive."""
    model = Rectified()
    variables, images = made(model)
    targets = np.array([1, 1, 2])
    cams, _ = grad_cam(model, variables, images, jnp.asarray(targets), "conv")
    (_, (activations,)) = maps(model, variables, images, ["conv"])
    weights = np.asarray(variables["params"]["fc"]["kernel"]).reshape(6, 8, 4, 3)
    for cam, activation, target in zip(cams, np.asarray(activations), targets, strict=True):
        alpha = (weights[..., target] * (activation > 0)).mean(axis=(0, 1))
        expected = np.maximum((activation * alpha).sum(axis=-1), 0)
        np.testing.assert_allclose(cam, expected, rtol=1e-5, atol=1e-6)


def test_layers_in_order_with_their_kernels():
    model = Deep()
    variables, _ = made(model, (8, 8, 2))
    found = {layer.path: layer for layer in layers(model, variables, (8, 8, 2))}
    assert list(found) == [
        *("layer1/conv1", "layer1/bn1", "layer1/conv2", "layer1"),
        *("layer2/conv1", "layer2/bn1", "layer2/conv2", "layer2"),
        *("depthwise", "last"),
    ]
    assert found["layer1/conv1"].kernel == (3, 3, 2)
    assert found["depthwise"].kernel == (2, 2, 1)
    assert found["layer1"].kernel is None
    assert found["layer2"].shape == (2, 2, 4)
    assert found["last"].shape == (1, 1, 5)
    assert kernel_of(variables, "layer2/conv2").shape == (3, 3, 4, 4)
    everything = list(found.values())
    assert cam_layer(everything, "").path == "layer2", "not the ones of a single place"
    assert cam_layer(everything, "layer1/bn1").path == "layer1/bn1"
    assert [layer.path for layer in spread(everything, 3)] == [
        "layer1/conv1",
        "layer2/conv1",
        "last",
    ]
    assert spread(everything, 99) == everything


def test_maps_are_the_layers_outputs():
    model = Deep()
    variables, images = made(model, (8, 8, 2))
    outputs, (inner, block) = maps(model, variables, images, ["layer1/conv1", "layer1"])
    np.testing.assert_array_equal(outputs, model.apply(variables, images))
    conv = nn.Conv(4, (3, 3))
    expected = conv.apply({"params": variables["params"]["layer1"]["conv1"]}, images)
    np.testing.assert_allclose(inner, expected, atol=1e-5)
    assert block.shape == (3, 4, 4, 4) and (block >= 0).all()


def test_top_activating_images_are_a_loops():
    model = Deep()
    variables, _ = made(model, (8, 8, 2))
    images = RNG.integers(0, 256, (75, 8, 8, 2), np.uint8)
    images[70] = images[3]  # of equals, the earlier
    searched = np.flatnonzero(np.arange(75) % 3 != 1)
    chosen = [
        each for each in layers(model, variables, (8, 8, 2)) if each.path in ("layer2", "last")
    ]

    def preprocess(x):
        return x / 255

    found = top_activating_images(
        model, variables, images, searched, preprocess, chosen, units=5, best=4
    )
    _, values = maps(model, variables, preprocess(jnp.asarray(images)), [c.path for c in chosen])
    for activations, value in zip(found, map(np.asarray, values), strict=True):
        units = min(5, value.shape[3])
        assert activations.indices.shape == (units, 4)
        for unit in range(units):
            peaks = value[..., unit].max(axis=(1, 2))
            expected = sorted(searched, key=lambda i, p=peaks: (-p[i], i))[:4]
            np.testing.assert_array_equal(activations.indices[unit], expected)
            np.testing.assert_allclose(activations.values[unit], peaks[expected], rtol=1e-5)
            for index, (row, column) in zip(expected, activations.places[unit], strict=True):
                size = value.shape[1]
                at = np.unravel_index(value[index, ..., unit].argmax(), (size, size))
                np.testing.assert_allclose(
                    (row + 0.5, column + 0.5), (np.array(at) + 0.5) * 8 / size
                )


def test_pictures_of_numbers():
    np.testing.assert_array_equal(stretched(np.array([[-1.0, 0.0, 1.0]])), [[0, 128, 255]])
    assert (stretched(np.full((2, 2), 7.0)) == 0).all()
    kernel = np.zeros((3, 3, 6))
    kernel[0, 0, 1], kernel[2, 2, 1] = 2, -2
    zero, signed = filter_slices(kernel, 2, colour=False)
    assert (zero == 128).all()
    assert (signed[0, 0], signed[2, 2], signed[1, 1]) == (255, 0, 128)
    colour = filter_slices(RNG.normal(size=(3, 3, 3)), 1, colour=True)
    assert colour[0].shape == (3, 3, 3)
    image = RNG.integers(0, 256, (8, 8, 1), np.uint8)
    nothing = overlaid(image, np.zeros((2, 2), np.float32))
    np.testing.assert_array_equal(nothing, image.repeat(16, 0).repeat(16, 1).repeat(3, 2))
    hot = overlaid(image, np.array([[1.0, 0.0], [0.0, 0.0]], np.float32)).astype(int)
    assert hot[0, 0, 0] > hot[0, 0, 2] + 100
    assert (hot[-1, -1] == int(image[-1, -1, 0])).all()


# Pages -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of a digits_cnn, trained for a few steps."""
    workdir = tmp_path_factory.mktemp("runs") / "digits"
    small = dataclasses.replace(lookup("digits_cnn").experiment(), epochs=0.3)
    run(small, workdir)
    return workdir


def test_features_of_a_run(trained, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    before = {file: file.read_bytes() for file in trained.rglob("*") if file.is_file()}
    run(Features(run=str(trained), units=2, layers=1, search=40), tmp_path / "features")
    assert before == {file: file.read_bytes() for file in trained.rglob("*") if file.is_file()}
    names = ["feature_maps", "grad_cam", "layer_1"]
    report = tmp_path / "features" / "report"
    assert sorted(file.stem for file in report.glob("*.png")) == names
    text = (report / "report.md").read_text()
    assert "1 of 2 convolutions are shown" in text
    assert "Conv_0: 2 of 16 units" in text
    assert "40 of the split's 300 images were searched" in text
    assert "at the output of BatchNorm_1, 4x4x32" in text
    events = EventAccumulator(str(tmp_path / "features" / "events" / "report"))
    events.Reload()
    assert sorted(events.Tags()["images"]) == names


@pytest.mark.slow
def test_grad_cam_for_a_class_shows_images_of_it(trained, tmp_path, monkeypatch):
    seen = {}
    monkeypatch.setattr(
        gallery, "cams_figure", lambda *arguments: seen.update(given=arguments) or figure()
    )
    chosen = Features(run=str(trained), units=1, layers=1, search=10, target_class="7")
    run(chosen, tmp_path / "features")
    images, cams, labels, said, title, subtitle = seen["given"]
    assert labels == ["7"] * 12 and title == "Grad-CAM for the class 7"
    assert len(images) == len(cams) == len(said) == 12
    assert subtitle.startswith("at the output of BatchNorm_1")
    model = TrainedModel.load(trained)
    split = model.load_data().splits["test"]
    indices = np.flatnonzero(split.labels["label"] == 7)[:12]
    x = scaled(jnp.asarray(split.images[indices]), model.experiment)
    network = model.experiment.model
    expected, _ = grad_cam(network, model.host_variables, x, jnp.full(12, 7), "BatchNorm_1")
    np.testing.assert_allclose(cams, expected, rtol=1e-4, atol=1e-6)


def figure():
    from matplotlib.figure import Figure

    return Figure()


@pytest.mark.slow
def test_a_regression_has_features_too(tmp_path, monkeypatch):
    """Three channels, images that are not square, no classes."""
    images = RNG.integers(0, 256, (20, 12, 9, 3), np.uint8)
    years = {"year": np.arange(1900, 1920, dtype=np.float32)}
    splits = {name: Split(images, years) for name in ("train", "test")}
    dataset = Dataset("photographs", splits, {}, {})
    model = ConvNet(features=(4,), padding=(0,), dense=(), num_classes=1)
    task = Regression(head="year").fitted(dataset)
    training = Training(data=None, model=model, task=task)
    variables = model.init(jax.random.key(0), jnp.zeros((1, 12, 9, 3)))

    class State:
        step = 3

        def variables(self):
            return variables

    found = TrainedModel(tmp_path, training, State(), dataset.image_shape, {})
    monkeypatch.setattr(TrainedModel, "load", lambda folder: found)
    monkeypatch.setattr(TrainedModel, "load_data", lambda self: dataset)
    run(Features(run="photographs", units=9), tmp_path / "features")
    text = (tmp_path / "features" / "report" / "report.md").read_text()
    assert "Regions that contribute to a larger number" in text
    assert "Conv_0: 4 of 4 units" in text
    with pytest.raises(UsageError, match="the run predicts a number"):
        run(Features(run="photographs", target_class="1900"), tmp_path / "features")


# What is wrong -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "part"),
    [
        ({"run": ""}, "--run is missing"),
        ({"units": 0}, "--units is 0"),
        ({"example": 300}, "--example is 300: the split has images 0 to 299"),
        ({"target_class": "77"}, r"no class '77' \(did you mean '7'\?\); the classes are 0, 1"),
        ({"cam_layer": "Conv_9"}, r"no layer 'Conv_9' has a map \(did you mean"),
    ],
)
def test_fields_out_of_range(fields, part, trained, tmp_path):
    wrong = dataclasses.replace(Features(run=str(trained), units=1, layers=1, search=1), **fields)
    with pytest.raises(UsageError, match=part):
        run(wrong, tmp_path / "features")
    assert not (tmp_path / "features").exists()


def test_a_folder_that_is_no_training(trained, tmp_path):
    with pytest.raises(UserError, match="is not a run folder"):
        run(Features(run=str(tmp_path)), tmp_path / "features")
    with pytest.raises(UsageError, match="has a run of digits_cnn, not of features"):
        run(Features(name="features", run=str(trained)), trained)


@pytest.mark.slow
def test_a_network_without_convolution(tmp_path):
    run(dataclasses.replace(lookup("digits_mlp").experiment(), epochs=0.1), tmp_path / "run")
    with pytest.raises(UserError, match="has no convolution"):
        run(Features(run=str(tmp_path / "run")), tmp_path / "features")
