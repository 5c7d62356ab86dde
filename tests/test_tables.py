"""What folders, tables and files are read as: said, refused in one line, or read right."""

from __future__ import annotations

import dataclasses
import io
import itertools
import json
import shutil
import struct
import time
import unicodedata
import zipfile
from pathlib import Path

import numpy as np
import pandas
import pytest
from PIL import Image, PngImagePlugin

from cnn_research.core.errors import UsageError, UserError
from cnn_research.data.dataset import Dataset, Split
from cnn_research.data.images import BadImage, decode
from cnn_research.data.prepare.files import names_below
from cnn_research.data.prepare.tables import FORM, find_table, read_table
from cnn_research.data.prepare.understood import understood
from cnn_research.data.sources.folder import ImageFolder, plan_folder
from cnn_research.data.sources.rows import plan_rows
from cnn_research.data.sources.survey import survey
from cnn_research.data.sources.table import ImageTable
from cnn_research.inference.predict import image_files, key_of
from cnn_research.report.data_section import data_section
from cnn_research.report.tensorboard import rows_of


@pytest.fixture(autouse=True)
def data_dir(tmp_path, monkeypatch) -> Path:
    folder = tmp_path / "prepared"
    monkeypatch.setenv("TFDS_DATA_DIR", str(folder))
    return folder


def make_images(root: Path, *names: str) -> Path:
    """Small images of these names below `root`, all different."""
    for at, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 3), (7 * at % 256, at // 37, 99)).save(root / name, "PNG")
    return root


def numbered(*folders: str, count: int = 2) -> list[str]:
    return [f"{folder}/{at}.png" for folder in folders for at in range(count)]


def records_of(root: Path) -> list[tuple[str, str, str]]:
    """Split, class and name of every record of a folder."""
    plan = plan_folder(root, "pets")
    names = [*plan.class_names["label"], "?"]
    return [(r.split, names[int(r.labels["label"])], r.name) for r in plan.records]


# Folders ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("training_set/training_set", "test_set/test_set"),
        ("train/Train/train", "test"),
        ("training/train", "testing/test"),
        ("seg_train/seg_train", "seg_test/seg_test"),
        ("pets/images_train", "pets/images_test"),
    ],
)
def test_split_folders_that_stand_twice_are_seen_through(tmp_path, train, test):
    names = numbered(f"{train}/cat", f"{train}/dog", f"{test}/cat", f"{test}/dog")
    found = records_of(make_images(tmp_path, *names))
    splits = ["test"] * 4 + ["train"] * 4
    assert sorted(split for split, _, _ in found) == splits
    assert {label for _, label, _ in found} == {"cat", "dog"}
    assert all(Path(name).parent.name == label for _, label, name in found)


@pytest.mark.parametrize("unlabelled", ["test/test", "test", "seg_pred/seg_pred", "unlabeled"])
def test_images_of_a_split_without_labels_are_left_out_and_said(tmp_path, unlabelled):
    names = numbered("train/train/cat", "train/train/dog", "val/cat", "val/dog", unlabelled)
    (tmp_path / "train" / "train" / "cow").mkdir(parents=True)
    (tmp_path / "eval" / "cat").mkdir(parents=True)
    plan = plan_folder(make_images(tmp_path, *names), "pets")
    assert {record.split for record in plan.records} == {"train", "validation"}
    reason, other = plan.left_out
    assert plan.left_out[reason] == {"count": 2, "first": numbered(unlabelled)}
    assert plan.left_out[other] == {"count": 2, "first": ["cow", "eval"]}, "without files"
    text = understood(plan, "pets")
    assert "splits" in text and "train (train), val (validation)" in text
    assert "8 images: train 4, validation 4" in text and "label: 2 classes: cat 4, dog 4" in text
    assert f"skipped: 2 images in no class folder, the first {unlabelled}/0.png" in text


def test_a_lone_split_beside_images_without_labels(tmp_path):
    found = records_of(make_images(tmp_path, *numbered("train/cat", "train/dog", "test1")))
    assert {(split, label) for split, label, _ in found} == {("train", "cat"), ("train", "dog")}


def test_links_that_lead_back_are_no_folders(tmp_path):
    make_images(tmp_path, *numbered("pets/cat", "pets/dog", "more"))
    pets = tmp_path / "pets"
    (pets / "cat" / "above").symlink_to(tmp_path)
    (pets / "cat" / "itself").symlink_to("itself")
    (pets / "dog" / "more").symlink_to(tmp_path / "more")
    (tmp_path / "more" / "back").symlink_to(pets / "dog")
    more = numbered("dog/more")
    assert [n for n in names_below(pets) if n.endswith("png")] == [*numbered("cat", "dog"), *more]


