"""The palette paper's first phase: photographs, clusters of pixels, windows, histograms."""

from __future__ import annotations

import dataclasses
import json
import tarfile

import numpy as np
import pytest
from PIL import Image

from cnn_research.cli.run import run
from cnn_research.core.errors import UsageError, UserError
from cnn_research.data.sources.clusters import Clustered, side_by_side
from cnn_research.data.sources.folder import Photos
from cnn_research.data.sources.synthetic import Synthetic
from cnn_research.models.ss_cnn import SSCNN
from cnn_research.tasks.histogram import Histogram, HistogramPredictions
from cnn_research.train.config import Selection, Training
from cnn_research.train.optimizers import Optimizer
from cnn_research.train.transfer import Transfer

COLOURS = np.array([[250, 10, 10], [10, 240, 20], [20, 30, 250], [240, 240, 235]], np.uint8)


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "data"))


def folder_of_photographs(folder, count: int = 8):
    """Two standing, the rest lying; patches of four colours, with a little noise."""
    (folder / "deep").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number in range(count):
        patches = rng.integers(0, 4, (3, 4))
        pixels = COLOURS[np.kron(patches, np.ones((10, 10), int))]
        pixels = (pixels + rng.integers(0, 5, pixels.shape)).astype(np.uint8)
        if number < 2:
            pixels = np.rot90(pixels)
        Image.fromarray(pixels).save(folder / "deep" / f"{number}.png")
    (folder / "README.txt").write_text("not an image")
    return folder


def test_photographs_of_a_folder_lie_and_are_not_squeezed(tmp_path):
    folder = folder_of_photographs(tmp_path / "photos")
    with tarfile.open(tmp_path / "photos.tar.gz", "w:gz") as archive:
        archive.add(folder, "photos")
    for path in (folder, tmp_path / "photos.tar.gz"):
        data = Photos(path=str(path), image_size=(30, 40), validation=0.25, test=0.25).load()
        assert {name: len(split) for name, split in data.splits.items()} == {
            **{"train": 4, "validation": 2, "test": 2}
        }
        assert data.class_names == {} and data.image_shape == (30, 40, 3)
        images = {
            str(name).split("/")[-1]: image
            for split in data.splits.values()
            for name, image in zip(split.names, split.images, strict=True)
        }
        for number in range(8):
            pixels = np.asarray(Image.open(folder / "deep" / f"{number}.png"))
            expected = np.rot90(pixels) if number < 2 else pixels
            np.testing.assert_array_equal(images[f"{number}.png"], expected)


def test_a_folder_without_images(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "a.txt").write_text("")
    with pytest.raises(UserError, match="contains no images"):
        Photos(path=str(tmp_path / "empty")).load()


@pytest.mark.parametrize(
    ("image_size", "sizes"), [((321, 481), (5, 1, 2)), ((100, 100), (33, 5, 10))]
)
def test_embedded_photographs_need_no_files(image_size, sizes):
    data = Photos(image_size=image_size).load()
    assert data.image_shape == (*image_size, 3)
    assert tuple(len(data.splits[name]) for name in ("train", "validation", "test")) == sizes


def clustered(tmp_path, **fields) -> Clustered:
    folder = folder_of_photographs(tmp_path / "photos")
    source = Photos(path=str(folder), image_size=(30, 40), validation=0.25, test=0.25)
    return Clustered(source=source, clusters=4, window=(10, 10), **fields)


@pytest.mark.slow
def test_clusters_are_the_colours_of_the_pixels_from_dark_to_light(tmp_path):
    config = clustered(tmp_path)
    data = config.load()
    names = data.class_names["cluster"]
    found = np.array([[int(name[at : at + 2], 16) for at in (1, 3, 5)] for name in names])
    order = [2, 0, 1, 3]
    assert np.abs(found - COLOURS[order]).max() <= 4
    train = data.splits["train"]
    assert data.window == (10, 10) and data.image_shape == (10, 10, 3) and data.windows == 12
    assert train.images.shape == (4, 30, 40, 3) and train.labels["cluster"].shape == (4, 30, 40)
    for split in data.splits.values():
        nearest = ((split.images[..., None, :].astype(int) - found) ** 2).sum(-1).argmin(-1)
        np.testing.assert_array_equal(split.labels["cluster"], nearest)
    test = data.splits["test"]
    assert test.images.shape == (24, 10, 10, 3) and len(set(test.names)) == 24
    again = config.load()
    assert again.class_names == data.class_names
    facts = again.provenance["clusters"]
    assert facts == data.provenance["clusters"] and facts["iterations"] < 2000
    other = dataclasses.replace(config, clusters=3).load()
    assert len(other.class_names["cluster"]) == 3


