"""What is said before a run: that it does not change the run, and what the doctor finds."""

from __future__ import annotations

import dataclasses
import math
import subprocess
import sys

import jax
import numpy as np
import pytest

from cnn_research.cli import doctor
from cnn_research.cli.run import run
from cnn_research.core.experiment import lookup
from cnn_research.train import estimate
from cnn_research.train import loop as runner
from cnn_research.train.estimate import with_prefix
from cnn_research.train.trained import TrainedModel


def test_trying_steps_changes_nothing(tmp_path, monkeypatch):
    experiment = dataclasses.replace(lookup("digits_mlp").experiment(), epochs=1)
    run(experiment, tmp_path / "tried")
    called = []
    monkeypatch.setattr(runner, "estimate", lambda *args: called.append(args) or "")
    run(experiment, tmp_path / "untried")
    assert called
    states = [TrainedModel.load(tmp_path / name).state for name in ("tried", "untried")]
    jax.tree.map(np.testing.assert_array_equal, *states)


def test_steps_and_evaluations_left():
    def due_after(step):
        return min(step + 10, 35)

    assert runner.evaluations_after(0, due_after, 35) == 4
    assert runner.evaluations_after(30, due_after, 35) == 1
    assert runner.evaluations_after(35, due_after, 35) == 0


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0 "), (999, "999 "), (1234, "1.23 k"), (5.6e9, "5.6 G"), (7e15, "7e+03 T")],
)
def test_prefixes(number, text):
    assert with_prefix(number) == text


def test_memory_is_that_of_this_process():
    peak, where = estimate.peak_memory()
    assert where == "memory" and peak > 1e8
    block = np.ones(round(peak), np.uint8)
    assert estimate.peak_memory()[0] > block.nbytes
    assert 1e8 < estimate.available_memory() < math.inf


def test_doctor(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    assert doctor.main() == 0
    said = capsys.readouterr().out
    assert f"{len(jax.devices())} cpu" in said and "no data yet" in said
    monkeypatch.setattr(doctor.metadata, "requires", lambda name: ["flax >= 999", "nowhere >= 1"])
    monkeypatch.setattr(doctor, "LEAST_MEMORY", math.inf)
    assert doctor.main() == 1
    said = capsys.readouterr().out
    assert "flax>=999 is needed" in said and "nowhere>=1 is needed, and none is installed" in said
    assert "take small batches" in said
    monkeypatch.setattr(estimate, "available_memory", lambda: math.inf)
    doctor.main()
    assert "inf GB" not in capsys.readouterr().out


def test_doctor_names_extras_that_are_absent(monkeypatch):
    texts = ["jax >= 0.1", 'nowhere >= 1; extra == "onnx"', 'jax >= 999; extra == "search"']
    monkeypatch.setattr(doctor.metadata, "requires", lambda name: texts)
    ((how, what, found),) = doctor.extras()
    assert (how, what) == (doctor.WARNING, "extras")
    assert found.endswith("pip install -c constraints.txt -e '.[onnx,search]'")


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
    def broken():
        raise RuntimeError("")

    monkeypatch.setattr(jax, "devices", broken)
    assert list(doctor.devices()) == [
        (doctor.BROKEN, "devices", "JAX does not compute (RuntimeError)")
    ]


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