def test_folders_inside_of_classes_are_said(tmp_path):
    make_images(tmp_path, *numbered("2019/cat", "2019/dog", "2020/cat", "2020/cow"))
    layout = plan_folder(tmp_path, "pets").layout
    assert layout == "one folder per class; folders inside these (cat, cow, dog) are not classes"


def test_a_class_that_stands_twice_stays_that_class(tmp_path):
    found = records_of(make_images(tmp_path, *numbered("cat/cat", "dog")))
    assert [label for _, label, _ in found] == ["cat", "cat", "dog", "dog"]


def test_classes_named_like_splits_stay_classes(tmp_path):
    found = records_of(make_images(tmp_path, *numbered("freight_train", "test_track", "bus")))
    assert {label for _, label, _ in found} == {"freight_train", "test_track", "bus"}


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        (["cat/train", "cat/test", "dog/train", "dog/test"], "put the classes inside the spl"),
        (["train/images/cat", "train/images/dog", "test/cat", "test/dog"], "only one class, 'ima"),
        (["train/cat", "train/dog", "test/Cats", "test/Dogs"], "no class of 'test' .Cats, Dogs."),
        (["train", "test"], "has no folders of images .images are directly in test, train."),
        (["test/cat", "test/dog"], "has the splits test but no 'train': rename one, or name a"),
        (["val/cat", "val/dog", "test/cat", "test/dog"], "the splits test, val but no 'train'"),
        (
            ["labeled/cat", "labeled/dog", "unlabeled"],
            "unlabelled images .unlabeled. beside folder",
        ),
        (["train", "test/cat", "test/dog"], "'train' has no class folders with images"),
        (["a/x", "a/y", "b/x", "b/y", "pool"], "same folders, .* in each of a, b, which look like"),
        (
            ["訓練/x", "訓練/y", "訓練/z", "評価/x", "評価/z"],
            "in each of 訓練, 評価, which look like",
        ),
        (
            ["trainA", "trainB", "testA", "testB"],
            "splits with a single class each .testA, testB, trainA",
        ),
        (["train_cat", "train_dog", "val_cat", "val_dog"], "has splits with a single class each"),
        (["cats_train/x", "cats_test/x", "dogs_train/x"], "has splits with a single class each"),
        (["train/cat", "train/dog", "train/cow", "holdout/cat"], "other folders .holdout."),
        (["train_data/cat", "train_data/dog", "test_data"], "unlabelled images .test_data. beside"),
        (["train/cat", "train/dog", "test/cat", "extra/cat"], "other folders .extra."),
        (["train_images/a", "train_images/b", "train_masks/a", "train_masks/b"], "which look like"),
    ],
)
def test_layouts_that_are_refused_say_what_was_understood(tmp_path, folders, message):
    make_images(tmp_path, *numbered(*folders))
    with pytest.raises(UserError, match=message):
        plan_folder(tmp_path, "pets")


def test_annotations_beside_images_are_no_class(tmp_path):
    make_images(tmp_path, *numbered("images/cat", "images/dog"))
    (tmp_path / "annotations" / "xml").mkdir(parents=True)
    (tmp_path / "annotations" / "xml" / "0.xml").touch()
    assert {label for _, label, _ in records_of(tmp_path)} == {"cat", "dog"}
    make_images(tmp_path, *numbered("train/cat", "train/dog", "test/cat"))


def test_a_class_without_files_named_as_images_is_named(tmp_path):
    make_images(tmp_path, *numbered("cat"))
    (tmp_path / "dog").mkdir()
    (tmp_path / "dog" / "0.npy").touch()
    with pytest.raises(
        UserError, match=r"only one class, 'cat' .no file in dog has an image extension.: it"
    ):
        plan_folder(tmp_path, "pets")


JUNK = ["@eaDir", "cat/@eaDir/0.png", ".thumbnails", "__MACOSX/cat", "cat/.ipynb_checkpoints"]
JUNK += ["#recycle", "$RECYCLE.BIN", "cat/.@__thumb", "System Volume Information"]


