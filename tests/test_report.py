"""Figures, the report of a run, tables over runs, and the tables of the README."""

from __future__ import annotations

import copy
import csv
import io
import json
import math
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import openpyxl
import pytest
from PIL import Image
from sklearn import metrics

from benchmarks import readme_tables
from cnn_research.core.config import to_dict
from cnn_research.core.errors import UserError
from cnn_research.core.experiment import lookup
from cnn_research.core.metrics_log import by_epoch
from cnn_research.inference.predict import Prediction, predictions_plot
from cnn_research.report import plots
from cnn_research.report.__main__ import main
from cnn_research.report.change_log import WIDEST_COLUMN, change_log
from cnn_research.report.html import write_page
from cnn_research.report.markdown import markdown_table
from cnn_research.report.page import write_report
from cnn_research.report.pictures import Shown
from cnn_research.report.runs import group_runs, read_run, run_folders
from cnn_research.tasks import class_predictions, confusion
from cnn_research.tasks.class_predictions import ClassPredictions
from cnn_research.tasks.classification import Classification
from cnn_research.tasks.decode import Answer
from cnn_research.tasks.histogram import Histogram
from cnn_research.tasks.multi_head import MultiHead
from cnn_research.tasks.regression import Regression, estimates_plot
from cnn_research.workflows.palette.colour_naming import named_pixels_plot
from cnn_research.workflows.palette.purification import discarded_plot

pytestmark = pytest.mark.pictures

NAMES = ("bag", "coat", "shirt")

DIRECTIONS = Classification().directions

HISTORY = [
    {"step": 1, "epoch": 0.5, "split": "train", "loss": 3.0, "accuracy": 0.0, "count": 30},
    {"step": 2, "epoch": 1.0, "split": "train", "loss": 1.0, "accuracy": 0.4, "count": 10},
    {"step": 2, "epoch": 1.0, "split": "validation", "loss": 0.75, "accuracy": 0.5, "count": 9},
    {"step": 4, "epoch": 2.0, "split": "train", "loss": 0.5, "accuracy": 0.8, "count": 40},
    {"step": 4, "epoch": 2.0, "split": "validation", "loss": 0.875, "accuracy": 0.6, "count": 9},
]


def made_up_predictions(*, classes: int = 3, missing: int = 0) -> ClassPredictions:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, classes, 60).astype(np.int32)
    logits = rng.normal(size=(60, classes)).astype(np.float32)
    logits[np.arange(60), labels] += 1
    labels[:missing] = -1
    names = NAMES if classes == 3 else tuple(f"class {index}" for index in range(classes))
    return ClassPredictions(split="test", logits=logits, labels=labels, class_names=names, loss=0.5)


# Figures -----------------------------------------------------------------------------------------


def lines(axes: Any) -> dict[str, list[tuple[float, float]]]:
    return {line.get_label(): list(map(tuple, line.get_xydata())) for line in axes.lines}


def test_curves_show_each_epoch_once_with_rows_weighted_by_their_examples():
    loss, accuracy = plots.training_curves(by_epoch(HISTORY), DIRECTIONS).axes
    assert lines(loss) == {"training": [(1, 2.5), (2, 0.5)], "validation": [(1, 0.75), (2, 0.875)]}
    assert lines(accuracy)["training"] == [(1, pytest.approx(0.1)), (2, 0.8)]
    assert "lowest validation value: 0.7500, epoch 1" in [text.get_text() for text in loss.texts]
    assert "highest validation value: 0.6000, epoch 2" in [
        text.get_text() for text in accuracy.texts
    ]


def test_curves_of_a_run_without_validation_or_accuracy_or_with_nan():
    history = [{"step": 1, "epoch": 1.0, "split": "train", "loss": float("nan"), "count": 4}]
    (axes,) = plots.training_curves(by_epoch(history), DIRECTIONS).axes
    assert list(lines(axes)) == ["training"]
    assert axes.get_xlim() == (0.6, 1.4)


def test_confusion_matrix_colours_are_shares_of_the_row_and_cells_hold_counts():
    matrix = np.array([[3, 1, 0], [0, 0, 0], [0, 2, 8]])
    axes = confusion.confusion_matrix_plot(matrix, NAMES).axes[0]
    (picture,) = axes.images
    expected = [[0.75, 0.25, 0], [0, 0, 0], [0, 0.2, 0.8]]  # a class without examples has no share
    np.testing.assert_allclose(picture.get_array(), expected)
    cells = {(text.get_position()[::-1], text.get_text()) for text in axes.texts}
    assert cells == {((0, 0), "3"), ((0, 1), "1"), ((2, 1), "2"), ((2, 2), "8")}
    assert [label.get_text() for label in axes.get_yticklabels()] == list(NAMES)


def test_confusion_matrix_of_many_classes_has_no_text_in_cells():
    figure = confusion.confusion_matrix_plot(
        np.eye(31, dtype=int), [f"class {i}" for i in range(31)]
    )
    assert not figure.axes[0].texts
    assert len(figure.axes[0].get_xticklabels()) == 31


@pytest.mark.parametrize("classes", [2, 10, 40])
def test_no_label_of_a_confusion_matrix_is_cut_off(classes):
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    names = [f"a class of some name, {index}" for index in range(classes)]
    figure = confusion.confusion_matrix_plot(np.eye(classes, dtype=int), names)
    FigureCanvasAgg(figure).draw()
    axes = figure.axes[0]
    for label in [*axes.get_xticklabels(), *axes.get_yticklabels(), axes.xaxis.label]:
        box = label.get_window_extent()
        assert box.x0 >= 0 and box.y0 >= 0, label.get_text()
        assert box.x1 <= figure.bbox.x1 and box.y1 <= figure.bbox.y1, label.get_text()


