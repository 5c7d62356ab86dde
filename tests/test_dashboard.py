"""What TensorBoard shows beside curves: histograms, thumbnails, precision and recall, points."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.util import tensor_util

from cnn_research.cli.run import run
from cnn_research.data.dataset import MISSING
from cnn_research.data.sources.synthetic import Synthetic
from cnn_research.models.mlp import MLP
from cnn_research.report import tensorboard as dashboard
from cnn_research.report.writers import MetricsWriter
from cnn_research.tasks.class_predictions import ClassPredictions
from cnn_research.train.config import Training


def events(workdir: Path, sub_run: str = "") -> EventAccumulator:
    folder = str(workdir / "events" / sub_run)
    return EventAccumulator(folder, size_guidance={"histograms": 0}).Reload()


# Histograms --------------------------------------------------------------------------------------


def test_histograms_are_of_parameters_and_of_their_changes(tmp_path):
    params = {"Dense_0": {"kernel": np.zeros((2, 3)), "bias": np.zeros(3)}}
    with MetricsWriter(tmp_path, restored_step=None) as writer:
        histograms = dashboard.Histograms(writer.events, params)
        params["Dense_0"]["kernel"] += 2  # in place, as where a donated buffer is used again
        histograms.write(5, params)
        params["Dense_0"]["kernel"] += 1
        histograms.write(9, params)
    found = events(tmp_path)
    values = [e.histogram_value for e in found.Histograms("parameters/Dense_0/kernel")]
    assert [(value.num, value.min, value.max) for value in values] == [(6, 2, 2), (6, 3, 3)]
    changes = found.Histograms("changes/Dense_0/kernel")
    assert [(e.step, e.histogram_value.max) for e in changes] == [(5, 2), (9, 1)]


def test_histograms_of_an_evaluation_that_is_made_again_are_taken_back(tmp_path):
    params = {"kernel": np.ones(4)}
    with MetricsWriter(tmp_path, restored_step=None) as writer:
        histograms = dashboard.Histograms(writer.events, params)
        histograms.write(5, params)
        histograms.write(8, params)
    # Step 8 was saved before its evaluation: what changed since step 5 is not known any more.
    with MetricsWriter(tmp_path, restored_step=8, evaluated_step=5) as writer:
        histograms = dashboard.Histograms(writer.events, None)
        histograms.write(8, params)
        histograms.write(9, params)
    found = events(tmp_path)
    assert [e.step for e in found.Histograms("parameters/kernel")] == [5, 8, 9]
    assert [e.step for e in found.Histograms("changes/kernel")] == [5, 9]


def test_large_networks_are_sampled():
    layers = {f"layer{i}": {"kernel": np.ones((2, 2)), "bias": np.ones(2)} for i in range(100)}
    found = dashboard.sampled(layers)
    assert len(found) == dashboard.MOST_HISTOGRAMS
    assert {"layer0/kernel", "layer99/kernel"} <= set(found)
    (large,) = dashboard.sampled({"kernel": np.arange(25_000.0)}).values()
    assert len(large) <= dashboard.MOST_NUMBERS and (np.diff(large) == 3).all()


# Images ------------------------------------------------------------------------------------------


def test_thumbnails_are_squares():
    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (2, 8, 8, 1), np.uint8)
    enlarged = dashboard.thumbnails(small, 32)
    assert enlarged.shape == (2, 32, 32, 3)
    assert np.array_equal(enlarged[:, ::4, ::4, 1], small[..., 0])
    lying = dashboard.thumbnails(np.zeros((1, 50, 100, 3), np.uint8), 40)
    assert lying.shape == (1, 40, 40, 3)
    assert (lying[0, :9] == 255).all() and (lying[0, 31:] == 255).all()
    assert (lying[0, 11:29] == 0).all()


def test_training_images_are_those_of_the_first_step(tmp_path, monkeypatch):
    shown = []
    show = "cnn_research.train.loop.show_training_images"
    monkeypatch.setattr(show, lambda events, images: shown.append(images))
    data = Synthetic(train=12, test=4, image_shape=(6, 6, 1), classes=(3,))
    training = Training(
        data=data, model=MLP(dense=(4,)), epochs=1, batch_size=12, mean=(0.3,), std=(0.2,)
    )
    monkeypatch.setattr("cnn_research.train.loop.report", lambda *_: None)
    run(training, tmp_path)
    run(dataclasses.replace(training, epochs=2), tmp_path)
    (images,) = shown  # none where the run goes on
    expected = data.load().splits["train"].images
    assert sorted(image.tobytes() for image in images) == sorted(i.tobytes() for i in expected)


# With the report ---------------------------------------------------------------------------------


def test_common_classes_leave_out_unknown_labels_and_rare_classes():
    labels = np.array([0, 2, 2, MISSING, 2, 0, 1], np.int32)
    logits = np.log(np.full((7, 4), 0.1) + 0.6 * np.eye(4)[[0, 2, 2, 3, 0, 0, 1]])
    made = ClassPredictions(
        split="test",
        logits=logits,
        labels=labels,
        class_names=("bag", "coat", "shirt", "dress"),
        loss=0.5,
    )
    (bag, bags, _), (shirt, _, shares) = made.common_classes(2)
    assert (bag, shirt) == ("bag", "shirt")
    assert bags.tolist() == [True, False, False, False, True, False]
    assert shares == pytest.approx([0.1, 0.7, 0.7, 0.1, 0.1, 0.1])
    assert [name for name, *_ in made.common_classes(9)] == ["bag", "coat", "shirt"]


def test_a_report_that_is_written_again_replaces_the_first(tmp_path):
    Image.new("L", (10, 5)).save(tmp_path / "curves.png")
    (tmp_path / "report.md").write_text("# Title")
    training = Training(data=Synthetic(), model=MLP())
    for _ in range(2):
        with MetricsWriter(tmp_path, restored_step=4, config=training) as writer:
            pictures = {"curves": tmp_path / "curves.png"}
            dashboard.show_page(writer.events, tmp_path / "report.html", pictures, 4)
            members, probabilities = np.array([True, True, False]), np.array([0.9, 0.3, 0.6])
            writer.events.pages.add_pr_curve("test/bag", members, probabilities, 4)
            rows = [{"label": "a\tb", "image": "1"}, {"image": "2"}]
            pixels = np.zeros((2, 8, 8, 3), np.uint8)
            features = np.array([[0.5, 1.0], [2.0, 3.0]])
            dashboard.show_points(writer.events, features, rows, pixels, 4)
            writer.report(tmp_path / "report.html", {"test/accuracy": 0.5})
    folder = tmp_path / "events" / "report"
    assert len(list(folder.glob("events.*"))) == 1
    found = events(tmp_path, "report")
    assert [image.step for image in found.Images("curves")] == [4]
    (curve,) = found.Tensors("test/bag")
    precision, recall = tensor_util.make_ndarray(curve.tensor_proto)[4:]
    assert (precision[0], recall[0]) == (pytest.approx(2 / 3), 1)  # all are taken for the class
    assert (precision[80], recall[80]) == (1, 0.5)  # at 80 / 126
    assert (folder / "projector_config.pbtxt").read_text().count("embeddings {") == 1
    written = folder / "00004" / "features"
    assert (written / "metadata.tsv").read_text() == "label\timage\na b\t1\n\t2\n"
    # One direction is left of two points, 2.5 apart.
    np.testing.assert_array_equal(abs(np.loadtxt(written / "tensors.tsv")), [[1.25, 0]] * 2)


def test_points_have_label_answer_and_place():
    dataset = Synthetic(train=6, test=3, image_shape=(4, 4, 1), classes=(3,)).load()
    split = dataset.splits["test"]
    labels = split.labels["label"].copy()
    labels[1] = MISSING
    split = dataclasses.replace(split, labels={"label": labels}, names=None)
    answers = [{"label": f"said {i}"} for i in range(3)]
    rows = dashboard.rows_of(dataset, split, answers)
    assert rows[1] == {"label: prediction": "said 1", "image": "1"}
    assert rows[2]["label"] == dataset.class_names["label"][labels[2]]


def test_principal_components_keep_distances():
    features = np.random.default_rng(0).normal(size=(30, 200)).astype(np.float32)
    found = dashboard.principal(features)
    assert found.shape == (30, 30)
    apart = np.linalg.norm(features[:, None] - features, axis=-1)
    np.testing.assert_allclose(np.linalg.norm(found[:, None] - found, axis=-1), apart, atol=1e-3)