def test_folders_of_systems_are_left_out(tmp_path):
    make_images(tmp_path, *numbered("cat", "dog"), *numbered(*JUNK[:1], *JUNK[2:]))
    make_images(tmp_path, "cat/@eaDir/0.png/SYNO_THUMB.png", "cat/._0.png")
    for name in ("cat/Thumbs.db", "dog/desktop.ini", "dog/.DS_Store"):
        (tmp_path / name).touch()
    assert names_below(tmp_path) == numbered("cat", "dog")


class UnsaidUTF8(zipfile.ZipInfo):
    """A file in a zip whose name is in UTF-8, and not said to be."""

    def _encodeFilenameFlags(self) -> tuple[bytes, int]:
        return self.filename.encode(), self.flag_bits


def test_names_in_a_zip_that_are_in_utf8_without_saying_so(tmp_path):
    source = make_images(tmp_path / "source", *numbered("café", "dog", "猫"))
    with zipfile.ZipFile(tmp_path / "pets.zip", "w") as out:
        for name in names_below(source):
            out.writestr(UnsaidUTF8(name), (source / name).read_bytes())
    source = ImageFolder(str(tmp_path / "pets.zip"), (3, 4), validation=0.0, test=0.0)
    assert source.load().class_names == {"label": ("café", "dog", "猫")}


@pytest.mark.parametrize("system", [0, 3])
def test_backslashes_in_a_zip_separate_folders(tmp_path, system):
    source = make_images(tmp_path / "source", *numbered("cat", "dog"))
    archive = tmp_path / "pets.zip"
    with zipfile.ZipFile(archive, "w") as out:
        for name in names_below(source):
            info = zipfile.ZipInfo()
            info.filename, info.create_system = f"pets\\{name}".replace("/", "\\"), system
            out.writestr(info, (source / name).read_bytes())
    dataset = ImageFolder(str(archive), (3, 4), validation=0.0, test=0.0).load()
    assert dataset.class_names == {"label": ("cat", "dog")}
    assert dataset.provenance["examples"] == {"train": 4}


def test_what_was_understood_is_printed_before_anything_is_decoded(tmp_path, capsys):
    make_images(tmp_path / "pets", *numbered("cat", "dog"))
    (tmp_path / "pets" / "cat" / "0.png").write_bytes(b"damaged")
    with pytest.raises(BadImage):
        ImageFolder(str(tmp_path / "pets")).load()
    shown = capsys.readouterr().out
    assert "pets: one folder per class" in shown and "label: 2 classes: cat 2, dog 2" in shown
    survey(ImageFolder(str(tmp_path / "pets")))
    assert capsys.readouterr().out == "", "it is said once"


def test_what_was_understood_and_left_out_is_in_the_report(tmp_path):
    make_images(tmp_path / "pets", *numbered("train/cat", "train/dog", "test"))
    data = ImageFolder(str(tmp_path / "pets"), (3, 4), validation=0.0, test=0.0).load().provenance
    text = "\n".join(data_section(tmp_path, data, {}))
    assert "pets: splits test (no labels), train (train), with one folder per class" in text
    assert "skipped, images in no class folder: 2, the first test/0.png" in text


def test_a_class_of_images_that_cannot_be_read_is_refused_before_it_is_decoded(tmp_path):
    make_images(tmp_path, *numbered("cat", "dog"))
    (tmp_path / "bird").mkdir()
    for at in range(3):
        (tmp_path / "bird" / f"{at}.HEIC").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    source = ImageFolder(str(tmp_path), (3, 4), on_bad_image="skip")
    message = r"none of the 3 images of the class 'bird' .* 0.HEIC is HEIC, .*: convert it to JPEG"
    with pytest.raises(UserError, match=message.replace(" 0", ".*/0")):
        survey(source)
    with pytest.raises(UserError, match="none of the 3 images of the class 'bird'"):
        source.load()
    make_images(tmp_path, "bird/3.png")
    left_out = source.load().provenance["skipped"]
    assert len(left_out) == 3 and all("is HEIC" in error for error in left_out)


# Tables -------------------------------------------------------------------------------------------

ROWS = [("images/0.png", "cat"), ("images/1.png", "dog"), ("images/2.png", "cat")]
TEXT = "image,label\n" + "".join(f"{image},{label}\n" for image, label in ROWS)


def write(folder: Path, content: str | bytes, name: str = "pets.csv") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
    return folder / name


def pairs(table: Path) -> list[tuple[str, str]]:
    cells = read_table(table, "pets.csv")
    return list(zip(cells["image"], cells["label"], strict=True))


