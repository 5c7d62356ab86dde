"""What is said before a run: that it does not change the run, and what the doctor finds."""

from __future__ import annotations

import dataclasses
import math
import re
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from flax import linen as nn

from cnn_research.cli import doctor
from cnn_research.cli.run import run
from cnn_research.core import memory
from cnn_research.core.distributed import data_mesh
from cnn_research.core.experiment import lookup
from cnn_research.core.progress import Progress, Tally
from cnn_research.data.sources.synthetic import Synthetic
from cnn_research.models.mlp import MLP
from cnn_research.train import loop
from cnn_research.train.config import Training
from cnn_research.train.evaluator import Evaluator
from cnn_research.train.trained import TrainedModel
from tests.sizes import scaled_down

pytestmark = pytest.mark.usefixtures("no_report")


def test_trying_steps_changes_nothing(tmp_path, monkeypatch):
    experiment = scaled_down(lookup("digits_mlp").experiment())
    run(experiment, tmp_path / "tried")
    called = []
    monkeypatch.setattr(loop, "say_estimate", called.append)
    run(experiment, tmp_path / "untried")
    assert called
    states = [TrainedModel.load(tmp_path / name).state for name in ("tried", "untried")]
    jax.tree.map(np.testing.assert_array_equal, *states)


def test_a_dry_run_says_what_a_run_will_take_and_writes_nothing(tmp_path, capsys):
    experiment = scaled_down(lookup("digits_mlp").experiment())
    assert run(experiment, tmp_path / "run", "dry-run").step == 0
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "Expected" in line]
    found = re.fullmatch(
        r"Expected: .* s \((.*) ms per step, .* s for evaluation, (.*) s for checkpoints\); "
        r"a step needs (.*) MB of memory; (.*) MFLOP per image\.",
        line,
    )
    assert found and all(float(number) > 0 for number in found.groups())
    assert not (tmp_path / "run").exists()


def test_small_splits_are_not_padded_to_the_batch_size(tmp_path):
    """Four classes of three images took as long as two thousand images."""
    data = Synthetic(train=12, validation=3, test=2, image_shape=(6, 6, 1), classes=(4,))
    seen = []

    class Counted(MLP):
        @nn.compact
        def __call__(self, images, train):
            seen.append(len(images))
            return super().__call__(images, train)

    training = Training(data=data, model=MLP(dense=(4,)), epochs=1, batch_size=12)
    splits = data.load().splits
    model = Counted(dense=(4,), num_classes=4)
    ready = dataclasses.replace(training, task=training.task.fitted(data.load()))
    variables = model.init(jax.random.key(0), splits["test"].images / 255, train=False)
    measure = Evaluator(ready, model, data_mesh())
    seen.clear()
    for name in ("validation", "test"):
        sums, outputs = measure(variables, splits[name])
        assert sums["accuracy"][1] == len(outputs) == len(splits[name])
    assert seen == [3, 2]


def test_time_left_counts_evaluations_and_saves(monkeypatch, capsys):
    """Steps of a second each, and after ten of them ten seconds of evaluation."""
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    progress = Progress(40, 8, 4.0)
    progress.begin(0)
    progress.trained(10, 10.0)
    now[0] = 20.0
    progress.evaluated(10, 1.0, {"loss": 1.0}, None)
    assert capsys.readouterr().err.endswith("  1 min 0 s\n")


def test_progress_shows_the_metrics_that_the_task_declares(capsys):
    progress = Progress(40, 8, 4.0, ("top5", "loss"))
    progress.evaluated(10, 1.0, {"loss": 1.0, "top5": 0.25, "count": 8}, {"loss": 2.0})
    header, row = capsys.readouterr().err.splitlines()
    assert header.split() == ["train", "loss", "top5", "val", "loss", "top5", "left"]
    assert row.split() == ["epoch", "1/4", "1.0000", "0.2500", "2.0000"]
    ends = [header.index(title) + len(title) for title in ("train loss", "  top5", "val loss")]
    assert [row[:end].split()[-1] for end in ends] == ["1.0000", "0.2500", "2.0000"]


