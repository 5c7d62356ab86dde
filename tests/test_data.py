"""Sources of images: what they load, what they refuse, and what they leave on the disk."""

from __future__ import annotations

import csv
import dataclasses
import errno
import gzip
import importlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pandas
import pytest
from PIL import Image, PngImagePlugin

from cnn_research.core.errors import UsageError, UserError
from cnn_research.data import images
from cnn_research.data.__main__ import main
from cnn_research.data.dataset import MISSING, UNKNOWN_CLASS, Dataset, Examples, Split
from cnn_research.data.prepare import cache, splits, tables
from cnn_research.data.prepare.files import folders_state, names_below
from cnn_research.data.sources import artworks, rows
from cnn_research.data.sources.artworks import Artworks
from cnn_research.data.sources.folder import ImageFolder, plan_folder
from cnn_research.data.sources.official import FashionMnist
from cnn_research.data.sources.scikit_learn import Digits
from cnn_research.data.sources.synthetic import Synthetic
from cnn_research.data.sources.table import ImageTable, Products

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def data_dir(tmp_path, monkeypatch) -> Path:
    """Prepared data go to a folder of this test alone."""
    folder = tmp_path / "prepared"
    monkeypatch.setenv("TFDS_DATA_DIR", str(folder))
    return folder


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder with real data sets, or a skip."""
    folder = Path(os.environ.get("CNN_RESEARCH_TEST_DATA", REPOSITORY.parent / "shared" / "data"))
    if not (folder / "fashion_mnist").is_dir():
        pytest.skip(f"no fashion_mnist in {folder}: set CNN_RESEARCH_TEST_DATA")
    return folder


@pytest.fixture(scope="session")
def fashion_mnist(real_data, tmp_path_factory) -> Path:
    """A data folder in which Fashion-MNIST is prepared from the official files, once."""
    folder = tmp_path_factory.mktemp("fashion")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TFDS_DATA_DIR", str(folder))
        main(["prepare", "fashion_mnist", f"--source={real_data / 'fashion_mnist'}"])
    return folder


def noise(seed: int, size: tuple[int, int] = (9, 11)) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def make_folder(root: Path, classes: dict[str, int], seed: int = 0) -> Path:
    """`root/<class>/<n>.png`, every image different."""
    for name, count in classes.items():
        (root / name).mkdir(parents=True)
        for number in range(count):
            seed += 1
            noise(seed).save(root / name / f"{number}.png")
    return root


def pixels_of(dataset: Dataset) -> dict[str, set[bytes]]:
    return {
        name: {image.tobytes() for image in part.images} for name, part in dataset.splits.items()
    }


def python(code: str) -> str:
    """What `code` prints, in a fresh process."""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


# Digits and synthetic data


def test_digits_have_all_images_once_and_every_class_in_proportion():
    from sklearn.datasets import load_digits

    dataset = Digits().load()
    sizes = {name: len(part) for name, part in dataset.splits.items()}
    assert sizes == {"train": 1197, "validation": 300, "test": 300}
    together = np.concatenate([part.images for part in dataset.splits.values()])
    assert together.dtype == np.uint8 and together.min() == 0 and together.max() == 255
    original = np.round(load_digits().images * 255 / 16).astype(np.uint8)
    assert sorted(i.tobytes() for i in together) == sorted(i.tobytes() for i in original)
    for part in dataset.splits.values():
        counts = np.bincount(part.labels["label"])
        expected = np.bincount(load_digits().target) * len(part) / 1797
        assert np.abs(counts - expected).max() <= 1


def test_digits_keep_label_with_image():
    from sklearn.datasets import load_digits

    test = Digits().load().splits["test"]
    rows = [int(name.split("/")[1]) for name in test.names]
    np.testing.assert_array_equal(test.labels["label"], load_digits().target[rows])
    assert (test.images[..., 0] > 127).tolist() == (load_digits().images[rows] > 7.9).tolist()


def test_split_depends_on_seed_only():
    first, again, other = (Digits(split_seed=seed).load() for seed in (3, 3, 4))
    assert first.provenance["content"] == again.provenance["content"]
    np.testing.assert_array_equal(first.splits["test"].names, again.splits["test"].names)
    shared = np.intersect1d(first.splits["test"].names, other.splits["test"].names)
    assert len(shared) < 150


def test_digits_without_validation():
    assert list(Digits(validation=0).load().splits) == ["train", "test"]


@pytest.mark.parametrize(("validation", "test"), [(1500, 297), (2000, 0)])
def test_sizes_that_do_not_fit_are_a_usage_error(validation, test):
    with pytest.raises(UsageError, match="from 1797 examples leaves none to train on"):
        Digits(validation=validation, test=test).load()


def test_synthetic_has_the_asked_shapes_and_depends_on_the_seed():
    source = Synthetic(train=7, test=3, validation=0, image_shape=(5, 4, 1), heads=("a", "b"),
                       classes=(2, 9))  # fmt: skip
    dataset = source.load()
    assert dataset.splits["train"].images.shape == (7, 5, 4, 1)
    assert dataset.splits["test"].labels["b"].shape == (3,)
    assert {head: len(names) for head, names in dataset.class_names.items()} == {"a": 2, "b": 9}
    assert pixels_of(dataset) == pixels_of(source.load())
    with pytest.raises(UsageError, match="2 heads"):
        Synthetic(heads=("a", "b")).load()


# Drawing splits


def make_examples(labels: list[int], content: list[int], given: list[str] | None = None):
    images_ = np.array(content, np.uint8).reshape(-1, 1, 1, 1)
    return Examples(
        images=images_,
        labels={"label": np.array(labels, np.int32)},
        class_names={"label": ("red", "green", "blue")},
        names=np.array([f"n{index}" for index in range(len(labels))]),
        given=np.array(given or ["train"] * len(labels)),
    )


@pytest.mark.parametrize("seed", range(5))
def test_copies_of_an_image_never_straddle_drawn_splits(seed):
    content = [index // 3 for index in range(90)]
    examples = make_examples([c % 2 for c in content], content)
    indices, report = splits.assign(examples, {"validation": 0.2, "test": 0.2}, seed)
    contents = [{content[index] for index in chosen} for chosen in indices.values()]
    assert sum(map(len, contents)) == len(set.union(*contents)) == 30
    assert report["duplicates"]["extra_copies"] == 60
    assert report["duplicates"]["across_splits"] == {}


def test_copies_across_given_splits_are_counted_and_named():
    examples = make_examples(
        [0, 1, 0, 1, 0], [1, 2, 3, 1, 2], ["train", "train", "train", "test", "test"]
    )
    _, report = splits.assign(examples, {"validation": 0, "test": 0}, 0)
    across = {"train and test": {"images": 2, "first": [["n0", "n3"], ["n1", "n4"]]}}
    assert report["duplicates"]["across_splits"] == across
    assert report["duplicates"]["images_with_conflicting_labels"] == 2


def test_split_does_not_depend_on_the_order_of_files():
    labels, content = [i % 3 for i in range(60)], list(range(60))
    forward = make_examples(labels, content)
    backward = make_examples(labels[::-1], content[::-1])
    drawn = [
        set(examples.images[splits.assign(examples, {"test": 12}, 1)[0]["test"]].ravel().tolist())
        for examples in (forward, backward)
    ]
    assert drawn[0] == drawn[1] and len(drawn[0]) == 12


def test_classes_that_only_other_splits_have_are_reported():
    examples = make_examples([0, 1, 2], [1, 2, 3], ["train", "train", "test"])
    _, report = splits.assign(examples, {}, 0)
    assert report["classes_without_training_examples"] == {"label": ["blue"]}


def test_images_of_the_target_that_the_source_has_are_left_out_of_it():
    given = ["train"] * 8 + ["target"] * 5
    content = [*range(8), 3, 20, 21, 5, 20]
    examples = make_examples([0, 1] * 4 + [0, 1, UNKNOWN_CLASS, UNKNOWN_CLASS, 1], content, given)
    indices, report = splits.assign(examples, {"validation": 2, "test": 2}, 0)
    assert list(indices) == ["train", "validation", "test", "target"]
    assert indices["target"].tolist() == [9, 10, 12]
    pairs = [["n3", "n8"], ["n5", "n11"]]
    assert report["left_out_of_target"] == {"images": 2, "first": pairs}
    assert report["target_examples_of_unseen_classes"] == {"label": 1}
    assert report["duplicates"]["across_splits"] == {}
    source = make_examples([0, 1] * 4, content[:8])
    alone, report_alone = splits.assign(source, {"validation": 2, "test": 2}, 0)
    for name, chosen in alone.items():
        np.testing.assert_array_equal(chosen, indices[name])
        assert report["content"][name] == report_alone["content"][name]
    assert "left_out_of_target" not in report_alone


def test_target_that_is_a_copy_of_the_source_is_an_error():
    examples = make_examples([0, 1, 1], [1, 2, 2], ["train", "train", "target"])
    with pytest.raises(UserError, match="all 1 images of the split 'target' are also in another"):
        splits.assign(examples, {}, 0)


def test_unseen_classes_are_allowed_outside_of_train():
    def dataset(split: str, label: int) -> Dataset:
        part = Split(np.zeros((1, 2, 2, 1), np.uint8), {"x": np.array([label], np.int32)})
        return Dataset("made up", {split: part}, {"x": ("a", "b")}, {})

    assert dataset("target", UNKNOWN_CLASS).splits["target"].labels["x"] == [-2]
    dataset("train", MISSING)
    with pytest.raises(UserError, match=r"label 'x' of example 0 is -2, outside 0..1"):
        dataset("train", UNKNOWN_CLASS)
    with pytest.raises(UserError, match="is -3, outside"):
        dataset("target", -3)


# Image folders


def test_folder_of_classes(tmp_path):
    root = make_folder(tmp_path / "fruit", {"apple": 20, "pear": 10})
    dataset = ImageFolder(str(root), image_size=(9, 11), validation=0.2, test=0.3).load()
    assert {name: len(part) for name, part in dataset.splits.items()} == {
        "train": 15, "validation": 6, "test": 9,
    }  # fmt: skip
    assert dataset.class_names == {"label": ("apple", "pear")}
    for part in dataset.splits.values():
        for image, label, name in zip(part.images, part.labels["label"], part.names, strict=True):
            np.testing.assert_array_equal(image, np.asarray(Image.open(root / name)))
            assert dataset.class_names["label"][label] == name.split("/")[0]
    assert len(set.union(*pixels_of(dataset).values())) == 30


@pytest.mark.parametrize("validation_name", ["val", "valid", "validation"])
def test_folder_of_splits_is_kept(tmp_path, validation_name):
    root = tmp_path / "fruit"
    for seed, name in enumerate(["train", validation_name, "test"]):
        make_folder(root / name, {"a": 2 + seed, "b": 2}, seed=100 * seed)
    dataset = ImageFolder(str(root)).load()
    assert {name: len(part) for name, part in dataset.splits.items()} == {
        "train": 4, "validation": 5, "test": 6,
    }  # fmt: skip
    names = ("a/0.png", "a/1.png", "a/2.png", "b/0.png", "b/1.png")
    assert set(dataset.splits["validation"].names) == {f"{validation_name}/{n}" for n in names}


def test_a_split_that_has_no_folder_is_drawn_from_train(tmp_path):
    make_folder(tmp_path / "fruit" / "train", {"a": 10, "b": 10})
    make_folder(tmp_path / "fruit" / "test", {"a": 1, "b": 1}, seed=50)
    dataset = ImageFolder(str(tmp_path / "fruit"), validation=0.2).load()
    assert dataset.provenance["examples"] == {"train": 16, "validation": 4, "test": 2}
    assert dataset.provenance["given_by_the_source"] == ["train", "test"]


def test_duplicates_across_given_folders_are_named(tmp_path):
    make_folder(tmp_path / "fruit" / "train", {"a": 4, "b": 4})
    make_folder(tmp_path / "fruit" / "test", {"a": 1, "b": 1}, seed=50)
    shutil.copy(tmp_path / "fruit/train/a/2.png", tmp_path / "fruit/test/b/copy.png")
    found = ImageFolder(str(tmp_path / "fruit"), validation=0.0).load().provenance["duplicates"]
    pair = [["train/a/2.png", "test/b/copy.png"]]
    assert found["across_splits"] == {"train and test": {"images": 1, "first": pair}}
    assert found["images_with_conflicting_labels"] == 1


def test_second_load_maps_memory_without_decoding_and_a_change_decodes_again(tmp_path):
    root = make_folder(tmp_path / "fruit", {"a": 5, "b": 5})
    source = f"ImageFolder({str(root)!r}, validation=0.0, test=0.2)"
    code = (
        "import sys; from cnn_research.data.sources.folder import ImageFolder; import numpy as np;"
        f"d = {source}.load(); print('PIL' in sys.modules,"
        "isinstance(d.splits['train'].images, np.memmap), d.provenance['examples']['train'])"
    )
    assert python(code).splitlines()[-1] == "True True 8"
    assert python(code).splitlines()[-1] == "False True 8"
    noise(77).save(root / "a" / "new.png")
    assert python(code).splitlines()[-1] == "True True 9"
    assert len(list(cache.data_dir().glob("image_folder/*/*/arrays/*"))) == 1


def test_each_fit_has_arrays_of_its_own(tmp_path, data_dir):
    root = make_folder(tmp_path / "fruit", {"a": 5, "b": 5})
    for fit in ("stretch", "crop", "pad", "crop"):
        dataset = ImageFolder(str(root), (8, 8), fit, validation=0.0, test=0.2).load()
        split = dataset.splits["test"]
        for image, name in zip(split.images, split.names, strict=True):
            np.testing.assert_array_equal(image, images.decode(root / str(name), (8, 8), fit))
    assert len(list(data_dir.rglob("index.json"))) == 3


def test_folder_of_a_target_with_a_class_of_its_own(tmp_path):
    root = tmp_path / "fruit"
    make_folder(root / "train", {"apple": 8, "pear": 8})
    make_folder(root / "target", {"banana": 2, "pear": 3}, seed=50)
    shutil.copy(root / "train/pear/1.png", root / "target/banana/copy.png")
    source = ImageFolder(str(root), image_size=(9, 11), validation=0.25, test=0.25)
    for dataset in (source.load(), source.load()):  # prepared, and then opened
        assert dataset.class_names == {"label": ("apple", "pear")}
        sizes = {name: len(part) for name, part in dataset.splits.items()}
        assert sizes == {"train": 8, "validation": 4, "test": 4, "target": 5}
        target = dataset.splits["target"]
        assert target.labels["label"].tolist() == [UNKNOWN_CLASS, UNKNOWN_CLASS, 1, 1, 1]
        assert target.names[0] == "target/banana/0.png"
        left_out = {"images": 1, "first": [["train/pear/1.png", "target/banana/copy.png"]]}
        assert dataset.provenance["left_out_of_target"] == left_out
        assert dataset.provenance["target_examples_of_unseen_classes"] == {"label": 2}


@pytest.mark.parametrize("kind", ["tar.xz", "tar.gz", "tar", "zip"])
def test_archive_with_a_folder_around_it(tmp_path, kind):
    root = make_folder(tmp_path / "in" / "fruit", {"a": 3, "b": 3})
    archive = tmp_path / f"fruit.{kind}"
    if kind == "zip":
        with zipfile.ZipFile(archive, "w") as out:
            for file in root.rglob("*.png"):
                out.write(file, file.relative_to(tmp_path / "in"))
    else:
        with tarfile.open(archive, "w:" + kind.partition(".")[2]) as out:
            out.add(root, "fruit")
    dataset = ImageFolder(str(archive), validation=0.0, test=0.4, image_size=(9, 11)).load()
    folder = ImageFolder(str(root), validation=0.0, test=0.4, image_size=(9, 11)).load()
    assert dataset.provenance["content"] == folder.provenance["content"]


def test_every_kind_of_image_becomes_rgb(tmp_path):
    ramp = np.linspace(0, 255, 64).astype(np.uint8).reshape(8, 8)
    colour = np.stack([ramp, ramp[::-1], ramp.T], axis=-1)
    save = {}
    save["grey.png"] = (Image.fromarray(ramp), np.stack([ramp] * 3, -1))
    save["grey16.png"] = (Image.fromarray(ramp.astype(np.uint16) * 257), np.stack([ramp] * 3, -1))
    save["palette.png"] = (Image.fromarray(colour).quantize(64), None)
    save["rgb.bmp"] = (Image.fromarray(colour), colour)
    save["cmyk.tif"] = (Image.fromarray(colour).convert("CMYK"), colour)
    half = np.dstack([colour, np.where(np.arange(64).reshape(8, 8) < 32, 0, 255)]).astype(np.uint8)
    on_white = np.where(half[..., 3:] == 0, 255, colour).astype(np.uint8)
    save["alpha.png"] = (Image.fromarray(half), on_white)
    for name, (image, expected) in save.items():
        image.save(tmp_path / name)
        if expected is None:
            expected = np.asarray(image.convert("RGB"))
        decoded = images.decode(tmp_path / name, (8, 8))
        assert decoded.dtype == np.uint8 and decoded.shape == (8, 8, 3), name
        assert np.abs(decoded.astype(int) - expected).max() <= 1, name


def test_exif_rotation_is_applied(tmp_path):
    upright = np.zeros((16, 32, 3), np.uint8)
    upright[:, :16] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    Image.fromarray(np.rot90(upright)).save(tmp_path / "turned.jpg", exif=exif, quality=95)
    decoded = images.decode(tmp_path / "turned.jpg", (16, 32)).astype(int)
    assert np.abs(decoded - upright).mean() < 10


def test_shrinking_averages_instead_of_picking_pixels(tmp_path):
    checks = (np.indices((64, 64)).sum(axis=0) % 2 * 255).astype(np.uint8)
    Image.fromarray(checks).save(tmp_path / "checks.png")
    assert np.abs(images.decode(tmp_path / "checks.png", (8, 8)).astype(int) - 127).max() <= 3


@pytest.mark.parametrize("damage", ["truncated", "text", "empty"])
def test_bad_image_is_named_and_can_be_skipped(tmp_path, damage, data_dir):
    root = make_folder(tmp_path / "fruit", {"a": 6, "b": 6})
    bad = root / "a" / "3.png"
    content = {"truncated": bad.read_bytes()[:150], "text": b"not an image", "empty": b""}[damage]
    bad.write_bytes(content)
    with pytest.raises(UserError, match=r"fruit/a/3.png is (not an image or is damaged|an empty)"):
        ImageFolder(str(root)).load()
    assert not list(data_dir.rglob("index.json")) and not list(data_dir.rglob("*incomplete*"))
    dataset = ImageFolder(str(root), on_bad_image="skip", validation=0.0).load()
    assert sum(map(len, dataset.splits.values())) == 11
    (skipped,) = dataset.provenance["skipped"]
    assert "fruit/a/3.png" in skipped


def test_huge_image_is_refused_before_it_is_decoded(tmp_path):
    root = make_folder(tmp_path / "fruit", {"a": 3, "b": 3})
    Image.new("1", (20_000, 10_001)).save(root / "a" / "huge.png")
    with pytest.raises(UserError, match=r"a/huge.png has .* 50 million"):
        ImageFolder(str(root)).load()
    Image.new("1", (20_000, 20_000)).save(root / "a" / "huge.png")
    with pytest.raises(UserError, match=r"a/huge.png has more than 50 million pixels"):
        main(["prepare", "artworks", f"--source={root}"])
    Image.new("1", (8_000, 7_000)).save(root / "a" / "huge.png")
    with pytest.raises(UserError, match=r"a/huge.png has 8000x7000 pixels"):
        ImageFolder(str(root)).load()


@pytest.mark.parametrize("ending", ["ico", "icns"])
def test_icons_are_refused_before_they_are_decoded(tmp_path, ending, monkeypatch):
    noise(1, (64, 64)).save(tmp_path / f"icon.{ending}")
    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", None)
    with pytest.raises(images.BadImage, match=rf"icon.{ending} is an icon or a"):
        images.decode(tmp_path / f"icon.{ending}", None)


def test_a_split_of_bad_images_only_is_named(tmp_path):
    make_folder(tmp_path / "fruit" / "train", {"a": 3, "b": 3})
    for label in "ab":
        (tmp_path / "fruit" / "test" / label).mkdir(parents=True)
        Image.new("F", (9, 9)).save(tmp_path / "fruit" / "test" / label / "x.tiff")
    source = ImageFolder(str(tmp_path / "fruit"), validation=0.0, on_bad_image="skip")
    with pytest.raises(UserError, match=r"none of the 2 images of the split 'test' .*x.tiff"):
        source.load()


@pytest.mark.parametrize(
    "names", [("Training", "Testing"), ("training_set", "test_set"), ("train", "dev"),
              ("train", "eval")],
)  # fmt: skip
def test_common_names_of_splits(tmp_path, names):
    for seed, name in enumerate(names):
        make_folder(tmp_path / name, {"a": 1, "b": 1}, seed)
    plan = plan_folder(tmp_path, "fruit")
    assert plan.class_names == {"label": ("a", "b")}
    assert len({record.split for record in plan.records}) == 2


def test_splits_with_unknown_names_are_no_classes(tmp_path):
    for seed, name in enumerate(("fit", "holdout")):
        make_folder(tmp_path / name, {"a": 1, "b": 1}, seed)
    with pytest.raises(UserError, match="each of fit, holdout, which look like splits"):
        plan_folder(tmp_path, "fruit")
    make_folder(tmp_path / "fit", {"c": 1})
    with pytest.raises(UserError, match="each of fit, holdout, which look like splits"):
        plan_folder(tmp_path, "fruit")
    make_folder(tmp_path / "holdout", {"d": 1})
    assert plan_folder(tmp_path, "fruit").class_names == {"label": ("fit", "holdout")}


def test_a_folder_without_images_is_no_class(tmp_path):
    make_folder(tmp_path, {"a": 2, "b": 2})
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "0.txt").write_text("0 0.5 0.5 1 1")
    plan = plan_folder(tmp_path, "fruit")
    assert plan.class_names == {"label": ("a", "b")} and len(plan.records) == 4
    assert plan.left_out == {"folders without images": {"count": 1, "first": ["labels"]}}
    shutil.rmtree(tmp_path / "b")
    with pytest.raises(UserError, match="only one class, 'a'"):
        plan_folder(tmp_path, "fruit")


def test_classes_of_files_without_endings(tmp_path):
    make_folder(tmp_path, {"a": 2, "b": 2})
    for file in tmp_path.rglob("*.png"):
        file.rename(file.with_suffix(""))
    plan = plan_folder(tmp_path, "fruit")
    assert plan.class_names == {"label": ("a", "b")}
    assert not plan.left_out


def test_names_that_are_not_utf8(tmp_path):
    root = make_folder(tmp_path / "fruit", {"a": 4, "b": 4})
    os.rename(root / "a", os.fsencode(root) + b"/caf\xe9")
    dataset = ImageFolder(str(root), validation=0.0, test=0.5).load()
    assert dataset.class_names["label"] == ("b", "caf\\xe9")
    json.dumps([str(name) for name in dataset.splits["test"].names]).encode()


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (None, "does not exist: check the path"),
        ([], r"has no folders of images \(it is empty\): it needs one per class"),
        (["x.png"], "has no folders of images .it has x.png."),
        (["a/x.png", "a/y.png"], "has only one class, 'a'"),
        (["train/a/x.png", "test/a/y.png", "extra/z.png"], "other folders .extra."),
    ],
)
def test_folder_errors(tmp_path, files, message):
    root = tmp_path / "fruit"
    if files is not None:
        root.mkdir()
        for seed, file in enumerate(files):
            (root / file).parent.mkdir(parents=True, exist_ok=True)
            noise(seed).save(root / file)
    with pytest.raises(UserError, match=message):
        ImageFolder(str(root), test=0.4, validation=0.0).load()


def test_fractions_that_leave_nothing_to_train_on(tmp_path):
    root = make_folder(tmp_path / "fruit", {"a": 5, "b": 5})
    with pytest.raises(UsageError, match="their sum must be below 1"):
        ImageFolder(str(root), validation=0.6, test=0.4).load()
    with pytest.raises(UsageError, match="drawing 5 for validation and 5 for test from 10"):
        ImageFolder(str(root), validation=0.49, test=0.49).load()


@pytest.mark.parametrize("kind", ["text", "truncated", "flipped"])
def test_archive_that_is_damaged(tmp_path, kind):
    root = make_folder(tmp_path / "fruit", {"a": 9, "b": 9})
    archive = tmp_path / "fruit.tar.xz"
    with tarfile.open(archive, "w:xz") as out:
        out.add(root, "fruit")
    content = bytearray(archive.read_bytes())
    content[len(content) // 2] ^= 0xFF
    whole = {"text": b"no archive", "truncated": content[: len(content) // 3], "flipped": content}
    archive.write_bytes(whole[kind])
    with pytest.raises(UserError, match=r"fruit.tar.xz is neither a folder nor a complete .tar"):
        ImageFolder(str(archive)).load()


@pytest.mark.parametrize(("ending", "at"), [("tar", None), ("tar.gz", -6), ("tar.xz", -40)])
def test_archive_that_seems_to_end_early(tmp_path, ending, at):
    """A header, or a checksum after the last image."""
    root = make_folder(tmp_path / "fruit", {"a": 9, "b": 9})
    archive = tmp_path / f"fruit.{ending}"
    with tarfile.open(archive, f"w:{ending.removeprefix('tar').lstrip('.')}") as out:
        out.add(root, "fruit")
    whole = archive.read_bytes()
    with tarfile.open(archive) as read:
        headers = [member.offset for member in read]
    content = bytearray(whole)
    content[headers[12] if at is None else at] ^= 0xFF
    archive.write_bytes(content)
    with pytest.raises(UserError, match=r"neither a folder nor a complete .tar"):
        ImageFolder(str(archive)).load()
    archive.write_bytes(whole)
    assert ImageFolder(str(archive)).load().class_names["label"] == ("a", "b")


@pytest.mark.parametrize(("at", "value"), [(8, 1), (10, 99)])  # the flag and the method
def test_zip_that_is_encrypted_or_packed_oddly(tmp_path, at, value):
    archive = tmp_path / "fruit.zip"
    with zipfile.ZipFile(archive, "w") as out:
        out.writestr("a/x.png", b"content")
    content = bytearray(archive.read_bytes())
    for start, shift in ((0, -2), (content.index(b"PK\x01\x02"), 0)):
        content[start + at + shift] = value
    archive.write_bytes(content)
    with pytest.raises(UserError, match=r"fruit.zip is neither a folder nor a complete .tar"):
        ImageFolder(str(archive)).load()


@pytest.mark.parametrize(
    ("name", "message"),
    [("shop.tsv", "a table, not a folder: use --exp"), ("shop.txt", "save it as .csv")],
)
def test_a_table_in_place_of_a_folder(tmp_path, name, message):
    (tmp_path / name).write_text("image,label\n")
    with pytest.raises(UsageError, match=message):
        ImageFolder(str(tmp_path / name)).load()


def test_path_that_is_empty():
    with pytest.raises(UsageError, match=r"--data.path is empty: name a folder"):
        ImageFolder("").load()


def test_files_are_listed_in_order_without_what_is_hidden(tmp_path):
    names = ["b/2.png", "b/10.png", "a.png", "a/x/1.png", "a-b/1.png", "B/1.png"]
    for name in [*names, ".git/1.png", "a/.hidden.png", "b/Thumbs.db", "__MACOSX/1.png"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "a" / "loop").symlink_to("loop")
    (tmp_path / "linked").symlink_to(tmp_path / "b")
    expected = [*names, "a/loop", "linked/2.png", "linked/10.png"]
    assert names_below(tmp_path) == sorted(expected, key=lambda name: name.split("/"))
    os.utime(tmp_path / "a" / "x", (0, 0))
    before = folders_state(tmp_path)
    assert folders_state(tmp_path) == before
    (tmp_path / "a" / "x" / "2.png").touch()
    assert folders_state(tmp_path) != before


def test_link_to_nothing_is_named(tmp_path):
    root = make_folder(tmp_path / "fruit", {"a": 3, "b": 3})
    (root / "a" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    with pytest.raises(UserError, match=r"a/gone.png does not exist"):
        ImageFolder(str(root)).load()


# Tables


def make_table(folder: Path, rows: list[dict[str, str]]) -> Path:
    """A CSV file in `folder`, and `images/<id>.png` for every row."""
    (folder / "images").mkdir(parents=True)
    for seed, row in enumerate(rows):
        noise(seed).save(folder / "images" / f"{row['id']}.png")
    with open(folder / "table.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return folder / "table.csv"


def clothes(count: int = 24) -> list[dict[str, str]]:
    return [
        {
            "id": str(index),
            "kind": "shirt" if index % 2 else "shoe",
            "colour": ["", "red", "blue"][index % 3],
            "file": f"images/{index}.png",
        }
        for index in range(count)
    ]


def test_table_with_two_heads_and_missing_labels(tmp_path):
    rows = clothes()
    table = make_table(tmp_path / "shop", rows)
    source = ImageTable(
        str(table), image="images/{id}.png", label=("kind", "colour"), image_size=(9, 11)
    )
    dataset = source.load()
    assert dataset.class_names == {"kind": ("shirt", "shoe"), "colour": ("blue", "red")}
    seen = 0
    for part in dataset.splits.values():
        for index, name in enumerate(part.names):
            row = rows[int(Path(name).stem)]
            kind, colour = part.labels["kind"][index], part.labels["colour"][index]
            assert dataset.class_names["kind"][kind] == row["kind"]
            if row["colour"]:
                assert dataset.class_names["colour"][colour] == row["colour"]
            else:
                assert colour == MISSING
            original = np.asarray(Image.open(table.parent / name))
            np.testing.assert_array_equal(part.images[index], original)
            seen += 1
    assert seen == 24
    by_column = ImageTable(
        str(table), image="file", label=("kind", "colour"), image_size=(9, 11)
    ).load()
    assert by_column.provenance["content"] == dataset.provenance["content"]


def test_table_with_its_own_splits(tmp_path):
    rows = clothes(12)
    for index, row in enumerate(rows):
        row["split"] = "test" if index >= 8 else "train"
    table = make_table(tmp_path / "shop", rows)
    dataset = ImageTable(str(table), image="file", label=("kind",), validation=0.25).load()
    assert sorted(dataset.splits["test"].names) == sorted(r["file"] for r in rows[8:])
    assert dataset.provenance["examples"] == {"train": 6, "validation": 2, "test": 4}


def test_rare_labels_can_count_as_not_known(tmp_path):
    rows = clothes()
    rows[0]["colour"] = "mauve"
    table = make_table(tmp_path / "shop", rows)
    dataset = ImageTable(str(table), image="file", label=("colour",)).load()
    assert dataset.class_names == {"colour": ("blue", "mauve", "red")}
    assert 1 in dataset.splits["train"].labels["colour"], "a single image is trained on"
    dataset = ImageTable(str(table), image="file", label=("colour",), min_examples=2).load()
    assert dataset.class_names == {"colour": ("blue", "red")}
    assert dataset.provenance["left_out"]["rows without any label"]["count"] == 8


def test_table_errors(tmp_path):
    table = make_table(tmp_path / "shop", clothes())
    with pytest.raises(
        UsageError, match="no column 'type'; choose one of its columns id, kind, col"
    ):
        ImageTable(str(table), image="file", label=("type",)).load()
    with pytest.raises(UsageError, match="no column 'image'"):
        ImageTable(str(table), label=("kind",)).load()
    with pytest.raises(UsageError, match="no column 'number'"):
        ImageTable(str(table), image="images/{number}.png", label=("kind",)).load()
    with pytest.raises(UserError, match="column 'kind' has 0 classes with 99 or more rows"):
        ImageTable(str(table), image="file", label=("kind",), min_examples=99).load()
    (table.parent / "images" / "5.png").unlink()
    with pytest.raises(UserError, match=r"images/5.png does not exist"):
        ImageTable(str(table), image="file", label=("kind",)).load()
    table.write_text("file,kind\n")
    with pytest.raises(UserError, match="has no rows"):
        ImageTable(str(table), image="file", label=("kind",)).load()
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="has 0 tables"):
        ImageTable(str(tmp_path / "empty")).load()


def test_table_with_semicolons_and_a_byte_order_mark(tmp_path):
    table = make_table(tmp_path / "shop", clothes())
    table.write_text("\ufeff" + table.read_text().replace(",", ";"), encoding="utf-8")
    dataset = ImageTable(str(table), image="images/{id}.png", label=("kind",)).load()
    assert dataset.class_names == {"kind": ("shirt", "shoe")}


def test_cells_that_are_too_long_for_a_file_name_no_image(tmp_path):
    assert rows.image_column(pandas.DataFrame({"text": ["x" * 5_000]}), tmp_path) is None


def test_column_of_images_of_which_some_are_absent(tmp_path):
    table = make_table(tmp_path / "shop", clothes(4))
    cells = tables.read_table(table, "shop")
    (table.parent / "images" / "0.png").unlink()
    assert rows.image_column(cells, table.parent) == "images/{id}.png"
    (table.parent / "images" / "1.png").unlink()
    assert rows.image_column(cells, table.parent) is None


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "cp1252"])
def test_table_of_a_spreadsheet(tmp_path, encoding):
    table = tmp_path / "shop.csv"
    table.write_bytes("image ; año\r\nx.png;niño €\r\n".encode(encoding))
    (row,) = tables.read_table(table, "shop").to_dict("records")
    assert row == {"image": "x.png", "año": "niño €"}
    table.write_bytes(b"image\n\xf1\x81\n")  # the second byte means nothing in cp1252
    assert list(tables.read_table(table, "shop")["image"]) == ["ñ\\x81"]


# Source and target


def catalogue() -> list[dict[str, str]]:
    """30 rows of 2010 to 2012, 3 of 2013, 8 of 2016, and one without a year."""
    years = [2010 + index % 3 for index in range(30)] + [2013] * 3 + [2016] * 8
    rows = [
        {
            "id": str(index),
            "year": str(year),
            "type": ["hat", "shoe"][index % 2],
            "brand": "ab"[index % 3 > 0],
        }
        for index, year in enumerate(years)
    ]
    rows[0]["brand"] = rows[40]["brand"] = "rare"
    rows[33]["type"], rows[34]["brand"], rows[35]["type"] = "scarf", "", ""
    return [*rows, {"id": "41", "year": "", "type": "hat", "brand": "a"}]


def shop(table: Path, **changes) -> ImageTable:
    fields = {"label": ("type", "brand"), "min_examples": 2, "image": "images/{id}.png"}
    years = {"rows": ("year<=2012",), "target": ("year>=2015",)}
    return ImageTable(str(table), **{"image_size": (9, 11), **fields, **years, **changes})


def test_rows_and_target_of_a_table(tmp_path):
    rows = catalogue()
    table = make_table(tmp_path / "shop", rows)
    noise(4).save(table.parent / "images" / "36.png")  # a photograph of the source
    for dataset in (shop(table).load(), shop(table).load()):  # prepared, and then opened
        sizes = {name: len(part) for name, part in dataset.splits.items()}
        assert sizes == {"train": 24, "validation": 3, "test": 3, "target": 7}
        assert dataset.class_names == {"type": ("hat", "shoe"), "brand": ("a", "b")}
        for split, part in dataset.splits.items():
            other = UNKNOWN_CLASS if split == "target" else MISSING
            for at, name in enumerate(part.names):
                row = rows[int(Path(name).stem)]
                assert (split == "target") == (row["year"] == "2016")
                for head, classes in dataset.class_names.items():
                    known = {"": MISSING, **{name: i for i, name in enumerate(classes)}}
                    assert part.labels[head][at] == known.get(row[head], other), (name, head)
        provenance = dataset.provenance
        assert provenance["left_out"]["rows not asked for"]["count"] == 4
        pair = ["images/4.png", "images/36.png"]
        assert provenance["left_out_of_target"] == {"images": 1, "first": [pair]}
        counts = {"type": 1, "brand": 1}
        assert provenance["target_examples_of_unseen_classes"] == counts


def test_a_target_leaves_the_source_as_it_is(tmp_path):
    table = make_table(tmp_path / "shop", catalogue())
    alone = shop(table, target=()).load()
    assert list(alone.splits) == ["train", "validation", "test"]
    both = shop(table).load().provenance["content"]
    assert {name: both[name] for name in alone.splits} == alone.provenance["content"]


def test_target_of_a_column_split(tmp_path):
    rows = clothes(16)
    for index, row in enumerate(rows):
        row["split"] = "Target" if index >= 12 else ""
    rows[15]["kind"] = "hat"
    table = make_table(tmp_path / "shop", rows)
    dataset = ImageTable(str(table), image="file", label=("kind",), validation=0.0).load()
    assert dataset.splits["target"].labels["kind"].tolist() == [1, 0, 1, UNKNOWN_CLASS]


@pytest.mark.parametrize(
    ("condition", "met"),
    [
        ("n<=10", [0, 1]),
        ("n >= 10.0", [1]),
        ("n<10", [0]),
        ("n>9", [1]),
        ("n=10", [1]),
        ("n!=10", [0, 2]),
        ("name=Tee Shirt", [0]),
        ("name != Tee Shirt", [1]),
        ("name<b", [1]),
    ],
)
def test_conditions(condition, met):
    cells = [{"n": "9", "name": "Tee  Shirt"}, {"n": "1e1", "name": "a"}, {"n": "-?", "name": ""}]
    parsed = rows.Condition.parse(condition, "--data.rows")
    if condition == "name<b":
        met = [0, 1] if "Tee Shirt" < "b" else met
    assert [at for at, row in enumerate(cells) if parsed.meets(row)] == met


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rows": ("year",)}, "--data.rows has 'year', which is not a condition"),
        ({"rows": ("year<=",)}, "--data.rows has 'year<=', which is not a condition"),
        ({"target": ("=>2015",)}, "--data.target has '=>2015', which is not a condition"),
        (
            {"rows": ("yaer<=2012",)},
            "'yaer<=2012': .* has no column 'yaer'; choose one of its columns id, y",
        ),
        ({"rows": ("year<=1999",)}, r"'year<=1999': no row of \S+ meets it; the column has '2010'"),
        ({"target": ("year>2020",)}, "--data.target 'year>2020': no row of .* to '2016'"),
        (
            {"rows": ("year=2016", "brand=rare", "type=shoe")},
            "'type=shoe': no row of .* meets it together with the previous conditions",
        ),
        ({"target": ("year>2000",)}, "column 'type' has 0 classes with 2 or more rows"),
        ({"rows": ("type=hat",), "target": ()}, "column 'type' has 1 classes with 2 or more rows"),
    ],
)
def test_conditions_that_cannot_be_met(tmp_path, changes, message):
    table = make_table(tmp_path / "shop", catalogue())
    with pytest.raises(UserError, match=message):
        shop(table, **changes).load()


def test_rows_that_match_nothing_are_a_usage_error_of_one_line(tmp_path):
    table = make_table(tmp_path / "shop", catalogue())
    words = ["--image=images/{id}.png", "--label", "type", "--rows", "year<=1999"]
    done = command("prepare", "image_table", f"--source={table}", *words)
    assert done.returncode == 2 and done.stdout == ""
    assert "'year<=1999': no row of" in done.stderr and done.stderr.count("\n") == 1


def test_image_of_a_table_that_is_absent_or_damaged_can_be_skipped(tmp_path):
    table = make_table(tmp_path / "shop", clothes())
    (table.parent / "images" / "5.png").unlink()
    (table.parent / "images" / "7.png").write_bytes(b"not an image")
    source = ImageTable(str(table), image="file", label=("kind",), on_bad_image="skip")
    dataset = source.load()
    assert sum(map(len, dataset.splits.values())) == 22
    absent, damaged = dataset.provenance["skipped"]
    assert "images/5.png does not exist" in absent and "images/7.png is not an image" in damaged


# Products


def prepare_products(table: Path, *words: str) -> None:
    main(["prepare", "products", f"--source={table.parent}", "--image=images/{id}.png",
          "--label", "type", "brand", "--min-examples=2", *words])  # fmt: skip


def test_products_are_prepared_once_for_any_labels_and_rows(tmp_path, data_dir, capsys):
    table = make_table(tmp_path / "shop", catalogue())
    noise(90, (5, 7)).save(table.parent / "images" / "3.png")  # of another size
    shutil.copy(table.parent / "images" / "6.png", table.parent / "images" / "9.png")
    years = {"rows": ("year!=2016",), "target": (), "number": ("year",), "label": ("brand",)}
    smaller = {"min_examples": 1, "image_size": (4, 6)}
    tables_ = [shop(table, **changes) for changes in ({}, smaller, years)]
    expected = [source.load() for source in tables_]
    prepare_products(table)
    prepare_products(table)
    said = capsys.readouterr().out
    assert "target examples of classes missing in the source: type 1, brand 1" in said
    assert "already prepared in" in said
    with_path = Products(str(table), image="images/{id}.png", label=("type",)).load()
    assert with_path.image_shape == (80, 60, 3) and len(with_path.splits["target"]) == 7
    shutil.rmtree(table.parent)  # what was prepared is enough
    for source, one in zip(tables_, expected, strict=True):
        found = Products(**{**dataclasses.asdict(source), "path": ""}).load()
        assert found.provenance["content"] == one.provenance["content"]
        assert found.class_names == one.class_names
        for split, part in one.splits.items():
            assert found.splits[split].names.tolist() == part.names.tolist()
    assert found.name == "products" and found.provenance["path"] == "shop"
    assert len(list(data_dir.glob("products/2.0.0/prepared/shop/images/*.png"))) == len(catalogue())
    with pytest.raises(UserError, match=r"images/0.jpg does not exist"):
        Products(label=("type",)).load()
    with pytest.raises(UsageError, match=r"shop has no column 'colour'"):
        Products(image="images/{id}.png", label=("colour",)).load()


def test_products_with_bad_images(tmp_path, data_dir):
    table = make_table(tmp_path / "shop", catalogue())
    Image.new("1", (20_000, 20_000)).save(table.parent / "images" / "2.png")
    with pytest.raises(UserError, match=r"images/2.png has more than 50 million pixels"):
        prepare_products(table)
    prepare_products(table, "--on-bad-image=skip")
    fields = {"label": ("type",), "min_examples": 2, "on_bad_image": "skip"}
    dataset = Products(image="images/{id}.png", **fields).load()
    assert len(dataset.provenance["skipped"]) == 1
    assert sum(map(len, dataset.splits.values())) == 29 + 7
    with pytest.raises(UsageError, match=r"table.csv is only a table: name the folder"):
        main(["prepare", "products", f"--source={table}"])


@pytest.mark.parametrize("name", ["artworks", "products"])
def test_artworks_and_products_that_are_not_prepared_say_the_command(name):
    source = {"artworks": Artworks, "products": Products}[name]()
    with pytest.raises(UserError, match=rf"{name} is not prepared in .*data prepare {name} --sour"):
        source.load()
    with pytest.raises(UsageError, match=f"{name} needs --source"):
        main(["prepare", name])


# Artworks

GIVEN = "Albrecht_Du\u0308rer"
TWICE_WRONG = "Albrecht_DuΓòá├¬rer"
ARTISTS = ("Albrecht_Durer", "Henri_de_Toulouse-Lautrec", "Vincent_van_Gogh")


def painting(artist: int, number: int) -> Image.Image:
    return noise(100 * artist + number, (12, 10))


def make_kaggle(root: Path, smaller_too: bool = True) -> Path:
    """Kaggle's layout in `root`: 3 artists with 6 paintings, one of them twice."""
    (root / "artists.csv").parent.mkdir(parents=True)
    (root / "artists.csv").write_text("id,name\n")
    for index, artist in enumerate(ARTISTS):
        for spelling in (GIVEN, TWICE_WRONG) if index == 0 else (artist,):
            folder = root / "images" / "images" / spelling
            folder.mkdir(parents=True)
            flat = root / "resized" / "resized"
            flat.mkdir(parents=True, exist_ok=True)
            for number in range(1, 7):
                painting(index, number).save(folder / f"{spelling}_{number}.png")
                painting(index, number).save(flat / f"{spelling}_{number}.png")
    return root