def test_mistakes_come_by_confidence_and_without_correct_or_unlabelled_examples():
    images = np.arange(5, dtype=np.uint8).reshape(5, 1, 1, 1) * np.ones((1, 4, 4, 1), np.uint8)
    figure = class_predictions.mistakes_plot(
        images,
        labels=np.array([0, 1, 2, -1, 0]),
        predictions=np.array([1, 1, 0, 0, 2]),
        probabilities=np.array([0.5, 1.0, 0.75, 1.0, 0.625]),
        class_names=NAMES,
    )
    shown = [axes for axes in figure.axes if axes.images]
    assert [int(axes.images[0].get_array()[0, 0]) for axes in shown] == [2, 4, 0]
    assert shown[0].get_title() == "bag, 75%\ntrue: shirt"
    assert shown[0].images[0].get_cmap().name == "gray"
    assert shown[0].images[0].get_clim() == (0, 255)  # not stretched to the image's own range


def test_mistakes_of_a_perfect_model_says_so():
    figure = class_predictions.mistakes_plot(
        np.zeros((2, 4, 4, 3), np.uint8), np.arange(2), np.arange(2), np.ones(2), NAMES
    )
    assert [text.get_text() for text in figure.texts] == ["No mistakes."]


# Report ------------------------------------------------------------------------------------------


def test_classification_report_is_what_scikit_learn_prints():
    made = made_up_predictions()
    expected = metrics.classification_report(
        made.labels, made.logits.argmax(axis=1), target_names=list(NAMES), digits=4
    )
    assert made.text() == expected


def test_examples_without_label_are_left_out_everywhere():
    made = made_up_predictions(missing=20)
    kept = ClassPredictions("test", made.logits[20:], made.labels[20:], NAMES, loss=0.5)
    assert made.metrics() == kept.metrics()
    assert made.metrics()["count"] == 40
    assert made.confusion_counts().sum() == 40
    assert made.text() == kept.text()


def test_summary_agrees_with_scikit_learn_where_classes_are_absent():
    # Class 3 is neither a label nor predicted, class 2 is never predicted.
    labels = np.array([0, 0, 0, 1, 1, 2], np.int32)
    logits = np.eye(4, dtype=np.float32)[[0, 0, 1, 1, 1, 0]]
    made = ClassPredictions("test", logits, labels, (*NAMES, "dress"), loss=0.25)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        precision, recall, f1, _ = metrics.precision_recall_fscore_support(
            labels, logits.argmax(axis=1), average="macro"
        )
    found = made.metrics()
    assert (found["correct"], found["count"], found["loss"]) == (4, 6, 0.25)
    assert found["accuracy"] == 4 / 6
    assert (
        found["macro precision"] == pytest.approx(precision) == pytest.approx((2 / 3 + 2 / 3) / 3)
    )
    assert found["macro recall"] == pytest.approx(recall)
    assert found["macro F1"] == pytest.approx(f1)
    assert found["weighted recall"] == pytest.approx(4 / 6)


def test_split_without_any_label_is_a_user_error():
    with pytest.raises(UserError, match="no example has a label"):
        made_up_predictions(missing=60).metrics()


def test_confusion_counts_are_scikit_learns():
    made = made_up_predictions()
    expected = metrics.confusion_matrix(made.labels, made.logits.argmax(axis=1))
    np.testing.assert_array_equal(made.confusion_counts(), expected)


def write(
    workdir: Path, heads: dict[str, ClassPredictions], images: Any = None, **changes: Any
) -> Path:
    own = {head: predicted.metrics() for head, predicted in heads.items()}
    params = {"conv": {"kernel": np.zeros((3, 3, 1, 12)), "bias": np.zeros(12)}}
    facts: dict[str, Any] = dict(
        title="Coats",
        metrics={"test": own if len(own) > 1 else own["label"]},
        predictions={"test": heads},
        shown={} if images is None else {"test": Shown(images)},
        history=HISTORY,
        directions=DIRECTIONS,
        params=params,
        unlabelled={},
    )
    return write_report(workdir, **facts | changes)


def attempt(command, commit="0123abc", **facts):
    """As run.json has it."""
    return {
        "started": "2026-03-01T12:00:00+00:00",
        "from_step": 0,
        "command": command,
        "commit": commit,
        "commit_is_clean": "source_diff" not in facts,
        "source_diff": None,
        "machine": {"cores": 2},
        "versions": {"jax": "0.10.2"},
        "devices": ["cpu:0", "cpu:1"],
        **facts,
    }


