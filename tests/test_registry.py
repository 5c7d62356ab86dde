"""Every registered experiment: its golden config, its way through JSON, and a run of a few steps.

A new experiment is covered without an edit here; its golden file is written, like one that is to
change, by `python -m tests.test_registry`.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import json
import re
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from absl import flags

from cnn_research.cli.fields import LAUNCHER_FLAGS
from cnn_research.cli.run import run
from cnn_research.core import run_folder as folders
from cnn_research.core.config import canonical_json, config_hash, flatten, from_dict, to_dict
from cnn_research.core.distributed import data_mesh
from cnn_research.core.errors import UserError
from cnn_research.core.experiment import lookup, registry
from cnn_research.inference.exported import open_export
from cnn_research.train import checkpoint
from cnn_research.train.config import Training
from cnn_research.train.job import prepare
from cnn_research.train.session import SeedRun, open_session
from cnn_research.train.state import abstract_state
from cnn_research.train.trained import bind_to_dataset
from cnn_research.workflows.palette.purification import Purification
from cnn_research.workflows.two_stage import TwoStage
from tests.sizes import first_of_each_kind, scaled_down

ROOT = Path(__file__).resolve().parent.parent
GOLDEN = Path(__file__).with_name("golden")
UPDATE = "if that is meant, run `python -m tests.test_registry` and commit tests/golden"
NAMES = list(registry())
TRAININGS = [name for name in NAMES if isinstance(lookup(name).experiment(), Training)]
FIRST = first_of_each_kind()
"""Trainings that are run; of the others a step is traced."""
QUICK = {"digits_cnn", "digits_mlp"}
"""Small networks that train by default; all others do with `-m slow`."""


# Configs -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_config_is_the_golden_one(name):
    file = GOLDEN / f"{name}.json"
    assert file.exists(), f"{name} has no golden config: {UPDATE}"
    expected = flatten(from_dict(json.loads(file.read_text())))
    found = flatten(lookup(name).experiment())
    changed = {
        field: (expected.get(field, "absent"), found.get(field, "absent"))
        for field in expected.keys() | found.keys()
        if expected.get(field, "absent") != found.get(field, "absent")
    }
    assert not changed, f"fields of {name} changed, as (golden, now): {changed}; {UPDATE}"
    assert file.read_text() == canonical_json(lookup(name).experiment()), UPDATE


def test_every_golden_config_has_an_experiment():
    assert {file.stem for file in GOLDEN.glob("*.json")} == set(NAMES), UPDATE


@pytest.mark.parametrize("name", NAMES)
def test_config_comes_back_from_json(name):
    experiment = lookup(name).experiment()
    back = from_dict(json.loads(canonical_json(experiment)))
    assert back == experiment
    assert type(back) is type(experiment)
    assert hash(back) == hash(experiment)
    assert to_dict(back) == to_dict(experiment)


def test_every_field_takes_part_in_the_hash():
    experiment = lookup("digits_cnn").experiment()
    changed = [
        dataclasses.replace(experiment, seed=1),
        dataclasses.replace(
            experiment, optimizer=dataclasses.replace(experiment.optimizer, learning_rate=0.0021)
        ),
        dataclasses.replace(experiment, model=experiment.model.clone(features=(16, 33))),
    ]
    hashes = {config_hash(config, experiment) for config in [experiment, *changed]}
    assert len(hashes) == 4


def test_hashes_are_those_of_another_process():
    code = (
        "from cnn_research.core.config import config_hash\n"
        "from cnn_research.core.experiment import registry\n"
        "for name, entry in registry().items():\n"
        "    print(name, config_hash(entry.experiment()))"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    expected = {name: config_hash(entry.experiment()) for name, entry in registry().items()}
    assert dict(line.split() for line in ended.stdout.splitlines()) == expected


def test_a_config_of_a_strange_class_is_not_read():
    values = to_dict(lookup("digits_cnn").experiment())
    values["data"] = {"class": "subprocess.Popen", "args": "true"}
    with pytest.raises(UserError, match=r"class .subprocess\.Popen., which is not registered"):
        from_dict(values)


@pytest.mark.parametrize("name", NAMES)
def test_docstring_gives_the_command(name):
    entry = lookup(name)
    assert entry.summary
    assert f"python launch.py --experiment={name}" in entry.make.__doc__


# Runs --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in FIRST],
)
def test_experiment_trains_goes_on_and_evaluates(name, tmp_path, capsys):
    small = scaled_down(lookup(name).experiment())
    dataset = small.data.load()
    examples = len(dataset.splits["train"]) * dataset.windows * small.augmentation.copies
    like = abstract_state(bind_to_dataset(small, dataset), dataset.image_shape, data_mesh())
    saved = tmp_path / folders.CHECKPOINTS

    def of_steps(steps):
        return dataclasses.replace(small, epochs=steps * small.batch_size / examples)

    run(of_steps(2), tmp_path)
    assert checkpoint.newest(saved) == 2
    before, _ = checkpoint.restore(saved, 2, like)
    assert int(before.step) == 2

    trained = run(of_steps(3), tmp_path)
    assert "Resuming from the checkpoint of step 2" in capsys.readouterr().err
    assert checkpoint.newest(saved) == 3
    after, _ = checkpoint.restore(saved, 3, like)
    moved = jax.tree.map(
        lambda a, b: not np.array_equal(np.asarray(a), np.asarray(b)), before.params, after.params
    )
    assert any(jax.tree.leaves(moved))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(after.params))

    evaluated = run(folders.saved_config(tmp_path), tmp_path, "evaluate")
    assert {"validation", "test"} <= set(evaluated.metrics) == set(trained.metrics)
    for split, figures in trained.metrics.items():
        for metric in small.task.metrics:
            assert evaluated.metrics[split][metric] == pytest.approx(figures[metric], rel=1e-6)
    assert {"report.md", "report.html"} <= {file.name for file in (tmp_path / "report").iterdir()}


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in TRAININGS if name not in FIRST])
def test_another_training_of_a_kind_takes_a_step(name, tmp_path):
    small = scaled_down(lookup(name).experiment())
    with open_session([SeedRun(small, tmp_path)], tmp_path, read_only=True) as session:
        job = prepare(session)
        steps, count = job.next_steps(1)
        step = functools.partial(steps, count=count)
        after, metrics = jax.eval_shape(step, job.states, job.data, job.seeds)
    shapes = [[leaf.shape for leaf in jax.tree.leaves(states)] for states in (after, job.states)]
    assert shapes[0] == shapes[1]
    assert any("loss" in name for name in metrics)
    assert all(values.shape == (1, 1, 2) for values in metrics.values())


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [name for name in NAMES if isinstance(lookup(name).experiment(), TwoStage | Purification)],
)
def test_pipeline_runs_and_a_finished_one_trains_nothing(name, tmp_path, monkeypatch):
    small = scaled_down(lookup(name).experiment())
    result = run(small, tmp_path)
    assert result.metrics
    monkeypatch.setattr("cnn_research.train.loop.train", lambda *_: pytest.fail("trained again"))
    assert run(folders.saved_config(tmp_path), tmp_path).metrics == result.metrics
    run(folders.saved_config(tmp_path), tmp_path, "export")
    assert open_export(tmp_path / "export").facts["step"] > 0


# Names and imports -------------------------------------------------------------------------------


def test_no_launcher_flag_is_named_like_a_field():
    code = "import cnn_research.cli.main; from absl import flags; print(*flags.FLAGS)"
    ended = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    of_launcher = {name.replace("_", "-") for name in ended.stdout.split()}
    assert set(LAUNCHER_FLAGS) <= of_launcher
    for name in NAMES:
        fields = {field.replace("_", "-") for field in flatten(lookup(name).experiment())}
        assert not (fields - {"name"}) & of_launcher
    assert isinstance(flags.FLAGS, flags.FlagValues)


def layers() -> list[set[str]]:
    """The table of docs/design.md, lowest first: a part imports from lower layers only."""
    page = (ROOT / "docs" / "design.md").read_text()
    rows = re.findall(r"^\| (`.*?) \|", page.partition("## Properties")[0], re.MULTILINE)
    return [set(re.findall(r"`(\w+)`", row)) for row in reversed(rows)]


def part_of(module: str) -> str:
    names = module.split(".")
    return names[1] if names[0] == "cnn_research" and len(names) > 1 else names[0]


def imported_parts(file: Path) -> set[str]:
    """The project's parts that a file imports, anywhere in it, or names as `"module:function"`."""
    modules = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level:
            # Installed, the experiments are a package of another name.
            assert file.parent.name == "experiments", f"{file}: imports are written in full"
        elif isinstance(node, ast.ImportFrom):
            # `from cnn_research import train` imports a part; `from m import f` imports m.
            package = node.module == "cnn_research"
            modules |= {f"{node.module}.{a.name}" if package else node.module for a in node.names}
        elif isinstance(node, ast.Constant) and re.fullmatch(r"[\w.]+:\w+", str(node.value)):
            modules.add(str(node.value).partition(":")[0])
    own = {module for module in modules if module.split(".")[0] in ("cnn_research", "experiments")}
    return {part_of(module) for module in own}


