"""What fits a terminal of 80 columns: each command writes to a pseudo-terminal of that width."""

from __future__ import annotations

import contextlib
import importlib
import os
import re
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from absl.testing import flagsaver
from docstring_parser import parse_from_object
from PIL import Image

from cnn_research.cli import doctor
from cnn_research.cli import main as cli
from cnn_research.cli.program import COMMANDS
from cnn_research.core import run_folder as folders
from cnn_research.core.errors import UserError, print_error, run_command
from cnn_research.core.experiment import registry
from cnn_research.core.progress import Progress, Tally
from cnn_research.core.terminal import print_table, show
from cnn_research.report import __main__ as report
from cnn_research.sweep import states
from cnn_research.train.config import Training

pty = pytest.importorskip("pty", reason="there are no pseudo-terminals on Windows")
pytestmark = pytest.mark.usefixtures("no_report")

ESCAPES = re.compile(r"\x1b\[[\d;?]*[A-Za-z]")
WIDTH = 80
LONG = "optimizer.learning-rate=0.0003-model.features=16-32-" + 3 * "a-long-name-of-a-run-"


@contextlib.contextmanager
def terminal(width=WIDTH):
    """Standard output and error as one pseudo-terminal; yields a list, its text at the end."""
    import fcntl
    import struct
    import termios

    reader, writer = pty.openpty()
    fcntl.ioctl(writer, termios.TIOCSWINSZ, struct.pack("HHHH", 24, width, 0, 0))
    pieces: list[bytes] = []

    def read():
        with contextlib.suppress(OSError):  # the end of it, on Linux
            while piece := os.read(reader, 65_536):
                pieces.append(piece)

    thread = threading.Thread(target=read)
    thread.start()
    said: list[str] = []
    before = sys.stdout, sys.stderr
    with os.fdopen(writer, "w", encoding="utf-8") as screen:
        sys.stdout = sys.stderr = screen
        try:
            with pytest.MonkeyPatch.context() as patch:
                patch.delenv("COLUMNS", raising=False)
                patch.delenv("NO_COLOR", raising=False)
                patch.setenv("TERM", "xterm-256color")
                yield said
        finally:
            sys.stdout, sys.stderr = before
    thread.join()
    os.close(reader)
    said.append(b"".join(pieces).decode())


