"""The command line: what it answers, and how it says what is wrong.

Most of it is called in this process, through the functions that `launch.py` hands to absl; a few
commands run as a user runs them.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import itertools
import json
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import NamedTuple

import jax
import pytest
from absl import flags
from absl.testing import flagsaver
from PIL import Image

from cnn_research.cli import main as cli
from cnn_research.cli.fields import LAUNCHER_FLAGS, with_overrides
from cnn_research.cli.program import COMMANDS, program
from cnn_research.cli.run import MODES, Mode, modes_of, run
from cnn_research.core import run_folder as folders
from cnn_research.core.config import (
    config_class,
    config_fields,
    config_hash,
    flatten,
    register_config,
)
from cnn_research.core.errors import (
    NOBODY_READS,
    Interrupted,
    UsageError,
    UserError,
    run_command,
)
from cnn_research.core.experiment import Experiment, Result, lookup, registry
from cnn_research.models.registry import architectures

ROOT = Path(__file__).resolve().parent.parent
TINY = ("--experiment=digits_mlp", "--epochs=0.2", "--model.dense", "8")


class Answer(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def command(capsys):
    """Runs the launcher's functions in this process, as if with these words."""

    def answer_to(*words):
        capsys.readouterr()
        with flagsaver.flagsaver():
            code = 0
            try:
                cli.main(cli.parse_flags(["launch.py", *words]))
            except SystemExit as end:
                code = end.code or 0
        said = capsys.readouterr()
        return Answer(code, said.out, said.err)

    return answer_to


def is_one_error(err, *parts):
    assert err.startswith("error: "), err
    assert err.count("\n") == 1, err
    for part in parts:
        assert part in err


# Usage errors ------------------------------------------------------------------------------------

