"""Code from outside the repository: a file, an installed package, a notebook."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
import shutil
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from absl.testing import flagsaver
from PIL import Image

import cnn_research as cr
import launch  # noqa: F401 (defines the flags)
from cnn_research.cli import main as cli
from cnn_research.core import config, definitions, experiment
from cnn_research.core import run_folder as folders
from cnn_research.core.errors import run_command
from cnn_research.inference.exported import open_export
from cnn_research.models import __main__ as models_command
from cnn_research.models import registry as networks
from cnn_research.report.__main__ import main as report
from cnn_research.sweep import worker
from cnn_research.sweep.__main__ import main as sweep
from cnn_research.sweep.definition import Sweep, from_toml
from tests.serving import Server, exchange, form

ROOT = Path(__file__).resolve().parent.parent
BIRDS = ROOT / "docs" / "my_birds.py"
NOTEBOOK = ROOT / "docs" / "notebooks" / "own_experiment.ipynb"
LAB = ("my_birds", "fatal", "named", "bad", "json_")
"""Names of the modules that tests import from outside."""
FATAL = """
import os, signal, sys
from pathlib import Path
import my_birds
means = my_birds.Focal.means
def last(self, sums):
    if len(list(Path("run/checkpoints").glob("[0-9]*"))) > 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return means(self, sums)
my_birds.Focal.means = last
"""
"""Beside my_birds.py: ends the process with kill -9 once there are two checkpoints."""


@contextlib.contextmanager
def nothing_imported():
    """What is imported from outside inside is forgotten at the end."""
    definitions.import_definitions()
    with pytest.MonkeyPatch.context() as patch:
        for module, name in (
            (config, "_CONFIG_CLASSES"),
            (experiment, "_REGISTRY"),
            (networks, "_ARCHITECTURES"),
            (definitions, "_IMPORTED"),
        ):
            patch.setattr(module, name, dict(getattr(module, name)))
        for name in ("path", "argv"):
            patch.setattr(sys, name, list(getattr(sys, name)))
        try:
            yield
        finally:
            for name in LAB:
                sys.modules.pop(name, None)


@pytest.fixture(autouse=True)
def forgotten():
    with nothing_imported():
        yield


def start(*words):
    """The exit code of the launcher with these words, in this process."""
    with flagsaver.flagsaver():
        try:
            cli.main(cli.parse_flags(["launch.py", *map(str, words)]))
        except SystemExit as end:
            return end.code or 0
    return 0


def one_line(err, *parts):
    assert err.startswith("error: ") and err.count("\n") == 1, err
    for part in parts:
        assert part in err, err


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """A folder far from the repository, with one's own file."""
    folder = tmp_path_factory.mktemp("lab")
    shutil.copy(BIRDS, folder)
    (folder / "fatal.py").write_text(FATAL)
    (folder / "named.py").write_text(
        "import cnn_research as cr\nfrom my_birds import BirdNet\n"
        "cr.register_model('birdnet', BirdNet(width=4), image_shape=(12, 12, 1), source='mine')\n"
    )
    return folder


@pytest.fixture(scope="module")
def trained(lab):
    """The folder of a run that was killed with kill -9, and then resumed by the same command."""
    words = (f"--import={lab / 'my_birds.py'}", "--experiment=my_birds", "--workdir=run")
    command = [sys.executable, ROOT / "launch.py", "--import=fatal.py", *words]
    killed = subprocess.run(command, cwd=lab, capture_output=True, text=True)
    assert killed.returncode == -9, killed.stderr
    with nothing_imported(), contextlib.chdir(lab):
        assert start(*words) == 0
    return lab / "run"


# A file ------------------------------------------------------------------------------------------


def test_the_file_is_short():
    assert len(BIRDS.read_text().splitlines()) <= 60


def test_a_run_is_resumed_after_kill_9_and_records_what_it_imported(trained, lab):
    first, second = folders.attempts_of(trained)
    assert (first["from_step"], second["from_step"] > 0) == (0, True)
    assert second["imports"] == [str(lab / "my_birds.py")]
    (source,) = second["sources"]
    assert (trained / source).read_text() == BIRDS.read_text()
    assert folders.read_json(trained / folders.EVALUATION)["test"]["confidence"] > 0.25


@pytest.mark.parametrize("mode", ["evaluate", "export", "predict"])
def test_nothing_is_imported_unasked_and_one_line_names_it(mode, trained, lab, capsys):
    words = ["--input=x.png"] if mode == "predict" else []
    assert start(f"--mode={mode}", f"--workdir={trained}", *words) == 1
    one_line(capsys.readouterr().err, "is not registered", f"--import={lab / 'my_birds.py'}")
    assert "my_birds" not in sys.modules
    with pytest.raises(cr.UserError, match="in Python, import it first"):
        cr.load(trained)