def make_own(root: Path) -> Path:
    for index, artist in enumerate(ARTISTS):
        (root / artist).mkdir(parents=True)
        for number in range(1, 7):
            painting(index, number).save(root / artist / f"{artist}_{number}.png")
    return root


def zipped(root: Path, archive: Path, wrong: bytes) -> Path:
    """`root` as a zip with the name Dürer in the bytes `wrong`, and no flag that says UTF-8."""
    placeholder = b"@" * len(wrong)
    with zipfile.ZipFile(archive, "w") as out:
        for file in sorted(root.rglob("*.png")):
            if TWICE_WRONG not in str(file):
                name = str(file.relative_to(root)).replace("u\u0308", placeholder.decode())
                out.write(file, name)
    archive.write_bytes(archive.read_bytes().replace(placeholder, wrong))
    return archive


def all_layouts(tmp_path: Path) -> dict[str, Path]:
    kaggle = make_kaggle(tmp_path / "kaggle")
    only_resized = tmp_path / "only_resized"
    shutil.copytree(kaggle / "resized", only_resized / "resized")
    below = tmp_path / "images" / "kaggle"  # a folder above, of that name, means nothing
    shutil.copytree(kaggle, below)
    packed = tmp_path / "packed.tar.xz"
    with tarfile.open(packed, "w:xz") as out:
        out.add(make_own(tmp_path / "own"), "artworks")
    return {
        "own folder": tmp_path / "own",
        "own archive": packed,
        "Kaggle's folder": kaggle,
        "Kaggle's folder below images": below,
        "only resized": only_resized,
        "the folder resized itself": only_resized / "resized" / "resized",
        "zip without a flag": zipped(kaggle, tmp_path / "kaggle.zip", "u\u0308".encode()),
        "zip, wrong twice": zipped(
            kaggle, tmp_path / "twice.zip", "u\u0308".encode().decode("cp437").encode()
        ),
    }