DIGITS = "--experiment=digits_cnn"
WRONG = {
    "no experiment": ([], "name the experiment: `python launch.py NAME`"),
    "unknown bare name": (["digits_cn"], "(did you mean 'digits_cnn'?)"),
    "unknown experiment": (["--experiment=digits_cn"], "(did you mean 'digits_cnn'?)"),
    "unknown command": (
        ["modles"],
        "no experiment or command is named 'modles' (did you mean 'models'?)",
    ),
    "nothing like it": (["--experiment=zzz"], "no experiment is named 'zzz'; `python launch.py"),
    "launcher flag alone": (["--experimnt=digits_cnn"], "(did you mean 'experiment'?)"),
    "launcher flag among fields": ([DIGITS, "--workdri=x"], "(did you mean 'workdir'?)"),
    "field": ([DIGITS, "--optimizer.learnin-rate=1"], "(did you mean 'optimizer.learning-rate'?)"),
    "field with underscores": (
        [DIGITS, "--optimizer.learnin_rate=1"],
        "(did you mean 'optimizer.learning-rate'?)",
    ),
    "field without its group": (
        [DIGITS, "--learning-rate=1"],
        "unknown field --learning-rate (did you mean 'optimizer.learning-rate'?)",
    ),
    "initials": (
        [DIGITS, "--lr=1"],
        "unknown field --lr (did you mean 'optimizer.learning-rate'?)",
    ),
    "initials in a group": (
        [DIGITS, "--optimizer.lr=1"],
        "unknown field --optimizer.lr (did you mean 'optimizer.learning-rate'?)",
    ),
    "cut short": ([DIGITS, "--epoch=1"], "unknown field --epoch (did you mean 'epochs'?)"),
    "help of no part": ([DIGITS, "--help=optimiser"], "no part 'optimiser' (did you mean 'optim"),
    "a group": ([DIGITS, "--optimizer=sgd"], "unknown field --optimizer"),
    "another kind of model": ([DIGITS, "--model.depth=3"], "unknown field --model.depth"),
    "the name": ([DIGITS, "--name=x"], "unknown field --name"),
    "choice": ([DIGITS, "--optimizer.name=adamm"], "'adamm' for argument '--optimizer.name'"),
    "word for a number": ([DIGITS, "--epochs=ten"], "ten"),
    "fraction for an integer": ([DIGITS, "--batch-size=1.5"], "1.5"),
    "word in a list of integers": ([DIGITS, "--model.features", "8", "x"], "x"),
    "value missing": ([DIGITS, "--seed"], "seed"),
    "experiment's value missing": (["--experiment"], "experiment"),
    "a word too many": ([DIGITS, "seed=1"], "seed=1"),
    "mode": (
        [DIGITS, "--mode=trian"],
        "digits_cnn has no mode 'trian' (did you mean 'train'?): give --mode=train|dry-run|",
    ),
    "no replicas": ([DIGITS, "--replicas=0"], "--replicas is 0: must be 1 or more"),
    "replicas of what trains nothing": (
        ["--experiment=filters", "--replicas=2"],
        "--replicas works only with other kinds of experiments; got --mode=draw",
    ),
    "replicas of a mode that trains nothing": (
        [DIGITS, "--replicas=2", "--mode=evaluate"],
        "--replicas works only with --mode=train|dry-run; got --mode=evaluate",
    ),
    "a trace of a dry run": (
        [DIGITS, "--dry-run", "--profile"],
        "--profile works only with --mode=train; got --mode=dry-run",
    ),
    "images for a training": (
        [DIGITS, "--input=x.png"],
        "--input works only with --mode=predict; got --mode=train",
    ),
    "prediction of nothing": ([DIGITS, "--mode=predict"], "--mode=predict needs --input=IMAGES"),
    "no epochs": ([DIGITS, "--epochs=0"], "--epochs is 0"),
    "negative rate": ([DIGITS, "--optimizer.learning-rate=-1"], "optimizer.learning-rate is -1"),
    "not a rate": ([DIGITS, "--optimizer.learning-rate=nan"], "optimizer.learning-rate is nan"),
    "one checkpoint": ([DIGITS, "--keep-checkpoints=1"], "must be 2 or more"),
    "decay that adam lacks": ([DIGITS, "--optimizer.weight-decay=1"], "adamw"),
    "smoothing": ([DIGITS, "--task.label-smoothing=1"], "task.label-smoothing is 1"),
    "shift": ([DIGITS, "--augmentation.shift=-1"], "augmentation.shift"),
    "shift of an evaluation": ([DIGITS, "--evaluation.shift=-1"], "evaluation.shift is -1"),
    "patience": ([DIGITS, "--selection.patience=-1"], "selection.patience is -1"),
    "penalty": ([DIGITS, "--penalty.l1=nan"], "penalty.l1 is nan"),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_is_typed_wrong_is_said_in_one_line(what, command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words, expected = WRONG[what]
    answer = command(*words)
    assert answer.code == 2
    is_one_error(answer.err, expected)
    assert answer.out == ""
    assert not any(tmp_path.iterdir()), "a usage error must not leave a folder"


def test_bad_choice_names_the_field_and_the_choices(command):
    err = command(DIGITS, "--optimizer.name=adamm").err
    is_one_error(err, "--optimizer.name", "'sgd'", "'adamw'")


@pytest.mark.parametrize(
    ("word", "dry"), [("--dry-run", True), ("--dry-run=true", True), ("--dry-run=false", False)]
)
def test_a_launcher_flag_with_a_dash_takes_a_value(word, dry):
    with flagsaver.flagsaver():
        assert cli.parse_flags(["launch.py", DIGITS, word]) == ["launch.py"]
        assert cli.FLAGS.dry_run is dry


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (UserError("no\nluck"), 1, "error: no luck"),
        (UsageError("no such field"), 2, "error: no such field"),
        (Interrupted("saved", 75), 75, "saved"),
        (KeyboardInterrupt(), 130, "interrupted; saved results are kept"),
        (
            OSError(28, "No space left on device", "runs/a"),
            1,
            "error: the disk is full (runs/a): free some space and repeat the command; saved "
            "results are kept",
        ),
        (
            MemoryError("Unable to allocate 3 GiB"),
            1,
            "error: out of memory (Unable to allocate 3 GiB): lower --batch-size or "
            "--evaluation.batch-size, split batches with --accumulate=2, or use "
            "--model.dtype=bfloat16",
        ),
    ],
)
def test_every_command_turns_errors_into_one_line_and_an_exit_code(error, code, line, capsys):
    def fail(words):
        print("before")
        raise error

    assert run_command(fail, []) == code
    assert tuple(capsys.readouterr()) == ("before\n", f"{line}\n")


