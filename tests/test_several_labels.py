"""Several labels an image: tables of them, the task, and what a run answers."""

from __future__ import annotations

import dataclasses
import itertools
import json
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pandas
import pytest
from PIL import Image
from scipy.special import expit
from sklearn import metrics

from cnn_research.cli import fields
from cnn_research.cli.run import run
from cnn_research.core import run_folder as folders
from cnn_research.core.errors import UsageError, UserError
from cnn_research.core.experiment import lookup
from cnn_research.data.dataset import Dataset
from cnn_research.data.sources.label_sets import labels_in, meaning_of, separator_of
from cnn_research.data.sources.survey import survey
from cnn_research.data.sources.table import ImageTable
from cnn_research.inference.exported import open_export
from cnn_research.models.convnet import ConvNet
from cnn_research.report.pictures import Shown
from cnn_research.tasks.calibration import FEWEST
from cnn_research.tasks.classification import Classification
from cnn_research.tasks.decode import answers_of
from cnn_research.tasks.label_predictions import LabelPredictions, best_threshold
from cnn_research.tasks.several_labels import SeveralLabels
from cnn_research.train.config import Selection, Training
from cnn_research.train.optimizers import Optimizer
from cnn_research.train.transfer import Transfer

# Tables ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cell", "separator", "expected"),
    [
        ("red; shoe;;red", ";", ("red", "shoe")),
        ("", ";", ()),
        ('"a;b";c', ";", ("a;b", "c")),
        ("['red', 'blue, dark']", ",", ("red", "blue, dark")),
        ('["red", "blue"]', ";", ("red", "blue")),
        ("[red, blue]", ",", ("red", "blue")),
        ("red || blue", "||", ("red", "blue")),
        ("16 0 7", " ", ("16", "0", "7")),
        ("{'red', 'blue'}", ",", ("blue", "red")),
        ("('red',)", ",", ("red",)),
        ("('red')", ",", ("red",)),
        ("['red' 'dark blue']", " ", ("red", "dark blue")),
        ("{red,blue}", ",", ("red", "blue")),
        ("(a) red;(b)", ";", ("(a) red", "(b)")),
    ],
)
def test_cells_of_labels(cell, separator, expected):
    assert labels_in(cell, separator) == expected


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        (["cat", "dog", "cat|dog", ""], "|"),
        (["; ".join(each) for each in itertools.product("ABC", "xyz", "12")], ";"),
        (["['cat']", "['dog', 'cat']"], ","),
        (["[cat]", "[dog]"], ""),
        (["、".join(each) for each in itertools.product("ABC", "xyz", "12")], "、"),
        (["/".join(each) for each in itertools.product("ABC", "xyz", "12")], "/"),
        (["/".join(each) for each in itertools.product("1234", "567", ["2024"])], ""),
        ([f"{day}.2. {hour}:30" for day in range(9) for hour in range(9)], ""),
        ([" ".join(each) for n in (1, 2, 3) for each in itertools.combinations("abcd", n)], " "),
        (["Paris, France", "Lyon, France", "Nice, France"], ""),
        ([f"{tone} {hue}" for tone in ("dark", "pale") for hue in ("red", "blue", "green")], ""),
        ([f"{a},{b}" for a in range(10) for b in range(10)], ""),
        (["cat", "dog"], ""),
        ([""], ""),
    ],
)
def test_a_separator_is_recognised_only_where_labels_recombine(cells, expected):
    assert separator_of(pandas.Series(cells)) == expected


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({"a": "110", "b": "101"}, "labels"),
        ({"a": "100", "b": "010", "c": "001"}, "classes"),
        ({"a": "120", "b": "101"}, "heads"),
        ({"a": "000", "b": "000"}, "heads"),
        ({"a": "110"}, "heads"),
        ({"a": ["1", "-1"], "b": ["-1", "-1"]}, "labels"),
        ({"a": ["1", "-1"], "b": ["-1", "0"]}, "heads"),
        ({"a": ["True", ""], "b": ["true", "FALSE"]}, "labels"),
        ({"a": "Y", "b": "n"}, "classes"),
        ({"a": "xy", "b": "yx"}, "heads"),
        ({"a": ["x", "X"], "b": ["", "x"]}, "labels"),
    ],
)
def test_columns_of_0_and_1_are_recognised(columns, expected):
    assert meaning_of(pandas.DataFrame({k: list(v) for k, v in columns.items()})) == expected


