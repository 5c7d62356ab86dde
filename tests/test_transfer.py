"""Transfer: what is frozen does not move, what is cached changes nothing, rates are as asked."""

from __future__ import annotations

import dataclasses
import hashlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from PIL import Image
from safetensors.numpy import save_file

from cnn_research.cli.run import run
from cnn_research.core import run_folder as folders
from cnn_research.core.config import register_config
from cnn_research.core.distributed import data_mesh
from cnn_research.core.errors import UsageError, UserError
from cnn_research.data.augmentation.config import Augmentation
from cnn_research.data.batches import batch_indices
from cnn_research.data.dataset import Split
from cnn_research.data.prepare import cache
from cnn_research.data.sources.folder import ImageFolder
from cnn_research.data.sources.synthetic import Synthetic
from cnn_research.models.airbench import Airbench
from cnn_research.models.convnet import ConvNet
from cnn_research.models.mobilenet import MobileNetV1
from cnn_research.models.pretrained import Pretrained
from cnn_research.models.resnet9 import ResNet9
from cnn_research.tasks.classification import Classification
from cnn_research.train import checkpoint
from cnn_research.train.config import Evaluation, Training
from cnn_research.train.evaluator import scaled, views_of
from cnn_research.train.feature_cache import FeatureCache, FromFeatures, before, one_view
from cnn_research.train.optimizers import Optimizer
from cnn_research.train.state import abstract_state, initial_state
from cnn_research.train.trained import bind_to_dataset
from cnn_research.train.transfer import Transfer, frozen_statistics
from cnn_research.train.undecoded import check_disk

pytestmark = pytest.mark.usefixtures("no_report")

# Without other splits than train no report is written, which is most of such a run.
DATA = Synthetic(train=64, validation=0, test=0, image_shape=(12, 12, 3), classes=(4,))


def training(transfer: Transfer | None = None, **fields) -> Training:
    plain = dict(
        data=DATA,
        model=ConvNet(features=(8, 8), padding=(1, 1), dense=(16,)),
        optimizer=Optimizer(name="adamw", learning_rate=1e-2, weight_decay=0.1),
        epochs=2,
        batch_size=16,
        transfer=transfer or Transfer(),
    )
    return Training(**(plain | fields))


def by_path(state) -> dict[str, np.ndarray]:
    """Every leaf of a state's variables and averages."""
    trees = {"params": state.params, **state.model_state, "ema": state.ema}
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(trees)
    }


def states(config: Training, folder) -> list[dict[str, np.ndarray]]:
    """Runs it; the variables as they are drawn, and at every checkpoint."""
    run(config, folder)
    dataset = config.data.load()
    fixed = bind_to_dataset(config, dataset)
    drawn = initial_state(fixed, dataset.image_shape, data_mesh())
    saved = folder / folders.CHECKPOINTS
    like = abstract_state(fixed, dataset.image_shape, data_mesh())
    steps = sorted(int(file.name) for file in saved.iterdir() if file.name.isdigit())
    return [by_path(drawn), *(by_path(checkpoint.restore(saved, s, like)[0]) for s in steps)]


def differing(first, second) -> set[str]:
    return {path for path in first if not np.array_equal(first[path], second[path])}


def test_frozen_layers_move_neither_parameters_nor_statistics(tmp_path):
    """Weight decay and moving averages included; the rest of the network learns."""
    config = training(
        Transfer(freeze=("Conv_0", "BatchNorm_0")),
        optimizer=Optimizer(
            name="adamw", learning_rate=1e-2, weight_decay=0.1, ema_decay=0.9, clip_norm=1.0
        ),
    )
    drawn, *_, trained = states(config, tmp_path)
    changed = differing(drawn, trained)
    assert not [path for path in changed if "Conv_0" in path or "BatchNorm_0" in path]
    assert {
        "params/Conv_1/kernel",
        "batch_stats/BatchNorm_1/mean",
        "params/Dense_1/bias",
    } <= changed
    assert "ema/params/Conv_1/kernel" in changed