def test_a_bug_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError):
        run_command(lambda words: 1 // 0, [])


def test_commands_that_run_no_experiment():
    assert all(f"\n  {name} " in cli.USAGE for name in COMMANDS)
    for name, module in COMMANDS.items():
        assert callable(importlib.import_module(module).main), name


@pytest.mark.parametrize(("words", "code"), [(["models", "--help"], 0), (["models", "--all"], 2)])
def test_a_first_word_is_a_command(words, code, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["cnn-research", *words])
    with pytest.raises(SystemExit) as end:
        program()
    assert end.value.code == code


# Overrides ---------------------------------------------------------------------------------------


def test_overrides_reach_the_fields_and_nothing_else():
    default = lookup("digits_cnn").experiment()
    words = [
        "--optimizer.learning-rate=3e-4",
        "--optimizer.clip_norm",
        "0.5",
        "--model.features",
        "8",
        "8",
        "--model.no-batch-norm",
        "--evaluation.mirror",
        "--task.head=kind",
        "--seed=7",
    ]
    changed = flatten(with_overrides(default, words))
    differing = {name: value for name, value in changed.items() if value != flatten(default)[name]}
    assert differing == {
        "optimizer.learning_rate": 3e-4,
        "optimizer.clip_norm": 0.5,
        "model.features": (8, 8),
        "model.batch_norm": False,
        "evaluation.mirror": True,
        "task.head": "kind",
        "seed": 7,
    }
    assert with_overrides(default, []) == default


# --help and --list -------------------------------------------------------------------------------


def field_docstrings(config, prefix=""):
    """Each leaf field's docstring, read from the source: what `--help` must show."""
    documented = {}
    for kind in reversed(type(config).__mro__):
        if kind.__module__.startswith("cnn_research"):
            body = ast.parse(textwrap.dedent(inspect.getsource(kind))).body[0].body
            for line, after in itertools.pairwise(body):
                if isinstance(line, ast.AnnAssign) and isinstance(after, ast.Expr):
                    documented[line.target.id] = after.value.value
    found = {}
    for field in config_fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            found |= field_docstrings(value, f"{prefix}{field.name}.")
        elif f"{prefix}{field.name}" != "name":
            found[f"{prefix}{field.name}"] = documented.get(field.name)
    return found


@pytest.mark.parametrize("words", [["--model=resnet9"], ["--model", "resnet9"]])
def test_model_by_name(words):
    """Another network, whose own fields can be overridden beside it."""
    default = lookup("digits_cnn").experiment()
    found = with_overrides(default, [*words, "--model.features", "8", "16", "8", "--seed=3"])
    expected = architectures()["resnet9"].model.clone(features=(8, 16, 8))
    assert found == dataclasses.replace(default, model=expected, seed=3)


def test_unknown_model_is_named(command):
    answer = command("--experiment=digits_cnn", "--model=resnet99")
    assert answer.code == 2
    is_one_error(answer.err, "no network is named 'resnet99' (did you mean 'resnet9'?)")


@pytest.mark.parametrize("name", ["digits_cnn", "fashion_mnist_best", "image_table"])
def test_help_shows_every_field_with_its_docstring(name, command, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    answer = command(name, "--help=all")
    assert answer.code == 0
    assert lookup(name).summary in " ".join(answer.out.split())
    # Two columns: of each row the field on the left, its text on the right.
    texts = re.findall(r"^  (--\S+.*?)(?=^  -|^\S|\Z)", answer.out, re.DOTALL | re.MULTILINE)
    plain = {text.split()[0].replace("[no-]", ""): set(text.split()) for text in texts}
    for field, docstring in field_docstrings(lookup(name).experiment()).items():
        assert docstring, f"{field} has no docstring"
        assert set(docstring.split()) <= plain[f"--{field.replace('_', '-')}"], field
    assert "--name" not in plain


def test_help_without_an_experiment_shows_the_launcher(command):
    answer = command("--help")
    assert (answer.code, answer.err) == (0, "")
    assert all(f"--{flag}" in answer.out for flag in LAUNCHER_FLAGS)


def test_list_shows_every_experiment_on_a_line(command):
    answer = command("--list")
    assert answer.code == 0
    lines = [line for line in answer.out.splitlines() if line.startswith("  ")]
    assert sorted(line.split()[0] for line in lines) == sorted(registry())
    for line in lines:
        assert line.endswith(registry()[line.split()[0]].summary)


# Folders -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of a finished run: four steps of a tiny network."""
    workdir = tmp_path_factory.mktemp("runs") / "trained"
    with flagsaver.flagsaver():
        cli.main(cli.parse_flags(["launch.py", *TINY, f"--workdir={workdir}"]))
    return workdir


def test_a_workdir_below_a_file_is_an_error(command, tmp_path):
    (tmp_path / "file").write_text("")
    answer = command(*TINY, f"--workdir={tmp_path / 'file' / 'run'}")
    assert answer.code == 1
    is_one_error(answer.err, str(tmp_path / "file" / "run"), "--workdir")


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        ([*TINY, "--seed=1"], ["seed was 0 and is now 1"]),
        ([*TINY, "--optimizer.learning-rate=1"], ["optimizer.learning_rate was 0.002"]),
        (["--experiment=digits_cnn"], ["has a run of"]),
    ],
)
def test_the_workdir_of_another_run_is_refused(words, parts, command, trained):
    before = (trained / "config.json").read_bytes()
    answer = command(*words, f"--workdir={trained}")
    assert answer.code == 2
    is_one_error(answer.err, str(trained), *parts)
    assert (trained / "config.json").read_bytes() == before


