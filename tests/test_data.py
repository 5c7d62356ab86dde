"""Sources of images: what they load, what they refuse, and what they leave on the disk."""

from __future__ import annotations

import csv
import gzip
import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cnn_research.data import (
    MISSING,
    Dataset,
    Digits,
    FashionMnist,
    ImageFolder,
    ImageTable,
    Synthetic,
    cache,
    images,
    splits,
)
from cnn_research.data.__main__ import main
from cnn_research.errors import UsageError, UserError

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


@pytest.mark.parametrize(("validation", "test"), [(1500, 297), (2000, 0), (-1, 10)])
def test_sizes_that_do_not_fit_are_a_usage_error(validation, test):
    with pytest.raises(UsageError, match="cannot be drawn from 1797 examples"):
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
    return splits.Examples(
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


def test_second_load_maps_memory_without_tfds_and_a_change_prepares_again(tmp_path):
    root = make_folder(tmp_path / "fruit", {"a": 5, "b": 5})
    source = f"ImageFolder({str(root)!r}, validation=0.0, test=0.2)"
    code = (
        "import sys; from cnn_research.data import *; import numpy as np;"
        f"d = {source}.load(); print('tensorflow_datasets' in sys.modules,"
        "isinstance(d.splits['train'].images, np.memmap), d.provenance['examples']['train'])"
    )
    assert python(code) == "True True 8"
    assert python(code) == "False True 8"
    noise(77).save(root / "a" / "new.png")
    assert python(code) == "True True 9"
    assert len(list(cache.data_dir().glob("image_folder/*/*/dataset_info.json"))) == 1


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
    with pytest.raises(UserError, match=r"fruit/a/3.png is not an image or is damaged"):
        ImageFolder(str(root)).load()
    assert not list(data_dir.rglob("dataset_info.json")) and not list(data_dir.rglob("incomplete*"))
    dataset = ImageFolder(str(root), on_bad_image="skip", validation=0.0).load()
    assert sum(map(len, dataset.splits.values())) == 11
    (skipped,) = dataset.provenance["skipped"]
    assert "fruit/a/3.png" in skipped


def test_huge_image_is_refused_before_it_is_decoded(tmp_path):
    root = make_folder(tmp_path / "fruit", {"a": 3, "b": 3})
    Image.new("1", (20_000, 10_001)).save(root / "a" / "huge.png")
    with pytest.raises(UserError, match=r"a/huge.png has .* 50 million"):
        ImageFolder(str(root)).load()
    Image.new("1", (8_000, 7_000)).save(root / "a" / "huge.png")
    with pytest.raises(UserError, match=r"a/huge.png has 8000x7000 pixels"):
        ImageFolder(str(root)).load()


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
        ([], "has no folders of images: it needs one per class"),
        (["x.png"], "has no folders of images"),
        (["a/x.png", "a/y.png"], "has one class only, 'a'"),
        (["train/a/x.png", "test/a/y.png", "extra/z.png"], "others beside them .extra."),
        (["a/x.png", "b/x.png", "b/y.png"], "class 'a' of 'label' has a single image .a/x.png"),
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
    with pytest.raises(UsageError, match="together they must be below 1"):
        ImageFolder(str(root), validation=0.6, test=0.4).load()
    with pytest.raises(UsageError, match="5 for validation and 5 for test cannot be drawn from 10"):
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
    with pytest.raises(UserError, match=r"fruit.tar.xz is neither a folder nor a whole .tar"):
        ImageFolder(str(archive)).load()


def test_path_that_is_empty():
    with pytest.raises(UsageError, match="say where your images are"):
        ImageFolder("").load()


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
    with pytest.raises(UserError, match="class 'mauve' of 'colour' has a single image"):
        ImageTable(str(table), image="file", label=("colour",)).load()
    dataset = ImageTable(str(table), image="file", label=("colour",), min_examples=2).load()
    assert dataset.class_names == {"colour": ("blue", "red")}
    assert dataset.provenance["rows_without_any_label"] == 8


def test_table_errors(tmp_path):
    table = make_table(tmp_path / "shop", clothes())
    with pytest.raises(UsageError, match="no column 'type'; its columns are id, kind, col"):
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
    with pytest.raises(UserError, match=r"has 0 .csv files"):
        ImageTable(str(tmp_path / "empty")).load()


def test_table_with_semicolons_and_a_byte_order_mark(tmp_path):
    table = make_table(tmp_path / "shop", clothes())
    table.write_text("\ufeff" + table.read_text().replace(",", ";"), encoding="utf-8")
    dataset = ImageTable(str(table), image="images/{id}.png", label=("kind",)).load()
    assert dataset.class_names == {"kind": ("shirt", "shoe")}


# Arrays on the disk


@pytest.mark.parametrize("damage", ["truncated", "absent", "index", "half"])
def test_damaged_arrays_are_built_again(tmp_path, damage, data_dir):
    source = ImageFolder(str(make_folder(tmp_path / "fruit", {"a": 5, "b": 5})), validation=0.0)
    before = source.load().provenance["content"]
    (folder,) = (path.parent for path in data_dir.rglob("index.json"))
    if damage == "truncated":
        os.truncate(folder / "train.images.npy", 500)
    elif damage == "absent":
        (folder / "test.labels0.npy").unlink()
    elif damage == "index":
        (folder / "index.json").write_text("{")
    else:
        folder.rename(folder.with_name(f".{folder.name}.incomplete"))
    assert source.load().provenance["content"] == before
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_interrupted_preparation_of_a_folder_is_made_again(tmp_path, data_dir):
    source = ImageFolder(str(make_folder(tmp_path / "fruit", {"a": 5, "b": 5})), validation=0.0)
    before = source.load().provenance["content"]
    (home,) = (path.parent for path in data_dir.rglob("dataset_info.json"))
    home.rename(home.with_name(f"incomplete.AB12CD_{home.name}"))
    assert source.load().provenance["content"] == before
    assert not list(data_dir.rglob("incomplete*"))


def test_damaged_records_are_a_named_error(tmp_path, data_dir):
    root = make_folder(tmp_path / "fruit", {"a": 5, "b": 5})
    ImageFolder(str(root), validation=0.0).load()
    (records,) = data_dir.rglob("*.array_record*")
    content = bytearray(records.read_bytes())
    content[content.index(b"PNG") + 100] ^= 0xFF
    records.write_bytes(content)
    with pytest.raises(UserError, match=r"cannot be read .*delete that folder"):
        ImageFolder(str(root), validation=0.0, split_seed=1).load()


def test_two_processes_that_prepare_at_once_agree(tmp_path, data_dir):
    root = make_folder(tmp_path / "fruit", {"a": 30, "b": 30})
    code = (
        "from cnn_research.data import *;"
        f"print(ImageFolder({str(root)!r}).load().provenance['content'])"
    )
    running = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, cwd=REPOSITORY)
        for _ in range(2)
    ]
    said = [process.communicate()[0] for process in running]
    assert said[0] == said[1] != b""
    assert not list(data_dir.rglob("*incomplete*"))


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