@pytest.mark.slow
def test_a_run_starts_from_the_weights_of_a_file_and_says_which(tmp_path):
    """Averages included; a layer that is not asked of the file is as it was drawn."""
    like = training(optimizer=Optimizer(ema_decay=0.9))
    *_, trained = states(like, tmp_path / "first")
    file = tmp_path / "weights.safetensors"
    torch_names = {"kernel": "weight", "scale": "weight", "mean": "running_mean"}
    arrays = {}
    for path, array in trained.items():
        kind, module, *_, leaf = path.split("/")
        if kind in ("params", "batch_stats") and module != "Dense_1":
            if leaf == "kernel":
                array = array.transpose((3, 2, 0, 1) if array.ndim == 4 else (1, 0))
            arrays[f"{module}.{torch_names.get(leaf, leaf)}"] = np.ascontiguousarray(array)
    save_file(arrays, file)

    frozen = dataclasses.replace(
        like,
        pretrained=Pretrained(str(file), fresh=("Dense_1",)),
        transfer=Transfer(freeze=("Conv_*", "BatchNorm_*", "Dense_0")),
    )
    *_, second = states(frozen, tmp_path / "second")
    taken = {path for path in trained if "Dense_1" not in path}
    assert differing(trained, second) & taken == {p for p in taken if p.startswith("ema")}
    for path in (path for path in taken if path.startswith("ema")):
        np.testing.assert_allclose(
            second[path], trained[path.removeprefix("ema/")], rtol=1e-5, err_msg=path
        )
    record = folders.read_json(tmp_path / "second" / "run.json")["pretrained"]
    assert record["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
    assert set(record["fresh"]) == {"Dense_1/kernel", "Dense_1/bias"}


@pytest.mark.slow
def test_a_run_starts_from_another_run(tmp_path):
    """From what that one's report is about, its averages."""
    first = training(optimizer=Optimizer(ema_decay=0.9))
    *_, trained = states(first, tmp_path / "first")
    second = training(
        model=first.model.clone(dense=(16,)),
        data=dataclasses.replace(DATA, classes=(3,)),
        pretrained=Pretrained(str(tmp_path / "first"), fresh=("Dense_1",)),
        transfer=Transfer(freeze=("Conv_*", "BatchNorm_*", "Dense_0")),
    )
    *_, then = states(second, tmp_path / "second")
    taken = [path for path in then if "Dense_1" not in path]
    assert len(taken) > 8
    for path in taken:
        np.testing.assert_array_equal(then[path], trained[f"ema/{path}"], err_msg=path)
    with pytest.raises(UserError, match="is not a run folder"):
        run(dataclasses.replace(second, pretrained=Pretrained(str(tmp_path))), tmp_path / "third")


def test_frozen_batch_norm_uses_its_running_statistics_in_training(tmp_path):
    """What follows a frozen layer learns from what it will be evaluated on."""
    model = training().model
    images = jax.random.normal(jax.random.key(0), (4, 12, 12, 3))
    variables = model.init(jax.random.key(1), images)
    quiet = model.clone(dropout=0.0)
    with frozen_statistics(lambda path: path.startswith("BatchNorm")):
        training_mode, state = quiet.apply(variables, images, train=True, mutable=["batch_stats"])
    np.testing.assert_array_equal(training_mode, quiet.apply(variables, images, train=False))
    jax.tree.map(np.testing.assert_array_equal, state["batch_stats"], variables["batch_stats"])
    free, _ = quiet.apply(variables, images, train=True, mutable=["batch_stats"])
    assert np.abs(free - training_mode).max() > 1e-3


@pytest.mark.slow
def test_a_cached_layer_may_have_several_outputs():
    """A map and the means of those before it: one vector on disk, and the same logits."""
    model = MobileNetV1(width=0.25, pool="all", num_classes=3)
    images = jax.random.normal(jax.random.key(0), (2, 32, 32, 3))
    variables = jax.jit(model.init)(jax.random.key(1), images)
    layer = "conv_dw_3_out"
    patterns = before(model, (32, 32, 3), layer)
    assert "conv_pw_2" in patterns and "conv_pw_3" not in patterns
    split = Split(np.asarray(images * 50 + 100).clip(0, 255).astype(np.uint8), {})
    cached = FeatureCache(
        model,
        variables,
        layer,
        {"train": split},
        lambda pixels: pixels / 255.0,
        mirror=True,
        frozen=lambda path: True,
        of="noise",
    )
    blank = cached.blank()["train"].images
    found = cached.read(lambda text: None)["train"].images
    assert (cached.views, *blank.shape) == (2, *found.shape) and not blank.any()
    assert found.shape == (2, 2, 8 * 8 * 32 + 8 + 8 + 16 + 16 + 32 + 32)
    tail = FromFeatures(model, layer, (32, 32, 3))
    for view, pixels in enumerate((split.images, split.images[:, :, ::-1])):
        expected = model.apply(variables, pixels / 255.0)
        actual = tail.apply(variables, jnp.asarray(found[:, view]))
        np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_gradual_unfreezing_and_its_resume(tmp_path):
    """A layer stands still until its epoch, and learns from then on; killed or not."""
    transfer = Transfer(unfreeze=(("Conv_1", 1), ("Conv_0", 2)))
    assert transfer.phases() == [0, 1, 2]
    whole = training(transfer, epochs=3, keep_checkpoints=4)
    drawn, one, two, three = states(whole, tmp_path / "whole")
    head, second, first = "params/Dense_1/kernel", "params/Conv_1/kernel", "params/Conv_0/kernel"
    convolutions = {first, second, head}
    assert differing(drawn, one) & convolutions == {head}
    assert differing(one, two) & convolutions == {head, second}
    assert differing(two, three) & convolutions == {head, second, first}
    # The rate is constant: the first epochs of a shorter run are those of a longer one.
    run(dataclasses.replace(whole, epochs=1.5), tmp_path / "parts")
    assert not differing(three, states(whole, tmp_path / "parts")[-1])


def test_first_step_of_an_unfrozen_layer_is_adams_first():
    """Bias correction counts from the layer's own first step; the schedule from the run's."""
    params = {"a": {"kernel": jnp.ones(3)}, "b": {"kernel": jnp.ones(3)}}
    gradients = jax.tree.map(lambda x: 0.5 * x, params)
    transfer = Transfer(unfreeze=(("a", 5),))
    base = Optimizer(name="adam", learning_rate=1.0, schedule="linear")
    state = None
    for step in range(12):
        phase = max(epoch for epoch in transfer.phases() if 2 * epoch <= step)
        update = transfer.optimizer(base, 20, lambda epoch: 2 * int(epoch), phase)
        state = update.init(params) if state is None else state
        updates, state = update.update(gradients, state, params)
        assert bool(updates["a"]["kernel"].any()) == (step >= 10)
        rate = 1 - step / 20
        np.testing.assert_allclose(updates["b"]["kernel"], -rate, rtol=1e-4)
        if step >= 10:
            np.testing.assert_allclose(updates["a"]["kernel"], -rate, rtol=1e-4)


def test_discriminative_rates():
    params = {"low": {"kernel": jnp.ones(3)}, "head": {"kernel": jnp.ones(3), "bias": jnp.ones(3)}}
    gradients = jax.tree.map(jnp.ones_like, params)
    transfer = Transfer(rates=(("low", 0.1), ("*/bias", 2.0), ("head", 1.5)))
    base = Optimizer(name="sgd", learning_rate=1.0, momentum=0.0)
    update = transfer.optimizer(base, 10, lambda epoch: 0)
    updates, _ = update.update(gradients, update.init(params), params)
    assert float(updates["low"]["kernel"][0]) == pytest.approx(-0.1)
    assert float(updates["head"]["bias"][0]) == pytest.approx(-2.0)
    assert float(updates["head"]["kernel"][0]) == pytest.approx(-1.5)


@pytest.mark.parametrize(
    ("transfer", "message"),
    [
        (Transfer(freeze=("Conv_7",)), "no layer matches 'Conv_7' (did you mean 'Conv_"),
        (Transfer(unfreeze=(("Cnv_0", 1),)), "transfer.unfreeze: no layer matches"),
        (Transfer(rates=(("nothing", 2.0),)), "transfer.rates: no layer matches"),
        (Transfer(freeze=("*",)), "nothing can be trained"),
        (Transfer(cache_after="Conv_7"), "no layer 'Conv_7' (did you mean 'Conv_"),
        (Transfer(unfreeze=(("Conv_0", 0),)), "must be above 0"),
        (Transfer(rates=(("Conv_0", 0),)), "must be above 0"),
    ],
)
def test_mistakes_are_named(transfer, message, tmp_path):
    with pytest.raises(UsageError) as error:
        run(training(transfer), tmp_path)
    assert message in str(error.value)


@pytest.mark.parametrize(
    "fields",
    [
        {"augmentation": Augmentation(shift=1)},
        {"evaluation": Evaluation(shift=1)},
        {"evaluation": Evaluation(mirror=True)},
    ],
)
def test_cached_features_are_mirrored_at_most(fields, tmp_path):
    with pytest.raises(UsageError, match="mirror"):
        run(training(Transfer(cache_after="Conv_1"), **fields), tmp_path)


# Cached features ---------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_run_on_cached_features_is_the_run_on_images(tmp_path, monkeypatch):
    """The same network, the same frozen layers: once through the cache, once without."""
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "data"))
    model = ConvNet(features=(8, 8), padding=(1, 1), dense=(16,), dropout=0.0)
    frozen = before(model, (12, 12, 3), "BatchNorm_0")
    assert frozen == ("Conv_0", "BatchNorm_0")
    # Adam would make a step of what rounding leaves of a bias's gradient before batch norm, 0.
    fields = dict(model=model, optimizer=Optimizer(name="sgd", learning_rate=1e-2))
    cached = training(Transfer(cache_after="BatchNorm_0"), **fields)
    drawn, *_, features = states(cached, tmp_path / "cached")
    images = states(training(Transfer(freeze=frozen), **fields), tmp_path / "images")[-1]
    for path, leaf in images.items():
        np.testing.assert_allclose(features[path], leaf, atol=2e-4, err_msg=path)
    still = {path for path in drawn if path.split("/")[1] in frozen}
    assert len(still) == 6 and not still & differing(drawn, features)


