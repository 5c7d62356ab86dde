"""Folders and tables as people have them: from one command to a trained network."""

from __future__ import annotations

import csv
import zlib

import numpy as np
import pytest
from absl.testing import flagsaver
from PIL import Image

from cnn_research.cli import fields
from cnn_research.cli import main as cli
from cnn_research.core import run_folder as folders
from cnn_research.core.errors import UsageError, UserError
from cnn_research.core.experiment import lookup
from cnn_research.data.sources.survey import Survey
from cnn_research.models.resnet9 import ResNet9
from cnn_research.tasks.classification import Classification
from cnn_research.tasks.multi_head import MultiHead
from cnn_research.tasks.regression import Regression
from cnn_research.train import auto_config as own_images
from cnn_research.train import auto_pretrained
from cnn_research.train.auto_config import image_size, network


@pytest.fixture(autouse=True)
def data_dir(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "data"))


@pytest.fixture(autouse=True)
def no_weights(monkeypatch):
    """All is trained from scratch; test_own_photographs has the rest."""
    monkeypatch.setattr(auto_pretrained, "NAMED", {})


def picture(seed, size=(40, 30), mode="RGB"):
    """Width and height as in Pillow."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    return Image.fromarray(pixels).convert(mode)


def fitted(name, *words):
    return fields.with_suggestions(lookup(name).experiment(), list(words))


def make_folder(root, counts, **options):
    for label, count in counts.items():
        (root / label).mkdir(parents=True)
        for number in range(count):
            file = root / label / f"{number}.png"
            picture(zlib.crc32(f"{label}{number}".encode()), **options).save(file)
    return root


def test_choices_do_not_contradict_what_is_named(tmp_path):
    path = f"--data.path={make_folder(tmp_path / 'pets', {'cat': 60, 'dog': 10})}"
    parts, _ = fitted("image_folder", path, "--accumulate=3")
    assert parts.batch_size % 3 == 0 and parts.task.class_weights == "balanced"
    balanced, _ = fitted("image_folder", path, "--sampling=balanced")
    assert balanced.task.class_weights != "balanced", "rare classes would count twice"
    for name, least in (("alexnet", 63), ("inception_v3", 299), ("resnet18_small", 1)):
        named, _ = fitted("image_folder", path, f"--model={name}", "--budget=1")
        height, width = named.data.image_size
        assert min(height, width) >= least and 1.2 < width / height < 1.5
        named.check()
    assert (height, width) == (30, 40)


def test_small_images_keep_their_size_and_what_is_named_counts(tmp_path):
    root = make_folder(tmp_path / "pets", {"cat": 60, "dog": 10})
    experiment, said = fitted("image_folder", f"--data.path={root}")
    assert experiment.data.image_size == (30, 40)
    assert experiment.task.class_weights == "balanced"
    assert "classes have 10 to 60 images" in said
    assert experiment.augmentation.mirror and experiment.augmentation.shift == 3
    assert experiment.selection.report == "best" and experiment.epochs == 60
    words = ("--data.image-size", "16", "16", "--augmentation.no-mirror", "--epochs=2")
    experiment, said = fitted("image_folder", f"--data.path={root}", *words)
    assert experiment.data.image_size == (16, 16) and not experiment.augmentation.mirror
    assert "--data.image-size" not in said and "--epochs" not in said
    assert "--batch-size" in said


def test_what_is_named_feeds_what_depends_on_it(tmp_path):
    root = make_folder(tmp_path / "pets", {"cat": 60, "dog": 60}, size=(160, 120))
    path = f"--data.path={root}"
    chosen, _ = fitted("image_folder", path)
    assert chosen.data.image_size == (96, 128) and len(chosen.model.pool) == 4
    assert chosen.augmentation.crop == (0.4, 1.0) and not chosen.augmentation.shift
    small, said = fitted("image_folder", path, "--data.image-size", "24", "32")
    assert small.model.pool == (False, True, True) and "for 24x32 pixels" in said
    assert small.augmentation.shift == 2 and small.augmentation.crop == (1.0, 1.0)
    words = ("--model=mobilenet_v1", "--transfer.cache-after=pool", "--transfer.freeze", "*conv*")
    cached, _ = fitted("image_folder", path, *words)
    assert cached.augmentation.crop == (1.0, 1.0) and cached.evaluation.batch_size == 100
    words = ("--model.features", "8", "16", "--epochs=2", "--augmentation.no-mirror")
    narrow, said = fitted("image_folder", path, *words)
    assert (narrow.model.pool, narrow.model.residual) == ((True, True), (False, True))
    assert narrow.batch_size == 8 and narrow.selection.patience == 0
    assert not narrow.evaluation.mirror and "--evaluation.no-mirror" in said
    assert "--model.features" not in said and "--epochs" not in said
    for words, wrong in [
        (("--data.image-size", "0", "9"), r"--data\.image-size is 0: must be above 0"),
        (("--model.features", "8", "--model.pool", "True", "True"), "one entry per stage"),
    ]:
        with pytest.raises(UsageError, match=wrong):
            fitted("image_folder", path, *words)


def test_characters_are_not_mirrored_and_few_images_are_not_weighed(tmp_path):
    root = make_folder(tmp_path / "letters", {"b": 3, "d": 4})
    experiment, said = fitted("image_folder", f"--data.path={root}")
    assert not experiment.augmentation.mirror and not experiment.evaluation.mirror
    assert "no mirror images, as classes are single characters or numbers" in said
    assert experiment.task.class_weights == "equal"
    assert experiment.batch_size <= 2, "half of them may turn out to be damaged"
    assert experiment.selection.report == "last", "a single validation image"


def test_images_of_many_shapes_keep_their_proportions(tmp_path):
    root = make_folder(tmp_path / "pets", {"cat": 6, "dog": 6}, size=(60, 40))
    path = f"--data.path={root}"
    experiment, said = fitted("image_folder", path)
    assert experiment.data.fit == "stretch" and "--data.fit" not in said
    for number in range(4):
        picture(number, (40, 60)).save(root / "cat" / f"tall{number}.png")
    experiment, said = fitted("image_folder", path)
    assert experiment.data.fit == own_images.KEEPS_PROPORTIONS
    assert f"--data.fit={own_images.KEEPS_PROPORTIONS}" in said and "0.67 to 1.50" in said
    experiment, said = fitted("image_folder", path, "--data.fit=stretch")
    assert experiment.data.fit == "stretch" and "--data.fit" not in said


def test_very_large_sets_are_said_to_take_longer(tmp_path):
    root = make_folder(tmp_path / "pets", {"cat": 5, "dog": 5})
    assert "about 10 minutes" in fitted("image_folder", f"--data.path={root}")[1]
    experiment, said = fitted("image_folder", f"--data.path={root}", "--budget=1e-8")
    assert experiment.epochs == 4 and "at least 4 epochs, although they exceed 1e-08 min" in said
    few, more = (
        fitted("image_folder", f"--data.path={root}", f"--budget={minutes}")[0].epochs
        for minutes in (0.005, 0.01)
    )
    assert 4 < few < more < 60


def test_small_images_that_are_seen_few_times_get_a_network_that_learns_quickly(tmp_path):
    root = make_folder(tmp_path / "signs", {"stop": 30, "yield": 30}, size=(32, 32))
    words = ["image_folder", f"--data.path={root}", "--budget=1e-4"]
    experiment, said = fitted(*words)
    assert experiment.model == own_images.QUICK and experiment.epochs == 4
    assert experiment.transfer.freeze == ("whiten/kernel",)
    rate = experiment.optimizer.learning_rate
    assert rate == own_images.QUICK_RATE * experiment.batch_size == 0.75 / 64
    assert "model: Airbench" in said and "learns small images in few epochs" in said
    for word in ("--optimizer.learning-rate=1e-3", "--budget=10"):
        assert isinstance(fitted(*words, word)[0].model, ResNet9)
    larger = make_folder(tmp_path / "larger", {"stop": 30, "yield": 30}, size=(44, 42))
    words[1] = f"--data.path={larger}"
    assert fitted(*words)[0].data.image_size == (32, 32), "for the budget's sake"
    same = fitted(*words, "--data.image-size", "44", "42")[0]
    assert same.data.image_size == (44, 42) and same.model == own_images.QUICK
    named = fitted(*words, "--model=airbench", "--model.features", "4", "8")[0]
    assert named.model.features == (4, 8) and named.optimizer.name == "sgd"


@pytest.mark.parametrize(
    ("height", "width", "longer", "expected"),
    [
        (480, 640, 128, (96, 128)),
        (640, 480, 96, (96, 72)),
        (100, 3000, 128, (16, 128)),
        (28, 28, 28, (28, 28)),
        (5, 9, 9, (8, 9)),
        (53, 60, 60, (53, 60)),
    ],
)
def test_image_sizes(height, width, longer, expected):
    seen = Survey(splits={}, classes={}, height=height, width=width, shapes=(1.0, 1.0))
    assert image_size(seen, longer) == expected


def test_networks_end_with_maps_of_a_few_pixels():
    for side in (8, 16, 28, 32, 48, 64, 96, 128):
        pools = sum(network((side, side))["pool"])
        assert 4 <= side // 2**pools <= 8, side


def test_a_table_names_its_images_and_heads(tmp_path):
    (tmp_path / "pictures").mkdir()
    rows = []
    for number in range(30):
        picture(number).save(tmp_path / "pictures" / f"{number}.jpg")
        kind, colour = ("shoe", "hat")[number % 2], ("red", "blue", "grey")[number % 3]
        rows.append({"id": number, "kind": kind, "colour": colour, "price": number / 7})
    table = tmp_path / "shop.csv"
    with table.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    path = f"--data.path={table}"
    experiment, _ = fitted("image_table", path, "--data.label=kind")
    assert experiment.data.image == "pictures/{id}.jpg"
    assert isinstance(experiment.task, Classification) and experiment.task.head == "kind"
    experiment, _ = fitted("image_table", path, "--data.label", "kind", "colour")
    assert isinstance(experiment.task, MultiHead) and experiment.task.heads == ("kind", "colour")
    experiment, _ = fitted("image_table", path, "--data.number=price")
    assert isinstance(experiment.task, Regression) and experiment.selection.metric == "MAE"
    assert experiment.data.label == ()
    for words in (("--data.number", "price", "id"), ("--data.label=kind", "--data.number=price")):
        with pytest.raises(UsageError, match="one column of numbers or columns of classes"):
            fitted("image_table", path, *words)
    assert fitted("image_table", path, "--data.label", "--data.number=price")[0].data.label == ()
    with pytest.raises(UserError, match="no column 'label'; choose one of its columns id, kind"):
        fitted("image_table", path)
    for name, word in (("image", "--data.label=kind"), ("kinds", "--data.number=price")):
        table.write_text(table.read_text().replace("id,", f"{name},"))
        assert fitted("image_table", path, word)[0].data.image == f"pictures/{{{name}}}.jpg"
        table.write_text(table.read_text().replace(f"{name},", "id,"))
    table.write_text("id price\n1 2\n")
    with pytest.raises(UsageError, match="no column 'image', and none of id price contains names"):
        fitted("image_table", path)


def test_an_archive_is_surveyed_once(tmp_path, monkeypatch):
    import shutil

    from cnn_research.data.sources import survey

    make_folder(tmp_path / "pets", {"cat": 6, "dog": 6})
    archive = shutil.make_archive(str(tmp_path / "pets"), "gztar", tmp_path / "pets")
    first, _ = fitted("image_folder", f"--data.path={archive}")
    monkeypatch.setattr(survey, "_survey", None)
    assert fitted("image_folder", f"--data.path={archive}")[0] == first


@pytest.mark.slow
def test_a_folder_as_it_comes(tmp_path, capsys):
    """Formats, modes, damaged files, a single image, an odd name: one command, no question."""
    root = tmp_path / "stuff"
    make_folder(root, {"apple": 12, "pear": 12})
    (root / "Über birne").mkdir()
    picture(1, mode="L").save(root / "Über birne" / "grey.tiff")
    for number, (mode, ending) in enumerate(
        [("RGBA", "png"), ("P", "gif"), ("CMYK", "jpg"), ("L", "bmp"), ("RGB", "webp")]
    ):
        picture(number, (33 + number, 50), mode).save(root / "apple" / f"odd{number}.{ending}")
    (root / "pear" / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    (root / "pear" / "notes.txt").write_text("not an image")
    workdir = tmp_path / "run"
    words = [f"--data.path={root}", f"--workdir={workdir}", "--experiment=image_folder"]
    with flagsaver.flagsaver():
        cli.main(cli.parse_flags(["launch.py", *words, "--epochs=1"]))
    said = capsys.readouterr().out
    assert "Chosen from the data" in said and "pear" in said
    figures = folders.read_json(workdir / folders.EVALUATION)
    assert set(figures) >= {"validation", "test"}
    run = folders.read_json(workdir / folders.RUN)
    assert len(run["data"]["skipped"]) == 2


def test_a_dry_run_leaves_nothing(tmp_path, capsys):
    root = make_folder(tmp_path / "pets", {"cat": 20, "dog": 20})
    words = [f"--data.path={root}", "--experiment=image_folder", f"--workdir={tmp_path / 'run'}"]
    with flagsaver.flagsaver():
        cli.main(cli.parse_flags(["launch.py", *words, "--dry-run"]))
    said = capsys.readouterr()
    assert "Expected: " in said.err and "MB of memory" in said.err and "FLOP per image" in said.err
    assert not (tmp_path / "run").exists()


def test_a_dry_run_of_what_takes_long_to_decode_answers_without(tmp_path, capsys, monkeypatch):
    from cnn_research.data.prepare import cache
    from cnn_research.train import dry_run

    root = make_folder(tmp_path / "pets", {"cat": 20, "dog": 20})
    words = [f"--data.path={root}", "--experiment=image_folder", f"--workdir={tmp_path / 'run'}"]
    monkeypatch.setattr(dry_run, "MOST_SECONDS", -1)
    with flagsaver.flagsaver():
        cli.main(cli.parse_flags(["launch.py", *words, "--dry-run"]))
    said = capsys.readouterr().err
    assert "Not decoded yet: 40 images" in said and "288 kB of disk" in said
    assert "Roughly expected: " in said and "of memory per step" in said
    assert not (tmp_path / "run").exists() and not (tmp_path / "data" / "image_folder").exists()
    monkeypatch.setattr(cache, "free_bytes", lambda folder: 1000)
    with flagsaver.flagsaver(), pytest.raises(SystemExit):
        cli.main(cli.parse_flags(["launch.py", *words, "--dry-run"]))
    said = capsys.readouterr().err
    assert "Not decoded yet" in said and "error: decoding 40 images at 30x40x3 needs" in said