def test_fashion_mnist_second_start_is_a_memory_map_without_tfds(fashion_mnist, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(fashion_mnist))
    said = python(
        "import sys, numpy as np; from cnn_research.data import FashionMnist;"
        "d = FashionMnist().load(); print(isinstance(d.splits['train'].images, np.memmap),"
        "'tensorflow_datasets' in sys.modules, 'PIL' in sys.modules)"
    )
    assert said == "True False False"


def test_fashion_mnist_that_is_not_prepared_says_the_command(data_dir):
    with pytest.raises(UserError, match=r"not prepared in .*data prepare fashion_mnist --source="):
        FashionMnist().load()
    (data_dir / "fashion_mnist" / "incomplete.AB12CD_3.0.1").mkdir(parents=True)
    with pytest.raises(UserError, match=r"only half prepared .it was interrupted."):
        FashionMnist().load()


def test_flipped_byte_is_named_and_leaves_nothing(real_data, tmp_path, data_dir):
    folder = tmp_path / "official"
    shutil.copytree(real_data / "fashion_mnist", folder, copy_function=shutil.copyfile)
    file = folder / "t10k-labels-idx1-ubyte.gz"
    content = bytearray(file.read_bytes())
    content[2000] ^= 1
    file.chmod(0o644)
    file.write_bytes(content)
    with pytest.raises(UserError, match=r"t10k-labels-idx1-ubyte.gz is not the official file"):
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
        (["prepare", "fashion_mist"], 2, "did you mean fashion_mnist?"),
        (["prepare"], 2, "there is fashion_mnist, cifar10, artworks, products, image_fo"),
        (["prepair"], 2, "the commands are prepare and list"),
        (["prepare", "image_folder"], 2, "needs --source"),
        (["prepare", "image_folder", "--source=nowhere"], 1, "nowhere does not exist"),
        (["prepare", "image_folder", "--source=.", "--image-sise=3"], 2, "image-size"),
        (["prepare", "fashion_mnist", "--source=nowhere"], 1, "nowhere does not exist"),
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
    heavy = ("tensorflow_datasets", "tensorflow", "sklearn", "PIL", "jax")
    said = python(
        "import sys, cnn_research.data, cnn_research.data.__main__;"
        f"print([name for name in {heavy} if name in sys.modules])"
    )
    assert said == "[]"