def test_features_are_computed_once(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "data"))
    said: list[str] = []
    takes: list[float] = []
    model = ConvNet(features=(8, 8), padding=(1, 1), dense=(16,))
    dataset = dataclasses.replace(DATA, test=16).load()
    variables = model.init(jax.random.key(0), jnp.zeros((1, 12, 12, 3)))

    def ask(variables, splits):
        cached = FeatureCache(
            model,
            variables,
            "BatchNorm_1",
            splits,
            lambda x: x.astype(jnp.float32) / 255,
            mirror=True,
            frozen=lambda path: not path.startswith("Dense"),
            of="noise",
        )
        takes.append(cached.seconds())
        return cached.read(said.append)

    features = ask(variables, dataset.splits)
    assert len(said) == 1
    # Other splits of the same images, another head: found. The images themselves decide.
    swapped = dict(dataset.splits, train=dataset.splits["test"], test=dataset.splits["train"])
    head = jax.tree.map(lambda x: x + 1, variables["params"]["Dense_1"])
    other = ask({**variables, "params": {**variables["params"], "Dense_1": head}}, swapped)
    assert len(said) == 1
    np.testing.assert_array_equal(other["test"].images, features["train"].images)
    # Other weights below: computed anew.
    ask(jax.tree.map(lambda x: x + 1, variables), dataset.splits)
    assert len(said) == 2
    assert [seconds > 0 for seconds in takes] == [True, False, True]
    tail = FromFeatures(model, "BatchNorm_1", (12, 12, 3))
    images = dataset.splits["test"].images[:5].astype(np.float32) / 255
    for view, seen in enumerate((images, images[:, :, ::-1])):
        expected = model.apply(variables, seen, capture_intermediates=True)
        of_layer = expected[1]["intermediates"]["BatchNorm_1"]["__call__"][0]
        found = features["test"].images[:5, view]
        np.testing.assert_allclose(found, of_layer, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(tail.apply(variables, found), expected[0], rtol=1e-4, atol=1e-5)


def test_room_for_features_is_looked_for_before_images_are_decoded(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "data"))
    for name in "ab":
        (tmp_path / "images" / name).mkdir(parents=True)
        for number in range(3):
            image = Image.new("RGB", (12, 12), (number, 0, 0))
            image.save(tmp_path / "images" / name / f"{number}.png")
    data = ImageFolder(str(tmp_path / "images"), image_size=(12, 12))
    cached = training(Transfer(cache_after="Conv_0"), augmentation=Augmentation(mirror=True))
    # Two views of 12x12x8 numbers, and the arrays of 12x12x3 bytes.
    needed = 6 * (2 * 12 * 12 * 8 * 4 + 12 * 12 * 3)
    monkeypatch.setattr(cache, "free_bytes", lambda folder: needed)
    check_disk(cached, data)
    monkeypatch.setattr(cache, "free_bytes", lambda folder: needed - 1)
    message = "decoding 6 images at 12x12x3 and caching their features needs 57.9 kB"
    with pytest.raises(UserError, match=message):
        check_disk(cached, data)
    with pytest.raises(UsageError, match="no layer 'Conv_9'"):
        check_disk(training(Transfer(cache_after="Conv_9")), data)
    check_disk(training(), data)