def test_report_says_what_was_run_and_what_came_out(tmp_path):
    record = {
        "document": "Somebody: Nets, 2022",
        "data": {"name": "digits"},
        "attempts": [
            attempt(["launch.py", "--experiment=coats", "--epochs=1"], "0123abc"),
            attempt(
                ["launch.py", "--experiment=coats"],
                "4567def",
                from_step=10,
                source_diff="source-89.diff",
                machine={"cpu": "a processor", "cores": 2},
            ),
            attempt(["launch.py", "--experiment=coats"], "unrelated", from_step=20),
        ],
        "steps": 20,
        "wall_seconds": 200.4,
        "seed": 3,
        "document_results": {"test accuracy": 0.8978},
    }
    (tmp_path / "run.json").write_text(json.dumps(record))
    (tmp_path / "config.json").write_text(json.dumps({"name": "coats"}))
    made = made_up_predictions()
    path = write(tmp_path, {"label": made}, np.zeros((60, 8, 8, 1), np.uint8))
    page = path.with_suffix(".md").read_text()
    assert path == tmp_path / "report" / "report.html"
    assert sorted(file.name for file in path.parent.iterdir()) == [
        "classification_report.txt",
        "confusion_matrix.csv",
        "confusion_matrix.png",
        "confusions.png",
        "curves.png",
        "label_ranking.csv",
        "mistakes",
        "mistakes.png",
        "reliability.png",
        "report.html",
        "report.md",
    ]
    text = made.text()
    assert (path.parent / "classification_report.txt").read_text() == text
    assert text in page
    for words in (
        "`launch.py --experiment=coats`",
        "- Commit: 0123abc; 4567def, with uncommitted changes (source-89.diff)\n",
        "- Machine: cores: 2; cpu: a processor, cores: 2\n",
        "3 min 20 s",
        "Seed: 3",
        "Experiment: coats",
        "Data: digits",
        "Devices: cpu:0, cpu:1",
    ):
        assert words in page
    rows = [[cell.strip() for cell in row.split("|")[1:-1]] for row in page.splitlines()]
    assert ["accuracy", f"{made.metrics()['accuracy']:.4f}", "0.8978"] in rows
    assert ["epoch", *("training loss", "validation loss")] == rows_of(rows, "epoch")[:3]
    assert ["1", "2.5000", "0.7500", "0.1000", "0.5000"] in rows
    assert ["conv/kernel", "3 x 3 x 1 x 12", "108"] in rows
    assert ["total", "", "120"] in rows
    matrix = made.confusion_counts()
    np.fill_diagonal(matrix, 0)
    assert rows[rows.index(rows_of(rows, "true class")) + 2][2] == str(matrix.max())


def rows_of(rows: list[list[str]], first_cell: str) -> list[str]:
    return next(row for row in rows if row and row[0] == first_cell)


def test_the_page_takes_what_the_data_calls_its_classes_for_text(tmp_path):
    strange = "<script>alert(1)</script> *a* [b](c) ![d](../../../etc/hostname.png) `e|f`"
    parts = ["# Title", markdown_table(["class", "times"], [[strange, "7"]]), f"![{strange}](no)"]
    page = write_page(tmp_path, parts, {"seed": 3}).read_text()
    assert "<script" not in page and "<em" not in page and "<img" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt; *a* [b](c)" in page
    assert (
        '<td style="text-align:right">7</td>' in page
        and '<th style="text-align:right">times</th>' in page
    )
    assert "&quot;seed&quot;: 3" in page


