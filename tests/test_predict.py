"""`--mode=predict`: what a run says about images, from its folder alone."""

from __future__ import annotations

import csv
import dataclasses
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from cnn_research.cli.run import run
from cnn_research.core.errors import UsageError, UserError
from cnn_research.data.sources.scikit_learn import Digits
from cnn_research.data.sources.synthetic import Synthetic
from cnn_research.inference import predict
from cnn_research.models.convnet import ConvNet
from cnn_research.models.layer_outputs import MAX_FEATURES, count_sketch
from cnn_research.models.mlp import MLP
from cnn_research.tasks.multi_head import MultiHead
from cnn_research.tasks.regression import Regression
from cnn_research.train.config import Evaluation, Training
from cnn_research.train.trained import TrainedModel

pytestmark = pytest.mark.usefixtures("no_report")

DIGITS = Training(
    data=Digits(),
    model=MLP(dense=(32,)),
    epochs=2,
    batch_size=32,
    evaluation=Evaluation(batch_size=8),
)
SEVERAL = Training(
    data=Synthetic(
        train=24, test=8, heads=("kind", "brand"), classes=(3, 4), image_shape=(12, 10, 3)
    ),
    model=ConvNet(features=(4,), padding=(1,), dense=(8,)),
    task=MultiHead(),
    epochs=1,
    batch_size=8,
    evaluation=Evaluation(batch_size=8, mirror=True),
)


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """A trained run, and a folder with twelve of its test images."""
    workdir = tmp_path_factory.mktemp("digits")
    run(DIGITS, workdir / "run")
    (workdir / "images").mkdir()
    for index, image in enumerate(Digits().load().splits["test"].images[:12]):
        Image.fromarray(image[..., 0]).save(workdir / "images" / f"{index:02d}.png")
    return workdir


