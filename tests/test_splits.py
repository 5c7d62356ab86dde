"""Splits that do not lie: groups, near duplicates, folds, and classes that are held out evenly."""

from __future__ import annotations

import csv
import dataclasses
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cnn_research.cli.fields import with_suggestions
from cnn_research.cli.run import run
from cnn_research.core import run_folder as folders
from cnn_research.core.errors import UsageError, UserError
from cnn_research.core.experiment import lookup
from cnn_research.data.dataset import Dataset, Examples
from cnn_research.data.prepare import drawing, shared, splits
from cnn_research.data.prepare.files import Plan, Record
from cnn_research.data.prepare.likeness import UNLIKE, near_duplicates
from cnn_research.data.sources.folder import ImageFolder
from cnn_research.data.sources.table import ImageTable
from cnn_research.models.convnet import ConvNet
from cnn_research.train.config import Training


@pytest.fixture(autouse=True)
def data_dir(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "prepared"))


def photograph(seed: int, size: tuple[int, int] = (60, 48)) -> Image.Image:
    """Smooth as a photograph: a few random colours, enlarged. Width and height as in Pillow."""
    few = np.random.default_rng(seed).integers(0, 256, (3, 4, 3), np.uint8)
    return Image.fromarray(few).resize(size, Image.Resampling.BICUBIC)


def textured(seed: int) -> Image.Image:
    """Textured throughout, and nearly grey."""
    colours = Image.fromarray(np.random.default_rng(seed).integers(0, 256, (8, 8, 3), np.uint8))
    return Image.blend(colours.convert("L").convert("RGB"), colours, 0.3).resize((66, 66))


def saved_again(image: Image.Image, quality: int = 75) -> Image.Image:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return Image.open(file)


def mirrored(image: Image.Image) -> Image.Image:
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)


def numbered(labels: list[int], classes: int, groups: list[str] | None = None) -> Examples:
    """Examples of two pixels, all different, and no two nearly the same."""
    pixels = np.random.default_rng(0).integers(0, 256, (len(labels), 4, 4, 1), np.uint8)
    return Examples(
        images=pixels,
        labels={"label": np.array(labels, np.int32)},
        class_names={"label": tuple(map(str, range(classes)))},
        names=np.array([f"n{index}" for index in range(len(labels))]),
        given=np.full(len(labels), "train"),
        groups=None if groups is None else np.array(groups),
    )


def sides(dataset: Dataset) -> dict[str, str]:
    """The split of each image by its name."""
    return {str(name): split for split, part in dataset.splits.items() for name in part.names}


# Near duplicates


def test_copies_saved_again_resized_or_mirrored_are_found_and_others_are_not():
    originals = [photograph(seed) for seed in range(40)]
    changed = [
        saved_again(originals[0]),
        mirrored(saved_again(originals[1])),
        saved_again(originals[2].resize((40, 32)), 90).resize((60, 48)),
    ]
    images = np.stack([np.asarray(image) for image in (*originals, *changed)])
    found = near_duplicates(images, np.arange(len(images)))
    pairs = {tuple(pair): bool(m) for pair, m in zip(found.pairs.tolist(), found.mirrored)}
    assert pairs == {(0, 40): False, (1, 41): True, (2, 42): False}
    assert (np.diff(found.differences) >= 0).all()
    grey = images[..., :1]
    of_grey = near_duplicates(grey, np.arange(len(grey))).pairs.tolist()
    assert sorted(of_grey) == sorted(found.pairs.tolist())


def test_a_textured_photograph_is_found_shifted_and_regraded():
    """Neither copy passes the comparison block by block."""
    photographs = [textured(seed) for seed in range(40)]
    moved = photographs[0].crop((2, 0, 66, 64)).point(lambda level: level * 0.9)
    photographs = [each.crop((0, 0, 64, 64)) for each in photographs]
    images = np.stack([np.asarray(each) for each in (*photographs, moved, mirrored(moved))])
    for chosen, turned in (([*range(41)], False), ([*range(40), 41], True)):
        found = near_duplicates(images, np.array(chosen))
        assert found.pairs.tolist() == [[0, chosen[-1]]] and found.mirrored.tolist() == [turned]
        assert (found.differences > UNLIKE).all()