def test_large_pictures_are_made_smaller(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (400, 400, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    page = write_page(tmp_path, ["# Title", "![Noise](noise.png)"], {})
    assert '<img alt="Noise" width="267" height="267" src="data:image/webp;base64,' in (
        page.read_text()
    )
    assert page.stat().st_size < (tmp_path / "noise.png").stat().st_size
    assert "Config" not in page.read_text()


def test_several_heads_have_files_of_their_own(tmp_path):
    heads = {"material": made_up_predictions(), "brand": made_up_predictions(classes=5)}
    path = write(tmp_path, heads)
    names = {file.name for file in path.parent.iterdir()}
    assert {"confusion_matrix_material.png", "classification_report_brand.txt"} <= names
    assert "### brand, test split" in path.with_suffix(".md").read_text()


def test_a_head_whose_name_is_no_file_name(tmp_path):
    heads = {"Colour/Finish": made_up_predictions(), "Colour_Finish": made_up_predictions()}
    path = write(tmp_path, heads)
    names = {file.name for file in path.parent.iterdir()}
    both = {"confusion_matrix_Colour_Finish.png", "confusion_matrix_Colour_Finish-2.png"}
    assert both <= names
    assert all(f"({name})" in path.with_suffix(".md").read_text() for name in both)


def test_a_head_without_labels_in_a_split_is_left_out_and_said_so(tmp_path):
    heads = {"kind": made_up_predictions(), "brand": made_up_predictions(missing=60)}
    figures = {"kind": heads["kind"].metrics()}
    own = {head: made_up_predictions() for head in heads}
    path = write(tmp_path, own, metrics={"test": figures}, predictions={"test": heads})
    page = path.with_suffix(".md").read_text()
    assert "### brand, test split\n\nNo image of this split has a label of this head" in page
    assert not list(path.parent.glob("*brand*"))


def test_what_data_calls_things_is_no_formula_in_figures():
    pixels = np.zeros((4, 8, 8, 1), np.uint8)
    labels, said = np.array([0, 0, 1, 1]), np.array([1, 0, 0, 1])
    odd = ("a$_$b", "$\\nothing$")
    shares = np.full((2, 2), 0.5)
    epoch = {"epoch": 1, "train": {"loss": 1.0, "a$_$b accuracy": 1.0}, "validation": {}}
    predicted = Prediction(odd[0], {odd[0]: Answer(odd[1], {}, {})}, pixels[0], np.array([0]))
    for figure in (
        confusion.confusion_matrix_plot(np.array([[1, 1], [1, 1]]), odd),
        class_predictions.mistakes_plot(pixels, labels, said, np.ones(4), odd),
        confusion.confusions_plot(pixels, labels, said, [(0, 1), (1, 0)], odd),
        predictions_plot(
            [predicted], SimpleNamespace(titled=lambda index: (pixels[0], odd[0])), {}
        ),
        estimates_plot(shares[0], shares[1], odd[0], 0.5),
        named_pixels_plot(np.zeros((4, 4, 3), np.uint8), np.array([[0, 1]]), odd),
        discarded_plot(pixels, np.zeros(4, int), odd[:1], np.zeros(4)),
        plots.training_curves([epoch], DIRECTIONS),
        plots.compared_curves({odd[0]: [by_epoch(HISTORY)]}, DIRECTIONS),
    ):
        figure.savefig(io.BytesIO(), format="png")


def test_a_command_with_a_path_that_is_no_text(tmp_path):
    record = {"attempts": [attempt(["launch.py", "--data.path=fotos_\udce9"])]}
    (tmp_path / "run.json").write_text(json.dumps(record))
    (tmp_path / "config.json").write_text(json.dumps({"data": {"path": "fotos_\udce9"}}))
    path = write(tmp_path, {"label": made_up_predictions()})
    for page in (path, path.with_suffix(".md")):
        assert "--data.path=fotos_\\xe9" in page.read_text(encoding="utf-8")


def test_report_that_fails_leaves_the_earlier_one_whole(tmp_path):
    path = write(tmp_path, {"label": made_up_predictions()})
    before = {file.name: file.read_bytes() for file in path.parent.iterdir()}
    with pytest.raises(UserError, match="7 images but 60 predictions"):
        write(tmp_path, {"label": made_up_predictions()}, np.zeros((7, 8, 8, 1), np.uint8))
    assert {file.name: file.read_bytes() for file in path.parent.iterdir()} == before
    # And a first one that fails leaves nothing that looks like a report.
    with pytest.raises(UserError):
        write(tmp_path / "new", {"label": made_up_predictions()}, np.zeros((7, 8, 8, 1), np.uint8))
    assert not (tmp_path / "new" / "report").exists()


def test_report_is_replaced_as_a_whole(tmp_path):
    write(tmp_path, {"label": made_up_predictions()}, np.zeros((60, 8, 8, 1), np.uint8))
    path = write(tmp_path, {"label": made_up_predictions()})
    assert not (path.parent / "mistakes.png").exists()
    assert [file.name for file in tmp_path.iterdir()] == ["report"]


# Tables over runs --------------------------------------------------------------------------------


def make_run(folder: Path, *, accuracy: float | None, seed: int = 0, **config: Any) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(
        json.dumps({"name": "coats", "seed": seed, "epochs": 10, **config})
    )
    record = {
        "document": "Somebody: Nets, 2022",
        "attempts": [attempt(["launch.py", f"--seed={seed}"])],
        **({} if accuracy is None else {"wall_seconds": 10.0 + seed}),
        "document_results": {"test accuracy": 0.8978, "macro F1": 0.899302},
    }
    (folder / "run.json").write_text(json.dumps(record))
    if accuracy is not None:
        test = {"loss": 0.5, "accuracy": accuracy, "macro F1": accuracy - 0.1, "count": 100}
        evaluation = {
            **{"step": 400, "metric_directions": DIRECTIONS},
            **{"test": test, "validation": {"accuracy": 0.99}},
        }
        (folder / "evaluation.json").write_text(json.dumps(evaluation))
    return folder


def table(text: str) -> list[list[str]]:
    return [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in text.splitlines()
        if line.startswith("|")
    ]


def test_runs_are_grouped_by_config_without_its_seed(tmp_path, capsys):
    # 0.88, 0.90, 0.92: mean 0.90, deviation with n - 1 exactly 0.02.
    runs = [
        make_run(tmp_path / f"run{seed}", seed=seed, accuracy=accuracy)
        for seed, accuracy in enumerate((0.88, 0.90, 0.92))
    ]
    other = make_run(tmp_path / "other", accuracy=0.75, optimizer={"learning_rate": 0.01})
    assert main([*map(str, runs), str(other), str(runs[0])]) == 0
    header, _, *rows = table(capsys.readouterr().out)
    assert header == ["experiment", "runs", "loss", "accuracy", "macro F1", "time per run"]
    assert rows == [
        ["coats", "3", "0.5000 ± 0.0000", "0.9000 ± 0.0200", "0.8000 ± 0.0200", "11.0 s"],
        ["- reported by the document", "", "", "0.8978", "0.8993", ""],
        ["coats (optimizer.learning_rate=0.01)", "1", "0.5000", "0.7500", "0.6500", "10.0 s"],
        ["- reported by the document", "", "", "0.8978", "0.8993", ""],
    ]


def test_tables_of_runs_on_paths_that_are_no_text(tmp_path, capsys):
    runs = [make_run(tmp_path / end, accuracy=0.5, path=f"fotos_{end}") for end in ("\udce9", "b")]
    log = tmp_path / "log.md"
    assert main([*map(str, runs), f"--output={log}"]) == 0
    assert "path=fotos_\\xe9" in capsys.readouterr().out
    assert "path fotos_\\xe9 -> fotos_b" in log.read_text()


def test_unfinished_run_is_listed_and_no_error(tmp_path, capsys):
    done = make_run(tmp_path / "done", accuracy=0.5)
    running = make_run(tmp_path / "running", accuracy=None, seed=1)
    (running / "metrics.jsonl").write_text('{"step": 40, "split": "train"}\n{"step": 41, "sp')
    assert main([str(done), str(running)]) == 0
    printed = capsys.readouterr()
    assert f"unfinished: {running} (step 40)" in printed.err
    assert [row[1] for row in table(printed.out)[2:]] == ["1", ""]


def test_same_seed_twice_is_said(tmp_path, capsys):
    runs = [make_run(tmp_path / name, accuracy=0.5) for name in "ab"]
    assert main([str(run) for run in runs]) == 0
    assert "same seed [0, 0]" in capsys.readouterr().err


def test_folders_without_a_run_among_others_are_left_out_of_the_table(tmp_path, capsys):
    """As `runs/*` has them: a run that failed on its data, a file, a damaged config."""
    done = make_run(tmp_path / "done", accuracy=0.5)
    (tmp_path / "failed").mkdir()
    (tmp_path / "failed" / ".lock").touch()
    (tmp_path / "notes.txt").touch()
    (make_run(tmp_path / "damaged", accuracy=0.5) / "config.json").write_text("{")
    assert main([*map(str, tmp_path.iterdir())]) == 0
    told = capsys.readouterr()
    assert [row[0] for row in table(told.out)[2:]] == ["coats", "- reported by the document"]
    said = sorted(told.err.splitlines())
    assert [line.split()[1] for line in said] == [
        str(tmp_path / name) for name in ("damaged", "failed", "notes.txt")
    ]
    assert all(line.startswith("skipped: ") for line in said)
    assert main([str(tmp_path / "damaged"), str(tmp_path / "failed")]) == 2
    assert main([str(done), str(tmp_path / "absent")]) == 2


def test_an_export_in_a_runs_folder_is_no_run(tmp_path, capsys):
    done, pipeline = make_run(tmp_path / "done", accuracy=0.5), tmp_path / "pipeline"
    make_run(pipeline, accuracy=None, name="palette")
    make_run(pipeline / "training", accuracy=0.75, name="palette/training")
    record = {"stages": ["training"], "finished": "2026-03-01T12:00:00+00:00"}
    (pipeline / "run.json").write_text(json.dumps(record))
    for run in (done, pipeline):
        (run / "export").mkdir()
        (run / "export" / "config.json").write_text((run / "config.json").read_text())
    assert main([str(done), str(pipeline)]) == 0
    told = capsys.readouterr()
    assert [row[0] for row in table(told.out)[2::2]] == ["coats", "palette/training"]
    assert told.err == ""


@pytest.mark.parametrize("name", ["absent", "folder"])
def test_path_that_is_no_run_is_one_line_and_exit_2(tmp_path, capsys, name):
    (tmp_path / "folder").mkdir()
    assert main([str(tmp_path / name)]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    assert f"{tmp_path / name} is not a run folder" in printed.err


def test_output_holds_what_repeats_the_figures(tmp_path):
    runs = [
        make_run(tmp_path / f"run{seed}", seed=seed, accuracy=accuracy)
        for seed, accuracy in enumerate((0.88, 0.90, 0.92))
    ]
    path = tmp_path / "results" / "coats_cnn.json"
    assert main([*map(str, reversed(runs)), f"--output={path}"]) == 0
    results = json.loads(path.read_text())
    assert results["name"] == "coats_cnn"
    assert results["seeds"] == [0, 1, 2]
    assert results["command"] == [["launch.py", f"--seed={seed}"] for seed in range(3)]
    assert (results["commit"], results["machine"]) == ("0123abc", {"cores": 2})
    assert (results["date"], results["wall_seconds"]) == ("2026-03-01", 33.0)
    assert results["wall_seconds_of_runs"] == [10.0, 11.0, 12.0]
    assert "seed" not in results["config"]
    accuracy = results["figures"]["accuracy"]
    assert accuracy["values"] == [0.88, 0.90, 0.92]
    assert (accuracy["mean"], accuracy["std"]) == (pytest.approx(0.90), pytest.approx(0.02))
    assert results["figures"]["validation accuracy"]["mean"] == pytest.approx(0.99)


def test_output_of_several_configs_is_refused(tmp_path, capsys):
    first = make_run(tmp_path / "first", accuracy=0.5)
    second = make_run(tmp_path / "second", accuracy=0.5, width=3)
    path = tmp_path / "results.json"
    assert main([str(first), str(second), f"--output={path}"]) == 2
    assert "one config, not of 2" in capsys.readouterr().err
    assert not path.exists()


# The log of changes ------------------------------------------------------------------------------


def make_series(folder: Path) -> list[str]:
    """Three configs, the first and last of two seeds; the names sort otherwise."""
    folder.mkdir()
    net = {"class": "ConvNet", "features": [12, 24], "dropout": 0.0}
    model = {"wider": {**net, "features": [24, 48]}, "other": {"class": "MLP", "dense": [9]}}
    runs = [
        make_run(folder / "base-0", seed=0, accuracy=0.50, model=net, batch_size=32),
        make_run(folder / "base-1", seed=1, accuracy=0.52, model=net, batch_size=32),
        make_run(folder / "b", accuracy=0.625, model=model["wider"], batch_size=32, optimizer={
            "class": "Optimizer", "name": "=adam"}),
        make_run(folder / "a", accuracy=0.25, model=model["other"], batch_size=128),
    ]  # fmt: skip
    for run in runs:
        record = json.loads((run / "run.json").read_text())
        record |= {"parameters": 122570, "data": {"name": "=cifar10"}}
        (run / "run.json").write_text(json.dumps(record))
    return [str(run) for run in runs]


CHANGES = [
    None,
    "model.features 12 24 -> 24 48; optimizer absent -> Optimizer",
    "model ConvNet -> MLP; batch_size 32 -> 128",
]


def test_log_has_a_row_per_config_in_the_order_given(tmp_path, capsys):
    path = tmp_path / "logs" / "log.md"
    assert main([*make_series(tmp_path / "runs"), f"--output={path}"]) == 0
    header, _, *rows = table(path.read_text())
    assert header == [
        *("experiment", "change", "validation accuracy", "test accuracy", "document: accuracy"),
        *("gain", "epochs", "parameters", "runs", "time per run", "data"),
    ]
    assert [row[1] or None for row in rows] == CHANGES
    assert rows[0][2:] == [
        *("0.9900 ± 0.0000 (best 0.9900)", "0.5100 ± 0.0141 (best 0.5200)", "0.8978"),
        *("+0.0000", "10", "122,570", "2", "10.5 s", "=cifar10"),
    ]
    assert [row[5] for row in rows[1:]] == ["+0.1150", "-0.2600"]


@pytest.mark.parametrize("model", [{}, {"model": {"class": "Gone"}}], ids=["read", "unreadable"])
def test_a_field_that_one_version_lacked_is_no_change(model, tmp_path):
    config = to_dict(lookup("digits_cnn").experiment()) | model
    older = copy.deepcopy(config)
    del older["evaluation"]["shift"], older["sampling"]
    runs = [
        make_run(tmp_path / "a", accuracy=0.5, **older),
        make_run(tmp_path / "b", accuracy=0.5, **config | {"epochs": 99}),
    ]
    log = change_log(group_runs(map(read_run, runs)))
    assert log["change"][1] == f"epochs {config['epochs']} -> 99"


def test_log_as_csv_holds_the_numbers(tmp_path, capsys):
    path = tmp_path / "log.csv"
    assert main([*make_series(tmp_path / "runs"), f"--output={path}"]) == 0
    first, second, third = csv.DictReader(io.StringIO(path.read_text()))
    assert float(first["test accuracy"]) == 0.51
    assert float(first["test accuracy std"]) == pytest.approx(0.02 / math.sqrt(2))
    assert float(second["gain"]) == pytest.approx(0.115)
    assert (second["change"], third["change"]) == (CHANGES[1], CHANGES[2])
    assert float(first["test accuracy best"]) == 0.52
    assert third["test accuracy std"] == third["test accuracy best"] == ""


@pytest.mark.parametrize(
    ("directions", "name", "expected"),
    [
        (Classification().directions, "loss", 0.2),
        (Classification().directions, "macro F1", 0.6),
        (MultiHead().directions, "macro recall", 0.6),
        (Regression().directions, "R2", 0.6),
        (Regression().directions, "RMSE", 0.2),
        (Histogram().directions, "overlap", 0.6),
        (Histogram().directions, "gap closed", 0.6),
        ({"inception score": "maximize"}, "inception score", 0.6),
        ({"loss": "minimize"}, "colours", None),
    ],
)
def test_what_is_best_over_seeds_is_what_the_runs_task_declares(
    directions, name, expected, tmp_path
):
    runs = [make_run(tmp_path / str(n), seed=n, accuracy=0.5) for n in range(3)]
    for value, run in zip((0.2, 0.6, 0.4), runs, strict=True):
        evaluation = {"metric_directions": directions, "test": {name: value}}
        (run / "evaluation.json").write_text(json.dumps(evaluation))
    log = change_log(group_runs(map(read_run, runs)))
    assert log[f"{name} best"][0] == expected


def test_a_sweeps_folder_stands_for_its_runs_in_its_order(tmp_path, capsys):
    (tmp_path / "runs").mkdir()
    for number, name in enumerate(("b", "a", "c")):
        make_run(tmp_path / "runs" / name, accuracy=0.5 + number / 8, width=number)
    listed = [{"name": name} for name in ("b", "a", "c")]
    (tmp_path / "sweep.json").write_text(json.dumps({"runs": listed}))
    assert run_folders(tmp_path) == [tmp_path / "runs" / name for name in ("b", "a", "c")]
    path = tmp_path / "log.csv"
    assert main([str(tmp_path), f"--output={path}"]) == 0
    changes = [row["change"] for row in csv.DictReader(io.StringIO(path.read_text()))]
    assert changes == ["", "width 0 -> 1", "width 0 -> 2"]
    (tmp_path / "empty").mkdir()
    assert main([str(tmp_path / "empty")]) == 2
    assert "contains none: it has no config.json" in capsys.readouterr().err


def test_a_finished_pipeline_gallery_or_training_without_test_data_is_not_unfinished(
    tmp_path, capsys
):
    pipeline, gallery, alone = (
        make_run(tmp_path / name, accuracy=None) for name in ("pipeline", "gallery", "alone")
    )
    for stage, accuracy in (("pretraining", 0.25), ("training", 0.75)):
        make_run(pipeline / stage, accuracy=accuracy, name=f"palette/{stage}")
    record = {"stages": ["pretraining", "training"], "finished": "2026-03-01T12:00:00+00:00"}
    (pipeline / "run.json").write_text(json.dumps(record))
    (gallery / "report").mkdir()
    (gallery / "report" / "report.html").write_text("pictures")
    (alone / "run.json").write_text('{"wall_seconds": 9.5}')
    assert main([str(pipeline), str(gallery), str(alone)]) == 0
    told = capsys.readouterr()
    assert [row[0] for row in table(told.out)[2::2]] == ["palette/pretraining", "palette/training"]
    assert told.err.splitlines() == [
        f"no metrics: {gallery} (its page is {gallery / 'report' / 'report.html'})",
        f"no metrics: {alone} (it was trained, but not evaluated)",
    ]
    # A stopped one says how far it has come.
    (pipeline / "run.json").write_text(json.dumps({**record, "finished": None}))
    assert main([str(pipeline)]) == 0
    assert capsys.readouterr().err == f"unfinished: {pipeline} (2 stages complete)\n"


def test_log_as_html_has_the_table_and_a_line_per_config_in_one_file(tmp_path, monkeypatch):
    runs = [
        make_run(tmp_path / f"{width}-{seed}", seed=seed, accuracy=0.5, width=width)
        for width in (1, 2)
        for seed in (0, 1)
    ]
    for number, run in enumerate(runs):
        row = {"step": 10, "epoch": 1.0, "split": "validation", "accuracy": number / 4}
        rows = [row, {**row, "step": 20, "epoch": 2.0, "accuracy": 1.0}]
        (run / "metrics.jsonl").write_text("".join(json.dumps(each) + "\n" for each in rows))
    drawn, original = [], plots.compared_curves
    monkeypatch.setattr(
        plots, "compared_curves", lambda *given: drawn.append(original(*given)) or drawn[0]
    )
    path = tmp_path / "log.html"
    assert main([*map(str, runs), f"--output={path}"]) == 0
    page = path.read_text()
    assert "width 1 -&gt; 2" in page and page.count("data:image") == 1
    _, accuracy = drawn[0].axes
    # Means over seeds: (0 + 0.25) / 2 and (0.5 + 0.75) / 2 in the first epoch.
    assert [list(line.get_ydata()) for line in accuracy.lines] == [[0.125, 1.0], [0.625, 1.0]]
    assert accuracy.get_title(loc="left") == "Accuracy in validation"


def test_log_as_xlsx_opens_as_a_sheet_of_numbers(tmp_path, capsys):
    path = tmp_path / "log.xlsx"
    assert main([*make_series(tmp_path / "runs"), f"--output={path}"]) == 0
    sheet = openpyxl.load_workbook(path).active
    header, *rows = ([cell.value for cell in row] for row in sheet.iter_rows())
    assert len(rows) == 3 and header[:3] == ["experiment", "change", "validation accuracy"]
    assert [row[1] for row in rows] == CHANGES
    column = header.index("test accuracy")
    assert [row[column] for row in rows] == [pytest.approx(v) for v in (0.51, 0.625, 0.25)]
    assert sheet.cell(2, column + 1).number_format == "0.0000"
    assert sheet.cell(2, header.index("parameters") + 1).value == 122570
    # A text that looks like a formula is a text.
    data = sheet.cell(2, header.index("data") + 1)
    assert (data.value, data.data_type) == ("=cifar10", "s")
    assert sheet.freeze_panes == "B2" and sheet.auto_filter.ref == sheet.dimensions
    widths = [d.width for _, d in sorted(sheet.column_dimensions.items())]
    assert all(10 < width <= WIDEST_COLUMN + 3 for width in widths[:4])
    assert not list(tmp_path.glob("*.tmp"))


def test_log_of_several_heads_has_columns_for_each_and_one_of_losses_has_them_too(tmp_path):
    runs = [make_run(tmp_path / name, accuracy=0.5, width=len(name)) for name in ("a", "bb")]
    for number, run in enumerate(runs):
        figures = {head: {"accuracy": 0.5 + number / 8} for head in ("material", "brand")}
        (run / "evaluation.json").write_text(json.dumps({"test": figures, "validation": figures}))
    log = change_log(group_runs(map(read_run, runs)))
    assert [*log.columns[2:6]] == [
        *("validation material accuracy", "test material accuracy"),
        *("validation brand accuracy", "test brand accuracy"),
    ]
    assert [*log.iloc[1, 1:6]] == ["width 1 -> 2", 0.625, 0.625, 0.625, 0.625]
    for run in runs:
        (run / "evaluation.json").write_text(json.dumps({"test": {"loss": 2.0, "count": 7}}))
    log = change_log(group_runs(map(read_run, runs)))
    assert [*log.columns[2:4]] == ["loss", "epochs"]


@pytest.mark.parametrize(
    "name, accuracy, said, code",
    [
        ("log.ods", 0.5, "must end in .md, .csv, .xlsx, .html, .json", 2),
        ("log.xlsx", None, "no run is finished", 2),
        ("file/log.xlsx", 0.5, "File exists", 1),
    ],
)
def test_log_that_cannot_be_written_is_one_line(tmp_path, capsys, name, accuracy, said, code):
    (tmp_path / "file").write_text("")
    run = make_run(tmp_path / "run", accuracy=accuracy)
    assert main([str(run), f"--output={tmp_path / name}"]) == code
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("error: ") and said in last


# README ------------------------------------------------------------------------------------------

README = """# Title
<!-- table: accuracy -->
old
<!-- end -->
between
<!-- table: speed -->
<!-- end -->
<!-- table: robustness -->
<!-- end -->
after
"""


def test_readme_tables_come_from_the_results(tmp_path, capsys):
    runs = [
        make_run(tmp_path / f"run{seed}", seed=seed, accuracy=accuracy)
        for seed, accuracy in enumerate((0.88, 0.90, 0.92))
    ]
    main([*map(str, runs), f"--output={tmp_path / 'results' / 'coats.json'}"])
    capsys.readouterr()
    speed = {
        "milliseconds_a_step": {"jax": {"median": 10.0}, "eager": {"median": 15.0}},
        "best_of_pytorch": "eager",
        "times_as_fast": {"median": 1.5, "min": 1.4, "max": 1.625},
        "pytorch_with_kept_memory": {"times_as_fast": {"median": 0.9}},
    }
    (tmp_path / "results" / "train_speed.json").write_text(
        json.dumps({"figures": {"models": {"cnn": speed}}})
    )
    rows = [
        {"what": "kill -9", "target": "bit-equal", "measured": "20 of 20", "met": True},
        {"what": "start", "target": "1 s", "measured": "1.2 s", "met": False},
        {"model": "a row of another kind"},
    ]
    (tmp_path / "results" / "kill.json").write_text(json.dumps({"rows": rows}))
    (tmp_path / "README.md").write_text(README)
    assert readme_tables.main(["--check"], tmp_path) == 1
    assert (tmp_path / "README.md").read_text() == README
    assert readme_tables.main([], tmp_path) == 0
    text = (tmp_path / "README.md").read_text()
    assert ["coats", "3", "0.8978", "0.9000 ± 0.0200", "", "", "0.8000 ± 0.0200", "10.0 s"] in (
        table(text)
    )
    assert ["cnn", "10.0", "15.0 (eager)", "1.50 (1.40 to 1.62)", "0.90"] in table(text)
    assert table(text)[-2] == ["kill -9", "bit-equal", "20 of 20"]
    assert table(text)[-1] == ["start", "1 s", "1.2 s (missed)"]
    assert "old" not in text and "\nbetween\n" in text and text.endswith("\nafter\n")
    assert readme_tables.main(["--check"], tmp_path) == 0
    # A hand that mends a number in the README is found out.
    (tmp_path / "README.md").write_text(text.replace("0.9000", "0.9900"))
    assert readme_tables.main(["--check"], tmp_path) == 1


def test_readme_has_the_changes_to_the_exercise_in_a_table_of_their_own(tmp_path):
    for name, accuracy in (("cifar10_exercise", 0.7), ("cifar10_exercise_wider", 0.75)):
        run = make_run(tmp_path / name, accuracy=accuracy, width=len(name))
        config = json.loads((run / "config.json").read_text()) | {"name": name}
        (run / "config.json").write_text(json.dumps(config))
        file = name.replace("cifar10", "cifar10_jpeg")
        main([str(run), f"--output={tmp_path / 'results' / file}.json"])
    readme = "".join(
        f"<!-- table: {name} -->\n<!-- end -->\n" for name in ("cifar10_changes", "accuracy")
    )
    (tmp_path / "README.md").write_text(readme)
    assert readme_tables.main([], tmp_path) == 0
    rows = [row[:6] for row in table((tmp_path / "README.md").read_text()) if "cifar10" in row[0]]
    assert rows[:2] == [
        ["cifar10_exercise", "", "0.9900", "0.7000", "0.8978", "+0.0000"],
        ["cifar10_exercise_wider", "width 16 -> 22", "0.9900", "0.7500", "0.8978", "+0.0500"],
    ]
    assert not rows[2:]


def test_the_table_of_documents_has_what_was_measured_in_two_languages(tmp_path):
    (tmp_path / "results").mkdir()
    measured = {
        "fashion_mnist_cnn": {
            "document": "Somebody: Nets, 2022",
            "document_results": {"test accuracy": 0.8978},
            "figures": {"accuracy": {"values": [0.88, 0.92]}},
        },
        "palettes": {"figures": {"pixels": {"ratio to k-means in Lab": 1.05}}, "rows": []},
        "colour_names": {
            "figures": {"test accuracy of each round": {"0.0": [[0.5, 0.6], [0.5, 0.7]]}}
        },
    }
    for name, result in measured.items():
        (tmp_path / "results" / f"{name}.json").write_text(json.dumps(result))
    for page, name in (("README.md", "documents"), ("README.es.md", "documentos")):
        (tmp_path / page).write_text(f"<!-- table: {name} -->\n<!-- end -->\n")
    assert readme_tables.main(["--check"], tmp_path) == 1
    assert readme_tables.main([], tmp_path) == 0
    english, spanish = (table((tmp_path / p).read_text()) for p in ("README.md", "README.es.md"))
    assert ["`fashion_mnist_cnn`", "test accuracy", "0.8978", "0.9000 ± 0.0283"] in (
        [row[1:] for row in english]
    )
    assert ["`palette`", "colour error, times k-means'", "", "1.050"] in [r[1:] for r in english]
    assert ["`colour_names`", "exactitud balanceada, 11 nombres", "", "0.6500 ± 0.0707"] in (
        [row[1:] for row in spanish]
    )
    named = [row[1] for row in english if row[1].startswith("`")]
    assert named == [row[1] for row in spanish if row[1].startswith("`")]
    assert "`features`" in named and "`fashion_mnist_mlp`" not in named


def test_a_table_without_results_says_so(tmp_path):
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "results.md").write_text("<!-- table: painters -->\n<!-- end -->\n")
    assert readme_tables.main([], tmp_path) == 0
    assert "Not measured yet" in (tmp_path / "docs" / "results.md").read_text()


@pytest.mark.parametrize(
    "text, said",
    [
        ("<!-- table: acuracy -->\n<!-- end -->", "no table is named 'acuracy'"),
        ("<!-- table: accuracy -->\n", "has its '<!-- end -->'"),
    ],
)
def test_readme_with_a_wrong_marker_is_a_usage_error(tmp_path, capsys, text, said):
    (tmp_path / "README.md").write_text(text)
    assert readme_tables.main([], tmp_path) == 2
    assert said in capsys.readouterr().err


@pytest.mark.skipif(not (readme_tables.ROOT / "README.md").exists(), reason="no README yet")
def test_readme_of_this_project_is_up_to_date():
    assert readme_tables.main(["--check"]) == 0


def test_studies_are_averaged_over_both_directions():
    study = {"shifts": [-2, -1, 0, 1, 2], "accuracy": {"max": [[0.1, 0.2, 0.9, 0.4, 0.5]] * 2}}
    still = {"shifts": [0], "accuracy": {"min": [[0.8]]}}
    results = {"translation": {"figures": {"study": study}}, "types": {"figures": {"study": still}}}
    header, _, *rows = table(readme_tables.studies(results))
    assert header[3:] == ["test accuracy", "shifted by 2", "shifted by 4", "shifted by 8"]
    assert rows == [
        ["translation", "max", "2", "0.9000 ± 0.0000", "0.3000 ± 0.0000", "", ""],
        ["types", "min", "1", "0.8000", "", "", ""],
    ]