ENCODINGS = ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "latin-1"]


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_encodings_of_tables(tmp_path, encoding, end):
    text = TEXT.replace("cat", "chat é").replace("\n", end).replace(",", "\t")
    assert pairs(write(tmp_path, text.encode(encoding)))[0] == ("images/0.png", "chat é")
    marked = "\ufeff" + text  # of the big-endian ones, which `encode` leaves out
    if "16-" in encoding:
        text = "图\t" + text.replace("images", "\timages")
        assert pairs(write(tmp_path, text.encode(encoding)))[0] == ("images/0.png", "chat é")
        assert pairs(write(tmp_path, marked.encode(encoding)))[2] == ("images/2.png", "chat é")


@pytest.mark.parametrize(
    "text",
    [
        "sep=;\n" + TEXT.replace(",", ";"),
        '"SEP=,"\r\n' + TEXT,
        "sep=\t\n" + TEXT.replace(",", "\t"),
        TEXT.replace(",", ";"),
        TEXT.replace(",", "\t"),
        TEXT.replace(",", " | "),
        TEXT.replace(",", ", "),
        TEXT.replace(",", " ,  ").replace("\n", " \n"),
        "".join(' "' + line.replace(",", '" , "') + '" \n' for line in TEXT.splitlines()),
        "\n\n" + TEXT.replace("\n", "\n\n"),
    ],
)
def test_separators_blanks_and_empty_lines(tmp_path, text):
    assert pairs(write(tmp_path, text)) == ROWS


def test_a_text_that_is_not_utf8_is_said(tmp_path):
    table = write(tmp_path, "image,label\na.png,Äh\n".encode("latin-1"))
    form = read_table(table, "pets").attrs[FORM]
    assert form == "separated by commas, read as cp1252 because it is not UTF-8"
    write(tmp_path, TEXT)
    assert pairs(table) == ROWS, "a table that has changed is read again"


def test_the_separator_is_that_of_the_header_whatever_is_in_quotation_marks(tmp_path):
    table = write(tmp_path, '"title, short, or long";image;label\n"a, b";x.png;cat\n')
    assert list(read_table(table, "pets")) == ["title, short, or long", "image", "label"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("image,title,label\n0.png,a,cat\n1.png,big, red,dog\n", "row 2 has 4 cells but the head"),
        ("image,title,label\n0.png,a,cat\n\n1.png,dog\n", r"row 2 has 2 .* 3 .1.png . dog"),
        ("image,title,label,note\n0.png,big, red,cat,\n", "row 1 has 5 cells but the header 4"),
        ('image,label\n0.png,"cat\n1.png,dog\n', "cannot be read as a table at line 3"),
        ('image,label\n0.png,"cat\n1.png,"dog"\n2.png,cat\n', "cannot be read as a table"),
        ("image,label,note,label\n0.png,cat,x,sure\n", "has 2 columns 'label': rename"),
        ("image,label, label \n0.png,cat,x\n", "has 2 columns 'label': rename"),
        ("image,label\n", r"pets.csv .separated by commas, .* has no rows"),
        ("", "has no rows"),
        (
            'image,label\n0.png,"a "big" cat"\n',
            "at line 2 .*; one inside a cell must be doubled",
        ),
        ("# made in May\nimage,label\n0.png,cat\n", "2 cells .* header, not '# made in M"),
        (
            "image,label\n0.png,ca\0t\n",
            "is not text .it contains NUL bytes.: save the table as .csv",
        ),
    ],
)
def test_tables_that_would_shift_or_hide_labels_are_refused(tmp_path, content, message):
    with pytest.raises(UserError, match=message):
        read_table(write(tmp_path, content), "pets.csv")


def test_columns_without_names_are_called_by_their_places(tmp_path):
    cells = read_table(write(tmp_path, ",image,label,\n0,a.png,cat,\n"), "pets")
    assert list(cells) == ["column 1", "image", "label", "column 4"]


def test_long_cells_and_many_columns(tmp_path):
    many = "".join(f",column {at}" for at in range(100))
    cells = ",0" * 100
    table = write(tmp_path, f"\ufeff\ufeffimage,label\u200b{many}\n0.png,{'x' * 200_000}{cells}\n")
    assert len(pairs(table)[0][1]) == 200_000
    with pytest.raises(UsageError, match=r"'kind'; .* image, label, .* 17, ... .102 in all."):
        plan_of(table, label=("kind",))