def test_progress_in_a_pipe_is_a_line_every_ten_seconds(monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    with Tally("decoding images", 1000) as tally:
        for _ in range(200):
            now[0] += 0.125
            tally.advance(2)
    said = capsys.readouterr().err.splitlines()
    assert said == [
        "decoding images: 160/1,000  16/s  52.5 s left",
        "decoding images: 320/1,000  16/s  42.5 s left",
    ]
    progress = Progress(40, 8, 4.0)
    progress.step(1, 0.5)
    now[0] += 11
    progress.step(2, 0.25)
    assert capsys.readouterr().err == "step 2/40  loss 0.2500\n"


def test_progress_on_a_terminal_is_written_over(monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    with Tally("fetching", None, " MB") as tally:
        now[0] = 1.0
        tally.advance(5)
    said = capsys.readouterr().err
    assert said.count("\r\x1b[K") == 2 and "fetching: 5 MB" in said and "\n" not in said


def test_doctor(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    assert doctor.main() == 0
    said = capsys.readouterr().out
    assert f"{len(jax.devices())} cpu" in said and "no data yet" in said
    monkeypatch.setattr(doctor.metadata, "requires", lambda name: ["flax >= 999", "nowhere >= 1"])
    monkeypatch.setattr(doctor, "MIN_MEMORY", math.inf)
    assert doctor.main() == 1
    said = capsys.readouterr().out
    assert (
        "flax>=999 is required" in said and "nowhere>=1 is required, but none is installed" in said
    )
    assert "use small batches" in said
    monkeypatch.setattr(memory, "available_memory", lambda: math.inf)
    doctor.main()
    assert "inf GB" not in capsys.readouterr().out


def test_doctor_names_extras_that_are_absent(monkeypatch):
    texts = ["jax >= 0.1", 'nowhere >= 1; extra == "onnx"', 'jax >= 999; extra == "search"']
    monkeypatch.setattr(doctor.metadata, "requires", lambda name: texts)
    ((how, what, found),) = doctor.extras()
    assert (how, what) == (doctor.WARNING, "extras")
    assert found.endswith("pip install -e '.[onnx,search]'")


def test_doctor_in_a_checkout_that_is_not_installed(monkeypatch):
    """What setup.cfg lists is what the metadata of an installed one lists."""
    version, listed = doctor.metadata.version, doctor.metadata.requires("cnn-research")

    def absent(name):
        if name == "cnn-research":
            raise doctor.metadata.PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(doctor.metadata, "version", absent)
    monkeypatch.setattr(doctor.metadata, "requires", absent)
    assert doctor.unmet(doctor.requirements()) == []
    for extra in doctor.EXTRAS:
        assert doctor.unmet(doctor.requirements(), extra) == doctor.unmet(listed, extra)
    first, *_ = doctor.packages()
    assert first[0] == doctor.WARNING and "pip install -c constraints.txt -e ." in first[2]


def test_doctor_says_how_jax_fails(monkeypatch):
    def broken(*_):
        raise RuntimeError("")

    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    for function, said in (
        ("jit", "JAX cannot compute (RuntimeError)"),
        ("devices", "JAX finds no device: check the installation"),
    ):
        monkeypatch.setattr(jax, function, broken)
        assert list(doctor.devices()) == [(doctor.BROKEN, "devices", said)]


@pytest.mark.parametrize("listed", [True, False])
def test_doctor_where_nothing_is_installed(listed):
    """Where packages are listed and do not import, and where there are none, `packaging` too."""
    hidden = ["jax", "flax", "orbax", "numpy", "absl", *([] if listed else ["packaging"])]
    code = f"""
import runpy, sys
from importlib import metadata
sys.modules.update(dict.fromkeys({hidden}))
def absent(name):
    raise metadata.PackageNotFoundError(name)
if not {listed}:
    metadata.version = metadata.requires = absent
runpy.run_module("cnn_research.cli.doctor", run_name="__main__")
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ended.returncode == 1 and not ended.stderr
    assert "Experiments cannot run yet." in ended.stdout
    assert "FAULT" in ended.stdout and "pip install -c constraints.txt -e ." in ended.stdout
    assert not listed or all(f"{name} does not import" in ended.stdout for name in hidden)


def test_doctor_is_a_command():
    ended = subprocess.run(
        [sys.executable, "-m", "cnn_research", "doctor"], capture_output=True, text=True
    )
    assert ended.returncode == 0 and "Experiments can run." in ended.stdout
