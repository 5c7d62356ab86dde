"""Several processes as one program: as `srun` starts them, and stopped together."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from benchmarks.results import ROOT, last_checkpoint, rows_of
from cnn_research.cli.run import run
from cnn_research.core import preemption as interruption
from cnn_research.core.distributed import DETECTED, TPU_HOSTS, UNDETECTED, launch_options
from cnn_research.core.errors import Interrupted, UsageError
from cnn_research.core.experiment import lookup
from cnn_research.core.preemption import Interruption
from cnn_research.data.sources.scikit_learn import Digits
from cnn_research.train.evaluator import Evaluator
from tests.sizes import scaled_down
from tests.test_pipeline import ONE_KIND, TWO

LIMIT = 150
"""Seconds; processes on a busy machine take long to begin."""


def started(words: Sequence[str], said: Path) -> list[subprocess.Popen]:
    """Two processes of Python, in the environment that `srun --ntasks=2` gives to each.

    Args:
        words: of the command line, after `python`.
        said: what process RANK says is appended to this name with `.RANK`.
    """
    job = str(time.time_ns() // 10**6)  # of which JAX makes the coordinator's port
    children = []
    for rank in range(2):
        step = {
            "SLURM_JOB_ID": job,
            "SLURM_STEP_NODELIST": "127.0.0.1",
            "SLURM_STEP_NUM_NODES": "1",
            "SLURM_STEP_NUM_TASKS": "2",
            "SLURM_NTASKS": "2",
            "SLURM_PROCID": str(rank),
            "SLURM_LOCALID": str(rank),
            "JAX_NUM_CPU_DEVICES": "2",
            "JAX_PLATFORMS": "cpu",
        }
        with Path(f"{said}.{rank}").open("ab") as out:
            command, environment = [sys.executable, *words], {**os.environ, **step}
            children.append(
                subprocess.Popen(command, cwd=ROOT, env=environment, stdout=out, stderr=out)
            )
    return children


def wait_for(word: bytes, said: Path, children: Sequence[subprocess.Popen]) -> None:
    """Returns when the first process has said a word.

    Raises:
        RuntimeError: a process ended first, or it takes too long.
    """
    end = time.monotonic() + LIMIT
    while word not in Path(f"{said}.0").read_bytes():
        if any(child.poll() is not None for child in children) or time.monotonic() > end:
            raise RuntimeError(f"{word.decode()!r} was not said: see {said}.0")
        time.sleep(0.05)


@pytest.mark.slow
def test_a_signal_to_one_process_stops_all_at_the_same_step(tmp_path):
    workdir, said = tmp_path / "run", tmp_path / "said"
    words = ["--experiment=digits_mlp", "--model.dense", "8", "--batch-size=64", "--epochs=4000"]
    children = started(["launch.py", *words, f"--workdir={workdir}"], said)
    try:
        wait_for(b"epoch 1/", said, children)
        children[1].send_signal(signal.SIGTERM)
        assert [child.wait(LIMIT) for child in children] == [75, 75]
    finally:
        for child in children:
            child.kill()
    last = {Path(f"{said}.{rank}").read_text().splitlines()[-1] for rank in (0, 1)}
    experiment, state, step = last_checkpoint(workdir)
    assert last == {
        f"stopped by SIGTERM: step {step:,} is saved in {workdir}; "
        "the same command resumes from there"
    }
    # On one device here, what four of two processes have saved; every row is there once.
    assert int(state.step) == step >= 19
    assert all(np.isfinite(leaf).all() for leaf in state.params["Dense_0"].values())
    assert sum(row["count"] for row in rows_of(workdir, "train")) == step * experiment.batch_size


PIPELINES = """
import sys
from pathlib import Path
from cnn_research.cli.run import run
from cnn_research.core.distributed import initialize_distributed
from cnn_research.train import finish
from tests.conftest import blank_page
from tests.test_pipeline import ONE_KIND, TWO
finish.write_report = blank_page  # its pictures take longest
with initialize_distributed():
    run(TWO, Path(sys.argv[1]) / "two")
    run(ONE_KIND, Path(sys.argv[1]) / "study")