def test_evaluates(trained, lab):
    before = folders.read_json(trained / folders.EVALUATION)
    assert (
        start("--import=" + str(lab / "my_birds.py"), "--mode=evaluate", f"--workdir={trained}")
        == 0
    )
    assert folders.read_json(trained / folders.EVALUATION)["test"] == before["test"]


def test_predictions_of_files_of_arrays_and_of_the_export_are_the_same(trained, lab, monkeypatch):
    monkeypatch.chdir(lab)
    monkeypatch.syspath_prepend(str(lab))
    __import__("my_birds")  # as in a notebook
    model = cr.load("run")
    test = model.load_data().splits["test"]
    answers = model.predict(test.images[:6])
    for number, image in enumerate(test.images[:6]):
        (lab / "images").mkdir(exist_ok=True)
        Image.fromarray(image[..., 0]).save(lab / "images" / f"{number}.png")
    with pytest.raises(cr.UsageError, match=r"the network takes uint8 \['batch', 12, 12, 1\]"):
        model.predict(test.images[0])
    with nothing_imported():
        words = (f"--import={lab / 'my_birds.py'}", "--workdir=run")
        assert start(*words, "--mode=predict", "--input=images") == 0
        assert start(*words, "--mode=export") == 0
    lines = (trained / "predictions" / "predictions.jsonl").read_text().splitlines()
    predicted = [json.loads(line)["label"]["class"] for line in lines]
    assert predicted == [each["label"].values["class"] for each in answers]
    with nothing_imported():
        export = open_export(trained / "export")
        decoded = export.answers(export(test.images[:6]))
    assert [each["label"][0]["label"] for each in decoded] == predicted


@pytest.mark.slow
def test_serves(trained, lab, monkeypatch):
    pytest.importorskip("fastapi", reason="serving needs the extra [serve]")
    assert start(f"--import={lab / 'my_birds.py'}", "--mode=export", f"--workdir={trained}") == 0
    Image.fromarray(np.zeros((12, 12), np.uint8)).save(lab / "dark.png")
    with Server(trained / "export") as server:
        status, answer = exchange(server.port, form(("dark.png", (lab / "dark.png").read_bytes())))
    assert status == 200 and answer["predictions"][0]["answers"]["label"]


def test_tables_need_no_import(trained, capsys):
    assert report([str(trained), str(trained), f"--output={trained / 'log.md'}"]) == 0
    assert "| my_birds" in capsys.readouterr().out


def test_list_and_help_have_the_experiment(lab, capsys):
    assert start(f"--import={lab / 'my_birds.py'}", "--list") == 0
    assert "A small network finds the bird." in capsys.readouterr().out
    words = (f"--import={lab / 'my_birds.py'}", "--experiment=my_birds")
    assert start(*words, "--help") == 0
    assert "--task.gamma" in capsys.readouterr().out
    assert start(*words, "--task.gama=1") == 2
    one_line(capsys.readouterr().err, "did you mean 'task.gamma'?")


def test_the_networks_of_a_file_are_listed_and_taken(lab, monkeypatch, capsys):
    monkeypatch.chdir(lab)
    seen = []
    monkeypatch.setattr(models_command, "print_models", lambda models: seen.append(dict(models)))
    monkeypatch.setattr(models_command, "print_weights", lambda costs: None)
    assert run_command(models_command.main, ["--import=my_birds", "--import=named.py"]) == 0
    assert seen[0]["birdnet"].source == "mine"
    assert start("--experiment=my_birds", "--model=birdnet", "--help=all") == 0
    assert re.search(r"--model\.width.*\[4\]", capsys.readouterr().out)
    assert run_command(models_command.main, ["birdnet"]) == 2
    one_line(capsys.readouterr().err, "'birdnet'")


# Sweeps ------------------------------------------------------------------------------------------


def test_a_sweeps_process_imports_the_file_too(lab, tmp_path, monkeypatch):
    monkeypatch.chdir(lab)
    (tmp_path / "a.toml").write_text(
        'imports = ["my_birds.py"]\nexperiments = ["my_birds"]\nwords = ["--epochs=1"]\n'
        'grid = {"task.gamma" = [0, 2]}'
    )
    defined = from_toml(tmp_path / "a.toml")
    assert defined.hash != dataclasses.replace(defined, imports=()).hash
    with nothing_imported():
        run, other = defined.runs(tmp_path)
    assert f"--import={lab / 'my_birds.py'}" in run.command and other.words[-1] == "--task.gamma=2"
    ran = []
    monkeypatch.setattr(worker, "run", lambda config, workdir: ran.append(config))
    with nothing_imported():
        assert worker.execute(run).state == "complete"
    assert (type(ran[0].task).__name__, ran[0].task.gamma) == ("Focal", 0)