def test_what_cannot_be_prepared_leaves_nothing(tmp_path, data_dir):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty has"):
        main(["prepare", "artworks", f"--source={tmp_path / 'empty'}"])
    os.mkfifo(make_own(tmp_path / "own") / "pipe")
    with pytest.raises(UserError, match="own/pipe cannot be copied"):
        main(["prepare", "artworks", f"--source={tmp_path / 'own'}"])
    assert not [path for path in data_dir.rglob("*") if path.is_file() and path.suffix != ".lock"]
    (tmp_path / "own" / "pipe").unlink()
    main(["prepare", "artworks", f"--source={tmp_path / 'own'}", "--image-size", "8", "8"])


def test_every_layout_gives_the_same_paintings_of_the_same_artists(tmp_path):
    found = {
        kind: Artworks(str(path), image_size=(12, 10), validation=0.2, test=0.2).load()
        for kind, path in all_layouts(tmp_path).items()
    }
    for kind, dataset in found.items():
        assert dataset.class_names == {"label": ARTISTS}, kind
        assert dataset.provenance["content"] == found["own folder"].provenance["content"], kind
        twice = 0 if "own" in kind or "zip" in kind else 6
        assert dataset.provenance["files_of_the_same_name"] == twice, kind
        for split, part in found["own folder"].splits.items():
            assert dataset.splits[split].names.tolist() == part.names.tolist(), kind
    assert sum(map(len, dataset.splits.values())) == 18
    assert "Albrecht_Durer/Albrecht_Durer_1.png" in np.concatenate(
        [part.names for part in dataset.splits.values()]
    )


