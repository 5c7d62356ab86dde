"""Loggers: TensorBoard's columns and entries, and services that write to their own local stores."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import struct

import pytest

from cnn_research.cli.run import run
from cnn_research.core import run_folder as folders
from cnn_research.core.config import config_hash, with_fields
from cnn_research.core.errors import UsageError, UserError
from cnn_research.core.experiment import lookup
from cnn_research.report import loggers
from cnn_research.report.loggers import Logger, Mirror, MLflow, TensorBoard, WandB, hyperparameters
from cnn_research.report.writers import MetricsWriter

DIGITS = lookup("digits_cnn").experiment()


def needs(package):
    reason = f"{package} is not installed: pip install -e '.[{package}]'"
    return pytest.mark.skipif(importlib.util.find_spec(package) is None, reason=reason)


def interrupted_and_resumed(workdir, logger):
    """Two processes of a run: the first is killed after step 4, of which step 2 was saved."""
    config = dataclasses.replace(DIGITS, loggers=(logger,))
    page = workdir / "report.html"
    workdir.mkdir()
    page.write_text("<h1>Report</h1>")
    options = dict(loggers=(logger,), config=config)
    first = MetricsWriter(workdir, restored_step=None, **options)
    for step in range(1, 5):
        first.write(step, "train", {"loss": 1 / step}, epoch=step, count=8)
    first.write(4, "validation", {"loss": 2.0}, epoch=4)
    first.close(failed=True)
    with MetricsWriter(workdir, restored_step=2, **options) as second:
        for step in range(3, 7):
            second.write(step, "train", {"loss": 1 / step}, epoch=step, count=8)
        second.write(6, "validation", {"loss": 1.0}, epoch=6)
        second.report(page, {"test/accuracy": 0.75})


# TensorBoard -------------------------------------------------------------------------------------


def test_a_run_in_a_sweep_has_the_columns_that_the_sweep_varies(tmp_path):
    words = [["--epochs=3", f"--optimizer.learning-rate={rate}"] for rate in (0.1, 0.2)]
    runs = [{"name": str(i), "words": each} for i, each in enumerate(words)]
    folders.write_json(tmp_path / folders.SWEEP, {"runs": runs})
    assert hyperparameters(DIGITS, tmp_path / "0") == {"optimizer.learning_rate": 0.002}


def test_a_sweep_of_networks_has_their_kinds_and_fields(tmp_path):
    runs = [{"name": model, "words": [f"--model={model}"]} for model in ("convnet", "resnet9")]
    folders.write_json(tmp_path / folders.SWEEP, {"runs": runs})
    columns = hyperparameters(DIGITS, tmp_path / "convnet")
    assert columns["model"] == "ConvNet" and columns["model.dropout"] == 0.2
    assert all(path.startswith("model") for path in columns)


def test_a_run_by_itself_has_a_column_for_each_part_and_for_what_is_often_changed(tmp_path):
    changed = with_fields(DIGITS, {"augmentation.mirror": True, "augmentation.shift": 2})
    columns = hyperparameters(changed, tmp_path / "run")
    assert columns["augmentation"] == "mirror=True shift=2" and columns["penalty"] == "-"
    assert columns["optimizer.learning_rate"] == 0.002 and columns["model"] == "ConvNet"
    assert not {"loggers", "callbacks", "log_every_steps"} & columns.keys()
    assert columns.keys() == hyperparameters(DIGITS, tmp_path / "run").keys()


# Services ----------------------------------------------------------------------------------------


def stored(file):
    """The records of a .wandb file, which has LevelDB's format of a log."""
    data, place, parts = file.read_bytes(), 7, b""
    while place + 7 <= len(data):
        if (left := 32768 - place % 32768) < 7:
            place += left
            continue
        length, kind = struct.unpack_from("<HB", data, place + 4)
        parts += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield parts
            parts = b""