def write_table(root: Path, rows: list[dict[str, object]], home: str = "") -> str:
    """A table of the rows, each with an image, which is red and bright if its tags say so; names
    begin with `home`."""
    root.mkdir(exist_ok=True)
    for number, row in enumerate(rows):
        tags, rng = str(row.get("tags", "")), np.random.default_rng(number)
        pixels = rng.integers(0, 60, (16, 16, 3), np.uint8)
        pixels[..., 0] += 120 * ("red" in tags)
        pixels[:8] += 70 * ("bright" in tags)
        Image.fromarray(pixels).save(root / f"{number}.png")
        row["image"] = f"{home}{number}.png"
    pandas.DataFrame(rows).to_csv(root / "t.csv", index=False)
    return str(root / "t.csv")


def tagged(count: int) -> list[dict[str, object]]:
    return [{"tags": ("red", "bright", "red;bright", "")[number % 4]} for number in range(count)]


def load(path: str, *label: str, **options) -> Dataset:
    return ImageTable(path=path, image_size=(8, 8), label=label, **options).load()


@pytest.fixture(autouse=True)
def own_data(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "data"))


def test_cells_and_columns_come_to_the_same_sets(tmp_path):
    rows = tagged(40)
    rows = [{**r, "red": int("red" in r["tags"]), "bright": int("bri" in r["tags"])} for r in rows]
    path = write_table(tmp_path / "t", rows)
    in_cells = load(path, "tags", separator=";")
    in_columns = load(path, "bright", "red", columns="labels")
    assert in_cells.class_names == {"tags": ("bright", "red")}
    assert in_columns.class_names == {"label": ("bright", "red")}
    for name, split in in_cells.splits.items():
        (labels,), (others,) = split.labels.values(), in_columns.splits[name].labels.values()
        assert labels.dtype == np.int8 and labels.shape == (len(split), 2)
        np.testing.assert_array_equal(labels, others)
        assert [in_cells.label(split, "tags", at) for at in range(len(split))] == [
            "; ".join(sorted(filter(None, rows[int(file.split(".")[0])]["tags"].split(";"))))
            or "none"
            for file in map(str, split.names)
        ]
    # Each label is in the splits in proportion.
    shares = [split.labels["tags"].mean(axis=0) for split in in_cells.splits.values()]
    np.testing.assert_allclose(shares, 0.5, atol=0.26)
    assert in_cells.provenance["rows_without_labels"] == 10


def test_every_image_may_have_as_many_labels(tmp_path):
    cells = [("red;new", "red;old", "blue;new", "blue;old")[number % 4] for number in range(24)]
    path = write_table(tmp_path / "t", [{"tags": cell} for cell in cells])
    dataset = load(path, "tags", separator=";")
    assert dataset.class_names == {"tags": ("blue", "new", "old", "red")}
    assert (dataset.splits["train"].labels["tags"].sum(axis=1) == 2).all()


def test_columns_with_one_1_are_classes(tmp_path):
    rows = [{"cat": number % 2, "dog": 1 - number % 2} for number in range(20)]
    path = write_table(tmp_path / "t", rows)
    dataset = load(path, "cat", "dog", columns="classes")
    assert dataset.class_names == {"label": ("cat", "dog")}
    assert dataset.splits["train"].labels["label"].ndim == 1
    rare = [{**row, "bird": 0} for row in rows]
    rare[0] = {"cat": 0, "dog": 0, "bird": 1}
    path = write_table(tmp_path / "rare", rare)
    common = load(path, "cat", "dog", "bird", columns="classes", min_examples=2)
    assert common.class_names == {"label": ("cat", "dog")}
    assert sum(map(len, common.splits.values())) == 19
    rows[3] |= {"cat": 1, "dog": 1}
    path = write_table(tmp_path / "u", rows)
    with pytest.raises(
        UserError, match=r"row 4 has a 1 in 2 of the columns cat, dog, and 1 rows have"
    ):
        load(path, "cat", "dog", columns="classes")


@pytest.mark.parametrize(
    ("cells", "wrong"),
    [
        (["red"] * 20, "others lack \\(every row has red\\): there is nothing to learn"),
        ([""] * 20, "others lack \\(there is none\\)"),
    ],
)
def test_labels_that_tell_nothing_apart_are_refused(tmp_path, cells, wrong):
    path = write_table(tmp_path / "t", [{"tags": cell} for cell in cells])
    with pytest.raises(UserError, match=f"column 'tags' has no label that 1 or more rows.*{wrong}"):
        load(path, "tags", separator=";")