def test_imports_go_one_way():
    files = [*ROOT.glob("cnn_research/**/*.py"), *ROOT.glob("experiments/*.py"), ROOT / "launch.py"]
    height = {part: level for level, layer in enumerate(layers()) for part in layer}
    upwards, placed = [], set()
    for file in files:
        part = part_of(".".join(file.relative_to(ROOT).with_suffix("").parts))
        if part in ("__init__", "__main__"):
            continue
        assert part in height, f"{file.name} has no place in the table of docs/design.md"
        placed.add(part)
        for imported in sorted(imported_parts(file) - {part}):
            assert imported in height, f"{file.name} imports {imported}, which is not in the table"
            if height[imported] >= height[part]:
                upwards.append(f"{file.relative_to(ROOT)} imports {imported}")
    assert not upwards, "\n".join(upwards)
    assert placed == set(height), "the table of docs/design.md names parts that are gone"


@pytest.mark.parametrize("command", ["report", "sweep", "serve", "doctor"])
def test_help_needs_no_jax(command):
    code = (
        "import runpy, sys; sys.argv = ['-m', sys.argv[1], '--help']\n"
        "try: runpy.run_module('cnn_research', run_name='__main__')\n"
        "except SystemExit as end: print(end.code, 'jax' in sys.modules)"
    )
    command = [sys.executable, "-c", code, command]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert ended.stdout.endswith("0 False\n"), ended.stderr


def test_starting_needs_neither_orbax_nor_tensorflow():
    """What `--list` and usage errors import; jax itself comes with flax's modules."""
    code = "import sys; from cnn_research.cli import main; main.print_list(); print(*sys.modules)"
    ended = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    loaded = {name.split(".")[0] for name in ended.stdout.splitlines()[-1].split()}
    assert "flax" in loaded
    assert not loaded & {"orbax", "tensorflow", "tensorflow_datasets", "sklearn", "matplotlib"}


if __name__ == "__main__":
    GOLDEN.mkdir(exist_ok=True)
    for file in GOLDEN.glob("*.json"):
        if file.stem not in NAMES:
            file.unlink()
    for name, entry in registry().items():
        (GOLDEN / f"{name}.json").write_text(canonical_json(entry.experiment()))