def test_spreadsheets_are_read(tmp_path):
    book = tmp_path / "pets.xlsx"
    rows = {"image": [image for image, _ in ROWS], "label": ["1", "2", "1"], "price": [1.5, 2, 3]}
    with pandas.ExcelWriter(book) as writer:
        pandas.DataFrame(rows).to_excel(writer, sheet_name="Tiere", index=False)
        pandas.DataFrame({"x": [1]}).to_excel(writer, sheet_name="other", index=False)
    cells = read_table(book, "pets.xlsx")
    assert cells.to_dict("list") == {**rows, "price": ["1.5", "2", "3"]}
    assert cells.attrs[FORM] == "sheet 'Tiere', the first of 2"
    renamed = write(tmp_path / "renamed", book.read_bytes())
    assert read_table(renamed, "pets.csv").equals(cells)
    shutil.rmtree(renamed.parent)
    assert find_table(tmp_path, "pets") == book
    write(tmp_path, b"no spreadsheet", "~$pets.xlsx")
    assert find_table(tmp_path, "pets") == book
    with pytest.raises(UserError, match=r"spreadsheet .File is not a zip file.: save it as"):
        read_table(write(tmp_path, b"\xd0\xcf\x11\xe0 encrypted", "other.xlsx"), "other.xlsx")
    with pytest.raises(UserError, match=r"cannot be read as a spreadsheet .*: save it as"):
        read_table(write(tmp_path, b"PK no spreadsheet", "other.xlsx"), "other.xlsx")
    with pytest.raises(
        UserError, match=r"pets has 2 tables .*: other.xlsx, pets.xlsx: provide one"
    ):
        find_table(tmp_path, "pets")
    assert find_table(write(tmp_path, TEXT).parent, "pets").name == "pets.csv"


def test_cells_of_errors_are_empty_and_an_empty_first_sheet_is_named(tmp_path):
    book = tmp_path / "pets.xlsx"
    rows = {"image": [image for image, _ in ROWS], "label": ["cat", "#N/A", "#REF!"]}
    pandas.DataFrame(rows).to_excel(book, index=False)
    assert list(read_table(book, "pets")["label"]) == ["cat", "", ""]
    with pandas.ExcelWriter(book) as writer:
        pandas.DataFrame().to_excel(writer, sheet_name="notes", index=False)
        pandas.DataFrame(rows).to_excel(writer, sheet_name="pets", index=False)
    with pytest.raises(UserError, match=r"pets .sheet 'notes', the first of 2. has no rows"):
        read_table(book, "pets")


def plan_of(table: Path, **fields):
    return ImageTable(str(table), **fields).plan(table, "pets.csv")


def test_backslashes_in_a_table_separate_folders(tmp_path):
    make_images(tmp_path, "images/0.png", "images/1.png", "images\\2.png")
    plan = plan_of(write(tmp_path, TEXT.replace("/", "\\")))
    there = [tmp_path / "images" / "0.png", tmp_path / "images" / "1.png"]
    assert [Path(r.path) for r in plan.records] == [*there, tmp_path / "images\\2.png"]


def test_what_was_understood_of_a_table(tmp_path):
    rows = ["c.png,cat,train,7", ",dog,train,1", "e.png,,Test,", "f.png,dog, test ,9"]
    table = write(tmp_path, "\n".join(["image;label;Split;price", *rows]).replace(",", ";"))
    plan = plan_of(table, number=("price",), rows=("price!=99",))
    assert understood(plan, "pets.csv").split("\n  ") == [
        "pets.csv: 4 rows, separated by semicolons, read as utf-8, with the columns image, label, "
        "Split, price; images are named by image, splits by Split",
        "2 images: train 1, test 1",
        "label: 2 classes: cat 1, dog 1",
        "price: numbers from 7 to 9",
        "skipped: 1 rows that name no image, the first row 2",
        "skipped: 1 rows not asked for, the first row 3",
    ]
    json.dumps(plan.left_out)
    found = [
        plan_of(write(tmp_path, text)).records[2].split
        for text in (
            "image,label,Split\na,x,train\nb,y,train\nc,x,Test\n",
            "image,label,Split\na,x,1\nb,y,2\nc,x,2\n",
            "image,label,Split,split\na,x,1,train\nb,y,2,train\nc,x,2,val\n",
        )
    ]
    assert found == ["test", "train", "validation"]