def test_a_separator_that_divides_nothing_is_refused(tmp_path):
    path = write_table(tmp_path / "t", [{"tags": ("red,bright", "red")[n % 2]} for n in range(20)])
    with pytest.raises(
        UserError, match="no cell of column 'tags' has several labels separated by ';'"
    ):
        load(path, "tags", separator=";")
    path = write_table(tmp_path / "u", [{"tags": ("red", "")[n % 2]} for n in range(20)])
    assert load(path, "tags", separator=";").class_names == {"tags": ("red",)}


def test_what_is_odd_about_labels_is_noted(tmp_path):
    cells = [("t-shirt-new", "new-red", "new", "t-shirt-new-red")[n % 4] for n in range(20)]
    cells[7] += "-rare"
    cells[8] = cells[10] = "New-Red-new"
    path = write_table(tmp_path / "t", [{"tags": cell} for cell in cells])
    dataset = load(path, "tags", separator="-", min_examples=2)
    assert dataset.class_names["tags"] == ("New", "Red", "red", "shirt", "t")
    said = "tags that may be the same: Red, red"
    assert said in dataset.provenance["understood"], "'new' is left out: every row has it"
    assert dataset.provenance["labels_of_every_row"] == ["new"]
    assert dataset.provenance["labels_of_too_few_rows"] == ["rare"]
    assert dataset.provenance["labels_never_apart"] == ["t-shirt"]


def test_bad_columns_and_fields_are_named(tmp_path):
    rows = [{"a": number % 2, "b": "0.5" if number == 6 else 1, "tags": ""} for number in range(9)]
    path = write_table(tmp_path / "t", rows)
    with pytest.raises(UserError, match=r"row 7: b is '0\.5', but a label column must be 0 or 1"):
        load(path, "a", "b", columns="labels")
    with pytest.raises(UsageError, match=r"cells of one column, but --data\.label names 2"):
        load(path, "a", "b", separator=";")
    with pytest.raises(UsageError, match="for several columns of 0 and 1"):
        load(path, "a", columns="labels")
    with pytest.raises(UsageError, match="for several columns of 0 and 1"):
        survey(ImageTable(str(path), label=("a",), columns="labels"))
    with pytest.raises(UsageError, match="column 'a' is named twice"):
        load(path, "a", "a")


def test_an_unknown_label_in_the_test_is_listed_and_an_unlabelled_test_refused(tmp_path):
    rows = [{**row, "split": "train"} for row in tagged(16)]
    rows += [{"tags": tags, "split": "test"} for tags in ("red;new", "bright")]
    dataset = load(write_table(tmp_path / "t", rows), "tags", separator=";", validation=0.25)
    untrained = dataset.provenance["classes_without_training_examples"]
    assert untrained == {"tags": ["new"]}
    SeveralLabels(head="tags").check_data(dataset)
    for row in rows[-2:]:
        row["tags"] = ""
    dataset = load(write_table(tmp_path / "u", rows), "tags", separator=";", validation=0.25)
    with pytest.raises(UserError, match="no image of the test split has a label 'tags'"):
        SeveralLabels(head="tags").check_data(dataset)
    with pytest.raises(UserError, match="has several labels 'tags' per image"):
        Classification(head="tags").check_data(dataset)
    with pytest.raises(UserError, match="has no label sets 'label'; it has tags"):
        SeveralLabels().check_data(dataset)


# The task ----------------------------------------------------------------------------------------


def test_loss_and_f1_by_hand():
    logits = np.array([[2.0, -1.0], [0.5, 3.0], [1.0, 1.0]], np.float32)
    labels = np.array([[1, 0], [0, 1], [1, 1]], np.int8)
    weights = jnp.asarray([1.0, 1.0, 0.0])
    sums = SeveralLabels().sums(jnp.asarray(logits), {"label": jnp.asarray(labels)}, weights)
    expected = metrics.log_loss(
        labels[:2].ravel(), expit(logits[:2].astype(np.float64)).ravel(), normalize=False
    )
    assert float(sums["loss"][0]) == pytest.approx(expected, rel=1e-5)
    assert float(sums["loss"][1]) == 2
    f1 = metrics.f1_score(labels[:2], logits[:2] > 0, average="micro")
    assert float(sums["F1 at 0.5"][0] / sums["F1 at 0.5"][1]) == pytest.approx(f1)


def test_views_are_averaged_as_probabilities():
    views = np.random.default_rng(0).normal(0, 8, (3, 4, 5)).astype(np.float32)
    found = expit(np.asarray(SeveralLabels().average_views(list(jnp.asarray(views)))))
    np.testing.assert_allclose(found, expit(views).mean(axis=0), rtol=1e-5, atol=1e-7)