def test_a_batch_larger_than_the_data_is_a_usage_error(command, tmp_path):
    answer = command(*TINY, "--batch-size=5000", f"--workdir={tmp_path / 'run'}")
    assert answer.code == 2
    is_one_error(answer.err, "--batch-size is 5000", "1197")
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_evaluating_an_absent_workdir_is_an_error(command, tmp_path):
    answer = command(DIGITS, "--mode=evaluate", f"--workdir={tmp_path / 'none'}")
    assert answer.code == 1
    is_one_error(answer.err, str(tmp_path / "none"))
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("mode", ["predict", "evaluate", "export"])
def test_a_workdir_without_a_run_is_said_without_an_experiment_too(command, tmp_path, mode):
    answer = command(f"--mode={mode}", f"--workdir={tmp_path / 'none'}", "--input=x.png")
    assert answer.code == 1
    is_one_error(answer.err, str(tmp_path / "none"), "is not a run folder")
    answer = command(f"--mode={mode}")
    assert answer.code == 2
    is_one_error(answer.err, f"--mode={mode} needs --workdir")


def test_evaluation_needs_the_workdir_only(command, trained):
    (trained / "evaluation.json").rename(trained / "before.json")
    answer = command("--mode=evaluate", f"--workdir={trained}")
    assert answer.code == 0, answer.err
    before = json.loads((trained / "before.json").read_text())
    assert json.loads((trained / "evaluation.json").read_text()) == before
    assert "Result on the test split" in answer.out


def test_evaluation_of_another_experiment_is_refused(command, trained):
    answer = command(DIGITS, "--mode=evaluate", f"--workdir={trained}")
    assert answer.code == 2
    is_one_error(answer.err, "digits_mlp, not of digits_cnn")


def test_a_finished_run_run_again_changes_nothing(command, trained):
    def contents():
        files = [trained / "metrics.jsonl", trained / "evaluation.json"]
        files += sorted(file for file in trained.glob("checkpoints/**/*") if file.is_file())
        return {file: file.read_bytes() for file in files}

    before = contents()
    answer = command(*TINY, f"--workdir={trained}")
    assert answer.code == 0, answer.err
    assert "Resuming from the checkpoint of step 4" in answer.err
    assert contents() == before


def test_a_damaged_config_is_named(command, tmp_path):
    (tmp_path / folders.CONFIG).write_text('{"class": ')
    answer = command(*TINY, f"--workdir={tmp_path}")
    assert answer.code == 1
    is_one_error(answer.err, str(tmp_path / folders.CONFIG), "is damaged")


def test_a_run_without_a_workdir_goes_to_a_folder_of_its_config(command, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(
        cli, "bind_mode", lambda *_, **how: lambda workdir: asked.append((workdir, how))
    )
    monkeypatch.chdir(tmp_path)
    command("digits_mlp", *TINY[1:])
    command(*TINY, "--seed=1")
    command(*TINY, "--profile")
    first, other, again = (str(workdir) for workdir, _ in asked)
    assert first == again != other
    assert first.startswith("runs/digits_mlp-")
    assert [how["profile"] for _, how in asked] == [False, False, True]


# As a user runs it -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "code", "part"),
    [
        (["--experiment=digits_cn"], 2, "did you mean 'digits_cnn'?"),
        ([DIGITS, "--workdir=launch.py/run"], 1, "cannot write to the workdir"),
    ],
)
def test_a_command_ends_with_one_line_and_its_exit_code(words, code, part):
    ended = subprocess.run(
        [sys.executable, "launch.py", *words], cwd=ROOT, capture_output=True, text=True
    )
    assert ended.returncode == code
    assert ended.stdout == ""
    is_one_error(ended.stderr, part)


@pytest.mark.parametrize(
    ("platform", "error", "advice"),
    [
        ("cuda", AssertionError(), "pip install -e '.[cuda]'"),
        ("tpu", RuntimeError("Unable to open it"), "pip install -e '.[tpu]'"),
        ("cudda", RuntimeError("Unknown backend"), "use cpu, cuda or tpu"),
    ],
)
def test_a_platform_that_is_not_there_is_one_line(
    platform, error, advice, command, monkeypatch, tmp_path
):
    def devices():
        raise error

    monkeypatch.setenv("JAX_PLATFORMS", platform)
    monkeypatch.setattr(jax, "devices", devices)
    said = command(*TINY, f"--workdir={tmp_path / 'run'}")
    assert said.code == 1
    asked = f"JAX_PLATFORMS is '{platform}', but JAX finds no such device"
    is_one_error(said.err, asked, str(error), advice)


