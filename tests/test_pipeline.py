"""Pipelines of trainings: stopped anywhere, moved, and run again."""

from __future__ import annotations

import dataclasses
import json
import os
import signal

import numpy as np
import pytest
from PIL import Image

from cnn_research.cli.run import run
from cnn_research.core import run_folder as folders
from cnn_research.core.errors import Interrupted, UserError
from cnn_research.core.preemption import Interruption
from cnn_research.data.sources.synthetic import Synthetic
from cnn_research.inference.exported import open_export
from cnn_research.models.convnet import ConvNet
from cnn_research.train import loop
from cnn_research.train.config import Training
from cnn_research.train.trained import weights_of_run
from cnn_research.workflows.pipeline import open_pipeline
from cnn_research.workflows.pooling_study import PoolingStudy
from cnn_research.workflows.two_stage import TwoStage

pytestmark = pytest.mark.usefixtures("no_report")

SMALL = Training(
    data=Synthetic(train=32, validation=8, test=8, image_shape=(8, 8, 1), classes=(4,)),
    model=ConvNet(features=(4,), padding=(1,), dense=(8,), dense_activation="relu"),
    epochs=2,
    batch_size=16,
)
TWO = TwoStage(
    pretraining=SMALL, training=dataclasses.replace(SMALL, epochs=1), fresh=("Dense_0", "Dense_1")
)
STUDY = PoolingStudy(
    training=dataclasses.replace(SMALL, epochs=1),
    pooling=("max", "min"),
    num_seeds=1,
    largest_shift=1,
)
ONE_KIND = dataclasses.replace(STUDY, pooling=("max",))


@pytest.mark.slow
def test_a_pipeline_that_was_stopped_and_moved_goes_on_where_it_is(tmp_path, monkeypatch):
    train = loop.train

    def stopped_in_the_second(training, folder, **options):
        if folder.name == "training":
            signal.raise_signal(signal.SIGTERM)
        return train(training, folder, **options)

    monkeypatch.setattr(loop, "train", stopped_in_the_second)
    with pytest.raises(Interrupted, match="stopped by SIGTERM") as stopped:
        run(TWO, tmp_path / "a")
    assert stopped.value.exit_code == 75
    assert not folders.read_json(tmp_path / "a" / "run.json").get("finished")

    monkeypatch.setattr(loop, "train", train)
    (tmp_path / "a").rename(tmp_path / "b")
    result = run(TWO, tmp_path / "b")
    start, end = (
        weights_of_run(tmp_path / "b" / name).arrays for name in ("pretraining", "training")
    )
    assert start.keys() == end.keys()
    record = folders.read_json(tmp_path / "b" / "run.json")
    assert record["finished"] and record["stages"] == ["pretraining", "training"]

    (tmp_path / "b").rename(tmp_path / "c")
    moved = folders.saved_config(tmp_path / "c")
    monkeypatch.setattr(loop, "train", lambda *_: pytest.fail("trained again"))
    assert run(moved, tmp_path / "c").metrics == result.metrics
    assert run(moved, tmp_path / "c", "evaluate").metrics["test"] == pytest.approx(
        result.metrics["test"]
    )
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "black.png")
    run(moved, tmp_path / "c", "predict", str(tmp_path / "black.png"))
    assert (tmp_path / "c" / "training" / "predictions" / "predictions.csv").exists()
    run(moved, tmp_path / "c", "export")
    assert open_export(tmp_path / "c" / "export").facts["step"] == result.step


def test_a_signal_that_comes_while_a_stage_ends_stops_the_pipeline(tmp_path, monkeypatch):
    train, trained = loop.train, []

    def ends_at_a_signal(training, folder, **options):
        trained.append(folder.name)
        result = train(training, folder, **options)
        with Interruption():  # as the training's own, after its last step
            signal.raise_signal(signal.SIGUSR1)
        return result

    monkeypatch.setattr(loop, "train", ends_at_a_signal)
    with pytest.raises(Interrupted, match="SIGUSR1: 1 stages are complete") as stopped:
        run(TWO, tmp_path)
    assert stopped.value.exit_code == 75 and trained == ["pretraining"]


@pytest.mark.slow
def test_what_was_computed_from_a_stage_is_not_computed_again(tmp_path, monkeypatch):
    found = run(STUDY, tmp_path)
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["shifts"] == [-1, 0, 1] and set(results["accuracy"]) == {"max", "min"}
    assert found.metrics["min"]["accuracy"] == results["accuracy"]["min"][0][1]
    assert (tmp_path / "report" / "accuracy.png").exists()
    monkeypatch.setattr(loop, "train", lambda *_: pytest.fail("trained again"))
    monkeypatch.setattr(
        "cnn_research.workflows.pooling_study.measure_accuracies", lambda *_: pytest.fail("again")
    )
    assert run(STUDY, tmp_path).metrics == found.metrics


def test_of_several_processes_the_first_claims_a_folder_for_all(tmp_path, monkeypatch):
    with folders.locked(tmp_path):
        with pytest.raises(UserError, match=f"process {os.getpid()}"), folders.locked(tmp_path):
            pass
        monkeypatch.setattr("cnn_research.core.run_folder.writes_files", lambda: False)
        with (
            folders.locked(tmp_path),
            folders.atomic_directory(tmp_path / "report") as thrown_away,
        ):
            (thrown_away / "a.png").touch()
        assert not (tmp_path / "report").exists() and not thrown_away.exists()
        with open_pipeline(TWO, tmp_path):
            pass
        assert not (tmp_path / "run.json").exists()