def test_views_of_cached_features():
    """Training draws one of both, evaluation averages them if asked to."""
    features = jnp.arange(40 * 2 * 3, dtype=jnp.float32).reshape(40, 2, 3)
    keys = jax.random.split(jax.random.key(0), 40)
    drawn = np.asarray(one_view(keys, features))
    which = [int((drawn[i] == features[i, 1]).all()) for i in range(40)]
    assert all((drawn[i] == features[i, which[i]]).all() for i in range(40))
    assert 10 < sum(which) < 30
    assert (one_view(keys, features[:, :1]) == features[:, 0]).all()
    mirror, plain = Evaluation(mirror=True), Evaluation()
    config = training(Transfer(cache_after="Conv_1"), augmentation=Augmentation(mirror=True))
    assert len(views_of(features, dataclasses.replace(config, evaluation=mirror))) == 2
    (only,) = views_of(features, dataclasses.replace(config, evaluation=plain))
    assert (only == features[:, 0]).all()


def test_a_layer_with_a_way_round_it_cannot_be_cached():
    """In a residual pair the input is added to the output: neither convolution is a cut."""
    model = ResNet9(features=(8,), pool=(False,), residual=(True,))
    assert before(model, (8, 8, 3), "BatchNorm_0")
    with pytest.raises(UsageError, match="does not depend on 'BatchNorm_1' alone"):
        before(model, (8, 8, 3), "BatchNorm_1")