def test_one_shape_in_another_colour_is_no_near_duplicate():
    shapes = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 1)).repeat(2, 1).repeat(2, 2)
    shapes[1] = shapes[0]
    images = np.full((40, 32, 32, 3), 255, np.uint8)
    images[:, 8:24, 8:24] = shapes
    images[1, 8:24, 8:24] = shapes[1] * np.array([0.7, 0.8, 0.8])
    assert not len(near_duplicates(images, np.arange(40)).pairs)


def test_a_textured_photograph_in_another_colour_is_no_near_duplicate():
    images = np.stack([np.asarray(textured(seed)) for seed in range(40)])
    images[1] = images[0] * np.array([0.7, 0.9, 0.9])
    assert not len(near_duplicates(images, np.arange(40)).pairs)


def test_another_print_on_the_same_shirt_is_no_near_duplicate():
    shirt = np.full((32, 32, 1), 20, np.uint8)
    shirt[4:28, 6:26] = 200
    printed = shirt.copy()
    printed[12:16, 12:16] = 60
    assert not len(near_duplicates(np.stack([shirt, printed]), np.arange(2)).pairs)


@pytest.mark.parametrize("count", [0, 1, 2])
def test_few_images(count):
    images = np.zeros((2, 8, 8, 3), np.uint8)
    images[1] = 255
    assert not len(near_duplicates(images, np.arange(count)).pairs)


def folder_of_photographs(root: Path, count: int = 40) -> Path:
    """Two classes; of every fourth photograph a copy, of which half are mirror images."""
    for seed in range(count):
        folder = root / ("even", "odd")[seed % 2]
        folder.mkdir(parents=True, exist_ok=True)
        image = photograph(seed)
        image.save(folder / f"{seed}.png")
        if seed % 4 == 0:
            copy = mirrored(image) if seed % 8 else image
            copy.save(folder / f"{seed}_copy.jpg", quality=60)
    return root


def test_near_duplicates_are_kept_on_one_side_or_listed_by_name(tmp_path):
    root = folder_of_photographs(tmp_path / "photographs")
    source = ImageFolder(str(root), (32, 32), validation=0.2, test=0.2)
    for seed in range(3):
        together = dataclasses.replace(source, near_duplicates="together", split_seed=seed).load()
        side = sides(together)
        pairs = [(name, name.replace(".png", "_copy.jpg")) for name in side if ".png" in name]
        assert all(side[one] == side.get(other, side[one]) for one, other in pairs)
        report = together.provenance["near_duplicates"]
        assert (report["pairs"], report["largest_group"]) == (10, 2)
        assert not report["across_splits"] and not report["listed"]
        assert all(len(part) for part in together.splits.values())
    alone = source.load()
    report, side = alone.provenance["near_duplicates"], sides(alone)
    straddling = [(one, two) for one, two in pairs if two in side and side[one] != side[two]]
    assert straddling and sum(report["across_splits"].values()) == len(straddling)
    rows = list(csv.DictReader(io.StringIO(shared.as_csv(alone.provenance))))
    listed = {tuple(sorted((row["image"], row["other image"]))) for row in rows}
    assert listed == {tuple(sorted(pair)) for pair in straddling}
    assert "across splits: " in "".join(shared.lines(alone.provenance))


def test_given_splits_are_listed_and_never_changed_and_so_are_two_labels(tmp_path):
    root = folder_of_photographs(tmp_path / "photographs" / "train")
    test = root.parent / "test"
    for name, seed in (("even", 100), ("odd", 101)):
        (test / name).mkdir(parents=True)
        photograph(seed).save(test / name / "new.png")
    photograph(3).save(test / "even" / "wrong.jpg", quality=60)
    source = ImageFolder(str(root.parent), (32, 32), near_duplicates="together")
    dataset = source.load()
    assert len(dataset.splits["test"]) == 3
    report = dataset.provenance["near_duplicates"]
    (across,) = report["across_splits"].items()
    assert across[0].endswith("and train") or across[0] == "test and validation"
    assert across[1] == 1 and report["with_two_labels"] == 1
    names = {report["listed"][0][0], report["listed"][0][3]}
    assert names == {"train/odd/3.png", "test/even/wrong.jpg"}
    assert any("with different labels" in line for line in shared.lines(dataset.provenance))