def made_up(examples: int = 300, factor: float = 2.0) -> LabelPredictions:
    """Predictions of four labels, of which the last is on no image, and none training's third."""
    rng = np.random.default_rng(0)
    true = rng.normal((-1, 0, -2, -4), 2, (examples, 4))
    labels = (rng.random(true.shape) < expit(true)).astype(np.int8)
    labels[:, 3] = 0
    logits = (factor * true).astype(np.float32)
    trained = np.array([9, 9, 0, 9])
    return LabelPredictions("test", logits, labels, tuple("abcd"), trained, loss=1.0)


def test_figures_are_those_of_scikit_learn():
    made = made_up()
    made = dataclasses.replace(made, thresholds=(0.3, 0.5, 0.9, 0.99999))
    found, predicted = made.metrics(), made.predicted
    with_examples = made.labels[:, :3], made.logits[:, :3]
    expected = metrics.average_precision_score(*with_examples, average="macro")
    assert found["mAP"] == pytest.approx(expected)
    assert found["micro F1"] == pytest.approx(
        metrics.f1_score(made.labels, predicted, average="micro")
    )
    scores = metrics.precision_recall_fscore_support(made.labels, predicted, zero_division=0)
    rows = made.by_label
    for name, values in zip(("precision", "recall", "F1", "images"), scores, strict=True):
        np.testing.assert_allclose([row[name] for row in rows], values)
    shown = [row["F1"] for row in rows if row["shown"]]
    assert found["macro F1"] == pytest.approx(np.mean(shown))
    assert found["exact match"] == metrics.accuracy_score(made.labels, predicted)
    assert found["absent labels count"] == 1 and found["count"] == 300


def test_a_single_label_counts_as_such():
    made = made_up()
    one = dataclasses.replace(
        made, logits=made.logits[:, :1], labels=made.labels[:, :1], class_names=("a",)
    )
    expected = metrics.f1_score(made.labels[:, 0], made.logits[:, 0] > 0)
    assert one.metrics()["micro F1"] == pytest.approx(expected)


def test_thresholds_bring_the_highest_f1_and_few_images_none():
    made = made_up()
    fitted = made.calibration()
    assert fitted["temperature"] == pytest.approx(2, rel=0.2)
    warm = dataclasses.replace(made, **fitted)
    candidates = np.unique(warm.probabilities[:, 0])
    best = max(
        metrics.f1_score(made.labels[:, 0], warm.probabilities[:, 0] >= c) for c in candidates
    )
    assert warm.by_label[0]["F1"] == pytest.approx(best)
    assert fitted["thresholds"][3] == 0.5
    assert warm.metrics()["ECE"] < warm.metrics()["ECE before calibration"]
    few = dataclasses.replace(made, logits=made.logits[:4], labels=made.labels[:4])
    assert few.calibration() == {"thresholds": [0.5] * 4}
    equal = best_threshold(np.array([0.7, 0.7, 0.2]), np.array([1, 0, 0]))
    assert equal == pytest.approx(0.45)


def test_the_page_shows_labels_curve_and_mistakes(tmp_path):
    made = made_up()
    page = "\n".join(made.page(tmp_path, "", Shown(np.zeros((300, 4, 4, 3), np.uint8))))
    assert "Labels without training images: c." in page
    assert {"mistakes", "reliability.png"} == {file.name for file in tmp_path.iterdir()}
    assert "not predicted" in page and "image 17" in page
    exact = (made.labels == (made.logits > 0)).all(axis=1).mean()
    assert f"{exact:.1%} of the images get exactly the right labels (95%" in made.verdict(None)
    groups = np.array([*["film"] * 200, *[""] * 100])  # "" is each by itself
    assert "over 101 groups)" in made.verdict(groups)


# Runs --------------------------------------------------------------------------------------------