def test_a_column_that_has_nothing_but_splits_says_them(tmp_path):
    text = "image,label,usage,place\na,x,train,test\nb,y,train,test\nc,x,Valid,test\nd,x,,test\n"
    plan = plan_of(write(tmp_path, text))
    assert [record.split for record in plan.records] == ["train", "train", "validation", "train"]
    assert plan.layout.endswith("splits by usage")
    plan = plan_of(write(tmp_path, text), label=("usage",))
    assert {record.split for record in plan.records} == {"train"}
    with pytest.raises(UserError, match="row 3: Split is 'PrivateTest'; it must be train, valid"):
        plan_of(write(tmp_path, "image,label,Split\na,x,Training\nb,y,\nc,x,PrivateTest\n"))
    with pytest.raises(UserError, match="no image is in the split 'train'"):
        survey(ImageTable(str(write(tmp_path, "image,label,split\na,x,test\nb,y,test\n"))))


def test_accents_may_be_written_otherwise_than_the_file_s_name(tmp_path):
    composed, decomposed = (unicodedata.normalize(form, "é") for form in ("NFC", "NFD"))
    make_images(tmp_path, f"{composed}/0.png", f"{decomposed}1.png")
    names = [f"{decomposed}/0.png", f"{composed}1.png"]
    records = plan_of(write(tmp_path, f"image,label\n{names[0]},x\n{names[1]},y\n")).records
    assert all(Path(record.path).is_file() for record in records)


def test_rows_without_an_image_count_for_nothing(tmp_path):
    text = TEXT + ",bird\n,bird\n"
    plan = plan_of(write(tmp_path, text))
    assert plan.class_names["label"] == ("cat", "dog")
    assert plan.left_out["rows that name no image"]["count"] == 2
    numbers = write(tmp_path, "image,t\na,1\nb,2\n,far\n")
    assert len(plan_of(numbers, label=(), number=("t",)).records) == 2
    with pytest.raises(UserError, match="no row names an image"):
        plan_of(write(tmp_path, "image,label\n,cat\n,dog\n"))


def test_a_table_is_planned_once_for_its_survey_and_its_images(tmp_path, monkeypatch):
    make_images(tmp_path, *(image for image, _ in ROWS))
    calls = []

    def counted(*arguments):
        calls.append(arguments)
        return plan_rows(*arguments)

    monkeypatch.setattr("cnn_research.data.sources.table.plan_rows", counted)
    source = ImageTable(str(write(tmp_path, TEXT)))
    survey(source)
    dataclasses.replace(source, image_size=(3, 4), validation=0.0, test=0.0).load()
    assert len(calls) == 1
    survey(dataclasses.replace(source, label=("image",)))
    assert len(calls) == 2


def test_names_that_may_be_the_same_or_nothing_are_said(tmp_path):
    rows = ["Cat,P1", "cat,p1", "ｃat,2", "do\u200bg,2.0", "dog,", "NA,"]
    lines = [f"{at}.png,{row}" for at, row in enumerate(rows)]
    plan = plan_of(write(tmp_path, "\n".join(["image,label,group", *lines])), group="group")
    said = understood(plan, "pets")
    assert "label that may be the same: Cat, cat, dog, do\u200bg, ｃat\n" in said
    assert "label that may mean an empty cell: NA\n" in said
    assert said.endswith("groups that may be the same: 2, 2.0, P1, p1")


def test_columns_of_labels_named_as_our_own(tmp_path):
    make_images(tmp_path, *(image for image, _ in ROWS))
    text = TEXT.replace("image,", "path,").replace("label", "image") + "images/2.png,dog\n"
    plan = plan_of(write(tmp_path, text), image="path", label=("image",))
    assert plan.class_names == {"image": ("cat", "dog")}
    split = Split(
        np.zeros((1, 2, 2, 3), np.uint8), {"image": np.zeros(1, int)}, np.array(["0.png"])
    )
    dataset = Dataset("pets", {"train": split}, plan.class_names, {})
    (row,) = rows_of(dataset, split, [{"image": "dog 90%"}])
    assert row == {"image": "cat", "image: prediction": "dog 90%", "image (file)": "0.png"}
    keys = [key_of(head) for head in ("kind", "file", "nearest")]
    assert keys == ["kind", "file (answer)", "nearest (answer)"]


def test_a_pattern_without_a_column_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"--data.image is 'images/\{id', which names no column"):
        plan_of(write(tmp_path, TEXT), image="images/{id")