def plain(text, width=WIDTH):
    """The lines of what a terminal shows, none of them wider than it, but for whole paths."""
    lines = []
    for line in text.replace("\r\n", "\n").split("\n"):
        # What a carriage return begins anew was erased.
        states_of_line = ESCAPES.sub("", line).split("\r")
        has_path = any(len(word) > width // 2 for word in line.split())
        assert has_path or all(len(state) <= width for state in states_of_line), line
        lines.append(states_of_line[-1].rstrip())
    return lines


def answer_to(*words):
    with terminal() as said, flagsaver.flagsaver(), contextlib.suppress(SystemExit):
        cli.main(cli.parse_flags(["launch.py", *words]))
    return said[0]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of a run, and what its training said."""
    workdir = tmp_path_factory.mktemp("runs") / "run"
    words = ("digits_mlp", "--epochs=2", "--model.dense", "8")
    return workdir, answer_to(*words, f"--workdir={workdir}")


def test_the_list_has_experiments_by_subject():
    said = answer_to("--list")
    lines = plain(said)
    assert "\x1b[1m" in said
    subject = next(at for at, line in enumerate(lines) if "scikit-learn" in line)
    assert lines[subject + 2].startswith("  digits_cnn  ")
    assert all(any(line.startswith(f"  {name} ") for line in lines) for name in registry())


def test_help_fits():
    lines = plain(answer_to("digits_cnn", "--help"))
    assert len(lines) <= 200
    assert lines[0] == "usage: python launch.py digits_cnn [--FIELD=VALUE ...]"
    fields = [line.split()[0] for line in lines if line.startswith("  --")]
    assert fields[:3] == ["--epochs", "--batch-size", "--seed"]
    assert "--optimizer.learning-rate" in fields and "--help=augmentation" in fields
    assert "--augmentation.mixup" not in fields
    # The lines of a docstring are one paragraph.
    texts = {p.arg_name: p.description for p in parse_from_object(Training).params}
    whole = " ".join(" ".join(lines).split())
    assert "\n" in texts["accumulate"] and " ".join(texts["accumulate"].split()) in whole
    part = plain(answer_to("digits_cnn", "--help=augmentation"))
    assert any(line.startswith("  --augmentation.mixup FLOAT") for line in part)


def test_a_training_fits(trained):
    _, said = trained
    lines = plain(said)
    header = next(line for line in lines if "train loss" in line)
    rows = [line for line in lines if line.startswith("epoch ")]
    assert header.split() == ["train", "loss", "accuracy", "val", "loss", "accuracy", "left"]
    assert len(rows) == 2 and all(len(row.split()) >= 6 for row in rows)
    assert any(line.startswith("Expected: ") for line in lines)


def test_predictions_fit(trained, tmp_path):
    workdir, _ = trained
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / f"{'x' * 90}.png")
    lines = plain(answer_to("--mode=predict", f"--workdir={workdir}", f"--input={tmp_path}"))
    assert lines[0].startswith("image") and any(line.startswith("xxxxxxxx") for line in lines)


def test_tables_of_runs_fit(trained, tmp_path):
    workdir, _ = trained
    with terminal() as said:
        assert run_command(report.main, [str(workdir)]) == 0
    assert "digits_mlp" in said[0] and plain(said[0])
    runs = tmp_path / "runs"
    for name in (LONG, "short"):
        (runs / name).mkdir(parents=True)
        states.write(runs / name, states.State("failed", 1, 0.0, 3.0, "no luck " * 20))
    folders.write_json(tmp_path / folders.SWEEP, {"search": {}, "runs": []})
    with terminal() as said:
        show(states.table(states.all_states(tmp_path, [runs / LONG, runs / "short"])))
    assert "\x1b[1;31mfailed" in said[0]
    lines = plain(said[0])
    assert lines[0] == "2 runs: 2 failed"
    assert any(re.match(r"short +failed +3.0 s$", line) for line in lines)


def test_a_table_too_wide_becomes_a_list(capsys):
    header, rows = ("run", *(f"metric {n}" for n in range(8))), [("a", *8 * ["0.9767 ± 0.0012"])]
    with terminal() as said:
        print_table(header, rows)
    assert "metric 7  0.9767 ± 0.0012" in plain(said[0])
    print_table(header, rows)
    title, row = capsys.readouterr().out.splitlines()
    assert title.startswith("run  ") and row.count("±") == 8


def test_progress_and_errors_fit(monkeypatch):
    with terminal() as said:
        with Tally("a name that is much too long for the terminal " * 2, 1000) as tally:
            tally._line._seconds = 0
            tally.advance(500)
        with Tally("decoding", 1000) as tally:
            tally._line._seconds = 0
            tally.advance(500)
        progress = Progress(40, 8, 300, [f"metric {n}" for n in range(9)])
        progress.evaluated(3, 0.25, {"loss": 1.0, "metric 0": 2.0, "metric 8": 1.0}, {"loss": 1.5})
        doctor.main()
        print_error(UserError("no luck"))
    assert "\x1b[1;31merror: " in said[0] and "━" in said[0]
    lines = plain(said[0])
    assert lines[-2] == "error: no luck"
    assert any(line.startswith("epoch 0.2/300") for line in lines)


def test_a_pipe_has_no_control_characters(capsys):
    show("| a | b |\n| --- | --- |\n| 1 | 2 |\n" + 50 * "a long line ")
    print_error(UserError("no luck"))
    said = capsys.readouterr()
    assert said.err == "error: no luck\n"
    assert said.out == "| a | b |\n| --- | --- |\n| 1 | 2 |\n" + 50 * "a long line " + "\n"


def test_help_of_every_command(capsys):
    for words in (
        *([name, "--help"] for name in COMMANDS),
        *(["data", word, "--help"] for word in ("prepare", "list", "remove")),
        ["data", "prepare", "image_folder", "--help"],
        ["sweep", "status", "--help"],
    ):
        command = importlib.import_module(COMMANDS[words[0]]).main
        assert run_command(command, words[1:]) == 0, words
        said = capsys.readouterr()
        assert said.err == "" and len(said.out) > 100, words
        assert all(len(line) <= WIDTH for line in said.out.splitlines()), words


def test_paths_are_not_broken():
    path = str(Path("/a") / ("folder-" * 15))
    with terminal() as said:
        show(f"{'ok':5}  {'disk':8}  {path}")
    assert path in ESCAPES.sub("", said[0])