@pytest.mark.parametrize(
    "name",
    [
        "Albrecht_Dürer",
        GIVEN,
        TWICE_WRONG,
        GIVEN.encode().decode("cp437"),
        GIVEN.encode().decode("latin-1"),
        "Albrecht_Dürer".encode().decode("cp437"),
        "Albrecht_Dürer".encode().decode("cp1252"),
        os.fsdecode(b"Albrecht_D\xfcrer"),
        "Albrecht_Durer",
    ],
)
def test_names_are_repaired(name):
    assert artworks.repaired(name) == "Albrecht_Durer"


def test_prepared_artworks_are_what_the_files_are(tmp_path, data_dir, capsys):
    root = make_own(tmp_path / "own")
    large = noise(7, (300, 200)).resize((400, 600))
    large.save(root / ARTISTS[1] / f"{ARTISTS[1]}_7.png")
    main(["prepare", "artworks", f"--source={root}", "--test=0.2", "--image-size", "12", "10"])
    assert "data=Artworks(image_size=(12, 10), test=0.2)" in capsys.readouterr().out
    assert len(list(data_dir.glob("artworks/2.0.0/prepared/own/*/*.png"))) == 19
    source = Artworks(image_size=(256, 64), validation=0.0, test=0.2)
    found = source.load()
    expected = dataclasses.replace(source, path=str(root)).load()
    for split, part in expected.splits.items():
        assert found.splits[split].names.tolist() == part.names.tolist()
        assert found.splits[split].labels["label"].tolist() == part.labels["label"].tolist()
        # The large one is shrunk twice.
        assert np.abs(found.splits[split].images.astype(int) - part.images).mean() < 1
    assert found.name == "artworks" and found.provenance["path"] == "own"
    with pytest.raises(
        UsageError, match="prepared with at most 256: choose a smaller size, or name"
    ):
        Artworks(image_size=(257, 20)).load()
    cropped = dataclasses.replace(source, image_size=(64, 64), fit="crop")
    expected = dataclasses.replace(cropped, path=str(root)).load().splits["test"].images
    np.testing.assert_array_equal(cropped.load().splits["test"].images, expected)


