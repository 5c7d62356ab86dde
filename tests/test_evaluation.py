"""Evaluation: by batches of one size; and how it was done, which reports and exports know."""

from __future__ import annotations

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
from flax import linen as nn

from cnn_research.cli.run import run
from cnn_research.core import run_folder as folders
from cnn_research.core.distributed import data_mesh
from cnn_research.core.errors import UsageError
from cnn_research.data.sources.scikit_learn import Digits
from cnn_research.data.sources.synthetic import Synthetic
from cnn_research.inference.exported import open_export
from cnn_research.models.mlp import MLP
from cnn_research.ops.batching import apply_in_batches
from cnn_research.report.runs import group_runs, read_run
from cnn_research.train.config import Evaluation, Training
from cnn_research.train.evaluator import Evaluator
from cnn_research.train.trained import bind_to_dataset

PLAIN = Training(data=Digits(), model=MLP(dense=(8,)), epochs=1, batch_size=64, name="plain")
MIRRORED = dataclasses.replace(PLAIN, evaluation=Evaluation(mirror=True))


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    """Two copies of a run: one as trained, the other evaluated again with mirror images."""
    folder = tmp_path_factory.mktemp("evaluated")
    run(PLAIN, folder / "plain")
    shutil.copytree(folder / "plain", folder / "mirrored")
    run(MIRRORED, folder / "mirrored", "evaluate")
    return folder


def test_an_evaluation_says_how_it_evaluated(evaluated):
    plain, mirrored = (
        json.loads((evaluated / name / "evaluation.json").read_text())
        for name in ("plain", "mirrored")
    )
    assert plain["config"]["evaluation"]["mirror"] is False
    assert mirrored["config"]["evaluation"]["mirror"] is True
    assert plain["test"]["accuracy"] != mirrored["test"]["accuracy"]
    for name, written in (("plain", '"mirror": false'), ("mirrored", '"mirror": true')):
        page = (evaluated / name / "report" / "report.md").read_text()
        evaluation = page.partition('"evaluation": {')[2].partition("}")[0]
        assert written in evaluation


def test_runs_that_were_evaluated_otherwise_are_another_group(evaluated):
    runs = [read_run(evaluated / name) for name in ("plain", "mirrored")]
    groups = group_runs([run for run in runs if run])
    assert [group.name for group in groups] == [
        "plain (evaluation.mirror=False)",
        "plain (evaluation.mirror=True)",
    ]


def test_an_export_has_the_figures_of_its_own_evaluation(evaluated):
    workdir = evaluated / "mirrored"
    with pytest.raises(UsageError, match=r"was last evaluated with evaluation\.mirror True"):
        run(PLAIN, workdir, "export")
    assert not (workdir / "export").exists()
    run(MIRRORED, workdir, "export")
    facts = open_export(workdir / "export").facts
    assert facts["evaluation"]["evaluation.mirror"] is True
    figures = json.loads((workdir / "evaluation.json").read_text())["test"]
    assert facts["figures"]["test"] == figures
    assert "`evaluation.mirror=true`" in (workdir / "export" / "README.md").read_text()


def test_numbers_that_json_lacks_become_null(tmp_path):
    folders.write_json(tmp_path / "some.json", {"test": {"loss": float("nan"), "count": 3}})
    text = (tmp_path / "some.json").read_text()
    values = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert values == {"test": {"loss": None, "count": 3}}


# Batches -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 4, 7, 10])
def test_functions_of_batches_are_applied_to_every_example(batch_size):
    examples = np.arange(14.0).reshape(7, 2)
    shapes = set()

    def function(batch):
        shapes.add(batch.shape)
        return {"double": 2 * batch, "sum": batch.sum(axis=1)}

    found = apply_in_batches(function, examples, batch_size)
    assert shapes == {(batch_size, 2)}
    np.testing.assert_array_equal(found["double"], 2 * examples)
    np.testing.assert_array_equal(found["sum"], examples.sum(axis=1))


class Recorder(nn.Module):
    """Notes the shapes that it is traced with."""

    num_classes: int = 3
    shapes = []

    @nn.compact
    def __call__(self, images, train=False):
        self.shapes.append(images.shape)
        return nn.Dense(self.num_classes)(images.reshape(len(images), -1))


def test_a_small_split_is_not_padded_to_a_whole_batch():
    data = Synthetic(train=6, test=5, classes=(3,), image_shape=(4, 4, 1))
    dataset = data.load()
    training = bind_to_dataset(Training(data=data, model=Recorder()), dataset)
    assert training.evaluation.batch_size == 500
    split = dataset.splits["test"]
    variables = training.model.init(jax.random.key(0), np.zeros((1, 4, 4, 1), np.float32))
    Recorder.shapes.clear()
    sums, outputs = Evaluator(training, training.model, data_mesh())(variables, split)
    assert set(Recorder.shapes) == {(5, 4, 4, 1)}
    assert outputs.shape == (5, 3) and sums["accuracy"][1] == 5
