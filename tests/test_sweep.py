"""Sweeps: what they come to, what becomes of runs that fail or are stopped, searches, and SLURM.

Most runs here are of a worker that only pretends to train: it takes what the real one takes, and
leaves the same files.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from absl.testing import flagsaver

from cnn_research.cli import main as cli
from cnn_research.cli.fields import with_overrides
from cnn_research.core import run_folder as folders
from cnn_research.core.config import from_dict
from cnn_research.core.errors import UsageError, run_command
from cnn_research.core.experiment import lookup
from cnn_research.core.preemption import Interruption
from cnn_research.sweep import definition, local, slurm, source, states, worker
from cnn_research.sweep.__main__ import main
from cnn_research.sweep.definition import Sweep
from cnn_research.sweep.states import State

ROOT = Path(__file__).resolve().parent.parent
FILES = sorted((ROOT / "experiments" / "sweeps").glob("*.toml"))

PRETENDING = """
import json, os, pathlib, queue, signal, sys, threading, time
runs, stopped = queue.Queue(), []
def read():
    for values in map(json.loads, sys.stdin):
        stopped.append(True) if values is None else runs.put(values)
    runs.put(None)
threading.Thread(target=read, daemon=True).start()
while (run := runs.get()) is not None:
    workdir, config = pathlib.Path(run["workdir"]), json.loads(run["config"])
    workdir.mkdir(parents=True, exist_ok=True)
    file = workdir / "sweep_run.json"
    attempt = json.loads(file.read_text())["attempt"] + 1 if file.exists() else 1
    state = {"state": "running", "attempt": attempt, "since": time.time()}
    file.write_text(json.dumps(state))
    (workdir / "pid").write_text(str(os.getpid()))
    rate, epochs = config["optimizer"]["learning_rate"], int(config["epochs"])
    after = {"state": "complete"}
    if rate == 9 and attempt == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    if rate == 8 and attempt == 1:
        after = {"state": "failed", "message": "no luck", "exit_code": 1}
    with (workdir / "metrics.jsonl").open("w") as rows:
        for epoch in range(1, epochs + 1):
            row = {"step": epoch, "epoch": epoch, "split": "validation", "accuracy": rate * epoch}
            print(json.dumps(row), file=rows, flush=True)
            for _ in range(60 if epochs > 1 and rate < 0.5 else 0):
                time.sleep(0.05)
                if stopped:
                    after = {"state": "stopped", "message": "saved", "exit_code": 75}
                    break
    stopped.clear()
    file.write_text(json.dumps(state | after))
    print(json.dumps(state | after), flush=True)
"""


@pytest.fixture
def pretending(monkeypatch):
    """Workers that only pretend to train; they look for changes more often."""
    monkeypatch.setattr(local, "WORKER", (sys.executable, "-c", PRETENDING))
    monkeypatch.setattr(local, "POLL_SECONDS", 0.02)


def sweep(workdir, *words):
    return run_command(main, ["--experiment=digits_mlp", f"--workdir={workdir}", *words])


def rates(*values):
    return f"--grid=optimizer.learning-rate={','.join(map(str, values))}"


def found(workdir):
    """The states of a sweep's runs, in order."""
    _, names = definition.read(workdir)
    return [states.read(workdir / "runs" / name) for name in names]


# What a sweep comes to ---------------------------------------------------------------------------


def test_a_grid_is_every_combination_and_variants_and_seeds_are_run_with_each(tmp_path):
    runs = Sweep(
        experiments=("digits_cnn", "digits_mlp"),
        words=("--epochs=3",),
        grid={"optimizer.learning-rate": ("1e-3",), "evaluation.mirror": ("true", "False")},
        variants=("--optimizer.name=sgd --optimizer.momentum=0.9", "--optimizer.name=adam"),
        seeds=2,
    ).runs(tmp_path)
    assert len(runs) == len({run.workdir for run in runs}) == 2 * 2 * 2 * 2
    configs = [from_dict(json.loads(run.config)) for run in runs]
    seen = {
        (c.name, c.optimizer.learning_rate, c.evaluation.mirror, c.optimizer.name, c.seed)
        for c in configs
    }
    assert len(seen) == len(runs)
    assert {config.epochs for config in configs} == {3}
    name = "digits_cnn-name=sgd-momentum=0.9-learning-rate=1e-3-mirror-seed=0-"
    assert runs[0].name.startswith(name)
    # The command of a run makes the same config.
    _, name, *words, _ = runs[-1].command
    with flagsaver.flagsaver():
        again = with_overrides(lookup(name.partition("=")[2]).experiment(), words)
    assert again == configs[-1]


