"""Numbers as targets: where they come from, the loss, the figures and the report."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from sklearn import metrics

from benchmarks import readme_tables
from cnn_research.cli.fields import with_overrides
from cnn_research.cli.run import run
from cnn_research.core.errors import UsageError, UserError
from cnn_research.core.experiment import lookup
from cnn_research.core.run_folder import saved_config
from cnn_research.data.dataset import Dataset, Examples, Split
from cnn_research.data.prepare import splits
from cnn_research.data.sources.synthetic import Synthetic
from cnn_research.data.sources.table import ImageTable
from cnn_research.models.mlp import MLP
from cnn_research.report.plots import training_curves
from cnn_research.tasks.classification import Classification
from cnn_research.tasks.regression import (
    FittedRegression,
    NumberPredictions,
    Regression,
    estimates_plot,
    mistakes_plot,
)
from cnn_research.train.config import Evaluation, Selection, Training
from cnn_research.train.optimizers import Optimizer


@pytest.fixture(autouse=True)
def data_dir(tmp_path, monkeypatch):
    """Prepared data go to a folder of this test alone."""
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "prepared"))


def make_table(folder: Path, years: list[str], **columns: list[str]) -> Path:
    """A CSV file of grey images, the brighter the later the year: 2000 is black, 2255 white."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    with open(folder / "table.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "year", *columns])
        for index, year in enumerate(years):
            brightness = float(year) - 2000 if year else 0
            pixels = np.clip(brightness + rng.normal(0, 2, (6, 5, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"{index}.png")
            writer.writerow([index, year, *(cells[index] for cells in columns.values())])
    return folder / "table.csv"


def years_table(table: Path, **changes) -> ImageTable:
    return ImageTable(str(table), image="{id}.png", **{"label": (), "number": ("year",), **changes})


def numbers_of(*numbers: float, class_names=None) -> Dataset:
    """A data set whose images are all the same, with these numbers `x` in each split."""
    labels = np.array(numbers, np.float32 if class_names is None else np.int32)
    split = Split(np.zeros((len(numbers), 2, 2, 1), np.uint8), {"x": labels})
    return Dataset("made up", {"train": split, "test": split}, class_names or {}, {})


# Columns of numbers ------------------------------------------------------------------------------


def test_numbers_and_classes_of_a_table_with_empty_cells(tmp_path):
    years = [str(2000 + index) if index % 5 else "" for index in range(40)]
    kinds = ["", "shirt", "shoe"] * 13 + ["shoe"]
    source = years_table(make_table(tmp_path / "shop", years, kind=kinds), label=("kind",))
    for dataset in (source.load(), source.load()):  # prepared, and then opened
        assert dataset.class_names == {"kind": ("shirt", "shoe")}
        seen = 0
        for part in dataset.splits.values():
            assert {head: labels.dtype for head, labels in part.labels.items()} == {
                "kind": np.int32,
                "year": np.float32,
            }
            for name, year, kind in zip(
                part.names, part.labels["year"], part.labels["kind"], strict=True
            ):
                row = int(Path(name).stem)
                assert math.isnan(year) if not years[row] else year == float(years[row])
                assert kind == ["", "shirt", "shoe"].index(kinds[row]) - 1
                seen += 1
        assert seen == 37  # a row with neither is left out
        assert dataset.provenance["drawn_from_train"]["stratified_by"] == "kind"


def test_without_classes_splits_are_drawn_from_all(tmp_path):
    table = make_table(tmp_path / "shop", [str(2000 + index) for index in range(40)])
    dataset = years_table(table).load()
    assert dataset.class_names == {}
    assert {name: len(part) for name, part in dataset.splits.items()} == {
        "train": 32,
        "validation": 4,
        "test": 4,
    }
    assert dataset.provenance["drawn_from_train"]["stratified_by"] is None
    together = np.concatenate([part.labels["year"] for part in dataset.splits.values()])
    assert sorted(together) == list(range(2000, 2040))


@pytest.mark.parametrize(
    ("cell", "changes", "message"),
    [
        ("about 2004", {}, r"row 3: year is 'about 2004', which is not a finite number"),
        ("nan", {}, "leave the cell empty if it is unknown"),
        ("-inf", {}, "not a finite number"),
        ("1e39", {}, "not a finite number"),
        ("2004", {"number": ("month",)}, "no column 'month'; choose one of its columns id, year"),
        ("2004", {"label": ("year",)}, "column 'year' is named twice in --data.label and --"),
        ("2004", {"number": ()}, "name a column of classes, --data.label, or --data.number"),
    ],
)
def test_columns_that_are_no_numbers(cell, changes, message, tmp_path):
    table = make_table(tmp_path / "shop", ["2001", "2002", "2003", "2004"])
    table.write_text(table.read_text().replace("2,2003", f"2,{cell}"))
    with pytest.raises(UserError, match=message):
        years_table(table, **changes).load()


def test_an_empty_column_is_an_error(tmp_path):
    with pytest.raises(UserError, match="column 'year' is empty: it needs numbers"):
        years_table(make_table(tmp_path / "shop", ["", "", ""])).load()


def test_numbers_of_a_data_set_are_finite_or_not_known():
    assert math.isnan(numbers_of(1.5, math.nan).splits["test"].labels["x"][1])
    with pytest.raises(UserError, match="label 'x' of example 1 is inf, not a finite number"):
        numbers_of(1.5, math.inf)


def test_copies_with_other_numbers_are_in_conflict_and_unknown_ones_are_not():
    def conflicts(*numbers: float) -> int:
        labels = {"x": np.array(numbers, np.float32)}
        images = np.zeros((len(numbers), 1, 1, 1), np.uint8)
        names = np.array([str(index) for index in range(len(numbers))])
        examples = Examples(images, labels, {}, names, np.full(len(numbers), "train"))
        _, report = splits.assign(examples, {"validation": 0, "test": 0}, 0)
        return report["duplicates"]["images_with_conflicting_labels"]

    assert conflicts(1.0, 2.0) == 1
    assert conflicts(1.0, math.nan) == 1
    assert conflicts(1.0, 1.0) == conflicts(math.nan, math.nan) == 0


def test_synthetic_numbers_leave_images_and_classes_as_they_were():
    plain = Synthetic(train=9, image_shape=(4, 4, 1)).load()
    more = Synthetic(train=9, image_shape=(4, 4, 1), numbers=("x",)).load()
    np.testing.assert_array_equal(plain.splits["train"].images, more.splits["train"].images)
    assert more.splits["train"].labels["x"].dtype == np.float32
    assert more.class_names.keys() == {"label"}


# The task ----------------------------------------------------------------------------------------


def test_mean_and_deviation_are_of_the_known_numbers_in_training():
    train = np.array([1, 2, 6, math.nan], np.float32)
    dataset = numbers_of(*train)
    other = dataclasses.replace(
        dataset, splits={**dataset.splits, "test": numbers_of(100, 200).splits["test"]}
    )
    expected = FittedRegression(head="x", mean=3.0, deviation=np.std([1.0, 2.0, 6.0]))
    assert Regression(head="x").fitted(dataset) == expected == Regression(head="x").fitted(other)


@pytest.mark.parametrize(
    ("head", "dataset", "message"),
    [
        ("y", numbers_of(1, 2), "no numbers 'y'; it has x: name a column"),
        ("x", numbers_of(0, 1, class_names={"x": ("a", "b")}), "no numbers 'x'; it has none"),
        ("x", numbers_of(4, 4, math.nan), "fewer than two different numbers 'x'"),
        ("x", numbers_of(math.nan), "fewer than two different numbers 'x'"),
    ],
)
def test_data_that_nothing_can_be_estimated_from(head, dataset, message):
    with pytest.raises(UserError, match=message):
        Regression(head=head).check_data(dataset)


def test_a_split_without_a_known_number_is_refused_before_training():
    dataset = numbers_of(1, 2)
    unknown = numbers_of(math.nan).splits["train"]
    dataset = dataclasses.replace(dataset, splits={**dataset.splits, "test": unknown})
    with pytest.raises(UserError, match="no image of the test split has a label 'x'"):
        Regression(head="x").check_data(dataset)


def test_numbers_are_no_classes():
    with pytest.raises(UserError, match="has no labels 'x'; it has none"):
        Classification(head="x").check_data(numbers_of(1, 2))


TASK = FittedRegression(head="year", mean=2012.5, deviation=1.5)


def test_loss_and_error_by_hand():
    outputs = jnp.array([[0.0], [1.0], [-1.0], [5.0], [7.0]])
    labels = {"year": jnp.array([2012.5, 2011.0, 2014.0, math.nan, 2000.0])}
    weights = jnp.array([1.0, 1.0, 1.0, 1.0, 0.0])
    sums = TASK.sums(outputs, labels, weights)
    # Estimates 2012.5, 2014 and 2011: off by 0, 3 and 3 years, which are 2 deviations.
    assert {name: (float(a), float(b)) for name, (a, b) in sums.items()} == {
        "loss": (8.0, 3.0),
        "MAE": (6.0, 3.0),
    }
    assert [float(x) for x in TASK.training_loss(outputs, labels, weights)["loss"]] == [8.0, 3.0]
    gradient = jax.grad(lambda x: TASK.training_loss(x, labels, weights)["loss"][0])(outputs)
    np.testing.assert_array_equal(gradient[:, 0], [0, 4, -4, 0, 0])


def test_views_are_averaged_as_numbers():
    views = [jnp.array([[1.0], [2.0]]), jnp.array([[3.0], [-2.0]])]
    np.testing.assert_array_equal(TASK.average_views(views), [[2.0], [0.0]])


@pytest.mark.parametrize("task", [Classification(), Regression(head="x")])
def test_a_selection_goes_by_what_the_task_measures(task):
    data, model = Synthetic(numbers=("x",)), MLP(dense=(4,))
    for metric in ("accuracy", "loss", "MAE"):
        training = Training(data=data, model=model, task=task, selection=Selection(metric=metric))
        if metric in task.metrics:
            training.check()
        else:
            with pytest.raises(
                UsageError, match=f"selection.metric is {metric}.* choose .* or loss"
            ):
                training.check()


def test_fields_of_the_task_on_the_command_line():
    year = lookup("products_year").experiment()
    changed = with_overrides(year, ["--task.head=price", "--data.number", "price", "weight"])
    assert changed.task == Regression(head="price")
    assert changed.data.number == ("price", "weight")
    digits = with_overrides(lookup("digits_mlp").experiment(), ["--task.label-smoothing=0.2"])
    assert digits.task == Classification(label_smoothing=0.2)
    with pytest.raises(UsageError, match=r"unknown field --task\.label-smoothing"):
        with_overrides(year, ["--task.label-smoothing=0.2"])


# Figures and pictures ----------------------------------------------------------------------------


def made_up(missing: int = 0) -> NumberPredictions:
    rng = np.random.default_rng(0)
    numbers = rng.normal(2010, 3, 50).astype(np.float32)
    predicted = numbers + rng.normal(0, 1, 50)
    numbers[:missing] = math.nan
    return NumberPredictions("test", "year", predicted, numbers, 2011.0, loss=0.25)


def test_figures_are_scikit_learns_and_of_the_known_numbers():
    made = made_up(missing=10)
    true, predicted = made.numbers[10:].astype(float), made.predicted[10:]
    constant = np.full(40, 2011.0)
    assert made.metrics() == pytest.approx(
        {
            "loss": 0.25,
            "MAE": metrics.mean_absolute_error(true, predicted),
            "RMSE": metrics.root_mean_squared_error(true, predicted),
            "R2": metrics.r2_score(true, predicted),
            "MAE of the training mean": metrics.mean_absolute_error(true, constant),
            "RMSE of the training mean": metrics.root_mean_squared_error(true, constant),
            "count": 40,
        }
    )
    assert f"{made.metrics()['R2']:.4f} R2\n" in made.text()


def test_without_variance_nothing_is_explained():
    made = NumberPredictions(
        "test", "x", np.array([1.0]), np.array([2.0], np.float32), 0.0, loss=1.0
    )
    assert "R2" not in made.metrics()
    with pytest.raises(UserError, match="no example has a number"):
        made_up(missing=50).metrics()


def test_estimates_are_drawn_against_the_true_numbers():
    true, predicted = np.array([1.5, 2.5, 4.5]), np.array([2.0, 2.5, 3.0])
    (axes,) = estimates_plot(true, predicted, "price", 2.25).axes
    np.testing.assert_array_equal(axes.collections[0].get_offsets(), np.c_[true, predicted])
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("true price", "predicted price")
    assert axes.get_xlim() == axes.get_ylim()
    # Whole numbers stay nearest to their own tick.
    (axes,) = estimates_plot(np.full(99, 7.0), np.arange(99.0), "year", 3).axes
    aside = np.asarray(axes.collections[0].get_offsets())[:, 0] - 7
    assert np.abs(aside).max() <= 0.3 and len(np.unique(aside.round(4))) == 99
    assert axes.get_xlabel() == "true year (points spread sideways)"


def test_mistakes_come_by_their_size_without_unknown_or_exact_ones():
    images = np.arange(5, dtype=np.uint8).reshape(5, 1, 1, 1) * np.ones((1, 4, 4, 1), np.uint8)
    true = np.array([2010, 2011, math.nan, 2012, 2013])
    figure = mistakes_plot(images, true, np.array([2010.5, 2011, 1990, 2009.25, 2014]))
    shown = [axes for axes in figure.axes if axes.images]
    assert [int(axes.images[0].get_array()[0, 0]) for axes in shown] == [3, 4, 0]
    assert shown[0].get_title() == "2009.2\ntrue: 2012"


def test_curves_show_the_absolute_error_and_its_lowest_value():
    epochs = [
        {"epoch": epoch, "train": {"loss": 1, "MAE": 3}, "validation": {"loss": 1, "MAE": error}}
        for epoch, error in ((1, 2.5), (2, 1.5), (3, 2.0))
    ]
    _, axes = training_curves(epochs, Regression().directions).axes
    assert axes.get_title(loc="left") == "MAE"
    assert "lowest validation value: 1.5000, epoch 2" in [text.get_text() for text in axes.texts]


def test_readme_table_shows_regressions_only():
    figures_ = {
        name: {"values": [value, value]}
        for name, value in {**made_up().metrics(), "MAE": 1.25}.items()
    }
    told = {"seeds": [0, 1], "wall_seconds_of_runs": [200.4, 300], "figures": figures_}
    results = {"years": told, "classes": {**told, "figures": {"accuracy": {"values": [0.5]}}}}
    header, _, row = readme_tables.regression(results).splitlines()
    assert [cell.strip() for cell in header.split("|")[1:4]] == ["experiment", "runs", "MAE"]
    cells = [cell.strip() for cell in row.split("|")[1:-1]]
    assert cells[:3] == ["years", "2", "1.2500 ± 0.0000"] and cells[-1] == "3 min 20 s"


# A run -------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_run_learns_the_brightness_and_reports_it(tmp_path, capsys):
    years = [str(2000 + index) for index in range(20, 220)] + [""] * 8
    kinds = ["a", "b"] * 104  # unknown years are in the splits as well
    table = make_table(tmp_path / "shop", years, kind=kinds)
    training = Training(
        data=years_table(table, label=("kind",), image_size=(6, 5), validation=0.2, test=0.2),
        model=MLP(dense=(16,)),
        task=Regression(head="year"),
        optimizer=Optimizer(name="adam", learning_rate=1e-2),
        epochs=25,
        batch_size=16,
        selection=Selection(metric="MAE", report="best"),
        evaluation=Evaluation(mirror=True, batch_size=7),
    )
    trained = run(training, tmp_path / "run")
    found = trained.metrics["test"]
    assert found["R2"] > 0.95
    assert found["MAE"] < 0.2 * found["MAE of the training mean"]
    said = capsys.readouterr()
    assert "MAE" in said.err and f"{found['R2']:.4f} R2" in said.out

    # The folder holds what was asked for, and evaluation fits the same constants again.
    assert saved_config(tmp_path / "run") == training
    page = (tmp_path / "run" / "report" / "report.md").read_text()
    names = {file.name for file in (tmp_path / "run" / "report").iterdir()}
    pictures = {"curves.png", "estimates.png", "mistakes.png", "mistakes"}
    assert names == {"report.md", "report.html", *pictures}
    assert "| epoch | training loss | validation loss | training MAE | validation MAE |" in page
    before = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    evaluated = run(saved_config(tmp_path / "run"), tmp_path / "run", "evaluate")
    assert evaluated.metrics == trained.metrics
    assert json.loads((tmp_path / "run" / "evaluation.json").read_text()) == before
