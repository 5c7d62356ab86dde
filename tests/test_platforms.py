"""Other systems than this one, as far as it shows: imports, text files, and an installed wheel."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from cnn_research.core import errors
from cnn_research.core.experiment import lookup
from cnn_research.inference.predict import stems
from cnn_research.report.page import file_suffixes
from cnn_research.sweep.definition import Sweep, plan_run

ROOT = Path(__file__).resolve().parent.parent
SOURCES = [*ROOT.glob("cnn_research/**/*.py"), *ROOT.glob("experiments/*.py"), ROOT / "launch.py"]


def python(*words: str | Path, cwd: Path) -> None:
    subprocess.run([sys.executable, *map(str, words)], cwd=cwd, check=True)


# Imports -----------------------------------------------------------------------------------------

WINDOWS = """
import ast, importlib, mmap, os, pathlib, pkgutil, signal, socket, sys, tempfile

# Other packages know by themselves what to import where.
files = [*pathlib.Path("cnn_research").rglob("*.py"), *pathlib.Path("experiments").glob("*.py")]
for file in files:
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module] if isinstance(node, ast.ImportFrom) and not node.level else []
        for name in names:
            if name.split(".")[0] != "cnn_research":
                importlib.import_module(name)

for name in ("fcntl", "grp", "pty", "pwd", "resource", "syslog", "termios", "tty"):
    sys.modules[name] = None
for name in set(dir(signal)) - set("SIGABRT SIGFPE SIGILL SIGINT SIGSEGV SIGTERM".split()):
    if name.startswith("SIG") and isinstance(getattr(signal, name), signal.Signals):
        delattr(signal, name)
for module, names in {
    mmap: "MADV_DONTNEED MADV_SEQUENTIAL MADV_WILLNEED",
    os: "fork getuid geteuid killpg nice sched_getaffinity sysconf uname",
    signal: "alarm setitimer pthread_sigmask sigwait",
    socket: "AF_UNIX",
}.items():
    for name in names.split():
        delattr(module, name)

import cnn_research
for module in pkgutil.walk_packages(cnn_research.__path__, "cnn_research."):
    importlib.import_module(module.name)

from cnn_research.core import preemption, run_folder
from cnn_research.core.experiment import registry
assert registry()
run_folder.machine()
with tempfile.TemporaryDirectory() as folder, preemption.Interruption() as interruption:
    with run_folder.locked(pathlib.Path(folder) / "a run"):
        assert run_folder.is_locked(pathlib.Path(folder) / "a run")
    signal.raise_signal(signal.SIGTERM)
    assert interruption and interruption.error("").exit_code == 75
"""


def test_every_module_is_imported_without_what_only_posix_has():
    python("-c", WINDOWS, cwd=ROOT)


# Text files --------------------------------------------------------------------------------------


def opened_as_text(tree: ast.AST) -> Iterator[ast.Call]:
    """Calls that open a file as text, by `open` and by the methods of a path."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        function = node.func
        if isinstance(function, ast.Attribute) and function.attr in ("read_text", "write_text"):
            yield node
        elif isinstance(function, ast.Name) and function.id == "open":
            if not is_binary(node.args[1:]):
                yield node
        elif isinstance(function, ast.Attribute) and function.attr == "open":
            # Other objects with this method are given something else than a mode.
            is_mode = all(isinstance(each, ast.Constant) for each in node.args[:1])
            if is_mode and not is_binary(node.args):
                yield node


def is_binary(mode: list[ast.expr]) -> bool:
    return bool(mode) and isinstance(mode[0], ast.Constant) and "b" in str(mode[0].value)


def test_text_files_are_utf_8_on_every_system():
    for file in SOURCES:
        for call in opened_as_text(ast.parse(file.read_text(encoding="utf-8"))):
            given = {word.arg: ast.unparse(word.value) for word in call.keywords}
            assert given.get("encoding") == "'utf-8'", f"{file}:{call.lineno}"


# Names of files ----------------------------------------------------------------------------------


def test_names_of_files_are_good_on_every_system(tmp_path):
    awful = ["kind", "Kind", 'a<b>:"/\\|?*', "größer "]
    suffixes = file_suffixes(awful).values()
    sweep = Sweep(experiments=("digits_mlp",))
    run = plan_run(sweep, lookup("digits_mlp").experiment(), [], tmp_path, awful)
    for name in (*suffixes, run.workdir.name):
        assert not set(name) & set('<>:"/\\|?*') and name.strip(" .") == name
    names = [*stems([Path("a/1.png"), Path("b/1.PNG"), Path("c/1.png")])]
    for unique in (suffixes, names):
        assert len({name.lower() for name in unique}) == len(unique)