def test_values_of_several_numbers(tmp_path):
    grid = {"model.features": ("8 16", "4 4"), "model": ("convnet",)}
    one, two = Sweep(experiments=("digits_cnn",), grid=grid).runs(tmp_path)
    assert from_dict(json.loads(one.config)).model.features == (8, 16)
    assert from_dict(json.loads(two.config)).model.features == (4, 4)


@pytest.mark.parametrize(
    "words", [["--optimizer.learnin-rate=1"], ["--batch-size=many"], ["--epochs=0"]]
)
def test_what_launch_refuses_a_sweep_refuses_in_the_same_words(words, tmp_path, capsys):
    with flagsaver.flagsaver(), pytest.raises(SystemExit) as end:
        cli.main(cli.parse_flags(["launch.py", "--experiment=digits_mlp", *words]))
    expected = capsys.readouterr().err
    path, _, value = words[0].removeprefix("--").partition("=")
    assert sweep(tmp_path / "new", f"--grid={path}={value}", "--seeds=2") == end.value.code == 2
    assert capsys.readouterr().err == expected
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--experiment=digits_mpl"], "did you mean 'digits_mlp'"),
        ([], "nothing to run"),
        (["--experiment=digits_mlp", "--grid=epochs=1,1.0"], "two runs of the sweep are the same"),
        (["--experiment=digits_mlp", "--grid=epochs"], "is not FIELD=VALUES"),
        (["--experiment=digits_mlp", "--search=seed=1..2"], "--search and --trials"),
        (
            ["--experiment=digits_mlp", "--search=seed=2..1", "--trials=2"],
            "lower end first",
        ),
        (["--experiment=digits_mlp", "--search=epochs=0..1 log", "--trials=2"], "above 0"),
        (["--experiment=digits_mlp", "--search=sed=1..2", "--trials=2"], "unknown field --sed"),
        (
            ["--experiment=pooling_types", "--search=num-seeds=1..2", "--trials=2"],
            "is not a training",
        ),
        (["--experiment=digits_mlp", "--partition=main"], "--partition is for SLURM"),
        (["--experiment=digits_mlp", "--workers=0"], "1 or more"),
        (["--experiment=digits_mlp", "--seeds=-1"], "--seeds is -1: must be from 0 to 10000"),
        (["--experiment=digits_mlp", "--seeds=99999999999"], "must be from 0 to 10000"),
        (["--experiment=digits_mlp", "--grid=seed=0,-1"], "--seed is -1: must be from 0"),
        (["--experiment=digits_mlp", "--variant=--seed=99999999999"], "must be from 0 to 4294967"),
        (["--file=absent.toml"], "cannot be read"),
        (["--file=absent.toml", "--seeds=2"], "--seeds and --file exclude each other"),
    ],
)
def test_what_is_typed_wrong_is_answered_in_a_line(words, says, tmp_path, capsys):
    assert run_command(main, [f"--workdir={tmp_path / 'new'}", *words]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and says in error
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_the_files_of_sweeps_are_sweeps_in_any_folder(file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = definition.from_toml(file.relative_to(ROOT))
    found.check()
    runs = dataclasses.replace(found, seeds=1).runs(tmp_path)
    assert [run.experiment for run in runs] == list(found.experiments)
    assert f"--file=experiments/sweeps/{file.name}" in file.read_text()


def test_a_file_says_what_flags_say(tmp_path):
    file = tmp_path / "sweep.toml"
    file.write_text(
        'experiments = ["digits_cnn"]\nseeds = 2\nwords = ["--epochs=1"]\n'
        '[grid]\n"optimizer.learning-rate" = [0.001, 3e-4]\n"model.features" = [[8, 16]]\n'
    )
    assert definition.from_toml(file) == Sweep(
        experiments=("digits_cnn",),
        words=("--epochs=1",),
        grid={"optimizer.learning-rate": ("0.001", "0.0003"), "model.features": ("8 16",)},
        seeds=2,
    )


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("experiment = []", "did you mean 'experiments'"),
        ("seeds = '5'", "'seeds' is '5': must be a whole number"),
        ("[grid]\nepochs = 3", "'epochs' is 3: must be a list"),
        ("seeds = ", "is not TOML"),
    ],
)
def test_a_file_that_is_wrong_is_named(text, says, tmp_path):
    file = tmp_path / "sweep.toml"
    file.write_text(text)
    with pytest.raises(UsageError, match=says):
        definition.from_toml(file)


