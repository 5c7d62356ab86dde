"""What a report tells the owner of data: intervals, names in any script, mistakes, wrong labels."""

from __future__ import annotations

import resource
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
from PIL import Image
from scipy.special import softmax

from benchmarks import wrong_labels
from cnn_research.core import run_folder as folders
from cnn_research.core.errors import UsageError
from cnn_research.core.experiment import lookup
from cnn_research.report.__main__ import main
from cnn_research.report.data_section import data_section, shared_with
from cnn_research.report.html import write_page
from cnn_research.report.interval import interval
from cnn_research.report.names import (
    can_be_drawn,
    in_picture,
    legend,
    numbers_of,
    pictured,
    short_names,
    shortened,
)
from cnn_research.report.page import write_report
from cnn_research.report.pictures import Shown, pictures_table
from cnn_research.tasks.class_predictions import ClassPredictions
from cnn_research.tasks.confusion import matrix_parts, worst_classes
from cnn_research.tasks.regression import NumberPredictions
from cnn_research.workflows.folds import _rank_labels

pytestmark = pytest.mark.pictures

# Intervals ---------------------------------------------------------------------------------------


def test_interval_of_an_accuracy_is_that_of_a_share():
    hits = np.arange(400) < 300
    low, high = interval(hits)
    # 1.96 standard errors on both sides.
    assert (low, high) == pytest.approx((0.75 - 0.0424, 0.75 + 0.0424), abs=0.006)
    assert interval(hits) == (low, high)


def test_interval_over_groups_is_wider_where_images_of_a_group_are_alike():
    groups = np.repeat([f"patient {n}" for n in range(20)], 20)
    hits = np.repeat(np.arange(20) < 15, 20)
    alone, by_group = interval(hits), interval(hits, groups)
    assert by_group[1] - by_group[0] > 3 * (alone[1] - alone[0])
    # Images without a group are each by themselves.
    assert interval(hits, np.full(400, "")) == alone


def test_interval_where_all_are_right_is_no_point():
    low, high = interval(np.ones(10, bool))
    assert high == 1 and low == pytest.approx(0.6915, abs=1e-4)  # of 10: 1 - Clopper and Pearson
    assert interval(np.zeros(10, bool))[0] == 0
    assert interval(np.ones(1, bool)) is None
    assert interval(np.ones(9, bool), np.full(9, "patient 1")) is None  # one group


def answers(right: int, wrong: int, **facts: Any) -> ClassPredictions:
    """Of class 0, so many recognised and so many taken for class 1, and one without a label."""
    labels = np.array([*[0] * (right + wrong), -1], np.int32)
    logits = 3 * np.eye(2, dtype=np.float32)[[*[0] * right, *[1] * wrong, 0]]
    return ClassPredictions("test", logits, labels, ("pear", "fig"), loss=0.5, **facts)


def test_verdict_says_how_good_on_how_many_and_against_what():
    made = answers(90, 10, training_counts=np.array([3, 9]))
    assert made.verdict(None).startswith("Of 100 test images, 90.0% are classified correctly (95% ")
    assert "over images); always predicting 'fig', the most common" in made.verdict(None)
    groups = np.array([f"film {n // 5}" for n in range(101)])  # the last has no label
    assert "over 20 groups" in made.verdict(groups)
    # Recognised no oftener than the commonest class occurs.
    no_better = answers(90, 10, training_counts=np.array([9, 3])).verdict(None)
    assert no_better.endswith("these images do not show that the network is better.")


def test_verdict_on_numbers_is_against_the_training_mean():
    true = np.array([1.0, 2.0, 3.0, np.nan], np.float32)
    predicted = np.array([1.5, 2.0, 2.5, 9.0])
    made = NumberPredictions("test", "weight", predicted, true, training_mean=4.0, loss=0.1)
    said = made.verdict(None)
    assert said.startswith("On 3 test images, weight is off by 0.3333 (95% interval 0 to 0.5")
    assert said.endswith("on average; always predicting the training mean would be off by 2.")


# Names -------------------------------------------------------------------------------------------


