"""What a step trains on: classes drawn equally often, a copy per change, and mixed images."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cnn_research.cli.run import run
from cnn_research.core.distributed import data_mesh
from cnn_research.core.errors import UsageError
from cnn_research.data.augmentation.config import Augmentation
from cnn_research.data.batches import balanced_indices, class_members
from cnn_research.data.dataset import MISSING, Dataset, Split
from cnn_research.data.sources.synthetic import Synthetic
from cnn_research.models.mlp import MLP
from cnn_research.tasks.regression import Regression
from cnn_research.train.batch import draw_batch
from cnn_research.train.config import Selection, Training
from cnn_research.train.session import check_balanced
from cnn_research.train.state import StepContext, TrainData
from cnn_research.train.transfer import Transfer

pytestmark = pytest.mark.usefixtures("no_report")

LABELS = np.array([2, 0, 0, MISSING, 0, 2, 0, 0, 5], np.int32)
IMAGES = np.arange(9 * 4 * 4 * 3, dtype=np.uint8).reshape(9, 4, 4, 3)


def context(experiment, examples, mesh):
    return StepContext(experiment, experiment.model, optax.identity(), examples, mesh)


def made(steps: int = 1, batch_size: int = 9, **fields):
    """(images, targets) of the first steps, as the model would take them."""
    experiment = Training(data=Synthetic(), model=MLP(), batch_size=batch_size, **fields)
    balanced = experiment.sampling == "balanced"
    arrays = TrainData(
        images=jnp.asarray(IMAGES),
        labels={"label": jnp.asarray(LABELS)},
        classes=jax.tree.map(jnp.asarray, class_members(LABELS)) if balanced else None,
    )
    examples = len(IMAGES) * experiment.augmentation.copies
    mesh = data_mesh()
    with jax.set_mesh(mesh):
        step = jax.jit(lambda at: draw_batch(context(experiment, examples, mesh), arrays, 0, at))
        return [step(jnp.int32(at)) for at in range(steps)]


def test_members_of_each_class():
    found = class_members(LABELS)
    assert found["members"].tolist() == [1, 2, 4, 6, 7, 0, 5, 8]
    assert found["first"].tolist() == [0, 5, 7]
    assert found["count"].tolist() == [5, 2, 1]


def test_balanced_draws_are_equal_by_class_and_by_example_within_it():
    classes = jax.tree.map(jnp.asarray, class_members(LABELS))
    draw = jax.jit(lambda at: balanced_indices(0, at, 100, classes))
    drawn = [draw(jnp.int32(at)) for at in range(60)]
    indices = np.concatenate([np.asarray(indices) for indices, _ in drawn])
    numbers = np.concatenate([np.asarray(draws) for _, draws in drawn])
    assert len(np.unique(numbers)) == 6000
    counts = np.bincount(indices, minlength=9)
    assert counts[3] == 0, "an example without a label is never drawn"
    by_class = [counts[label == LABELS].sum() for label in (0, 2, 5)]
    # Four standard deviations of 6,000 draws with chance 1/3, and of 2,000 with chance 1/5.
    assert max(abs(count - 2000) for count in by_class) < 4 * np.sqrt(6000 * 2 / 9)
    assert max(abs(counts[LABELS == 0] - by_class[0] / 5)) < 4 * np.sqrt(2000 * 4 / 25)


def test_an_example_drawn_twice_is_changed_in_two_ways():
    ((images, targets),) = made(
        batch_size=64, sampling="balanced", augmentation=Augmentation(mirror=True)
    )
    (labels, _) = targets[0]
    only = np.asarray(images)[np.asarray(labels["label"]) == 5]
    assert len(np.unique(only.reshape(len(only), -1), axis=0)) == 2


def test_with_copies_an_epoch_has_every_image_as_it_is_and_with_each_change():
    how = Augmentation(mirror=True, flip=True, choose="copies")
    assert how.copies == 3
    steps = made(steps=3, augmentation=how)
    seen = np.concatenate([np.asarray(images) for images, _ in steps]).reshape(27, -1) * 255
    expected = np.concatenate([IMAGES, IMAGES[:, :, ::-1], IMAGES[:, ::-1]]).reshape(27, -1)

    def ordered(rows):
        return rows[np.lexsort(rows.T)]

    np.testing.assert_allclose(ordered(np.round(seen)), ordered(expected.astype(float)))


@pytest.mark.parametrize("how", [Augmentation(mixup=0.5), Augmentation(cutmix=0.5)])
def test_a_mixed_image_is_what_its_labels_say(how):
    ((images, targets),) = made(augmentation=how)
    ((first, share), (second, rest)) = targets
    np.testing.assert_allclose(share + rest, 1, rtol=1e-6)
    by_label = {int(label): IMAGES[label == LABELS].astype(float) / 255 for label in LABELS}
    for image, a, b, part in zip(images, first["label"], second["label"], share, strict=True):
        if how.mixup:
            made_of = [
                np.abs(image - part * x - (1 - part) * y).max()
                for x in by_label[int(a)]
                for y in by_label[int(b)]
            ]
            assert min(made_of) < 0.01
        else:
            made_of = [
                (np.isclose(image, x, atol=1e-6) | np.isclose(image, y, atol=1e-6)).all()
                for x in by_label[int(a)]
                for y in by_label[int(b)]
            ]
            assert any(made_of)


@pytest.mark.slow
def test_mixing_and_balancing_train(tmp_path):
    training = Training(
        data=Synthetic(train=32, validation=8, test=8, image_shape=(8, 8, 3), classes=(3,)),
        model=MLP(dense=(8,)),
        sampling="balanced",
        augmentation=Augmentation(mirror=True, mixup=0.2, cutmix=1.0),
        epochs=2,
        batch_size=8,
    )
    assert run(training, tmp_path).step == 8


def test_what_cannot_be_balanced(tmp_path):
    numbers = Training(
        data=Synthetic(train=32, numbers=("x",), image_shape=(8, 8, 3)),
        model=MLP(dense=(4,)),
        task=Regression(head="x"),
        selection=Selection(metric="MAE"),
        sampling="balanced",
        batch_size=8,
    )
    with pytest.raises(UsageError, match="'x' of data set synthetic has numbers"):
        run(numbers, tmp_path)
    copies = Training(
        data=Synthetic(),
        model=MLP(),
        sampling="balanced",
        augmentation=Augmentation(mirror=True, choose="copies"),
    )
    with pytest.raises(UsageError, match="cannot be combined with"):
        copies.check()


def test_cached_features_are_mixed_as_images_are():
    how = Augmentation(mixup=0.5)
    experiment = Training(
        data=Synthetic(),
        model=MLP(),
        transfer=Transfer(cache_after="pool"),
        augmentation=how,
        batch_size=9,
    )
    experiment.check()
    features = jax.random.normal(jax.random.key(0), (9, 1, 5))
    arrays = TrainData(features, {"label": jnp.arange(9)})
    mesh = data_mesh()
    with jax.set_mesh(mesh):
        images, targets = draw_batch(context(experiment, 9, mesh), arrays, 0, jnp.int32(0))
    ((first, share), (second, _)) = targets
    expected = (
        share[:, None] * features[first["label"], 0]
        + (1 - share)[:, None] * features[second["label"], 0]
    )
    np.testing.assert_allclose(images, expected, rtol=1e-5, atol=1e-6)


def windows(seed: int, steps: int = 2, examples: int = 8, window=(3, 5)):
    """Images whose pixels say where they are, and their labels, as training cuts them."""
    places = np.stack(
        np.broadcast_arrays(np.arange(4)[:, None, None], np.arange(7)[:, None], np.arange(11)),
        axis=-1,
    )
    arrays = TrainData(
        images=jnp.asarray(places, jnp.uint8),
        labels={"pixel": jnp.asarray(places[..., 2], jnp.uint8), "one": jnp.arange(4)},
        window=window,
    )
    experiment = Training(data=Synthetic(), model=MLP(), batch_size=4)
    mesh = data_mesh()
    with jax.set_mesh(mesh):
        step = jax.jit(lambda at: draw_batch(context(experiment, examples, mesh), arrays, seed, at))
        found = [step(jnp.int32(at)) for at in range(steps)]
    images = np.concatenate([np.rint(np.asarray(images) * 255) for images, _ in found])
    labels = [np.concatenate([np.asarray(t[0][0][head]) for _, t in found]) for head in
              ("pixel", "one")]  # fmt: skip
    return images.astype(int), *labels


def test_windows_are_cut_from_an_image_and_from_its_labels_alike():
    images, pixels, ones = windows(seed=0)
    assert images.shape == (8, 3, 5, 3)
    corners = images[:, 0, 0, 1:]
    assert corners.min() >= 0 and (corners.max(axis=0) <= [7 - 3, 11 - 5]).all()
    for image, pixel, one, (row, column) in zip(images, pixels, ones, corners, strict=True):
        assert (image[..., 0] == one).all()
        np.testing.assert_array_equal(image[..., 1], np.arange(row, row + 3)[:, None] + [0] * 5)
        np.testing.assert_array_equal(image[..., 2], [list(range(column, column + 5))] * 3)
        np.testing.assert_array_equal(pixel, image[..., 2])


def test_an_epoch_of_windows_takes_as_many_of_each_image_each_elsewhere():
    images, _, ones = windows(seed=1)
    assert np.bincount(ones).tolist() == [2, 2, 2, 2]
    assert len({tuple(window.ravel()) for window in images}) > 6
    again, other = windows(seed=1)[0], windows(seed=2)[0]
    np.testing.assert_array_equal(images, again)
    assert not np.array_equal(images, other)


def test_every_place_has_its_turn():
    images, *_ = windows(seed=0, steps=100)
    rows, columns = np.unique(images[:, 0, 0, 1]), np.unique(images[:, 0, 0, 2])
    assert rows.tolist() == list(range(5)) and columns.tolist() == list(range(7))


def test_balanced_draws_need_a_class_of_each_image():
    images, pixels = np.zeros((4, 6, 6, 3), np.uint8), np.zeros((4, 6, 6), np.int32)
    for heads, labels, found in (
        (("pixel",), {"pixel": pixels}, "'pixel' of data set made has a class per pixel"),
        (("number",), {"number": np.ones(4, np.float32)}, "'number' of data set made has numbers"),
        ((), {}, "there are none"),
    ):
        names = {"pixel": ("a", "b")} if "pixel" in labels else {}
        dataset = Dataset("made", {"train": Split(images, labels)}, names, {})
        with pytest.raises(UsageError, match=f"draws classes equally often, but {found}"):
            check_balanced(heads, dataset)
