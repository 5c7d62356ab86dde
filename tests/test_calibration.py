"""Calibration: its error, the temperature that is fitted, and where that is used."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from scipy.special import softmax
from sklearn.metrics import top_k_accuracy_score

from cnn_research.cli.run import run
from cnn_research.core import run_folder as folders
from cnn_research.data.dataset import MISSING, UNKNOWN_CLASS
from cnn_research.data.sources.synthetic import Synthetic
from cnn_research.inference.exported import open_export
from cnn_research.models.mlp import MLP
from cnn_research.tasks.calibration import FEWEST, Reliability, reliability_plot
from cnn_research.tasks.class_predictions import ClassPredictions
from cnn_research.tasks.decode import decode
from cnn_research.train.config import Training
from cnn_research.train.trained import TrainedModel


def test_the_expected_calibration_error_by_hand():
    # The first two share a bin, (9/15, 10/15], the last is alone in (0, 1/15].
    said, right = np.array([0.61, 10 / 15, 0.95, 0.02]), np.array([True, False, True, False])
    expected = 0.5 * abs((0.61 + 10 / 15) / 2 - 0.5) + 0.25 * 0.05 + 0.25 * 0.02
    assert Reliability(said, right).error == pytest.approx(expected)


def drawn(factor: float, examples: int = 4000) -> ClassPredictions:
    """Predictions whose labels are drawn from the outputs divided by the factor."""
    rng = np.random.default_rng(0)
    true = rng.normal(size=(examples, 12))
    labels = np.array([rng.choice(12, p=shares) for shares in softmax(true, axis=1)], np.int32)
    logits = (factor * true).astype(np.float32)
    return ClassPredictions("validation", logits, labels, tuple("abcdefghijkl"), loss=1.0)


def test_the_temperature_is_found_and_changes_no_answer():
    made = drawn(3.0)
    fitted = made.calibration()
    assert fitted["temperature"] == pytest.approx(3, rel=0.05)
    now, before = dataclasses.replace(made, **fitted).metrics(), made.metrics()
    assert now["ECE"] < 0.04 < 0.3 < now["ECE before calibration"] == before["ECE"]
    same = {"accuracy", "correct", "loss", "macro F1", "top-5 accuracy"}
    assert {name: now[name] for name in same} == {name: before[name] for name in same}
    head = {"kind": "classes", "classes": made.class_names, **fitted}
    first = decode(head, made.logits[0])
    assert first[0]["label"] == made.class_names[made.logits[0].argmax()]
    share = softmax(made.logits[0] / fitted["temperature"]).max()
    assert first[0]["probability"] == pytest.approx(share, abs=1e-4)


def test_few_examples_fit_nothing_and_a_perfect_network_stays_unsure():
    assert drawn(3.0, FEWEST - 1).calibration() == {}
    labels = np.arange(100, dtype=np.int32) % 3
    perfect = ClassPredictions(
        "validation", 4 * np.eye(3, dtype=np.float32)[labels], labels, tuple("abc"), loss=0.1
    )
    assert 0.1 < perfect.calibration()["temperature"] < 1
    unknown = dataclasses.replace(perfect, labels=np.full(100, MISSING, np.int32))
    assert unknown.calibration() == {}


def test_top_5_is_of_more_than_ten_classes_and_never_of_unseen_labels():
    made = drawn(1.0, 200)
    expected = top_k_accuracy_score(made.labels, made.logits, k=5)
    assert made.metrics()["top-5 accuracy"] == pytest.approx(expected)
    equal = dataclasses.replace(made, logits=np.zeros_like(made.logits))
    assert equal.metrics()["top-5 accuracy"] == pytest.approx((made.labels < 5).mean())
    labels = np.where(np.arange(200) < 100, UNKNOWN_CLASS, made.labels)
    half = top_k_accuracy_score(made.labels[100:], made.logits[100:], k=5, labels=np.arange(12)) / 2
    unseen = dataclasses.replace(made, labels=labels)
    assert unseen.metrics()["top-5 accuracy"] == pytest.approx(half)
    few = dataclasses.replace(made, logits=made.logits[:, :10], labels=made.labels % 10)
    assert (
        "top-5 accuracy" not in dataclasses.replace(few, class_names=tuple("abcdefghij")).metrics()
    )


def test_the_curve_says_both_errors():
    before, now = (Reliability(np.array([p, p]), np.array([True, False])) for p in (0.9, 0.5))
    axes = reliability_plot(now, before).axes[0]
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels == ["ideal", "before, ECE 0.400", "after, ECE 0.000"]


def test_the_temperature_is_kept_with_the_run_and_in_its_export(tmp_path):
    data = Synthetic(train=64, validation=FEWEST, test=8, image_shape=(8, 8, 1), classes=(3,))
    training = Training(data=data, model=MLP(dense=(8,)), epochs=1, batch_size=16)
    for mode in ("train", "export"):
        run(training, tmp_path, mode)
    evaluation = folders.read_json(tmp_path / folders.EVALUATION)
    (fitted,) = evaluation["calibration"].values()
    assert "ECE before calibration" in evaluation["test"]
    assert (tmp_path / folders.REPORT_FOLDER / "reliability.png").exists()
    model, network = TrainedModel.load(tmp_path), open_export(tmp_path / "export")
    assert [head["temperature"] for head in (*model.heads, *network.heads)] == [
        fitted["temperature"]
    ] * 2
    outputs = network(data.load().splits["test"].images)
    shares = softmax(outputs[0].astype(np.float64) / fitted["temperature"])
    (answer,) = network.answers(outputs[:1])[0].values()
    assert answer[0]["probability"] == pytest.approx(shares.max(), abs=1e-4)
    assert (
        "divide the outputs by their head's `temperature`"
        in (tmp_path / "export/README.md").read_text()
    )