def test_windows_side_by_side():
    values = np.arange(2 * 5 * 7).reshape(2, 5, 7)
    found = side_by_side(values, (2, 3))
    assert found.shape == (2 * 2 * 2, 2, 3)
    np.testing.assert_array_equal(found[0], values[0, :2, :3])
    np.testing.assert_array_equal(found[3], values[0, 2:4, 3:6])
    np.testing.assert_array_equal(found[5], values[1, :2, 3:6])


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"window": (37, 37)}, r"window is \(37, 37\), but the images of \w+ are 30x40"),
        ({"clusters": 300}, "data.clusters is 300"),
        ({"clusters": 1}, "data.clusters is 1"),
    ],
)
def test_clusters_and_windows_that_cannot_be(tmp_path, fields, words):
    config = dataclasses.replace(clustered(tmp_path), **fields)
    with pytest.raises(UsageError, match=words):
        config.load()


def test_figures_of_a_perfect_of_a_constant_and_of_a_wrong_estimate():
    labels = np.zeros((4, 2, 2), np.uint8)
    labels[1], labels[2, 0] = 1, 1
    true = np.array([[1, 0], [0, 1], [0.5, 0.5], [1, 0]])
    mean = np.array([0.625, 0.375])

    def figures(shares):
        loss = -(true * np.log(np.maximum(shares, 1e-12))).sum(1).mean()
        predicted = HistogramPredictions(
            "test", ("#000000", "#ffffff"), shares, labels, mean, loss=loss
        )
        np.testing.assert_array_equal(predicted.true, true)
        return predicted.metrics()

    perfect = figures(true)
    assert perfect["gap closed"] == pytest.approx(1) and perfect["overlap"] == 1
    assert perfect["loss"] == pytest.approx(perfect["entropy"]) == pytest.approx(np.log(2) / 4)
    constant = figures(np.tile(mean, (4, 1)))
    assert constant["gap closed"] == pytest.approx(0, abs=1e-12)
    assert constant["loss"] == pytest.approx(constant["loss of the mean histogram"])
    assert figures(np.tile([0.5, 0.5], (4, 1)))["gap closed"] < 0


@pytest.mark.slow
def test_a_network_learns_histograms_and_reports_them(tmp_path):
    training = Training(
        data=dataclasses.replace(clustered(tmp_path), window=(15, 20)),
        model=SSCNN(features=(8, 8, 8)),
        task=Histogram(),
        optimizer=Optimizer(name="adam", learning_rate=1e-2),
        selection=Selection(metric="loss"),
        epochs=60,
        batch_size=16,
        eval_every_epochs=60,
    )
    result = run(training, tmp_path / "run")
    figures = result.metrics["test"]
    assert figures["gap closed"] > 0.5 and figures["count"] == 8
    assert figures["entropy"] < figures["loss"] < figures["loss of the mean histogram"]
    report = (tmp_path / "run" / "report" / "report.md").read_text()
    assert "gap closed" in report and "histograms" in report
    for picture in ("clusters.png", "histograms.png"):
        assert (tmp_path / "run" / "report" / picture).exists()
    saved = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert saved["test"] == figures

    run(training, tmp_path / "run", "predict", str(tmp_path / "photos" / "deep" / "3.png"))


def test_features_of_windows_cannot_be_cached(tmp_path):
    training = Training(
        data=dataclasses.replace(clustered(tmp_path), window=(15, 20)),
        model=SSCNN(features=(8, 8, 8)),
        task=Histogram(),
        selection=Selection(metric="loss"),
        transfer=Transfer(cache_after="features"),
        batch_size=16,
    )
    with pytest.raises(UsageError, match="cropped at random each time"):
        run(training, tmp_path / "run")


def test_a_task_that_needs_clusters_says_so():
    data = Synthetic().load()
    with pytest.raises(UserError, match=r"no pixel clusters 'cluster'.*Clustered"):
        Histogram().check_data(data)