def test_artist_with_one_painting(tmp_path):
    root = make_own(tmp_path / "own")
    for file in sorted((root / ARTISTS[2]).iterdir())[1:]:
        file.unlink()
    found = Artworks(str(root), image_size=(12, 10)).load()
    assert len(found.class_names["label"]) == 3
    single = found.class_names["label"].index(ARTISTS[2])
    held = {name: list(part.labels["label"]).count(single) for name, part in found.splits.items()}
    assert held["train"] == sum(held.values()) == 1
    assert found.provenance["classes_of_a_single_image"] == [ARTISTS[2]]
    shutil.rmtree(root / ARTISTS[1])
    shutil.rmtree(root / ARTISTS[2])
    with pytest.raises(UserError, match="has only one class, 'Albrecht_Durer'"):
        Artworks(str(root), image_size=(12, 10)).load()


# The real archives: their names and table, not their pixels


def real_archive(real_data: Path, name: str) -> tarfile.TarFile:
    archive = real_data / f"{name}.tar.xz"
    if not archive.is_file():
        pytest.skip(f"no {archive}: set CNN_RESEARCH_TEST_DATA")
    return tarfile.open(archive)


def test_real_artworks_are_of_50_artists(real_data, tmp_path):
    with real_archive(real_data, "artworks") as archive:
        for name in archive.getnames():
            if name.endswith(".jpg"):
                (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
                (tmp_path / name).touch()
    plan = artworks.plan(tmp_path, "artworks")
    assert len(plan.class_names["label"]) == 50 and len(plan.records) == 8355
    counts = np.bincount([record.labels["label"] for record in plan.records])
    assert (counts.min(), counts.max()) == (24, 877)  # Pollock and Van Gogh


def test_real_products_are_of_two_times(real_data, tmp_path):
    with real_archive(real_data, "products") as archive:
        archive.extract("products/products.csv", tmp_path, filter="data")
    plan = Products(min_examples=45).plan(tmp_path, "products")
    given = [record.split for record in plan.records]
    assert (given.count("train"), given.count("target")) == (14_505, 4_180)
    counts = {head: len(names) for head, names in plan.class_names.items()}
    assert counts == {"material": 13, "type": 32, "brand": 84}


# Arrays on the disk


@pytest.mark.parametrize("damage", ["truncated", "absent", "index", "older", "half"])
def test_damaged_arrays_are_built_again(tmp_path, damage, data_dir):
    source = ImageFolder(str(make_folder(tmp_path / "fruit", {"a": 5, "b": 5})), validation=0.0)
    before = np.array(source.load().splits["train"].images)
    (folder,) = (path.parent for path in data_dir.rglob("index.json"))
    if damage == "truncated":
        os.truncate(folder / "train.images.npy", 500)
    elif damage == "absent":
        (folder / "test.labels0.npy").unlink()
    elif damage == "index":
        (folder / "index.json").write_text("{")
    elif damage == "older":  # of another decoding
        index = json.loads((folder / "index.json").read_text())
        np.save(folder / "train.images.npy", 255 - before)
        (folder / "index.json").write_text(json.dumps(index | {"format": index["format"] - 1}))
    else:
        folder.rename(folder.with_name(f".{folder.name}.incomplete"))
    np.testing.assert_array_equal(source.load().splits["train"].images, before)
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_arrays_of_an_older_state_of_the_files_are_removed(tmp_path, data_dir):
    root = make_folder(tmp_path / "fruit", {"a": 5, "b": 5})
    for seed in (0, 1):
        ImageFolder(str(root), split_seed=seed).load()
    noise(77).save(root / "a" / "new.png")
    ImageFolder(str(root)).load()
    assert len(list(data_dir.rglob("index.json"))) == 1


def test_interrupted_preparation_is_made_again(tmp_path, data_dir):
    root = make_own(tmp_path / "own")
    left = data_dir / "artworks" / "2.0.0" / ".prepared.incomplete"
    left.mkdir(parents=True)
    (left / "99.png").write_bytes(b"half of it")
    said = command("list").stdout
    assert "artworks/2.0.0/.prepared.incomplete" in said and "interrupted" in said
    main(["prepare", "artworks", f"--source={root}", "--image-size", "12", "10"])
    assert not list(data_dir.rglob("*incomplete*")) and not list(data_dir.rglob("99.png"))


def test_damaged_file_of_what_is_prepared_is_named(tmp_path, data_dir):
    main(["prepare", "artworks", f"--source={make_own(tmp_path / 'own')}"])
    (file,) = data_dir.glob(f"artworks/2.0.0/prepared/own/*/{ARTISTS[1]}_3.png")
    content = bytearray(file.read_bytes())
    content[100] ^= 0xFF
    file.write_bytes(content)
    with pytest.raises(UserError, match=r"prepared/.*_3.png is not an image"):
        Artworks(split_seed=1).load()


@pytest.mark.parametrize("name", ["decoding", "cache"])
def test_full_disk_is_an_error_and_leaves_nothing(tmp_path, data_dir, monkeypatch, name):
    class Full(io.FileIO):
        def write(self, content):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    source = ImageFolder(str(make_folder(tmp_path / "fruit", {"a": 5, "b": 5})))
    module = importlib.import_module(f"cnn_research.data.prepare.{name}")
    with monkeypatch.context() as patch:
        files = {"wb": Full}
        patch.setattr(module, "open", lambda p, m: files.get(m, open)(p, m[0]), raising=False)
        with pytest.raises(OSError, match="No space left"):
            source.load()
    assert not [path for path in data_dir.rglob("*") if path.is_file() and path.suffix != ".lock"]
    assert len(source.load().splits["train"]) == 8


def test_two_processes_that_prepare_at_once_agree(tmp_path, data_dir):
    root = make_folder(tmp_path / "fruit", {"a": 30, "b": 30})
    code = (
        "from cnn_research.data.sources.folder import ImageFolder;"
        f"print(ImageFolder({str(root)!r}).load().provenance['content'])"
    )
    running = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, cwd=REPOSITORY)
        for _ in range(2)
    ]
    said = [process.communicate()[0].splitlines()[-1] for process in running]
    assert said[0] == said[1] != b""
    assert not list(data_dir.rglob("*incomplete*"))