@pytest.mark.slow
def test_a_sweep_of_two_processes(lab, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(lab)
    words = ["--import=my_birds.py", "--experiment=my_birds", "--epochs=1"]
    assert sweep([*words, "--seeds=2", "--workers=2", f"--workdir={tmp_path}"]) == 0
    assert "2 runs: 2 complete" in capsys.readouterr().out
    for workdir in (tmp_path / "runs").iterdir():
        assert folders.attempts_of(workdir)[0]["imports"] == [str(lab / "my_birds.py")]


def test_a_sweep_from_before_there_were_imports_goes_on(tmp_path):
    from cnn_research.sweep.definition import check_same, write

    sweep = Sweep(experiments=("digits_mlp",), seeds=2)
    write(sweep, (), tmp_path)
    values = json.loads((tmp_path / folders.SWEEP).read_text())
    del values["sweep"]["imports"]
    (tmp_path / folders.SWEEP).write_text(json.dumps(values))
    check_same(sweep, tmp_path)
    with pytest.raises(cr.UsageError, match="imports"):
        check_same(dataclasses.replace(sweep, imports=("a",)), tmp_path)


# What cannot work --------------------------------------------------------------------------------

HEAD = BIRDS.read_text().replace("my_birds", "bad").replace("float = 2.0", "float = 2.0\n")


def changed(old, new):
    assert old in HEAD
    return HEAD.replace(old, new)


BAD = {
    "a syntax error": ("def (:", "SyntaxError: invalid syntax (bad.py, line 1)"),
    "an error of its own": ("x = 1\n1 / 0", "ZeroDivisionError: division by zero", "line 2)"),
    "a module that is missing": ("import birdwatching", "No module named 'birdwatching'"),
    "an experiment's name": (
        changed("def bad", "def digits_cnn"),
        "an experiment is already named digits_cnn",
    ),
    "a class's name": (changed("Sky", "Digits"), "a config class is already named Digits, in cnn_"),
    "no dataclass": (
        changed("@dataclasses.dataclass(frozen=True)\nclass Focal", "class Focal"),
        "Focal is not a frozen dataclass",
    ),
    "a class that is not registered": (
        changed("@cr.register_config\nclass BirdNet", "class BirdNet"),
        "--model is of the class BirdNet, which cannot be written",
        "@register_config",
    ),
    "a field that is no value": (
        changed("noise: int = 150", "noise: object = dataclasses.field(default_factory=dict)"),
        "--data.noise is {}, which cannot be written",
    ),
    "a function for a field": (
        changed("width: int = 8", "width: int = lambda: 8"),
        "--model.width is <function",
        "must be a whole number",
    ),
    "an experiment that fails": (changed("data=Sky()", "data=Sky(1, 2)"), "experiment bad fails"),
    "data without load": (changed("def load", "def read"), "data is a Sky, which has no load()"),
    "data that are none": (
        changed("return cr.Dataset", "return print"),
        "Sky.load returned a NoneType: it must return a cnn_research.Dataset",
    ),
    "data that fail": (
        changed("480, np.int32", "-1, np.int32"),
        "Sky.load fails: ValueError: negat",
    ),
    "no training split": (changed('"train":', '"training":'), "Sky.load returned no split 'train'"),
    "a network without outputs": (
        changed("num_classes: int = 4", "n: int = 4"),
        "num_classes: int",
    ),
    "a network with other outputs": (
        changed("nn.Dense(self.num_classes)", "nn.Dense(7)"),
        "BirdNet returns (2, 7) float32 for two images: it must return float32 (2, 4)",
    ),
    "a network that fails": (
        changed("x.reshape(x.shape[0], -1)", "x @ x"),
        "BirdNet cannot be applied to images [2, 12, 12, 1]: TypeError",
        "bad.py, line 38)",
    ),
    "a loss that is not one number": (
        changed("-jnp.log(p + 1e-9)).sum()", "-jnp.log(p + 1e-9))"),
        "Focal.sums returns 'loss' of shapes [(2,), ()]",
    ),
    "a loss that fails": (changed("1e-9", "losses"), "Focal.sums fails", "NameError"),
    "a metric that is missing": (changed('"confidence": con', '"cond": con'), "no confidence"),
}


@pytest.mark.parametrize("what", BAD)
def test_what_cannot_work_is_one_line_before_the_first_step(what, tmp_path, capsys, monkeypatch):
    text, *parts = BAD[what]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.py").write_text(text)
    assert start("--import=bad.py", "--experiment=bad", "--workdir=run") in (1, 2)
    one_line(capsys.readouterr().err, *parts)
    assert not (tmp_path / "run" / "config.json").exists()


def test_a_file_that_is_not_there_or_is_named_like_a_module(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert start("--import=none.py", "--list") == 2
    one_line(capsys.readouterr().err, "--import=none.py: the file does not exist")
    (tmp_path / "json.py").write_text("")
    assert start("--import=json.py", "--list") == 2
    one_line(capsys.readouterr().err, "another module is called 'json'", "rename the file")
    assert run_command(sweep, ["--import=none", "--experiment=digits_mlp"]) == 2
    one_line(capsys.readouterr().err, "No module named 'none'")


# Installed packages ------------------------------------------------------------------------------


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """Installs packages that name these modules in the entry-point group, by what pip writes."""

    def install(*modules):
        for module in modules:
            facts = tmp_path / f"{module}-1.0.dist-info"
            facts.mkdir()
            (facts / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}-lab\n")
            points = f"[{definitions.PLUGINS}]\nbirds = {module}\n"
            (facts / "entry_points.txt").write_text(points)
        monkeypatch.syspath_prepend(str(tmp_path))
        definitions.import_plugins.cache_clear()

    yield install
    definitions.import_plugins.cache_clear()


def test_what_an_installed_package_defines_is_there(installed, trained, tmp_path, caplog):
    shutil.copy(BIRDS, tmp_path)
    installed("my_birds", "not_there")
    assert cr.load(trained).experiment.name == "my_birds"
    assert {"my_birds", "digits_cnn"} <= cr.registry().keys()
    # One that fails ends nothing.
    assert "the plugin 'birds' of not_there-lab: --import=not_there fails: Module" in caplog.text


# Python and notebooks ----------------------------------------------------------------------------


def test_the_public_names_are_there_and_documented():
    pages = (ROOT / "docs" / "api.md").read_text()
    packages = {folder.name for folder in (ROOT / "cnn_research").iterdir() if folder.is_dir()}
    assert packages & set(cr.__all__) == {"train"}
    for name in cr.__all__:
        assert getattr(cr, name) is not None and name in dir(cr)
        assert re.search(rf"`cr\.{name}\b", pages), f"docs/api.md does not have cr.{name}"
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        cr.trian  # noqa: B018


def test_importing_the_package_imports_next_to_nothing():
    code = (
        "import sys, cnn_research as cr; print(callable(cr.train), len(sys.modules), *sys.modules)"
    )
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    is_callable, count, *names = ended.stdout.split()
    assert is_callable == "True"
    assert not {"jax", "numpy", "tyro", "flax"} & set(names) and int(count) < 100


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"epochs": "3"}, r"--epochs is '3': must be a number"),
        ({"optimizer.name": "sgdd"}, "--optimizer.name is 'sgdd': must be sgd or adam or adamw"),
        ({"model.features": [8, 16]}, r"--model.features is \[8, 16\]: must be tuple\["),
        ({"optimizer": "sgd"}, "--optimizer is 'sgd': must be Optimizer"),
    ],
)
def test_a_value_of_another_type_is_one_line_in_python_too(fields, message, tmp_path):
    with pytest.raises(cr.UsageError, match=message):
        cr.train(cr.with_fields(cr.experiment("digits_cnn"), fields), tmp_path)