def test_long_names_keep_both_ends_and_lose_what_all_begin_with():
    assert shortened("abcdefghij", 6) == "abc…ij"
    assert short_names(["cat", "dog"], 24) == ["cat", "dog"]
    names = [f"photographs of animals_{kind} of the north" for kind in ("cat", "dog", "d")]
    assert short_names(names, 24) == ["…cat of the north", "…dog of the north", "…d of the north"]
    alike = [f"{'x' * 30}{middle}{'y' * 30}" for middle in "abc"]
    assert len(set(short_names(alike, 20))) == 3
    assert short_names([*alike, ""], 20)[3] == ""


@pytest.mark.parametrize("name", ["猫", "고양이", "قطة", "חתול", "बिल्ली", "แมว", "🐈‍⬛"])
def test_names_that_the_font_of_pictures_lacks_have_numbers(name):
    names = ["Кошка", name, "γάτα", "Źdźbło"]
    assert pictured(names, 24) == ["Кошка", "#2", "γάτα", "Źdźbło"]
    assert name in legend(names, pictured(names, 24)) and "Кошка" not in legend(names, names)
    assert in_picture(f"{name} 93%\n次", numbers_of({"kind": names})) == "#2 93%\n?"
    assert numbers_of({"kind": names, "of": ["次", "a"]}) == {name: "#2", "次": "#5"}
    assert not can_be_drawn(name)


def test_curves_of_heads_in_any_script_are_numbered(tmp_path):
    accuracies = {"種類 accuracy": 0.5, "kind accuracy": 0.5}
    rows = [{"step": 1, "epoch": 1.0, "split": "train", "loss": 2.0, "count": 4, **accuracies}]
    (tmp_path / "run").mkdir()
    facts: dict[str, Any] = {"title": "Pets", "directions": {"accuracy": "maximize"}, "params": {}}
    facts |= {"metrics": {}, "predictions": {}, "shown": {}, "unlabelled": {}}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        page = write_report(tmp_path / "run", history=rows, **facts).with_suffix(".md").read_text()
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in page.splitlines()]
    assert ["3", "#3", "種類 accuracy"] in cells


# Pictures of many classes ------------------------------------------------------------------------


def test_pictures_of_names_in_any_script_have_no_warnings(tmp_path):
    names = ("猫の写真", "قطة منزلية", "बिल्ली", "Кошка домашняя")
    labels = np.arange(40, dtype=np.int32) % 4
    logits = np.random.default_rng(0).normal(size=(40, 4)).astype(np.float32)
    made = ClassPredictions("test", logits, labels, names, loss=1.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        page = "\n".join(made.page(tmp_path, "", Shown(np.zeros((40, 8, 8, 3), np.uint8))))
    assert all(name in page for name in names)
    table = pandas.read_csv(tmp_path / "confusion_matrix.csv", index_col=0)
    assert tuple(table.columns) == tuple(table.index) == names and table.values.sum() == 40


def test_confusion_matrix_of_1000_classes_is_small_and_quick(tmp_path):
    rng = np.random.default_rng(0)
    matrix = np.diag(rng.integers(20, 50, 1000)) + (rng.random((1000, 1000)) < 0.002)
    matrix[7, 900], matrix[33, 900] = 40, 30
    names = [f"class {place}" for place in range(1000)]
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    page = "\n".join(matrix_parts(tmp_path, "", matrix, names, names))
    taken = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert taken < 500e3 and time.process_time() - began < 5
    assert "(confused_classes.png)" in page and "(confusion_matrix.png)" in page
    for picture in tmp_path.glob("*.png"):
        assert max(Image.open(picture).size) < 2500
    worst = worst_classes(matrix).tolist()
    assert len(worst) == 24 and abs(worst.index(7) - worst.index(900)) == 1
    assert pandas.read_csv(tmp_path / "confusion_matrix.csv", index_col=0).iloc[7, 900] == 40


def test_classes_that_are_not_confused_are_none_of_the_worst():
    matrix = 9 * np.eye(40, dtype=int)
    matrix[3, 30] = 1
    assert sorted(worst_classes(matrix)) == [3, 30]


# Mistakes and wrong labels -----------------------------------------------------------------------


def test_mistakes_come_with_their_files_linked_and_the_surest_first(tmp_path):
    files = ["cat/a b.png", "cat/#1.png", "dog/ü.png", "dog/gone.png"]
    for file in files[:3]:
        (tmp_path / "data" / file).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "data" / file)
    logits = np.array([[0, 1], [0, 3], [2, 0], [0, 1]], np.float32)
    made = ClassPredictions("test", logits, np.array([0, 0, 1, 1]), ("cat", "dog"), loss=1.0)
    images = np.zeros((4, 8, 8, 3), np.uint8)
    page = write_report(
        tmp_path / "run",
        title="Pets",
        metrics={"test": made.metrics()},
        predictions={"test": {"label": made}},
        shown={"test": Shown(images, np.array(files), tmp_path / "data")},
        history=[],
        directions={},
        params={},
        unlabelled={},
    )
    rows = [line for line in page.with_suffix(".md").read_text().splitlines() if "webp" in line]
    assert [row.split("|")[-2].strip() for row in rows] == [files[1], files[2], files[0]]
    text = page.read_text()
    for file in files[:3]:
        assert f'<a href="{(tmp_path / "data" / file).as_uri()}"><img alt=' in text
    ranking = pandas.read_csv(page.with_name("label_ranking.csv"))
    assert ranking["file"].tolist() == [files[1], files[2], files[0], files[3]]
    assert ranking["prediction"].tolist() == ["dog", "cat", "dog", "dog"]


