"""Crops with names, and rounds that discard what is named wrongly."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cnn_research.cli.run import run
from cnn_research.core.errors import UsageError, UserError
from cnn_research.core.experiment import lookup
from cnn_research.data.dataset import Split
from cnn_research.data.sources import crops
from cnn_research.data.sources.clusters import Clustered
from cnn_research.data.sources.crops import Crops
from cnn_research.data.sources.folder import ImageFolder
from cnn_research.data.sources.synthetic import Synthetic
from cnn_research.models.ss_cnn import SSCNN
from cnn_research.tasks.classification import Classification
from cnn_research.tasks.histogram import Histogram
from cnn_research.train.config import Selection, Training
from cnn_research.train.optimizers import Optimizer
from cnn_research.workflows.palette import colour_naming as naming
from cnn_research.workflows.palette.purification import (
    DISCARDED,
    KEEP_MASK,
    Purification,
    keep_mask,
    to_centres,
    to_own,
)

NAMES = ("blue", "green", "red")
COLOURS = np.array([[20, 30, 220], [30, 200, 40], [210, 30, 30]])


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "data"))


@pytest.fixture
def folder(tmp_path) -> Path:
    """40 photographs of each colour, 20x16, with noise."""
    rng = np.random.default_rng(0)
    for name, colour in zip(NAMES, COLOURS, strict=True):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(40):
            pixels = (colour + rng.normal(0, 25, (20, 16, 3))).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / name / f"{name}{number}.png")
    return tmp_path / "photos"


def source(folder: Path) -> ImageFolder:
    return ImageFolder(path=str(folder), image_size=(20, 16), validation=0.2, test=0.0)


def test_windows_in_a_grid_and_in_the_middle():
    values = np.arange(2 * 9 * 7 * 3).reshape(2, 9, 7, 3).astype(np.uint8)
    split = Split(values, {"name": np.array([5, 6])}, np.array(["a", "b"]))
    many = crops.in_grid(split, split.labels, (4, 3), (3, 2))
    assert many.images.shape == (12, 4, 3, 3)
    np.testing.assert_array_equal(many.images[0], values[0, :4, :3])
    np.testing.assert_array_equal(many.images[3], values[0, 2:6, 4:7])  # 2.5 rounds to even
    np.testing.assert_array_equal(many.images[11], values[1, 5:, 4:])
    assert many.labels["name"].tolist() == [5] * 6 + [6] * 6
    assert many.names.tolist()[:3] == ["a 0,0", "a 0,4", "a 2,0"]
    one = crops.in_grid(split, split.labels, (5, 3), (1, 1))
    np.testing.assert_array_equal(one.images[1], values[1, 2:7, 2:5])
    assert one.names.tolist() == ["a", "b"]


def test_listed_images_are_the_test_and_nowhere_else(folder, tmp_path):
    Image.open(folder / "red" / "red7.png").save(folder / "red" / "copy.png")
    listing = tmp_path / "test.csv"
    listing.write_text("# of people\nid,colour\nred7,red\nblue3,blue\n")
    data = Crops(source=source(folder), test_list=str(listing), window=(8, 8), grid=(2, 2)).load()
    test = data.splits["test"]
    assert [Path(str(name)).stem for name in test.names] == ["red7", "blue3"]
    assert [data.class_names["label"][i] for i in test.labels["label"]] == ["red", "blue"]
    others = [
        Path(str(name).split(" ")[0]).stem
        for split in ("train", "validation")
        for name in data.splits[split].names
    ]
    assert not {"red7", "copy", "blue3"} & set(others) and len(set(others)) == 118
    assert data.image_shape == (8, 8, 3)

    listing.write_text("id\nred7\nmissing\n")
    with pytest.raises(UserError, match=r"1 of the 2 listed test images .* the first missing"):
        Crops(source=source(folder), test_list=str(listing), window=(8, 8)).load()
    with pytest.raises(UserError, match="cannot be read"):
        Crops(source=source(folder), test_list="no/such.csv", window=(8, 8)).load()


@pytest.mark.parametrize("name", ["validation", "test"])
def test_what_a_listing_replaces_is_trained_on(folder, tmp_path, name):
    listing = tmp_path / "listing.csv"
    listing.write_text("id,colour\nred7,red\nblue3,blue\n")
    images = dataclasses.replace(source(folder), validation=0.2, test=0.1)
    data = Crops(source=images, window=(8, 8), grid=(1, 1), **{f"{name}_list": str(listing)}).load()
    names = [Path(str(name)).stem for split in data.splits.values() for name in split.names]
    assert len(set(names)) == len(names) == 120
    assert len(data.splits[name].names) == 2


def test_a_listing_may_empty_a_split(folder, tmp_path):
    images = dataclasses.replace(source(folder), validation=0.2, test=0.1)
    drawn = [Path(str(name)).stem for name in images.load().splits["test"].names]
    listing = tmp_path / "listing.csv"
    listing.write_text("id\n" + "".join(f"{name}\n" for name in drawn))
    data = Crops(source=images, window=(8, 8), validation_list=str(listing)).load()
    assert len(data.splits["validation"]) == len(drawn) and len(data.splits["test"]) == 0


def test_the_registered_lists_are_balanced():
    data = lookup("colour_names").experiment().naming.data
    seen = set()
    for file, each in ((data.test_list, 23), (data.validation_list, 12)):
        listing = crops.EXPERIMENTS.parent / file
        names = crops.listed(listing)
        rows = [line.split(",") for line in listing.read_text().splitlines() if line[0].isdigit()]
        assert len(set(names)) == len(names) == 11 * each
        counts = {colour: sum(row[1] == colour for row in rows) for _, colour in rows}
        assert set(counts.values()) == {each} and len(counts) == 11
        assert not seen & set(names)
        seen |= set(names)


def test_flipped_labels_are_as_many_as_asked_and_always_wrong(folder):
    clean = Crops(source=source(folder), window=(8, 8), grid=(2, 1))
    before = clean.load().splits["train"].labels["label"]
    flipped = dataclasses.replace(clean, label_noise=0.25)
    after = flipped.load().splits["train"].labels["label"]
    assert (before != after).mean() == 0.25 and after.min() == 0 and after.max() == 2
    np.testing.assert_array_equal(after[::2], after[1::2])
    np.testing.assert_array_equal(after, flipped.load().splits["train"].labels["label"])
    other = dataclasses.replace(flipped, seed=1).load().splits["train"].labels["label"]
    assert not np.array_equal(after, other)
    kept = flipped.load().splits["validation"].labels["label"]
    np.testing.assert_array_equal(kept, clean.load().splits["validation"].labels["label"])


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"window": (37, 37)}, "data.window is"),
        ({"grid": (0, 2)}, "--data.grid is 0: must be above 0"),
        ({"label_noise": 1.0}, "--data.label-noise is 1.0: must be 0 or more and below 1"),
    ],
)
def test_crops_that_cannot_be(fields, words):
    noise = Synthetic(image_shape=(20, 16, 3))
    with pytest.raises(UsageError, match=words):
        Crops(source=noise, **{"window": (8, 8), **fields}).load()


def test_a_list_of_kept_windows_of_other_data(tmp_path):
    np.save(tmp_path / "kept.npy", np.ones(5, bool))
    noise = Synthetic(image_shape=(20, 16, 3))
    with pytest.raises(UserError, match=r"has 5 entries for 1536 training windows"):
        Crops(source=noise, window=(8, 8), keep_mask_file=str(tmp_path / "kept.npy")).load()


def test_centres_are_the_means_of_the_surest_and_the_farthest_go():
    features = np.array([[0.0], [1], [2], [9], [10], [11], [30], [5]], np.float32)
    labels = np.array([0, 0, 0, 0, 1, 1, 1, -1])
    logits = np.array([[9.0, 0], [8, 0], [1, 0], [0, 1], [0, 9], [0, 8], [0, 1], [1, 0]])
    distances = to_centres(features, logits, labels, 0.67)
    np.testing.assert_allclose(distances[:4, 0], [0.5, 0.5, 1.5, 8.5])
    np.testing.assert_allclose(distances[4:, 1], [0.5, 0.5, 19.5, 5.5])
    ratios = to_own(distances, labels)
    np.testing.assert_allclose(ratios[[0, 3, 6]], [0.5 / 10.5, 8.5 / 1.5, 19.5 / 29.5])
    assert np.isnan(ratios[7])
    kept = keep_mask(ratios, labels, 0.3)
    assert kept.tolist() == [True] * 3 + [False] + [True] * 2 + [False] * 2
    never = to_centres(features, np.where([True, False], -1.0, logits), labels, 0.5)
    assert np.isnan(never[:, 0]).all(), "no sample of class 0 is correctly named"
    assert keep_mask(to_own(never, labels), labels, 0.75)[labels >= 0].all(), (
        "nothing to compare with"
    )


def small(folder: Path, **fields) -> Purification:
    fields = {"epochs": 40, "batch_size": 60, "eval_every_epochs": 40,
              "model": SSCNN(features=(8, 8, 8))} | fields  # fmt: skip
    adam = Optimizer(name="adam", learning_rate=1e-2)
    return Purification(
        ss_cnn=Training(
            data=Clustered(source=source(folder), clusters=6, window=(12, 12)),
            task=Histogram(),
            optimizer=adam,
            selection=Selection(metric="loss"),
            **fields,
        ),
        naming=Training(
            data=Crops(source=source(folder), window=(12, 12), grid=(2, 2), label_noise=0.3),
            task=Classification(head="label"),
            optimizer=adam,
            **fields,
        ),
        rounds=2,
        discard=0.2,
    )


@pytest.mark.slow
def test_rounds_discard_flipped_labels_and_a_restart_runs_nothing(folder, tmp_path, monkeypatch):
    experiment = small(folder)
    result = run(experiment, tmp_path / "run")
    clean = dataclasses.replace(experiment.naming.data, label_noise=0.0).load().splits["train"]
    flipped = experiment.naming.data.load().splits["train"]
    wrong = clean.labels["label"] != flipped.labels["label"]
    shares = [wrong.mean()]
    for number in range(2):
        kept = np.load(tmp_path / "run" / f"round_{number}" / KEEP_MASK)
        shares.append(wrong[kept].mean())
        picture = Image.open(tmp_path / "run" / f"round_{number}" / DISCARDED)
        assert min(picture.size) > 100
    assert shares[0] == pytest.approx(0.3, abs=0.01)
    assert shares[1] < 0.17 and shares[2] < 0.05
    assert result.metrics["round_2"]["validation"]["accuracy"] > 0.95
    report = (tmp_path / "run" / "report" / "report.md").read_text()
    assert report.count("![Discarded crops") == 2 and "|     2 |" in report

    monkeypatch.setattr("cnn_research.train.loop.train", lambda *_: pytest.fail("trained again"))
    again = run(experiment, tmp_path / "run")
    assert again.metrics == result.metrics

    half = np.zeros((40, 60, 3), np.uint8) + np.uint8(COLOURS[2])
    half[:, 30:] = COLOURS[0]
    Image.fromarray(half).save(tmp_path / "half.png")
    Image.new("RGB", (1, 1), tuple(COLOURS[1])).save(tmp_path / "one.png")
    run(experiment, tmp_path / "run", "predict", str(tmp_path / "*.png"))
    rows = [json.loads(line) for line in
            (tmp_path / "run" / "predictions" / "predictions.jsonl").open()]  # fmt: skip
    shares = {Path(row["file"]).name: row["shares"] for row in rows}
    assert shares["one.png"]["green"] == 1
    assert shares["half.png"]["red"] > 0.4 and shares["half.png"]["blue"] > 0.4
    assert Image.open(tmp_path / "run" / "predictions" / "half.png.png").size[0] > 800


def test_crops_stand_around_pixels():
    image = np.arange(5 * 4 * 3, dtype=np.uint8).reshape(5, 4, 3)
    crops, grid = naming.crops_around(image, (3, 3))
    assert grid == (5, 4) and crops.shape == (20, 3, 3, 3)
    np.testing.assert_array_equal(crops[:, 1, 1], image.reshape(-1, 3))
    np.testing.assert_array_equal(crops[5], image[0:3, 0:3])
    large, grid = naming.crops_around(np.zeros((200, 300, 3), np.uint8), (37, 37))
    assert grid == (50, 75) and large.shape == (50 * 75, 37, 37, 3)
    assert naming.small(np.zeros((1000, 10, 3), np.uint8), 240).shape == (240, 2, 3)


@pytest.mark.parametrize("fields", [{"rounds": -1}, {"seed_fraction": 0.0}, {"discard": 1.0}])
def test_rounds_that_cannot_be(folder, fields):
    with pytest.raises(UsageError):
        dataclasses.replace(small(folder), **fields).check()