def test_a_device_without_memory_is_one_line(command, monkeypatch, tmp_path):
    def allocate(*_):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.\n")

    monkeypatch.setattr("cnn_research.train.loop.prepare", allocate)
    said = command(*TINY, f"--workdir={tmp_path / 'run'}")
    assert said.code == 1
    last = said.err.splitlines()[-1] + "\n"
    is_one_error(last, "out of memory (RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.)")
    assert "--accumulate" in last and "Traceback" not in said.err and "disk" not in said.err


def test_a_misspelt_platform_is_one_line_after_the_choices(tmp_path):
    for kind in ("cat", "dog"):
        (tmp_path / kind).mkdir()
        for number in range(8):
            colour = (30 * number, 99, 200 * (kind == "cat"))
            Image.new("RGB", (80, 60), colour).save(tmp_path / kind / f"{number}.png")
    words = ["--experiment=image_folder", f"--data.path={tmp_path}", "--pretrained=none"]
    ended = subprocess.run(
        [sys.executable, "launch.py", *words, f"--workdir={tmp_path / 'run'}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=os.environ | {"JAX_PLATFORMS": "cudda", "TFDS_DATA_DIR": str(tmp_path / "home")},
    )
    assert ended.returncode == 1 and "Chosen from the data" in ended.stdout
    is_one_error(ended.stderr, "JAX_PLATFORMS is 'cudda', but JAX finds no such device (")


def test_a_pipe_that_nobody_reads_ends_without_a_word():
    reader, writer = os.pipe()
    os.close(reader)
    ended = subprocess.run(
        [sys.executable, "launch.py", "digits_cnn", "--help=all"],
        cwd=ROOT,
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
    )
    os.close(writer)
    assert (ended.returncode, ended.stderr) == (NOBODY_READS, "")


def test_modes_name_functions_that_exist():
    for path in {p for modes in MODES.values() for m in modes.values() for p in paths_of(m)}:
        module, function = path.split(":")
        assert callable(getattr(importlib.import_module(module), function)), path


def paths_of(mode):
    return [mode.function, *mode.several.values()]


def test_every_experiment_has_modes_and_every_kind_with_modes_is_registered():
    assert all(modes_of(entry.experiment()) for entry in registry().values())
    for kind in MODES:
        assert issubclass(config_class(kind), Experiment)


@register_config
@dataclasses.dataclass(frozen=True, kw_only=True)
class Elsewhere(Experiment):
    """A kind of experiment that the package does not know."""

    answer: int = 1


def answer(experiment, workdir):
    return Result(workdir, experiment.answer, {})


def test_a_kind_from_elsewhere_declares_its_modes(monkeypatch, tmp_path):
    with pytest.raises(UsageError, match=r"Elsewhere has no modes"):
        run(Elsewhere(), tmp_path)
    monkeypatch.setitem(MODES, "Elsewhere", {"ask": Mode(f"{__name__}:answer")})
    assert run(Elsewhere(answer=3), tmp_path) == Result(tmp_path, 3, {})
    with pytest.raises(UsageError, match=r"Elsewhere has no mode 'ast' \(did you mean 'ask'\?\)"):
        run(Elsewhere(), tmp_path, "ast")


def test_a_new_option_renames_no_folder():
    """Neither of the experiment nor of a part, also where that is of another class."""

    def of(*added):
        part = dataclasses.make_dataclass("Part", [("x", int, 1), *added], frozen=True)
        other = dataclasses.make_dataclass("Other", [("y", int, 1), *added], frozen=True)
        whole = dataclasses.make_dataclass("Whole", [("part", object), *added], frozen=True)
        default = whole(part(2))
        return [config_hash(whole(p), default) for p in (part(2), part(3), other(1), other(2))]

    hashes = of()
    assert len(set(hashes)) == 4
    assert of(("new", float, 0.5)) == hashes


def test_flags_are_as_the_usage_says():
    assert {name.replace("-", "_") for name in LAUNCHER_FLAGS} <= set(flags.FLAGS)


def test_cores_are_known_where_no_process_is_bound_to_some(monkeypatch):
    """As on a Mac."""
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    assert folders.machine()["cores"] == 8