# On this machine ---------------------------------------------------------------------------------


def test_one_that_fails_stops_no_other_and_is_run_again_alone(tmp_path, capsys, pretending):
    words = [rates(1, 8, 2, 9, 3), "--epochs=1", "--workers=2"]
    assert sweep(tmp_path, *words) == 1
    said = capsys.readouterr()
    kept = [state.state for state in found(tmp_path)]
    assert kept == ["complete", "failed", "complete", "failed", "complete"]
    assert "no luck" in said.err
    assert "its process ended with SIGKILL (out of memory?)" in said.err
    assert said.err.splitlines()[-1].startswith("error: 2 of 5 runs failed")
    assert sweep(tmp_path, *words) == 0
    assert [state.attempt for state in found(tmp_path)] == [1, 2, 1, 2, 1]
    before = (tmp_path / "sweep.json").read_bytes()
    assert sweep(tmp_path, *words) == 0
    assert [state.attempt for state in found(tmp_path)] == [1, 2, 1, 2, 1]
    assert (tmp_path / "sweep.json").read_bytes() == before


def test_one_process_serves_many_runs(tmp_path, pretending):
    assert sweep(tmp_path, "--seeds=6", "--epochs=1", "--workers=2") == 0
    assert len({file.read_text() for file in tmp_path.glob("runs/*/pid")}) <= 2


def test_another_sweep_in_the_folder_is_refused(tmp_path, capsys, pretending):
    assert sweep(tmp_path, rates(1), "--epochs=1") == 0
    capsys.readouterr()
    assert sweep(tmp_path, rates(1), "--epochs=2") == 2
    said = capsys.readouterr().err
    assert "words was ['--epochs=1'] and is now ['--epochs=2']" in said
    (tmp_path / "sweep.json").write_text("{")
    assert sweep(tmp_path, rates(1), "--epochs=1") == 1
    assert "sweep.json is damaged" in capsys.readouterr().err


def test_a_second_process_in_the_folder_is_refused(tmp_path, capsys):
    with folders.locked(tmp_path):
        assert sweep(tmp_path, rates(1)) == 1
    assert f"another process (process {os.getpid()}" in capsys.readouterr().err


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_a_sweep_that_is_stopped_saves_and_goes_on(number, code, tmp_path, capsys, pretending):
    words = [rates(0.1, 0.2, 1), "--epochs=2"]
    original = Interruption.__enter__

    def enter(interruption):
        signal.setitimer(signal.ITIMER_REAL, 0.5)
        signal.signal(signal.SIGALRM, lambda *_: signal.raise_signal(number))
        return original(interruption)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Interruption, "__enter__", enter)
        assert sweep(tmp_path, *words) == code
    assert f"stopped by {number.name}: 0 of 3 runs finished" in capsys.readouterr().err
    assert [state.state for state in found(tmp_path)] == ["stopped", "waiting", "waiting"]