# What is cached


def test_all_that_is_cached_is_listed_and_removed(tmp_path, data_dir, capsys):
    source = ImageFolder(str(make_folder(tmp_path / "fruit", {"a": 5, "b": 5})), (8, 8))
    source.load()
    (index,) = data_dir.rglob("index.json")
    os.utime(index, (0, 0))
    source.load()
    assert index.stat().st_mtime > 1e9, "the time of the last use"
    features = data_dir / "features" / "0a1b"
    features.mkdir(parents=True)
    (features / "index.json").write_text('{"of": "the output of pool for 10 images"}')
    (features / "features.npy").write_bytes(bytes(2000))
    (data_dir / "features" / "0c.npy").write_bytes(b"of an older version")
    (data_dir / "surveys" / "ab").mkdir(parents=True)
    stranger = data_dir / "mnist" / "3.0.1" / "mnist.tfrecord"
    stranger.parent.mkdir(parents=True)
    stranger.write_text("TensorFlow's own")
    main(["list"])
    said = capsys.readouterr().out
    assert "features/0a1b: 2.0 kB" in said and "the output of pool for 10 images" in said
    assert "features/0c.npy" in said and "of an older version" in said
    assert "images of fruit, 8x8x3; train 8, validation 1, test 1" in said
    assert "surveys" in said and "mnist" not in said
    main(["remove", "image_folder", "features/", "surveys"])
    assert capsys.readouterr().out.count("removed ") == 4
    assert stranger.exists()
    main(["list"])
    assert "nothing is prepared" in capsys.readouterr().out
    assert len(source.load().splits["train"]) == 8
    with pytest.raises(UsageError, match=r"nothing in .* is named 'mnist'.*list` lists all"):
        main(["remove", "mnist"])