def test_suggestions_take_several_labels_where_they_are_clear(tmp_path):
    rows = [{**row, "kind": "ab"[at // 2 % 2]} for at, row in enumerate(tagged(60))]
    for at, row in enumerate(rows):
        row |= {"x": at % 2, "y": at % 3 // 2, "z": 1 - at % 2}
    path = write_table(tmp_path / "t", rows)

    def fitted(*words):
        table = lookup("image_table").experiment()
        return fields.with_suggestions(table, [f"--data.path={path}", *words])

    experiment, said = fitted("--data.label=tags")
    assert experiment.data.separator == ";" and experiment.task == SeveralLabels(head="tags")
    assert experiment.selection.metric == "loss"
    assert "--data.separator=;" in said and "2 labels, 1.0 per image, 15 images without" in said
    experiment, _ = fitted("--data.label=tags", "--data.separator=")
    assert experiment.task == Classification(head="tags", label_smoothing=0.1)
    experiment, _ = fitted("--data.label", "x", "y")
    assert experiment.data.columns == "labels" and experiment.task == SeveralLabels()
    experiment, _ = fitted("--data.label", "x", "z")
    assert experiment.data.columns == "classes" and isinstance(experiment.task, Classification)
    experiment, _ = fitted("--data.label", "x", "z", "--data.columns=heads")
    assert experiment.task.heads == ("x", "z")
    assert fitted("--data.label=kind")[0].data.separator == ""
    with pytest.raises(UsageError, match="no column 'label'; choose one of its columns tags, kind"):
        fitted()
    pandas.read_csv(path)[["x", "image", "y"]].to_csv(path, index=False)
    experiment, _ = fitted()
    assert experiment.data.label == ("x", "y") and experiment.data.columns == "labels"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A head that is fitted to what a network computes, its export, and its data."""
    root = tmp_path_factory.mktemp("several")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TFDS_DATA_DIR", str(root / "data"))
        path = write_table(root / "t", tagged(5 * FEWEST), home=f"{root}/t/")
        data = ImageTable(path=path, image_size=(8, 8), label=("tags",), separator=";")
        data = dataclasses.replace(data, validation=0.25, test=0.25)
        training = Training(
            data=data,
            model=ConvNet(features=(8,), padding=(1,), dense=(32,), dropout=0.0),
            task=SeveralLabels(head="tags"),
            transfer=Transfer(fit_after="Dense_0", penalties=(1e-3, 1e-4)),
            optimizer=Optimizer(learning_rate=1e-3),
            selection=Selection(metric="loss", report="best"),
            batch_size=25,
            epochs=1,
        )
        for mode in ("train", "export"):
            run(training, root / "run", mode)
        run(training, root / "run", "predict", str(root / "t" / "[0-3].png"))
    return root


def test_a_fitted_head_knows_the_labels(trained):
    evaluation = folders.read_json(trained / "run" / folders.EVALUATION)
    assert evaluation["test"]["mAP"] > 0.95 > 0.6 > evaluation["test"]["mAP by chance"]
    assert evaluation["test"]["macro F1"] > 0.85
    assert len(evaluation["calibration"]["tags"]["thresholds"]) == 2
    assert (trained / "run" / folders.REPORT_FOLDER / "reliability.png").exists()


def test_all_labels_are_answered_with_thresholds(trained):
    lines = (trained / "run/predictions/predictions.jsonl").read_text().splitlines()
    network = open_export(trained / "run" / "export")
    (head,) = network.heads
    fitted = folders.read_json(trained / "run" / folders.EVALUATION)["calibration"]["tags"]
    assert {name: head[name] for name in fitted} == fitted
    for line in map(json.loads, lines):
        file = trained / "t" / Path(line["file"]).name
        pixels = np.asarray(Image.open(file).resize((8, 8), Image.Resampling.BILINEAR))
        (answer,) = network.answers(network(pixels[None]))
        assert answer["tags"] == line["tags"]["all"] and len(answer["tags"]) == 2
        present = [each["label"] for each in answer["tags"] if each["present"]]
        assert present == line["tags"]["labels"]
        for each in answer["tags"]:
            assert each["threshold"] == head["thresholds"][head["classes"].index(each["label"])]
    table = pandas.read_csv(trained / "run/predictions/predictions.csv", keep_default_na=False)
    assert {"tags", "tags red", "tags bright"} <= {*table}
    outputs = np.array([[3.0, -3.0]], np.float32)
    plain = {name: value for name, value in head.items() if name in ("name", "kind", "classes")}
    (said,) = answers_of([{**plain, "start": 0, "stop": 2}], outputs)
    assert said["tags"].text == "bright 95%"


def test_the_server_answers_every_label(trained):
    app = pytest.importorskip("cnn_research.inference.serve.app", reason="[serve] is missing")
    network = open_export(trained / "run" / "export")
    answers = network.answers(np.array([[3.0, -3.0]], np.float32))[0]
    said = app.Prediction.model_validate({"file": None, "answers": answers}).model_dump()
    assert said["answers"] == answers


def test_the_model_card_s_code_prints_every_label(trained):
    folder = trained / "run" / "export"
    code = (folder / "README.md").read_text().split("```python\n")[1].split("```")[0]
    code = code.replace('"IMAGE"', repr(str(trained / "t" / "0.png")))
    command = [sys.executable, "-c", code]
    ended = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    rows = [line.split() for line in ended.stdout.splitlines()]
    assert [row[:2] for row in rows] == [["tags", "bright"], ["tags", "red"]]
    assert {row[2] for row in rows} <= {"True", "False"}