def rows_of(workdir: Path) -> list[dict]:
    lines = (workdir / "predictions" / "predictions.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_predictions_are_those_of_the_network(digits, capsys):
    run(DIGITS, digits / "run", "predict", str(digits / "images"))
    rows = rows_of(digits / "run")
    assert [Path(row["file"]).name for row in rows] == [f"{index:02d}.png" for index in range(12)]
    found = TrainedModel.load(digits / "run")
    images = Digits().load().splits["test"].images[:12].astype(np.float32) / 255
    logits = found.experiment.model.apply(found.state.variables(), images, train=False)
    (head,) = found.heads
    expected = np.asarray(jax.nn.softmax(logits / head["temperature"]))
    assert [row["label"]["class"] for row in rows] == [str(c) for c in expected.argmax(axis=1)]
    for row, share in zip(rows, expected, strict=True):
        assert row["label"]["probability"] == pytest.approx(share.max(), abs=1e-4)
        assert list(row["label"]["top"]) == [str(c) for c in np.argsort(-share)[:5]]
    with (digits / "run" / "predictions" / "predictions.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [row["label"] for row in table] == [row["label"]["class"] for row in rows]
    assert "12 images" in capsys.readouterr().out
    assert (digits / "run" / "predictions" / "predictions.png").stat().st_size > 1000


def test_the_data_set_is_not_needed(digits, monkeypatch, tmp_path):
    def gone(self):
        raise AssertionError("the data set was asked for")

    monkeypatch.setattr(Digits, "load", gone)
    copy = Path(shutil.copytree(digits / "run", tmp_path / "copy"))
    run(DIGITS, copy, "predict", str(digits / "images" / "03.png"))
    assert len(rows_of(copy)) == 1


def test_a_pattern_a_bad_file_and_a_file_that_is_none(digits, tmp_path, capsys):
    shutil.copytree(digits / "images", tmp_path / "some")
    (tmp_path / "some" / "04.png").write_bytes(b"no image")
    (tmp_path / "some" / "notes.txt").write_text("not looked at")
    run(DIGITS, digits / "run", "predict", str(tmp_path / "some" / "0[2-5]*"))
    assert [Path(row["file"]).name for row in rows_of(digits / "run")] == [
        f"0{index}.png" for index in (2, 3, 5)
    ]
    assert "skipped:" in capsys.readouterr().err


def test_which_files_are_taken(tmp_path, capsys):
    for name in ("a.png", "b.JFIF", "c.avif", "notes.txt", "bare"):
        (tmp_path / name).touch()

    def names(source: str) -> list[str]:
        return [file.name for file in predict.image_files(str(tmp_path / source))]

    assert names("") == ["a.png", "b.JFIF", "c.avif"]
    assert "Skipped 2 files" in capsys.readouterr().out
    assert names("b*") == ["b.JFIF", "bare"]
    assert names("bare") == ["bare"]
    with pytest.raises(UserError, match="no such file or folder"):
        names("z*")
    with pytest.raises(UserError, match="the home folder of ~nobody-at-all"):
        predict.image_files("~nobody-at-all/x")


def test_the_nearest_training_image_of_a_training_image_is_itself(digits, tmp_path):
    train = Digits().load().splits["train"]
    Image.fromarray(train.images[17][..., 0]).save(tmp_path / "known.png")
    for _ in range(2):  # the second time from the features that were kept
        run(DIGITS, digits / "run", "predict", str(tmp_path / "known.png"), neighbours=3)
        (row,) = rows_of(digits / "run")
        assert len(row["nearest"]) == 3
        assert row["nearest"][0]["file"] == train.names[17]
        assert row["nearest"][0]["label"] == str(train.labels["label"][17])


@pytest.mark.slow
def test_every_head_answers(tmp_path):
    run(SEVERAL, tmp_path / "run")
    image = SEVERAL.data.load().splits["test"].images[0]
    Image.fromarray(image).save(tmp_path / "one.png")
    run(SEVERAL, tmp_path / "run", "predict", str(tmp_path / "one.png"), neighbours=2)
    (row,) = rows_of(tmp_path / "run")
    assert row["kind"]["class"].startswith("class") and row["brand"]["class"].startswith("class")
    assert set(row["nearest"][0]) == {"file", "kind", "brand"}


def test_a_regression_answers_with_a_number(tmp_path):
    training = Training(
        data=Synthetic(train=24, test=8, numbers=("x",), image_shape=(8, 8, 1)),
        model=MLP(dense=(8,)),
        task=Regression(head="x"),
        epochs=1,
        batch_size=8,
        selection=dataclasses.replace(Training.selection, metric="MAE"),
    )
    run(training, tmp_path / "run")
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "one.png")
    run(training, tmp_path / "run", "predict", str(tmp_path / "one.png"))
    (row,) = rows_of(tmp_path / "run")
    assert isinstance(row["x"]["number"], float)


def test_a_count_sketch_keeps_inner_products():
    random = np.random.default_rng(0)
    features = random.normal(size=(3, 20_000)).astype(np.float32)
    features[1] = features[0] + 0.1 * features[1]
    short = np.asarray(count_sketch(features[:, :100]))
    np.testing.assert_allclose(np.linalg.norm(short, axis=1), 1, rtol=1e-5)
    mixed = np.asarray(count_sketch(features))
    assert mixed.shape == (3, MAX_FEATURES)
    exact = features / np.linalg.norm(features, axis=1, keepdims=True)
    np.testing.assert_allclose(mixed @ mixed.T, exact @ exact.T, atol=0.06)


def test_what_predict_refuses(digits, tmp_path):
    with pytest.raises(UsageError, match="--mode=predict needs --input=IMAGES"):
        run(DIGITS, digits / "run", "predict")
    with pytest.raises(UsageError, match="--input works only with --mode=predict"):
        run(DIGITS, digits / "run", "evaluate", "image.png")
    with pytest.raises(
        UsageError, match="--neighbours works only with --mode=predict; got --mode=eval"
    ):
        run(DIGITS, digits / "run", "evaluate", neighbours=3)
    with pytest.raises(UserError, match="has the extension of an image"):
        run(DIGITS, digits / "run", "predict", str(tmp_path))
    with pytest.raises(UserError, match="is not a run folder"):
        run(DIGITS, tmp_path / "nothing", "predict", str(digits / "images"))
    (tmp_path / "bad.png").write_bytes(b"no image")
    with pytest.raises(UserError, match="no image could be read"):
        run(DIGITS, digits / "run", "predict", str(tmp_path / "bad.png"))