"""


@pytest.mark.slow
def test_pipelines_run_in_several_processes(tmp_path, monkeypatch):
    children = started(["-c", PIPELINES, str(tmp_path)], tmp_path / "said")
    try:
        ended = [child.wait(2 * LIMIT) for child in children]
    finally:
        for child in children:
            child.kill()
    assert ended == [0, 0], Path(f"{tmp_path / 'said'}.1").read_text()[-2000:]
    assert "another process" not in Path(f"{tmp_path / 'said'}.1").read_text()
    monkeypatch.setattr("cnn_research.train.loop.train", lambda *_: pytest.fail("trained again"))
    for experiment, name in ((TWO, "two"), (ONE_KIND, "study")):
        assert run(experiment, tmp_path / name).metrics


# Agreement ---------------------------------------------------------------------------------------


def test_all_processes_stop_where_the_first_to_know_stops():
    """Each answers what came of the question before, so that nobody waits for an answer."""
    others = [0, 0, signal.SIGUSR1, signal.SIGUSR1]
    asked = Interruption(lambda value: max(value, others.pop(0)))
    assert [bool(asked) for _ in range(4)] == [False, False, False, True]
    assert bool(asked) and not others, "what is agreed on is not asked again"
    assert asked.error("saved").exit_code == 75


def test_a_check_waits_for_the_others():
    asked = Interruption(lambda value: max(value, signal.SIGINT))
    with pytest.raises(Interrupted, match="stopped by SIGINT: training had not begun") as stopped:
        asked.check()
    assert stopped.value.exit_code == 130


def test_a_process_that_stops_alone_in_its_preparation_tells_the_others():
    told = []

    def largest(value):
        told.append(value)
        return value

    with pytest.raises(Interrupted, match="stopped by SIGUSR1"):  # noqa: SIM117
        with Interruption(largest) as asked, asked.interruptible_setup():
            interruption.raise_if_interrupted()
            signal.raise_signal(signal.SIGUSR1)
            interruption.raise_if_interrupted()
            raise AssertionError("raise_if_interrupted raises")
    assert told[0] == signal.SIGUSR1
    interruption.raise_if_interrupted()  # of no run: nothing to stop


@pytest.mark.parametrize(
    ("kind", "method"), [(Digits, "load"), (Evaluator, "__call__")], ids=["data", "estimate"]
)
def test_a_signal_before_the_first_step_ends_the_run(kind, method, tmp_path, monkeypatch):
    """While data is prepared, and while a batch of an evaluation is tried."""
    original = getattr(kind, method)

    def asked(*arguments, **options):
        signal.raise_signal(signal.SIGTERM)
        return original(*arguments, **options)

    monkeypatch.setattr(kind, method, asked)
    with pytest.raises(Interrupted, match="training had not begun") as stopped:
        run(scaled_down(lookup("digits_mlp").experiment()), tmp_path)
    assert stopped.value.exit_code == 75
    assert not (tmp_path / "metrics.jsonl").exists()


def test_the_first_signal_counts():
    with Interruption() as asked:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)
        assert asked
        error = asked.error("saved")
    assert error.exit_code == 75 and "SIGTERM" in str(error)


@pytest.mark.parametrize(
    ("environment", "options"),
    [
        ({}, None),
        ({"SLURM_NTASKS": "4", "SLURM_STEP_NUM_TASKS": "1"}, None),
        ({"SLURM_STEP_NUM_TASKS": "2"}, {}),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, {}),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, None),
        ({"TPU_WORKER_HOSTNAMES": "a,b"}, {}),
        (
            {"JAX_COORDINATOR_ADDRESS": "a:1", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "1"},
            {"num_processes": 2, "process_id": 1},
        ),
    ],
)
def test_what_a_launcher_says_is_understood(environment, options, launched_by):
    launched_by(environment)
    assert launch_options() == options


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"WORLD_SIZE": "8"}, r"one of 8 processes \(WORLD_SIZE\).* set JAX_COORDINATOR_ADDRESS"),
        ({"JAX_PROCESS_ID": "first"}, "JAX_PROCESS_ID is 'first': must be a whole number"),
    ],
)
def test_processes_that_cannot_find_each_other_are_refused(environment, message, launched_by):
    launched_by(environment)
    with pytest.raises(UsageError, match=message):
        launch_options()


@pytest.fixture
def launched_by(monkeypatch):
    """Sets the environment to what a launcher gives, and nothing of another one."""
    names = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
    for name in (*names, *DETECTED, *TPU_HOSTS, *UNDETECTED):
        monkeypatch.delenv(name, raising=False)
    return lambda environment: [monkeypatch.setenv(*pair) for pair in environment.items()]