@pytest.mark.slow
def test_a_real_worker_runs_names_what_fails_and_keeps_its_words(tmp_path, capsys):
    words = ["--grid=optimizer.learning-rate=1e-3,1e30", "--epochs=0.2", "--model.dense=8"]
    assert sweep(tmp_path, *words) == 1
    good, bad = found(tmp_path)
    assert (good.state, bad.state, bad.exit_code) == ("complete", "failed", 1)
    assert "the loss is nan at step" in bad.message
    runs = sorted((tmp_path / "runs").iterdir())
    assert "Result on the test split" in (runs[0] / "log.txt").read_text()
    record = folders.read_json(runs[0] / folders.RUN)
    (attempt,) = record["attempts"]
    assert attempt["command"][1:3] == ["--experiment=digits_mlp", "--epochs=0.2"]
    assert attempt["commit"] == source.source_facts()[0]
    said = capsys.readouterr()
    assert "Result on" not in said.out
    assert "| digits_mlp" in said.out
    assert run_command(main, ["status", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert said.startswith("2 runs: 1 complete, 1 failed\n")
    assert "| failed " in said and "the loss is nan" in said


@pytest.mark.slow
def test_a_real_worker_that_is_stopped_saves(tmp_path):
    def stop():
        while not any(tmp_path.glob("runs/*/metrics.jsonl")):
            time.sleep(0.1)
        signal.raise_signal(signal.SIGTERM)

    threading.Thread(target=stop, daemon=True).start()
    assert sweep(tmp_path, "--epochs=3000", "--model.dense=8") == 75
    (state,) = found(tmp_path)
    assert (state.state, state.exit_code) == ("stopped", 75)
    assert any(tmp_path.glob("runs/*/checkpoints/*/checksums.json"))


def test_the_source_is_copied_once(tmp_path):
    copy = source.copy_source(tmp_path)
    assert (copy / "experiments" / "digits.py").read_bytes() == (
        ROOT / "experiments" / "digits.py"
    ).read_bytes()
    assert source.copy_source(tmp_path) == copy
    code = (
        "from cnn_research import experiments\n"
        "from cnn_research.core.run_folder import source_facts\n"
        "print(experiments.__file__, experiments.__path__[0], source_facts()[0])"
    )
    ended = subprocess.run(
        [sys.executable, "-P", "-c", code],
        env=os.environ | {"PYTHONPATH": source.search_path(copy)},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    ours = [str(copy / "cnn_research" / "experiments.py"), str(copy / "experiments")]
    assert ended.stdout.split() == [*ours, *source.source_facts()[0].split()]


# States ------------------------------------------------------------------------------------------

RUNNING = State("running", 1, 0.0)


@pytest.mark.parametrize(
    ("file", "job", "queue", "expected"),
    [
        (None, None, {}, "waiting"),
        (RUNNING, None, {}, "stopped"),
        (None, "7_0", {"7_0": "PENDING"}, "queued"),
        (RUNNING, "7_0", {"7_0": "RUNNING"}, "running"),
        (State("stopped", 1), "7_0", {"7_0": "PENDING"}, "queued"),
        (State("failed", 1), "7_0", {"7_0": "COMPLETING"}, "failed"),
        (State("failed", 1), "7_0", {"7_0": "PENDING"}, "queued"),
        (State("complete", 1), "7_0", {"7_0": "COMPLETING"}, "complete"),
        (RUNNING, "7_0", {"8_0": "RUNNING"}, "failed"),
        (None, "7_0", {}, "failed"),
        (RUNNING, "7_0", None, "running"),
    ],
)
def test_a_state_is_what_the_file_and_the_queue_say(
    file, job, queue, expected, tmp_path, monkeypatch
):
    workdir = tmp_path / "runs" / "one"
    workdir.mkdir(parents=True)
    if file is not None:
        states.write(workdir, file)
    if job is not None:
        folders.write_json(tmp_path / states.JOBS, {"one": job})
    monkeypatch.setattr(states, "jobs_in_queue", lambda: queue)
    assert states.all_states(tmp_path, [workdir])[workdir].state == expected


def test_what_runs_here_is_running_while_its_sweep_is_there(tmp_path):
    workdir = tmp_path / "runs" / "one"
    workdir.mkdir(parents=True)
    states.write(workdir, RUNNING)
    with folders.locked(tmp_path):
        assert states.all_states(tmp_path, [workdir])[workdir].state == "running"
    assert states.all_states(tmp_path, [workdir])[workdir].state == "stopped"


def test_the_table_shows_the_metric_that_a_run_selects_by(tmp_path):
    folders.write_json(tmp_path / folders.CONFIG, {"selection": {"metric": "top5"}})
    row = {"step": 3, "epoch": 1.0, "split": "validation", "loss": 0.5, "top5": 0.25}
    (tmp_path / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    assert "| top5 0.2500 |" in states.table({tmp_path: State("complete")})


def test_status_of_what_is_no_sweep(tmp_path, capsys):
    assert run_command(main, ["status", str(tmp_path)]) == 2
    assert "has no sweep" in capsys.readouterr().err


# Searches ----------------------------------------------------------------------------------------

SEARCH = ("--search=optimizer.learning-rate=0.5..1.5", "--search=batch-size=16..64", "--epochs=1")


def trials(workdir):
    """Optuna's trials, in order."""
    import optuna
    from optuna.storages.journal import JournalFileBackend

    journal = JournalFileBackend(str(workdir / "study.jsonl"))
    storage = optuna.storages.JournalStorage(journal)
    return optuna.load_study(study_name="study.jsonl", storage=storage).trials


def complete(workdir):
    """The number, what was chosen and what came of it, of each run that is complete."""
    return [
        (trial.user_attrs["number"], trial.params, trial.value)
        for trial in trials(workdir)
        if trial.state.name == "COMPLETE"
    ]


def test_a_search_finds_what_is_better(tmp_path, capsys, pretending):
    pytest.importorskip("optuna", reason="the extra [search] is not installed")
    assert sweep(tmp_path, *SEARCH, "--trials=20") == 0
    values = [value for *_, value in complete(tmp_path)]
    assert len(values) == 20
    assert max(values) > 1.4, "TPE has not come near the end where the accuracy is highest"
    assert f"Best: validation accuracy {max(values):.4f}" in capsys.readouterr().out
    sizes = {params["batch-size"] for _, params, _ in complete(tmp_path)}
    assert all(isinstance(size, int) and 16 <= size <= 64 for size in sizes)


def test_a_study_that_is_cut_off_goes_on_as_if_it_were_not(tmp_path, capsys, pretending):
    pytest.importorskip("optuna", reason="the extra [search] is not installed")
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert sweep(whole, *SEARCH, "--trials=13") == 0
    shutil.copytree(whole, cut)
    lines = (cut / "study.jsonl").read_text().splitlines(keepends=True)
    # In the middle of what became of a trial, after the first ten, which are drawn at random.
    ends = [n for n, line in enumerate(lines) if '"state":1' in line]
    (cut / "study.jsonl").write_text("".join(lines[: ends[10] + 1])[:-4])
    capsys.readouterr()
    # More trials are no other search.
    assert sweep(cut, *SEARCH, "--trials=14") == 0
    assert "its last line is incomplete" in capsys.readouterr().err
    assert complete(cut)[:13] == complete(whole)
    assert len(complete(cut)) == 14
    (cut / "study.jsonl").write_text("".join([*lines[:3], "nonsense\n", *lines[3:]]))
    assert sweep(cut, *SEARCH, "--trials=14") == 1
    assert "study.jsonl is damaged" in capsys.readouterr().err


def test_a_run_that_does_worse_than_half_is_pruned(tmp_path, pretending):
    """Those below 0.5 are slow, and behind the others after their first epoch."""
    pytest.importorskip("optuna", reason="the extra [search] is not installed")
    words = ("--search=optimizer.learning-rate=0.3,0.6,0.7,0.8", "--epochs=3", "--trials=14")
    assert sweep(tmp_path, *words) == 0
    found = trials(tmp_path)
    slow = {t.number for t in found if t.params["optimizer.learning-rate"] == "0.3"}
    pruned = {trial.number for trial in found if trial.state.name == "PRUNED"}
    assert pruned and pruned >= {number for number in slow if number >= 8}
    workdirs = definition.trial_folders(tmp_path)
    assert {states.read(workdirs[number]).state for number in pruned} == {"pruned"}


def test_a_failed_trial_is_tried_again(tmp_path, pretending):
    pytest.importorskip("optuna", reason="the extra [search] is not installed")
    words = ("--search=optimizer.learning-rate=8,7", "--epochs=1", "--trials=3")
    assert sweep(tmp_path, *words) == 1
    failed = [trial.number for trial in trials(tmp_path) if trial.state.name == "FAIL"]
    assert failed
    assert sweep(tmp_path, *words) == 0
    assert [number for number, *_ in complete(tmp_path)][-len(failed) :] == failed
    assert len(definition.trial_folders(tmp_path)) == 3


# SLURM -------------------------------------------------------------------------------------------


def test_a_queue_that_does_not_answer_resubmits_nothing(tmp_path, capsys, monkeypatch, pretending):
    words = (rates(1, 2), "--epochs=1")
    assert sweep(tmp_path, *words) == 0
    one, two = sorted((tmp_path / "runs").iterdir())
    states.write(two, RUNNING)
    folders.write_json(tmp_path / states.JOBS, {one.name: "7_0", two.name: "7_1"})
    monkeypatch.setattr(states, "jobs_in_queue", lambda: None)
    monkeypatch.setattr(slurm, "check", lambda: None)
    monkeypatch.setattr(slurm, "submit", lambda *_, **__: pytest.fail("submitted again"))
    for where in ([], ["--cluster=slurm"]):
        assert sweep(tmp_path, *words, *where) == 1
        err = capsys.readouterr().err
        assert err.startswith("error: squeue failed, and 1 submitted runs may still")
        assert err.count("\n") == 1
    assert states.read(two) == RUNNING
    monkeypatch.setattr(states, "jobs_in_queue", lambda: {"7_1": "RUNNING"})
    assert sweep(tmp_path, *words, "--cluster=slurm") == 0
    assert "2 complete or submitted, 0 to run" in capsys.readouterr().out


def test_a_second_job_of_a_run_leaves_the_first_one_s_state(tmp_path):
    (run,) = Sweep(experiments=("digits_mlp",)).runs(tmp_path)
    with folders.locked(run.workdir):
        before = states.record_start(run.workdir)
        after = worker.execute(run)
        assert (after.state, after.exit_code) == ("failed", 1)
        assert "another process is running in" in after.message
    assert states.read(run.workdir) == before


def test_without_slurm_nothing_is_begun(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert sweep(tmp_path / "new", rates(1), "--cluster=slurm") == 1
    assert "this machine has no SLURM (sbatch is missing)" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(("job", "again"), [("RUNNING", True), ("COMPLETING", False)])
def test_a_job_that_saved_is_queued_again_unless_it_was_cancelled(job, again, monkeypatch):
    run = definition.Run("digits_mlp", (), Path("nowhere"), "{}")
    stopped = State("stopped", 1, message="saved", exit_code=75)
    monkeypatch.setattr("cnn_research.sweep.worker.execute", lambda run: stopped)
    monkeypatch.setattr(states, "jobs_in_queue", lambda: {"7_2": job})
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "7")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "2")
    received = []
    before = signal.signal(signal.SIGUSR1, lambda *_: received.append(True))
    try:
        with pytest.raises(SystemExit) as end:
            slurm.Job(run)()
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert bool(received) == again
    assert end.value.code == 75


@pytest.mark.slow
def test_an_array_on_slurm(request, tmp_path, capsys):
    if importlib.util.find_spec("submitit") is None:
        pytest.skip("the extra [slurm] is not installed")
    cluster = request.getfixturevalue("slurm")
    words = [
        *("--grid=optimizer.learning-rate=1e-3,1e30", "--epochs=0.2", "--model.dense=8"),
        *("--cluster=slurm", "--time=10", "--cpus=1", "--parallel=2"),
    ]
    assert sweep(tmp_path, *words, "--partition=nonsense") == 1
    assert "Invalid partition name specified" in capsys.readouterr().err

    started = time.monotonic()
    assert sweep(tmp_path, *words) == 0
    assert time.monotonic() - started < 60, "the submission waits for its runs"
    assert "Submitted as job" in capsys.readouterr().out
    assert sweep(tmp_path, *words) == 0
    assert "2 complete or submitted, 0 to run" in capsys.readouterr().out
    until = time.monotonic() + 200
    while cluster.waiting() and time.monotonic() < until:
        time.sleep(0.2)
    good, bad = found(tmp_path)
    assert (good.state, bad.state, bad.exit_code) == ("complete", "failed", 1)
    assert "the loss is nan at step" in bad.message
    record = folders.read_json(next((tmp_path / "runs").glob("*=1e-3-*")) / folders.RUN)
    assert record["attempts"][0]["commit"] == source.source_facts()[0]