def test_what_is_being_written_is_not_removed_and_what_was_left_is(tmp_path, data_dir, capsys):
    left = data_dir / "unpacked" / "tmpleft"
    left.mkdir(parents=True)
    (left / "1.png").write_bytes(b"of a process that was killed")
    with cache.unpacking() as folder:
        assert folder.parent == left.parent and not left.exists()
        main(["list"])
        assert f"unpacked/{folder.name}: 0.0 kB" in (said := capsys.readouterr().out)
        assert "being written" in said
        with pytest.raises(UserError, match="is being written by a process"):
            main(["remove", "unpacked"])
    assert not list(left.parent.iterdir())
    left.mkdir()
    main(["remove", "unpacked"])
    assert not left.exists()


@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_a_disk_that_is_too_small_is_known_before_anything_is_decoded(
    tmp_path, data_dir, monkeypatch, kind
):
    root = make_folder(tmp_path / "fruit", {"a": 5, "b": 5})
    if kind == "zip":
        root = Path(shutil.make_archive(str(tmp_path / "packed"), "zip", root))
    source = ImageFolder(str(root))
    needed = {"folder": "decoding 10 images at 64x64x3 needs 246 kB", "zip": "unpacking packed.zip"}
    monkeypatch.setattr(ImageFolder, "pixels", lambda *_: pytest.fail("decoded"))
    monkeypatch.setattr(cache, "free_bytes", lambda folder: 1000)
    with pytest.raises(UserError, match=f"{needed[kind]}.* in .*, but only 1.0 kB are free"):
        source.load()
    assert not [path for path in data_dir.rglob("*") if path.is_file() and path.suffix != ".lock"]


