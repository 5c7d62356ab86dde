"""metrics.jsonl and its mirror in TensorBoard: no row twice, none lost, none made up."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from cnn_research.core.errors import UserError
from cnn_research.core.metrics_log import by_epoch, read_metrics
from cnn_research.data.sources.folder import Photos
from cnn_research.models.mlp import MLP
from cnn_research.report.tensorboard import Histograms, show_page
from cnn_research.report.writers import MetricsWriter
from cnn_research.train.config import Training


def train(workdir: Path, steps: range, *, restored_step: int | None, loss: float = 1.0) -> None:
    with MetricsWriter(workdir, restored_step=restored_step) as writer:
        for step in steps:
            writer.write(step, "train", {"loss": loss}, epoch=step / 10, count=8)


def events(workdir: Path, sub_run: str = "") -> EventAccumulator:
    return EventAccumulator(str(workdir / "events" / sub_run)).Reload()


def test_row_holds_step_extra_split_and_values(tmp_path):
    with MetricsWriter(tmp_path, restored_step=None) as writer:
        values = {"loss": np.float32(0.5), "accuracy": np.array(0.25)}
        writer.write(7, "train", values, epoch=0.7, count=np.int64(8))
        # Read while the run goes on: a row does not wait for the file to be closed.
        assert json.loads((tmp_path / "metrics.jsonl").read_text()) == {
            "step": 7,
            "epoch": 0.7,
            "count": 8,
            "split": "train",
            "loss": 0.5,
            "accuracy": 0.25,
        }


def test_training_and_validation_are_two_tags_of_one_run(tmp_path):
    with MetricsWriter(tmp_path, restored_step=None) as writer:
        writer.write(3, "train", {"loss": 0.5}, epoch=1.0, count=8)
        writer.write(3, "validation", {"loss": 0.75}, epoch=1.0, count=8)
    (training,) = events(tmp_path).Scalars("loss/train")
    (validation,) = events(tmp_path).Scalars("loss/validation")
    assert (training.step, training.value) == (3, 0.5)
    assert (validation.step, validation.value) == (3, 0.75)


def test_restore_drops_later_rows_and_a_torn_line(tmp_path):
    train(tmp_path, range(1, 11), restored_step=None)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 11, "epoch": 1.1, "spl')
    train(tmp_path, range(7, 9), restored_step=6, loss=2.0)
    rows = read_metrics(tmp_path)
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert [row["loss"] for row in rows] == [1.0] * 6 + [2.0] * 2


def test_last_row_without_its_newline_is_kept_apart_from_the_next(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "split": "train", "loss": 1.0}')
    train(tmp_path, range(2, 3), restored_step=1)
    assert [row["step"] for row in read_metrics(tmp_path)] == [1, 2]


def test_start_from_the_beginning_keeps_nothing_of_a_run_without_checkpoint(tmp_path):
    train(tmp_path, range(1, 4), restored_step=None)
    train(tmp_path, range(1, 3), restored_step=None, loss=2.0)
    assert [(row["step"], row["loss"]) for row in read_metrics(tmp_path)] == [(1, 2.0), (2, 2.0)]
    scalars = events(tmp_path).Scalars("loss/train")
    assert [(event.step, event.value) for event in scalars] == [(1, 2.0), (2, 2.0)]


def test_tensorboard_shows_no_step_twice_after_a_restore(tmp_path):
    train(tmp_path, range(1, 11), restored_step=None)
    # Within the same second as the first file, which counts whole seconds in its name.
    train(tmp_path, range(7, 9), restored_step=6, loss=2.0)
    scalars = events(tmp_path).Scalars("loss/train")
    assert [event.step for event in scalars] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert [event.value for event in scalars] == [1.0] * 6 + [2.0] * 2


def test_restored_run_that_writes_nothing_still_takes_back_what_came_later(tmp_path):
    with MetricsWriter(tmp_path, restored_step=None) as writer:
        writer.write(5, "validation", {"loss": 1.0}, epoch=0.5)
        writer.write(10, "validation", {"loss": 2.0}, epoch=1.0)
    MetricsWriter(tmp_path, restored_step=5).close()
    assert [event.step for event in events(tmp_path).Scalars("loss/validation")] == [5]


def test_an_evaluation_is_taken_back_without_the_training_rows_before_it(tmp_path):
    train(tmp_path, range(1, 9), restored_step=None)
    with MetricsWriter(tmp_path, restored_step=8) as writer:
        writer.write(8, "validation", {"loss": 1.0}, epoch=0.8)
    # Step 8 was saved before its evaluation ended, and the last complete one was at step 5.
    MetricsWriter(tmp_path, restored_step=8, evaluated_step=5).close()
    found = events(tmp_path)
    assert [event.step for event in found.Scalars("loss/train")] == [*range(1, 9)]
    assert found.Scalars("loss/validation") == []
    assert {row["split"] for row in read_metrics(tmp_path)} == {"train"}


def test_tensorboard_that_is_turned_on_later_has_all_rows(tmp_path):
    with MetricsWriter(tmp_path, restored_step=None, loggers=()) as writer:
        writer.write(1, "train", {"loss": 0.5}, epoch=0.1, count=8)
    MetricsWriter(tmp_path, restored_step=1).close()
    assert [event.value for event in events(tmp_path).Scalars("loss/train")] == [0.5]


def test_values_that_are_not_finite_are_valid_json_and_come_back(tmp_path):
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    with MetricsWriter(tmp_path, restored_step=None) as writer:
        values = {"loss": np.float32(np.nan), "norm": math.inf, "low": -math.inf}
        writer.write(1, "train", values, epoch=0.1)
    text = (tmp_path / "metrics.jsonl").read_text()
    assert json.loads(text, parse_constant=refuse)["loss"] == "NaN"
    (row,) = read_metrics(tmp_path)
    assert math.isnan(row["loss"])
    assert (row["norm"], row["low"]) == (math.inf, -math.inf)
    assert row["split"] == "train"


def test_damage_before_the_last_line_is_named_not_passed_over(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"st\n{"step": 3}\n')
    with pytest.raises(UserError, match=r"metrics\.jsonl, line 2"):
        MetricsWriter(tmp_path, restored_step=3)
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1}\n{"st\n{"step": 3}\n'


def test_other_processes_write_nothing(tmp_path):
    train(tmp_path, range(1, 4), restored_step=None)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with MetricsWriter(tmp_path, restored_step=None, enabled=False) as writer:
        writer.write(1, "train", {"loss": 0.0})
        assert writer.events is None
        Histograms(writer.events, None).write(1, {"kernel": np.zeros(3)})
    after = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert after == before


def test_picture_text_and_hparams_reach_tensorboard(tmp_path):
    Image.new("L", (100, 50)).save(tmp_path / "curves.png")
    training = Training(data=Photos(path="fotos_\udce9"), model=MLP(dense=(1, 2)))
    with MetricsWriter(tmp_path, restored_step=None, config=training) as writer:
        (tmp_path / "report.md").write_text("**bold**")
        pictures = {"curves": tmp_path / "curves.png"}
        show_page(writer.events, tmp_path / "report.html", pictures, 4)
        writer.report(tmp_path / "report.html", {"test/accuracy": 0.5})
    run = events(tmp_path, "report")
    (image,) = run.Images("curves")
    assert (image.step, image.width, image.height) == (4, 100, 50)
    (text,) = run.Tensors("report/text_summary")
    assert text.tensor_proto.string_val == [b"**bold**"]
    assert run.Scalars("test/accuracy")[0].value == 0.5
    content = run.PluginTagToContent("hparams")
    # With columns that a run gives TensorBoard would not show those first that differ.
    assert "_hparams_/experiment" not in content
    start = HParamsPluginData.FromString(
        content["_hparams_/session_start_info"]
    ).session_start_info.hparams
    assert start["optimizer.name"].string_value == "adam"
    assert start["model.dense"].string_value == "(1, 2)"
    assert start["data.path"].string_value == "fotos_\\xe9"


def test_epoch_weighs_its_rows_by_count_and_takes_the_last_validation(tmp_path):
    with MetricsWriter(tmp_path, restored_step=None) as writer:
        writer.write(0, "validation", {"loss": 9.0}, epoch=0.0, count=5)
        writer.write(3, "train", {"loss": 1.0, "accuracy": 0.0}, epoch=0.75, count=30)
        writer.write(4, "train", {"loss": 5.0, "accuracy": 1.0}, epoch=1.0, count=10)
        writer.write(2, "validation", {"loss": 3.0}, epoch=0.5, count=5)
        writer.write(4, "validation", {"loss": 4.0}, epoch=1.0, count=5)
        writer.write(5, "train", {"loss": 7.0, "accuracy": 0.5}, epoch=1.25, count=10)
    assert by_epoch(read_metrics(tmp_path)) == [
        {"epoch": 0, "train": {}, "validation": {"loss": 9.0}},
        {"epoch": 1, "train": {"loss": 2.0, "accuracy": 0.25}, "validation": {"loss": 4.0}},
        {"epoch": 2, "train": {"loss": 7.0, "accuracy": 0.5}, "validation": {}},
    ]


@pytest.mark.parametrize(
    "examples, batch_size",
    # Of the last the step that completes an epoch begins an eighth of a step before its end.
    [(55_000, 128), (1_000, 100), (97, 32), (50_000, 2), (1_281_167, 1), (46_788, 32)],
)
def test_step_belongs_to_the_epoch_in_which_it_began(examples, batch_size):
    for number in (1, 2, 3, 7, 300):
        last = -(-number * examples // batch_size)  # the step that completes the epoch
        for step, epoch in ((last, number), (last + 1, number + 1)):
            row = {"step": step, "epoch": step * batch_size / examples, "loss": 1.0}
            (found,) = by_epoch([{**row, "split": "validation"}])
            assert found["epoch"] == epoch, (step, row["epoch"])