def test_a_label_on_copies_of_one_image_alone_is_said(tmp_path):
    images = np.arange(12, dtype=np.uint8)[:, None, None, None] * np.ones((12, 2, 2, 3), np.uint8)
    images[1] = images[0]
    sets = np.tile(np.array([[0, 1, 0]], np.int8), (12, 1))
    sets[:2] = 1, 0, 1
    sets[2, 2] = 1
    names = np.array([f"{at}.png" for at in range(12)])
    names_of = {"tags": ("rare", "usual", "twice")}
    examples = Examples(images, {"tags": sets}, names_of, names, np.full(12, "train"))
    _, report = splits.assign(examples, {"test": 2}, 0)
    assert report["classes_of_a_single_image"] == ["rare"]


def test_chains_of_likeness_do_not_become_giant_groups():
    examples = numbered([0] * 400, 1)
    chain = np.stack([np.arange(399), np.arange(1, 400)], axis=1)
    units = drawing.units_of(examples, np.arange(400), chain)
    assert np.bincount(units).max() <= drawing.MOST_ALIKE
    grouped = dataclasses.replace(examples, groups=np.array(["film"] * 150 + [""] * 250))
    units = drawing.units_of(grouped, np.arange(400), chain)
    assert len(set(units[:150])) == 1 and np.bincount(units).max() <= 300


# Groups