def test_a_thumbnail_links_to_nothing_but_files(tmp_path):
    (tmp_path / "page").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "page" / "1.webp")
    parts = ["# Title", '![1](1.webp "javascript:alert(1)")']
    assert "<a " not in write_page(tmp_path / "page", parts, {}).read_text().split("<main>")[1]


def test_thumbnails_of_large_images_are_small(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (50, 300, 200, 3), np.uint8)
    table = pictures_table(Shown(noise), range(50), tmp_path, "mistakes", ("a",), [["b"]] * 50)
    assert table.count("image ") == 50
    sizes = [file.stat().st_size for file in (tmp_path / "mistakes").iterdir()]
    assert len(sizes) == 50 and max(sizes) < 10_000


def test_changed_labels_are_ranked_first(tmp_path):
    rng = np.random.default_rng(0)
    true = rng.integers(0, 10, 1000)
    logits = rng.normal(size=(1000, 10)) + 4 * np.eye(10)[true]
    labels = true.astype(np.int32)
    labels[:20] = (labels[:20] + 1) % 10
    names = [str(place) for place in range(1000)]
    ten = tuple("abcdefghij")
    made = ClassPredictions("test", logits.astype(np.float32), labels, ten, loss=1.0)
    ranked = made.ranking(names)
    assert np.isin(ranked["file"][:50], names[:20]).sum() >= 15
    np.testing.assert_array_equal(ranked.index, ranked["file"].astype(int))
    own = softmax(made.logits.astype(np.float64), axis=1)[ranked.index, labels[ranked.index]]
    np.testing.assert_allclose(ranked["probability of label"], own)
    assert ranked["probability of label"].is_monotonic_increasing


def write_fold(folder: Path, rows: list[tuple[str, float]]) -> None:
    (folder / "report").mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    columns = "file,label,prediction,probability of label,probability of prediction\n"
    text = "".join(f"{name},NA,007,{own},0.9\n" for name, own in rows)
    (folder / "report" / "label_ranking.csv").write_text(columns + text)