def test_data_folder_that_cannot_be_written(tmp_path, monkeypatch):
    root = make_folder(tmp_path / "fruit", {"a": 5, "b": 5})
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "file" / "below"))
    with pytest.raises(UserError, match=r"cannot be written .*set TFDS_DATA_DIR"):
        ImageFolder(str(root)).load()


# Fashion-MNIST, the real one


def test_fashion_mnist_counts_classes_and_no_image_twice(fashion_mnist, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(fashion_mnist))
    dataset = FashionMnist().load()
    for name, per_class in {"train": 5000, "validation": 1000, "test": 1000}.items():
        assert np.bincount(dataset.splits[name].labels["label"]).tolist() == [per_class] * 10
    assert dataset.image_shape == (28, 28, 1)
    assert dataset.class_names["label"][0] == "T-shirt/top"
    assert dataset.class_names["label"][9] == "Ankle boot"
    assert sum(map(len, pixels_of(dataset).values())) == 70_000
    assert dataset.provenance["duplicates"]["across_splits"] == {}


def test_fashion_mnist_is_what_the_official_files_say(fashion_mnist, real_data, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(fashion_mnist))
    test = FashionMnist().load().splits["test"]
    files = real_data / "fashion_mnist"
    pixels = gzip.decompress((files / "t10k-images-idx3-ubyte.gz").read_bytes())[16:]
    labels = gzip.decompress((files / "t10k-labels-idx1-ubyte.gz").read_bytes())[8:]
    assert test.images.tobytes() == pixels
    assert test.labels["label"].tolist() == list(labels)


def test_fashion_mnist_second_start_is_a_memory_map_of_arrays(fashion_mnist, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(fashion_mnist))
    said = python(
        "import sys, numpy as np; from cnn_research.data.sources.official import FashionMnist;"
        "d = FashionMnist().load(); print(isinstance(d.splits['train'].images, np.memmap),"
        "'tensorflow_datasets' in sys.modules, 'PIL' in sys.modules)"
    )
    assert said == "True False False"


def test_fashion_mnist_that_is_not_prepared_says_the_command(data_dir):
    with pytest.raises(UserError, match=r"not prepared in .*data prepare fashion_mnist --source="):
        FashionMnist().load()


def test_flipped_byte_is_named_and_leaves_nothing(real_data, tmp_path, data_dir):
    folder = tmp_path / "official"
    shutil.copytree(real_data / "fashion_mnist", folder, copy_function=shutil.copyfile)
    file = folder / "t10k-labels-idx1-ubyte.gz"
    content = bytearray(file.read_bytes())
    content[2000] ^= 1
    file.chmod(0o644)
    file.write_bytes(content)
    with pytest.raises(UserError, match=r"t10k-labels-idx1-ubyte.gz is not an official file"):
        main(["prepare", "fashion_mnist", f"--source={folder}"])
    file.unlink()
    with pytest.raises(UserError, match=r"has no t10k-labels-idx1-ubyte.gz"):
        main(["prepare", "fashion_mnist", f"--source={folder}"])
    assert not [path for path in data_dir.rglob("*") if path.is_file() and path.suffix != ".lock"]


# The command


def command(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "cnn_research.data", *words],
        capture_output=True, text=True, cwd=REPOSITORY, check=False,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["prepare", "fashion_mist"], 2, "did you mean 'fashion_mnist'?"),
        (["prepare"], 2, "name a data set: fashion_mnist, cifar10, artworks, products, image_fo"),
        (["prepair"], 2, "use prepare, list or remove NAME"),
        (["remove", "nowhere"], 2, "is named 'nowhere'"),
        (["prepare", "image_folder"], 2, "needs --source"),
        (["prepare", "image_folder", "--source=nowhere"], 1, "nowhere does not exist"),
        (["prepare", "image_folder", "--source=.", "--image-sise=3"], 2, "image-size"),
        (["prepare", "fashion_mnist", "--source=nowhere"], 1, "nowhere does not exist"),
        (["prepare", "cifar10", "--split-seed=-1"], 2, "--split-seed is -1: must be from 0 to 42"),
    ],
)
def test_command_errors_are_one_line(words, code, message):
    done = command(*words)
    assert done.returncode == code
    assert done.stdout == "" and message in done.stderr
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1


def test_command_prepares_a_folder_says_how_to_use_it_and_lists_it(tmp_path):
    root = make_folder(tmp_path / "fruit", {"a": 5, "b": 5})
    done = command("prepare", "image_folder", f"--source={root}", "--image-size", "8", "8")
    assert done.returncode == 0 and done.stderr == ""
    assert "train 8, validation 1, test 1; 8x8x3; label: 2 classes" in done.stdout
    assert "duplicates across splits: none" in done.stdout
    line = done.stdout.splitlines()[-1].partition("data=")[2]
    source = eval(line)
    assert source == ImageFolder(str(root), image_size=(8, 8))
    assert source.load().image_shape == (8, 8, 3)
    assert "train 8, validation 1, test 1" in command("list").stdout


def test_command_and_package_start_without_heavy_imports():
    heavy = ("tensorflow", "sklearn", "PIL", "jax")
    said = python(
        "import sys, cnn_research.data, cnn_research.data.__main__;"
        f"print([name for name in {heavy} if name in sys.modules])"
    )
    assert said == "[]"


def test_images_keep_the_order_of_their_files(tmp_path):
    folder = tmp_path / "many"
    for number in range(600):  # more than are decoded at once
        file = folder / f"class{number % 2}" / f"{number:03d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((2, 2, 3), number % 256, np.uint8)).save(file)
    train = ImageFolder(str(folder), (2, 2), validation=0.0, test=0.0).load().splits["train"]
    numbers = [*range(0, 600, 2), *range(1, 600, 2)]
    assert train.images[:, 0, 0, 0].tolist() == [number % 256 for number in numbers]
    assert train.names.tolist() == [f"class{number % 2}/{number:03d}.png" for number in numbers]
    assert train.labels["label"].tolist() == [number % 2 for number in numbers]