def test_missing_images_are_named_with_their_folder(tmp_path):
    table = write(tmp_path / "shop", TEXT.replace("images/", "C:\\photos\\"))
    with pytest.raises(UserError, match=r"C:.photos.0.png does not exist; .*1.png.*; \.\.\."):
        survey(ImageTable(str(table)))
    make_images(tmp_path / "shop", "images/0.png", "images/1.png")
    write(tmp_path / "shop", TEXT)
    source = ImageTable(str(table), (3, 4), validation=0.0, test=0.0, on_bad_image="skip")
    (missing,) = source.load().provenance["skipped"]
    assert missing == f"{tmp_path}/shop/images/2.png does not exist"


def numbers_table(folder: Path, numbers: list[str]) -> Path:
    return write(folder, "image,t\n" + "".join(f"{at}.png,{t}\n" for at, t in enumerate(numbers)))


def test_numbers_that_32_bits_would_round_away_are_refused(tmp_path):
    fields = {"label": (), "number": ("t",)}
    seconds = [str(1_700_000_000 + 60 * at) for at in range(40)]
    with pytest.raises(UserError, match=r"'t' are close together .*: subtract 1700000000 from all"):
        plan_of(numbers_table(tmp_path, seconds), **fields)
    plan = plan_of(numbers_table(tmp_path, [str(60 * at) for at in range(40)]), **fields)
    assert [record.labels["t"] for record in plan.records] == [60 * at for at in range(40)]
    with pytest.raises(UserError, match="'t' has only the number 7: there is nothing to"):
        plan_of(numbers_table(tmp_path, ["7", "7.0", ""]), **fields)
    years = plan_of(numbers_table(tmp_path, ["0.1", "1e9", "-3"]), **fields)
    assert len(years.records) == 3
    with pytest.raises(UserError, match="row 2: t is '1,5', which is not a finite number"):
        plan_of(numbers_table(tmp_path, ["1", '"1,5"']), **fields)


def test_a_million_rows_take_seconds_and_little_memory(tmp_path):
    rows = 50_000
    lines = (f'images/{at}.png,"a title, {at}",kind {at % 50},{at % 997}\n' for at in range(rows))
    table = write(tmp_path, "image,title,label,price\n" + "".join(lines))
    began = time.process_time()
    cells = read_table(table, "pets")
    plan = plan_of(table, number=("price",))
    assert time.process_time() - began < 5, "of a twentieth of a million"
    assert len(plan.records) == len(cells) == rows
    assert cells.memory_usage(deep=True).sum() < 200 * rows
    assert len({id(record.labels) for record in plan.records}) <= 50 * 997


# Files --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            b"\0\0\0\x18ftypheic\0\0\0\0",
            "HEIC, a photo format of phones, which is not supported: convert it",
        ),
        (
            b'<?xml version="1.0"?>\n<!-- x --><svg xmlns="x">',
            "SVG, a vector drawing, .* convert it to",
        ),
        (b"<svg width='9'/>", "SVG"),
        (
            b"\n<!DOCTYPE html><html>",
            "a web page, which is not supported: download the image itself",
        ),
        (
            b"version https://git-lfs.github.com/spec/v1\noid",
            "a pointer of Git LFS.* lfs pull",
        ),
        (b"%PDF-1.7", "PDF"),
        (b"\0\0\0\x20ftypisom", "a video"),
        (b"no image", "not an image or is damaged"),
        (b"", "an empty file, which is not supported: copy or download it again"),
        (b"\0\0\1\0\1\0", "an icon"),
        (b"\x1f\x8b\x08", "compressed by gzip, which is not supported: unpack it"),
        (b' {"error": 404}', "JSON, a server's response"),
    ],
)
def test_formats_that_are_not_read_are_named(tmp_path, content, message):
    (tmp_path / "x.jpg").write_bytes(content)
    for file in (tmp_path / "x.jpg", io.BytesIO(content)):
        with pytest.raises(BadImage, match=f"x.jpg is {message}"):
            decode(file, None, shown="x.jpg")


def test_png_with_large_texts_and_profiles_are_decoded(tmp_path):
    image = Image.new("RGB", (4, 3), (200, 10, 30))
    for kind in ("zTXt", "iTXt", "tEXt", "iccp"):
        text = PngImagePlugin.PngInfo()
        if kind == "iTXt":
            text.add_itxt("XML:com.adobe.xmp", "x" * 3_000_000, zip=True)
        elif kind != "iccp":
            text.add_text("parameters", "a" * 3_000_000, zip=kind == "zTXt")
        profile = {"icc_profile": b"\1" * 1000 + b"\0" * 3_000_000} if kind == "iccp" else {}
        image.save(tmp_path / "x.png", pnginfo=text, **profile)
        assert (decode(tmp_path / "x.png", None) == (200, 10, 30)).all(), kind