def test_a_field_that_is_not_there_is_one_line(tmp_path):
    with pytest.raises(
        cr.UsageError, match=r"no field 'lr' \(did you mean 'learning_rate'\?\)"
    ) as error:
        cr.with_fields(cr.experiment("digits_cnn"), {"optimizer.lr": 1.0})
    training = cr.with_fields(cr.experiment("digits_cnn"), {"loggers": (cr.WandB(), cr.MLflow())})
    training = cr.with_fields(training, {"loggers.1.experiment": "birds"})
    assert training.loggers == (cr.WandB(), cr.MLflow(experiment="birds"))
    # What IPython shows in place of a traceback.
    assert error.value._render_traceback_() == [f"UsageError: {error.value}"]


def test_the_notebook_trains_loads_and_predicts(tmp_path, monkeypatch, capsys):
    """Its cells in this process, each twice where it registers something."""
    monkeypatch.chdir(tmp_path)
    module = types.ModuleType("notebook")
    monkeypatch.setitem(sys.modules, "notebook", module)
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    for cell in cells:
        if cell["cell_type"] != "code":
            continue
        code = "".join(line for line in cell["source"] if not line.startswith("%"))
        for _ in range(1 + ("@cr.register" in code)):
            exec(compile(code, "cell", "exec"), vars(module))
    assert (tmp_path / "runs" / "birds" / "report").is_dir()
    assert vars(module)["answers"][0]["label"].text
    with nothing_imported(), pytest.raises(cr.UserError, match="is not registered"):
        config._CONFIG_CLASSES.pop("Sky")
        cr.load("runs/birds")


def test_a_class_of_a_notebook_has_to_move_to_a_file():
    assert definitions.import_of("__main__").endswith(("__main__", ".py"))
    assert "move it to a file" in definitions.how_to_import(["__main__"])