def test_a_pattern_over_file_names_keeps_patients_on_one_side(tmp_path):
    for patient in range(20):
        for number in range(6):
            folder = tmp_path / "eyes" / ("ill", "well")[(patient + number // 4) % 2]
            folder.mkdir(parents=True, exist_ok=True)
            seed = 10 * patient + number
            photograph(seed, (16, 16)).save(folder / f"p{patient:02}_{number}.png")
    source = ImageFolder(str(tmp_path / "eyes"), (16, 16), group="(p[0-9]+)_")
    for seed in range(3):
        dataset = dataclasses.replace(source, split_seed=seed).load()
        patients = [
            {str(name).split("/")[1][:3] for name in part.names} for part in dataset.splits.values()
        ]
        assert sum(map(len, patients)) == 20 and [len(part) for part in patients] == [16, 2, 2]
    assert next(shared.lines(dataset.provenance)) == "Of 20 groups, none is in two splits."
    said = "20 groups, p00, p01, p02, p03, p04, ...; the largest, p00, has 6 images"
    assert said in dataset.provenance["understood"]


@pytest.mark.parametrize(
    ("group", "message"),
    [
        ("(p[0-9+_", "is not a regular expression"),
        ("(patient)", "finds no group in any of 4 file names of .*, such as 'a/0.png'"),
        ("png", "finds the same group 'png' in all 4 file names"),
    ],
)
def test_patterns_that_group_nothing(tmp_path, group, message):
    for name in ("a", "b"):
        (tmp_path / "few" / name).mkdir(parents=True)
        for number in range(2):
            photograph(number).save(tmp_path / "few" / name / f"{number}.png")
    with pytest.raises(UsageError, match=message):
        ImageFolder(str(tmp_path / "few"), group=group).load()


def test_either_of_two_parts_of_a_pattern_names_the_group():
    records = [Record("", name, "train", {}) for name in ("a/p1.png", "a/film7.png", "b/x.png")]
    source = ImageFolder(group=r"/p(\d)|(film\d)")
    groups = [record.group for record in source.grouped(Plan(records, {}), "pets").records]
    assert groups == ["1", "film7", ""]


def table_of_films(root: Path, films: list[str]) -> Path:
    root.mkdir()
    rows = [("image", "label", "film")]
    for at, film in enumerate(films):
        photograph(at, (12, 12)).save(root / f"{at}.png")
        rows.append((f"{at}.png", ("a", "b")[at % 2], film))
    (root / "t.csv").write_text("".join(",".join(row) + "\n" for row in rows))
    return root / "t.csv"


def test_a_column_keeps_films_on_one_side_and_empty_cells_are_by_themselves(tmp_path):
    films = [f" f{at // 5} " if at < 40 else "" for at in range(60)]
    table = table_of_films(tmp_path / "films", films)
    dataset = ImageTable(str(table), image_size=(12, 12), group="film", test=0.25).load()
    found = [
        {films[int(str(name)[:-4])] for name in part.names} - {""}
        for part in dataset.splits.values()
    ]
    assert sum(map(len, found)) == 8
    report = dataset.provenance["groups"]
    assert report == {"groups": 8, "in_two_splits": 0, "first_in_two_splits": []}
    assert "has 5 images; 20 images are in no group" in dataset.provenance["understood"]


def test_columns_that_group_nothing_are_refused(tmp_path):
    table = table_of_films(tmp_path / "films", ["f1"] * 8)
    with pytest.raises(UsageError, match="film finds the same group 'f1' in all 8 rows"):
        ImageTable(str(table), group="film").load()
    with pytest.raises(UsageError, match="has no column 'flim'"):
        ImageTable(str(table), group="flim").load()


def test_groups_that_are_larger_than_the_test_are_refused():
    examples = numbered([at % 2 for at in range(90)], 2, [f"p{at // 30}" for at in range(90)])
    with pytest.raises(UserError, match="the smallest has 30 images, but 9 are to be held out"):
        splits.assign(examples, {"validation": 0.0, "test": 0.1}, 0)
    indices, _ = splits.assign(examples, {"validation": 0.0, "test": 0.3}, 0)
    assert len(indices["test"]) == 30
    films = [f"film {at // 4}" for at in range(40)]
    examples = numbered([at // 20 for at in range(40)], 2, films)
    with pytest.raises(
        UserError, match="smallest has 4 images, but 4 of 2 classes are to be held out"
    ):
        splits.assign(examples, {"validation": 0.0, "test": 0.1}, 0)


def test_copies_of_one_image_of_each_class_say_why_nothing_is_held_out(tmp_path):
    for seed, name in enumerate(("cats", "dogs")):
        (tmp_path / "pets" / name).mkdir(parents=True)
        for number in range(20):
            photograph(seed).save(tmp_path / "pets" / name / f"{number}.png")
    for how in ("list", "together"):
        source = ImageFolder(str(tmp_path / "pets"), near_duplicates=how)
        with pytest.raises(UserError, match=r"the 40 images form 2 groups .*smallest has 20"):
            source.load()


def test_many_examples_are_drawn_from_in_seconds():
    count = 100_000
    examples = numbered([at % 100 for at in range(count)], 100)
    examples = dataclasses.replace(
        examples, groups=np.char.add("g", (np.arange(count) // 7).astype(str))
    )
    units = drawing.units_of(examples, np.arange(count), np.zeros((0, 2), np.int64))
    test = drawing.Drawing(examples, units, 0).draw(10_000)
    assert abs(len(test) - 10_000) < 10
    counts = np.bincount(examples.labels["label"][test])
    assert counts.min() > 80


# Even splits


@pytest.mark.parametrize(("classes", "images"), [(100, 5), (300, 3), (7, 40)])
def test_validation_and_test_are_of_the_same_classes_and_the_seed_says_which(classes, images):
    examples = numbered([at % classes for at in range(classes * images)], classes)
    held_out = []
    for seed in (0, 1):
        indices, _ = splits.assign(examples, {"validation": 0.1, "test": 0.1}, seed, together=True)
        labels = {name: examples.labels["label"][chosen] for name, chosen in indices.items()}
        assert sorted(labels["validation"]) == sorted(labels["test"])
        assert len(set(labels["train"])) == classes
        assert len(labels["test"]) == round(0.1 * classes * images)
        held_out.append(set(labels["test"]))
    assert (held_out[0] == held_out[1]) == (classes == 7)
    if classes > 7:
        assert 0.3 < np.mean([label < classes / 2 for label in held_out[0]]) < 0.7


# Folds


def test_folds_test_every_image_once_and_divide_no_group():
    groups = [f"p{at // 6}" for at in range(120)]
    examples = numbered([at % 3 for at in range(120)], 3, groups)
    tested = []
    for fold in range(5):
        indices, _ = splits.assign(
            examples, {"validation": 0.1, "test": 0.2}, 3, together=True, fold=(fold, 5)
        )
        assert len(indices["test"]) == 24
        assert len({groups[at] for at in indices["test"]}) == 4
        parts = [{groups[at] for at in chosen} for chosen in indices.values()]
        assert sum(map(len, parts)) == 20 and len(parts) == 3
        tested += indices["test"].tolist()
    assert sorted(tested) == list(range(120))


def test_folds_share_out_rare_classes_of_groups():
    rng = np.random.default_rng(0)
    for _ in range(5):
        labels = (rng.random(160) < 0.4).astype(int)
        labels[[3, 4, 9]] = 2
        examples = numbered(labels.tolist(), 3, [f"p{at // 4}" for at in range(160)])
        for fold in range(3):
            indices, _ = splits.assign(examples, {"test": 1 / 3}, 0, fold=(fold, 3))
            tested = np.bincount(labels[indices["test"]], minlength=3)
            assert tested[2] == 1 and 48 <= tested.sum() <= 60


def test_folds_are_runs_with_mean_and_deviation(tmp_path, capsys):
    root = folder_of_photographs(tmp_path / "photographs", 24)
    experiment = Training(
        data=ImageFolder(str(root), (8, 8), validation=0.2),
        model=ConvNet(features=(2,), padding=(1,), dense=(4,), dense_activation="relu"),
        epochs=1,
        batch_size=8,
    )
    workdir = tmp_path / "runs"
    result = run(experiment, workdir, folds=2)
    runs = [workdir / f"fold-{fold}" for fold in range(2)]
    configs = [folders.read_json(one / "config.json")["data"] for one in runs]
    assert [(data["folds"], data["fold"]) for data in configs] == [(2, 0), (2, 1)]
    records = [folders.read_json(one / "run.json")["data"] for one in runs]
    assert sum(data["examples"]["test"] for data in records) == 30
    figures = [folders.read_json(one / "evaluation.json")["test"]["accuracy"] for one in runs]
    mean, deviation = np.mean(figures), np.std(figures, ddof=1)
    assert result.metrics["test"]["accuracy"] == pytest.approx(mean)
    said, progress = capsys.readouterr()
    assert f"{mean:.4f} ± {deviation:.4f}" in said
    summary = folders.read_json(workdir / "results.json")["figures"]["accuracy"]
    assert summary["std"] == pytest.approx(deviation) and summary["values"] == figures
    # Near duplicates were not asked to be kept together: they are listed.
    assert f"all: {runs[0] / shared.FILE}" in progress
    assert (runs[0] / shared.FILE).read_text().startswith("image,split,label,other image")
    assert "listed" not in records[0]["near_duplicates"]
    with pytest.raises(UsageError, match=r"data\.folds was 2 and is now 3"):
        run(experiment, workdir, folds=3)


def test_folds_are_of_folders_and_tables(tmp_path):
    digits = lookup("digits_mlp").experiment()
    with pytest.raises(UsageError, match="has its own splits: omit --folds"):
        run(digits, tmp_path, folds=5)
    with pytest.raises(UsageError, match="must be 2 or more"):
        run(digits, tmp_path, folds=1)
    with pytest.raises(UsageError, match="exclude each other"):
        run(digits, tmp_path, folds=2, replicas=2)


def test_near_duplicates_are_kept_together_by_default_for_ones_own_images(tmp_path):
    root = folder_of_photographs(tmp_path / "photographs", 24)
    words = [f"--data.path={root}", "--pretrained=none"]
    experiment, said = with_suggestions(lookup("image_folder").experiment(), words)
    assert experiment.data.near_duplicates == "together"
    assert "copies and near duplicates of training images" in said
    assert lookup("products_best").experiment().data.near_duplicates == "list"


def test_folds_that_cannot_be(tmp_path):
    few = numbered([0, 1] * 10, 2, [f"p{at // 7}" for at in range(20)])
    with pytest.raises(
        UsageError, match=r"--data\.folds is 5, but there are only 3 images or groups"
    ):
        splits.assign(few, {"validation": 0.0, "test": 0.2}, 0, fold=(0, 5))
    given = dataclasses.replace(few, given=np.array(["train"] * 15 + ["test"] * 5))
    with pytest.raises(UsageError, match="draws the test split, but the data has its own"):
        splits.assign(given, {"validation": 0.0, "test": 0.2}, 0, fold=(0, 2))
    for folds, fold in ((1, 0), (5, 5), (0, 2)):
        with pytest.raises(UsageError, match=r"--data\.folds is"):
            ImageFolder(str(tmp_path), folds=folds, fold=fold).check()