@pytest.mark.parametrize("bits", [10, 12, 14])
def test_fewer_bits_than_files_have_room_for_are_said(tmp_path, bits, caplog):
    for label, at in itertools.product("ab", range(3)):
        grey = np.full((4, 4), 2**bits - 1 - 7 * at, np.uint16)
        grey[0, 0] = ord(label)
        (tmp_path / "grey" / label).mkdir(parents=True, exist_ok=True)
        Image.fromarray(grey).save(tmp_path / "grey" / label / f"{at}.png")
    with caplog.at_level("WARNING", logger="absl"):
        dataset = ImageFolder(str(tmp_path / "grey"), (4, 4), validation=0.0, test=0.0).load()
    found = dataset.provenance["dark_images"]
    said = "\n".join(data_section(tmp_path, dataset.provenance, {}))
    assert f"no pixel above {found['brightest_pixel_of_255']} of 255: {found['count']}, the" in said
    assert found == {"count": 6, "first": "a/0.png", "brightest_pixel_of_255": 2 ** (bits - 8)}
    assert f"if these are {bits}-bit images" in caplog.text
    assert f"multiply their pixels by {2 ** (16 - bits)}" in caplog.text


def broken_exif(value: bytes) -> bytes:
    """EXIF that turns an image by a quarter, with a fraction of this value, 8 bytes, beside."""
    turn = struct.pack("<HHIHH", 274, 3, 1, 6, 0)
    first = struct.pack("<H", 2) + turn + struct.pack("<HHII", 34665, 4, 1, 38) + b"\0" * 4
    second = struct.pack("<HHHIII", 1, 37386, 5, 1, 56, 0)
    return b"Exif\0\0II*\0\x08\0\0\0" + first + second + value


def test_odd_files_are_decoded_as_before(tmp_path):
    image = Image.fromarray(np.arange(240, dtype=np.uint8).reshape(4, 20, 3))
    for exif in (broken_exif(b"\xff" * 8), broken_exif(b"\0" * 8), broken_exif(b"")):
        image.save(tmp_path / "x.jpg", exif=exif)
        assert decode(tmp_path / "x.jpg", None).shape == (20, 4, 3)
    more = {"save_all": True, "append_images": [image.rotate(180)]}
    ways = {
        "lab.tif": (image.convert("LAB"), {}),
        "cmyk.jpg": (image.convert("CMYK"), {}),
        "PALETTE.PNG": (image.convert("P"), {}),
        "mpo.jpg": (image, {"format": "MPO", **more}),
        "animated.webp": (image, {"lossless": True, **more}),
        "animated.png": (image, more),
        "really_png.jpg": (image, {"format": "PNG"}),
        "a\nb\tc.JPG": (image, {"format": "JPEG"}),
        "grey.jp2": (image.convert("L"), {}),
        "some.avif": (image, {}),
    }
    for name, (picture, options) in ways.items():
        picture.save(tmp_path / name, **options)
        assert decode(tmp_path / name, None).shape == (4, 20, 3), name


# Patterns of files --------------------------------------------------------------------------------


def test_patterns_in_folders_with_brackets(tmp_path, monkeypatch):
    new = "my [new] photos"
    make_images(tmp_path, f"{new}/1.png", f"{new}/2.jpg", "a?/[x] 1.png", "an/3.png")
    found = {
        f"{new}/*.jpg": ["2.jpg"],
        f"{new}/[12].*": ["1.png", "2.jpg"],
        "my*/*": ["1.png", "2.jpg"],
        "a?/*.png": ["[x] 1.png"],
        "a[!?]/*.png": ["3.png"],
        "a?/[x]*": ["[x] 1.png"],
        new: ["1.png", "2.jpg"],
        "**/*.png": ["1.png", "[x] 1.png", "3.png"],
    }
    monkeypatch.chdir(tmp_path)
    for pattern, names in found.items():
        for start in ("", f"{tmp_path}/"):
            assert sorted(f.name for f in image_files(start + pattern)) == sorted(names), pattern
    with pytest.raises(UserError, match="no such file or folder"):
        image_files("nowhere [new]/*.png")