@needs("wandb")
def test_a_resumed_run_is_the_same_one_in_wandb(tmp_path, monkeypatch):
    from wandb.proto.wandb_internal_pb2 import Record

    monkeypatch.setenv("WANDB_MODE", "offline")
    interrupted_and_resumed(tmp_path / "run", WandB(project="birds"))
    history, ids, summary = [], set(), {}
    for file in sorted(tmp_path.glob("run/wandb/offline-run-*/*.wandb")):
        for record in map(Record.FromString, stored(file)):
            kind = record.WhichOneof("record_type")
            if kind == "run":
                ids.add((record.run.project, record.run.run_id))
            if kind == "history":
                items = record.history.item
                row = {i.key or ".".join(i.nested_key): json.loads(i.value_json) for i in items}
                history.append({k: v for k, v in row.items() if not k.startswith("_")})
            if kind == "summary":
                for item in record.summary.update:
                    summary[item.key or ".".join(item.nested_key)] = json.loads(item.value_json)
    known = folders.read_json(tmp_path / "run" / "run.json")["loggers"]["wandb"]
    assert ids == {("birds", known)}
    losses = [(row["step"], row["train/loss"]) for row in history if "train/loss" in row]
    assert losses == [(step, 1 / step) for step in range(1, 7)]
    validated = [(r["step"], r["validation/loss"]) for r in history if "validation/loss" in r]
    assert validated == [(4, 2.0), (6, 1.0)]
    assert summary["result/test/accuracy"] == 0.75
    assert any(key.startswith("report") for row in history for key in row)


@needs("mlflow")
@pytest.mark.filterwarnings("ignore")
def test_a_resumed_run_is_the_same_one_in_mlflow(tmp_path, monkeypatch):
    from mlflow import MlflowClient

    monkeypatch.chdir(tmp_path)  # where it puts the report
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    interrupted_and_resumed(tmp_path / "run", MLflow(experiment="birds", tracking_uri=uri))
    client = MlflowClient(uri)
    (experiment,) = (e for e in client.search_experiments() if e.name == "birds")
    (found,) = client.search_runs([experiment.experiment_id])
    known = folders.read_json(tmp_path / "run" / "run.json")["loggers"]["mlflow"]
    assert (found.info.run_id, found.info.status) == (known, "FINISHED")
    assert found.data.params["optimizer.learning_rate"] == "0.002"
    losses = [(m.step, m.value) for m in client.get_metric_history(known, "train/loss")]
    assert sorted(losses) == [(step, pytest.approx(1 / step)) for step in range(1, 7)]
    validated = [(m.step, m.value) for m in client.get_metric_history(known, "validation/loss")]
    assert sorted(validated) == [(4, 2.0), (6, 1.0)]
    assert found.data.metrics["result/test/accuracy"] == 0.75
    assert [file.path for file in client.list_artifacts(known)] == ["report.html"]


@pytest.mark.parametrize("logger", [WandB(), MLflow()])
def test_a_missing_package_is_named_before_data_are_read(logger, tmp_path, monkeypatch):
    monkeypatch.setattr(loggers.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(type(DIGITS.data), "load", lambda self: pytest.fail("data were read"))
    package = logger.package
    with pytest.raises(UsageError, match=rf"{package}, which .* pip install .*\[{package}\]'"):
        run(dataclasses.replace(DIGITS, loggers=(TensorBoard(), logger)), tmp_path)


# Loggers of one's own ----------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Broken(Logger):
    """A service that cannot be reached: at once, or after a row."""

    at_once: bool = False

    def open(self, workdir, config, last_kept):
        if self.at_once:
            raise ConnectionError("no route to host")
        return BrokenRun()


class BrokenRun(Mirror):
    def write(self, step, split, values):
        raise ConnectionError("no route to host")


def test_a_service_that_fails_loses_its_rows_and_no_others(tmp_path, caplog):
    loggers = (Broken(), TensorBoard())
    with (
        caplog.at_level("WARNING", logger="absl"),
        MetricsWriter(tmp_path, restored_step=None, loggers=loggers) as writer,
    ):
        for step in (1, 2):
            writer.write(step, "train", {"loss": 1.0}, epoch=step)
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 2
    assert list((tmp_path / "events").glob("events.*"))
    (warning,) = (record.getMessage() for record in caplog.records)
    assert "BrokenRun failed" in warning and "no route to host" in warning


def test_a_service_that_cannot_be_opened_is_named(tmp_path):
    with pytest.raises(UserError, match="Broken cannot be opened: no route to host"):
        MetricsWriter(tmp_path, restored_step=None, loggers=(Broken(at_once=True),))


def test_loggers_change_no_folder_of_a_run_that_has_the_default_ones():
    assert config_hash(DIGITS) == config_hash(dataclasses.replace(DIGITS, loggers=(TensorBoard(),)))
