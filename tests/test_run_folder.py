"""A run's folder: its lock, its record of attempts, and what a saved config may name."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from filelock import FileLock
from matplotlib.figure import Figure
from PIL import Image

from cnn_research.cli.run import run
from cnn_research.core import run_folder
from cnn_research.core.config import canonical_json
from cnn_research.core.errors import UserError
from cnn_research.core.experiment import lookup
from cnn_research.data.sources.synthetic import Synthetic
from cnn_research.models.mlp import MLP
from cnn_research.train.config import Training
from cnn_research.workflows.pipeline import open_pipeline

ROOT = Path(__file__).resolve().parent.parent
BLANK = Image.new("RGB", (1, 1))
CLASS = re.compile(r"^@register_config\n(?:@.*\n)*class (\w+)", re.M)


def test_a_glance_at_the_lock_does_not_keep_a_run_from_starting(tmp_path):
    """`is_locked` holds the lock for an instant, every two seconds in `sweep status`."""
    with run_folder.locked(tmp_path):
        assert run_folder.is_locked(tmp_path)
        with pytest.raises(UserError, match=r"another process \(process \d+ on"):
            run_folder.locked(tmp_path).__enter__()
    assert not run_folder.is_locked(tmp_path)
    glance = FileLock(tmp_path / run_folder.LOCK, thread_local=False)
    glance.acquire()
    threading.Timer(0.05, glance.release).start()
    with run_folder.locked(tmp_path):
        pass


# Attempts ----------------------------------------------------------------------------------------


def effective(starts, **ended):
    attempts = [{"from_step": step, "number": number} for number, step in enumerate(starts)]
    found = run_folder.effective_attempts({"attempts": attempts, **ended})
    return [attempt["number"] for attempt in found]


def test_attempts_count_whose_steps_are_in_the_result():
    assert effective([]) == []
    assert effective([0]) == [0], "it runs, or was killed"
    assert effective([0], steps=10) == [0]
    assert effective([0, 10, 10], steps=10) == [0], "a finished run was started again, twice"
    assert effective([0, 0, 4], steps=10) == [1, 2], "the first one has left no checkpoint"
    assert effective([0, 6, 4], steps=10) == [0, 2], "the checkpoint of step 6 was damaged later"
    assert effective([0, 10], steps=20) == [0, 1], "with more epochs"
    assert effective([0, 10, 15]) == [0, 1, 2], "it runs"
    assert effective([None, None]) == [1], "a gallery is drawn anew each time"


@pytest.fixture
def source(monkeypatch):
    """Sets the commit and the changes that a run takes note of."""

    def of(commit, difference=""):
        monkeypatch.setattr(run_folder, "source_facts", lambda: (commit, difference))

    return of


def test_a_finished_run_keeps_the_commit_that_trained_it(tmp_path, source, monkeypatch):
    small = Training(
        data=Synthetic(train=16, validation=4, test=4, image_shape=(4, 4, 1), classes=(2,)),
        model=MLP(dense=(4,)),
        batch_size=8,
        epochs=1,
    )
    monkeypatch.setattr(Figure, "savefig", lambda _, file, **how: BLANK.save(file, "png"))
    source("old", "some changes")
    run(small, tmp_path)
    source("new")
    monkeypatch.setattr(sys, "argv", ["launch.py", "again"])
    run(small, tmp_path)
    run(run_folder.saved_config(tmp_path), tmp_path, "evaluate")
    record = run_folder.read_json(tmp_path / run_folder.RUN)
    first, again = record["attempts"]
    assert [first["commit"], again["commit"]] == ["old", "new"]
    assert (tmp_path / first["source_diff"]).read_text() == "some changes"
    assert not first["commit_is_clean"] and again["commit_is_clean"]
    assert again["command"] == ["launch.py", "again"]
    assert again["from_step"] == record["steps"] > 0
    assert run_folder.effective_attempts(record) == [first]
    page = (tmp_path / "report" / "report.md").read_text()
    assert f"- Commit: old, with uncommitted changes ({first['source_diff']})\n" in page


def test_a_finished_pipeline_keeps_the_commit_of_its_stages(tmp_path, source):
    for commit, stages in (("first", 1), ("second", 2), ("unrelated", 2)):
        source(commit)
        with open_pipeline(lookup("filters").experiment(), tmp_path) as pipeline:
            pipeline.stages.extend(["pretraining", "training"][:stages])
    record = run_folder.read_json(tmp_path / run_folder.RUN)
    commits = [attempt["commit"] for attempt in run_folder.effective_attempts(record)]
    assert commits == ["first", "second"]


def test_another_repository_s_commit_is_not_ours(tmp_path):
    """As where the package is installed into an environment below somebody's checkout."""
    shutil.copytree(ROOT / "cnn_research" / "core", tmp_path / "venv" / "cnn_research" / "core")
    (tmp_path / "venv" / "cnn_research" / "__init__.py").touch()
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "theirs"], check=True)
    code = "from cnn_research.core.run_folder import source_facts; print(source_facts())"
    command = [sys.executable, "-c", code]
    ended = subprocess.run(
        command, cwd=tmp_path / "venv", capture_output=True, text=True, check=True
    )
    assert ended.stdout == "('', '')\n"


def test_the_record_s_numbers_are_json(tmp_path):
    run_folder.write_json(tmp_path / "a.json", {"loss": float("nan"), "all": [1.0, float("inf")]})
    text = (tmp_path / "a.json").read_text()
    assert json.loads(text, parse_constant=pytest.fail) == {"loss": None, "all": [1.0, None]}


# Saved configs -----------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [[], ["--mode=evaluate"]])
def test_a_config_of_an_unregistered_class_is_one_line_and_runs_nothing(tmp_path, mode):
    text = canonical_json(lookup("digits_mlp").experiment()).replace('"Digits"', '"Popen"')
    (tmp_path / run_folder.CONFIG).write_text(text)
    command = ["launch.py", "--experiment=digits_mlp", f"--workdir={tmp_path}", *mode]
    ended = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True)
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr.startswith("error: ") and ended.stderr.count("\n") == 1
    assert "names the class 'Popen', which is not registered" in ended.stderr
    left = {file.name for file in tmp_path.iterdir()}
    assert left - {run_folder.LOCK, run_folder.HOLDER} == {"config.json"}


def test_every_config_class_can_be_named_in_a_new_process():
    """Also by a notebook or a worker that has imported none of them."""
    classes = {
        name
        for file in (ROOT / "cnn_research").glob("**/*.py")
        for name in CLASS.findall(file.read_text())
    }
    assert len(classes) > 40
    code = (
        "import sys; from cnn_research.core.config import config_class\n"
        "for name in sys.argv[1:]: config_class(name)"
    )
    subprocess.run([sys.executable, "-c", code, *classes], cwd=ROOT, check=True)