@register_config
class Two(nn.Module):
    """A main head, and an auxiliary one with a known answer."""

    num_classes: int = 4
    weight: float = 0.5

    @nn.compact
    def __call__(self, images, train=False):
        x = images.reshape(len(images), -1)
        if train or self.is_initializing():
            auxiliary = nn.Dense(self.num_classes, name="auxiliary")(x)
            self.sow("auxiliary", "logits", (self.weight, auxiliary))
        return nn.Dense(self.num_classes, name="head")(x)


@pytest.mark.slow
def test_auxiliary_heads_learn_by_their_weight(tmp_path):
    """Gradients of a linear model: those of the auxiliary head are half its own cross-entropy's."""
    base = Optimizer(name="sgd", learning_rate=1.0, momentum=0.0)
    config = training(model=Two(), optimizer=base, epochs=0.25)
    drawn, trained = states(config, tmp_path)
    assert not any("logits" in path for path in drawn)
    indices, _ = batch_indices(0, jnp.int32(0), 16, 64)
    split = DATA.load().splits["train"].take(np.asarray(indices))
    x = np.asarray(scaled(jnp.asarray(split.images), config)).reshape(16, -1)

    def loss(kernel, bias, weight):
        terms = Classification().training_loss(
            x @ kernel + bias, split.labels, np.ones(16, np.float32)
        )
        total, count = terms["loss"]
        return weight * total / count

    for name, weight in (("head", 1.0), ("auxiliary", 0.5)):
        kernel, bias = drawn[f"params/{name}/kernel"], drawn[f"params/{name}/bias"]
        expected = kernel - jax.grad(loss)(kernel, bias, weight)
        np.testing.assert_allclose(trained[f"params/{name}/kernel"], expected, atol=1e-5)


@pytest.mark.slow
def test_averages_start_from_the_first_layer_of_the_training_images(tmp_path):
    """A frozen layer taken from the images is the same in the parameters and in their average."""
    config = training(
        Transfer(freeze=("whiten/kernel",)),
        model=Airbench(features=(8, 8)),
        optimizer=Optimizer(learning_rate=1e-3, ema_decay=0.9),
        epochs=0.5,
    )
    drawn, trained = states(config, tmp_path)
    whiten = trained["params/whiten/kernel"]
    assert not np.array_equal(whiten, drawn["params/whiten/kernel"])
    np.testing.assert_array_equal(trained["ema/params/whiten/kernel"], whiten)


def test_first_layer_is_taken_from_all_of_the_training_split(tmp_path, monkeypatch):
    """A folder is sorted by class: its first images show one class only."""
    shown = []
    with_images = Airbench.with_images
    monkeypatch.setattr(Airbench, "init_images", 4)
    monkeypatch.setattr(
        Airbench,
        "with_images",
        lambda self, params, images: shown.append(images) or with_images(self, params, images),
    )
    config = training(
        Transfer(freeze=("whiten/kernel",)), model=Airbench(features=(8, 8)), epochs=0.5
    )
    run(config, tmp_path)
    images = DATA.load().splits["train"].images
    expected = scaled(jnp.asarray(images[[0, 21, 42, 63]]), config)
    np.testing.assert_array_equal(shown[0], expected)