def test_rankings_of_folds_are_one(tmp_path, capsys):
    write_fold(tmp_path / "run" / "fold-0", [("a.png", 0.02), ("b.png", 0.9)])
    write_fold(tmp_path / "run" / "fold-1", [("c.png", 0.01), ("d.png", 0.1)])
    output = tmp_path / "tables" / "labels.csv"
    assert main([str(tmp_path / "run"), f"--labels={output}"]) == 0
    table = pandas.read_csv(output, dtype=str, keep_default_na=False)
    assert table["file"].tolist() == ["c.png", "a.png", "d.png", "b.png"]
    assert table["run"].tolist() == ["fold-1", "fold-0", "fold-1", "fold-0"]
    assert set(table["label"]) == {"NA"} and set(table["prediction"]) == {"007"}
    # As --folds does, where the labels are classes.
    _rank_labels([tmp_path / "run" / f"fold-{fold}" for fold in range(2)], tmp_path / "all.csv")
    assert (tmp_path / "all.csv").read_bytes() == output.read_bytes()
    _rank_labels([tmp_path / "run", tmp_path / "run" / "fold-0"], tmp_path / "none.csv")
    assert not (tmp_path / "none.csv").exists()
    (tmp_path / "run" / "fold-1" / "report" / "label_ranking.csv").unlink()
    assert main([str(tmp_path / "run"), f"--labels={output}"]) == UsageError.exit_code
    assert "fold-1 has no report/label_ranking.csv" in capsys.readouterr().err


def test_labels_that_are_changed_on_purpose():
    labels = np.arange(1000, dtype=np.int32) % 10
    changed = wrong_labels.Mislabelled()._changed(labels)
    assert (changed != labels).sum() == 20 and set(changed) == set(range(10))
    np.testing.assert_array_equal(changed, wrong_labels.Mislabelled()._changed(labels))


# Data and choices --------------------------------------------------------------------------------


def test_choices_are_recorded_with_the_command_and_shown(tmp_path):
    experiment = lookup("digits_cnn").experiment()
    for name in ("run", "other"):
        (tmp_path / name).mkdir()
    with folders.choices_recorded("Chosen from the data:\n  --epochs=3  few images"):
        folders.write_metadata(experiment, tmp_path / "run", step=0)
    folders.write_metadata(experiment, tmp_path / "other", step=0)
    facts: dict[str, Any] = {"title": "Pets", "history": [], "directions": {}, "params": {}}
    facts |= {"metrics": {}, "predictions": {}, "shown": {}, "unlabelled": {}}
    page, other = (write_report(tmp_path / name, **facts) for name in ("run", "other"))
    assert "## Choices\n\n```\nChosen from the data:\n  --epochs=3  few images\n```" in (
        page.with_suffix(".md").read_text()
    )
    assert "Choices" not in other.read_text()


def test_data_section_says_what_was_left_out_and_why(tmp_path):
    data = {
        "name": "pets",
        "examples": {"train": 1600, "validation": 200, "test": 200},
        "given_by_the_source": ["train", "test"],
        "drawn_from_train": {"validation": 200, "seed": 3, "stratified_by": "kind"},
        "skipped": [f"{n}.jpg is not an image or is damaged" for n in range(25)],
        "rows_without_any_label": 7,
        "files_outside_class_folders": 0,
        "duplicates": {
            "extra_copies": 2,
            "images_with_conflicting_labels": 1,
            "across_splits": {"train and test": {"images": 4, "first": [["a.jpg", "b.jpg"]]}},
        },
    }
    page = "\n\n".join(data_section(tmp_path, data, {"kind, test": 5}))
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in page.splitlines()]
    assert ["train", "1,600", "the rest"] in rows and ["test", "200", "given"] in rows
    assert ["validation", "200", "drawn with seed 3, stratified by kind"] in rows
    for words in (
        "- skipped, unusable files: 25",
        "- rows without any label: 7",
        "- images without a label, kind, test: 5",
        "- the same image in train and test: 4, the first a.jpg = b.jpg",
        "- images whose copies have another label: 1",
        "19.jpg is not an image or is damaged\n... and 5 more",
    ):
        assert words in page
    assert "outside class folders" not in page and "20.jpg" not in page
    assert shared_with("test", data).startswith("Results on new images may be worse: in 4 pairs")
    alike = {"across_splits": {"test and train": 3, "train and validation": 9}}
    assert "in 3 pairs" in shared_with("test", data | {"near_duplicates": alike})
    assert not shared_with("target", data)
    assert not shared_with("test", data | {"examples": {"test": 801}})  # under 0.5%
    assert len((tmp_path / "skipped.txt").read_text().splitlines()) == 25
    assert "Nothing was skipped." in "".join(data_section(tmp_path, {"examples": {"train": 1}}, {}))
    assert not list(data_section(tmp_path, {"name": "made in Python"}, {}))