# Advice ------------------------------------------------------------------------------------------


def test_advice_on_what_to_install_needs_no_checkout(monkeypatch):
    assert errors.install_command("serve", "onnx") == "pip install -e '.[serve,onnx]'"
    monkeypatch.setattr(errors, "IN_CHECKOUT", False)
    assert errors.install_command("serve") == "pip install 'cnn-research[serve]'"


# A wheel -----------------------------------------------------------------------------------------

PARTS = ("cnn_research", "experiments")
FILES = ("setup.py", "setup.cfg", "pyproject.toml", "README.md", "LICENSE")
TINY = ("--experiment=digits_mlp", "--epochs=0.2", "--model.dense=8")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """A wheel, built from a copy, because building leaves files beside the source."""
    folder = tmp_path_factory.mktemp("built")
    for part in PARTS:
        shutil.copytree(ROOT / part, folder / part)
    for name in FILES:
        shutil.copyfile(ROOT / name, folder / name)
    python("-m", "pip", "wheel", "-q", "--no-deps", "--wheel-dir=dist", ".", cwd=folder)
    (file,) = (folder / "dist").iterdir()
    return file


@pytest.fixture(scope="module")
def program(wheel, tmp_path_factory) -> Path:
    """`cnn-research` in an environment with the wheel, and this one's other packages."""
    folder = tmp_path_factory.mktemp("environment")
    python("-m", "venv", "--without-pip", folder, cwd=folder)
    base = {"base": str(folder), "platbase": str(folder)}
    packages, programs = (Path(sysconfig.get_path(p, "venv", base)) for p in ("purelib", "scripts"))
    (packages / "others.pth").write_text(sysconfig.get_path("purelib"), encoding="utf-8")
    there = f"--python={programs / 'python'}"
    python("-m", "pip", there, "install", "-q", "--no-deps", "--no-index", wheel, cwd=folder)
    return programs / "cnn-research"


@pytest.mark.slow
def test_a_wheel_has_one_package_and_the_files_of_the_experiments(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {re.split("[-/]", name)[0] for name in names} == {"cnn_research"}
    files = [file for file in (ROOT / "experiments").rglob("*.[ctp][sOoy]*") if file.is_file()]
    assert len(files) > 15
    expected = {f"cnn_research/{file.relative_to(ROOT).as_posix()}" for file in files}
    assert {name for name in expected if "__pycache__" not in name} <= names


@pytest.mark.slow
def test_a_wheel_runs_in_a_folder_of_any_name(program, tmp_path):
    folder = tmp_path / "an empty folder, größer"
    folder.mkdir()
    environment = os.environ | {"TFDS_DATA_DIR": str(tmp_path / "data")}

    def said(*words: str) -> str:
        ended = subprocess.run(
            [program, *words],
            cwd=folder,
            env=environment,
            capture_output=True,
            encoding="utf-8",
        )
        assert ended.returncode == 0, f"{words}: {ended.stderr}"
        return ended.stdout

    Image.new("L", (8, 8), 128).save(folder / "a digit, né.png")
    assert "digits_cnn" in said("--list")
    assert "--optimizer.learning-rate" in said("--experiment=digits_cnn", "--help")
    assert "Experiments can run." in said("doctor")
    assert "Result on the test split" in said(*TINY, "--workdir=ein Lauf")
    assert "Result on the test split" in said("--workdir=ein Lauf", "--mode=evaluate")
    assert "1 images" in said("--workdir=ein Lauf", "--mode=predict", "--input=a digit, né.png")
    said("--workdir=ein Lauf", "--mode=export")
    assert "| digits_mlp" in said("report", "ein Lauf")
    assert "1 complete" in said("sweep", *TINY, "--seeds=1", "--workdir=viele")
    assert "1 complete" in said("sweep", "status", "viele")
    said("--experiment=filters", "--workdir=gallery")
    for command in ("data", "models", "serve"):
        assert said(command, "--help")
    with subprocess.Popen(
        [program, "serve", "ein Lauf/export", "--port=0"],
        cwd=folder,
        stdout=subprocess.PIPE,
        encoding="utf-8",
    ) as server:
        assert server.stdout is not None
        assert "Serving on" in server.stdout.readline()
        server.terminate()
