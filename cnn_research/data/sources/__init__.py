"""Where images come from: one small config per source, with `load()` to a `Dataset`.

A source's fields are all that decides what is loaded, so a run's config names its data
completely. Nothing heavy is imported before `load()`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from cnn_research.core.config import register_config
from cnn_research.core.errors import UsageError, UserError
from cnn_research.data import images
from cnn_research.data.dataset import PALETTE, UNSEEN, Dataset, Split
from cnn_research.data.prepare import cache
from cnn_research.data.prepare.splits import Examples, assign
from cnn_research.data.sources import artworks
from cnn_research.data.sources import rows as tables

FROM_FILES = "where PATH is the folder or archive, or name that with --data.path"
"""How to prepare what comes as files."""


@register_config
@dataclasses.dataclass(frozen=True)
class Digits:
    """1,797 handwritten digits, 8x8x1, that ship with scikit-learn: no download, no preparation."""

    validation: int = 300
    """How many examples are held out for validation."""
    test: int = 300
    """How many examples are held out for the test."""
    split_seed: int = 0
    """Decides which examples are held out."""

    @property
    def description(self) -> str:
        return "scikit-learn's digits, 8x8x1, 10 classes"

    def load(self) -> Dataset:
        """Images are uint8 `[examples, 8, 8, 1]`, scaled from 0..16 to 0..255."""
        from sklearn.datasets import load_digits

        digits = load_digits()
        examples = Examples(
            images=np.round(digits.images * (255 / 16)).astype(np.uint8)[..., None],
            labels={"label": digits.target.astype(np.int32)},
            class_names={"label": tuple(str(name) for name in digits.target_names)},
            names=np.array([f"digits/{index}" for index in range(len(digits.target))]),
            given=np.full(len(digits.target), "train"),
        )
        sizes = {"validation": self.validation, "test": self.test}
        return _with_scikit_learn("digits", self, examples, sizes)


@register_config
@dataclasses.dataclass(frozen=True)
class FashionMnist:
    """60,000 + 10,000 photographs of clothes, 28x28x1, 10 classes.

    Prepared once by `python -m cnn_research.data prepare fashion_mnist`.
    """

    validation: int = 10_000
    """How many of the 60,000 training examples are held out; 0 for no validation split."""
    split_seed: int = 0
    """Decides which examples are held out."""

    @property
    def description(self) -> str:
        return "Fashion-MNIST, 28x28x1, 10 classes"

    @staticmethod
    def home() -> Path:
        """The folder of the prepared records."""
        return cache.data_dir() / "fashion_mnist" / "3.0.1"

    def load(self) -> Dataset:
        """Images are uint8 `[examples, 28, 28, 1]`, memory maps; the test split is the official."""
        return _load_official(
            self,
            "Fashion-MNIST",
            "with the folder of the four official .gz files, or without --source to download them",
        )


@register_config
@dataclasses.dataclass(frozen=True)
class Cifar10:
    """50,000 + 10,000 photographs, 32x32x3, 10 classes: the official ones, or copies of them.

    The official ones are prepared once by `python -m cnn_research.data prepare cifar10`. Copies
    that were saved again as JPEG are not the same images: figures are to be compared only among
    runs on the same files, so the data set's name says which they are.
    """

    path: str = ""
    """A folder or archive of image files, `train/<class>/*` and `test/<class>/*`, prepared on
    first use; empty for the official data."""
    validation: float = 0.1
    """Which fraction of the training examples is held out; 0 for no validation split."""
    split_seed: int = 0
    """Decides which examples are held out."""

    @property
    def description(self) -> str:
        which = f"the image files of {_stem(self.path)}" if self.path else "the official data"
        return f"CIFAR-10, {which}, 32x32x3, 10 classes"

    @staticmethod
    def home() -> Path:
        """The folder of the prepared records of the official data."""
        return cache.data_dir() / "cifar10" / "3.0.2"

    def load(self) -> Dataset:
        """Images are uint8 `[examples, 32, 32, 3]`, memory maps; the test split is the official."""
        from cnn_research.data.prepare import cifar10

        if not self.path:
            return _load_official(
                self,
                "CIFAR-10",
                f"with {cifar10.BINARY} or {cifar10.PYTHON}, or without --source to download it; "
                "or name a folder or archive of image files with --data.path",
            )
        found = ImageFolder(self.path, (32, 32), self.validation, split_seed=self.split_seed).load()
        if found.class_names["label"] != cifar10.CLASSES:
            raise UserError(
                f"{_stem(self.path)} has other classes than CIFAR-10's ({cifar10.CLASSES[0]} to "
                f"{cifar10.CLASSES[-1]}): use image_folder for other images"
            )
        provenance = {**found.provenance, "source": self.description}
        provenance["path"] = images.printable(Path(self.path).name)
        return dataclasses.replace(
            found, name=f"cifar10, image files of {_stem(self.path)}", provenance=provenance
        )


def _load_official(source: FashionMnist | Cifar10, title: str, advice: str) -> Dataset:
    """The arrays of a data set with an official test split."""

    def read(home: Path, scratch: Path) -> tuple[Examples, dict[str, Any]]:
        from cnn_research.data.prepare import builders

        examples, metadata = builders.read(home, scratch)
        return examples, {"sha256": metadata.get("sha256") or builders.fashion_checksums()}

    sizes = {"validation": source.validation, "test": 0}
    return _load_prepared(source, title, advice, sizes, read)


def _load_prepared(
    source: FashionMnist | Cifar10 | Artworks | Products,
    title: str,
    advice: str,
    sizes: Mapping[str, float],
    read: Callable[[Path, Path], tuple[Examples, dict[str, Any]]],
) -> Dataset:
    """The arrays of a data set that `python -m cnn_research.data prepare` has prepared.

    `read(home, scratch)` gives its examples and what the provenance is to say of them.
    """
    home = source.home()
    name = home.parent.name
    info = home / "dataset_info.json"
    if not info.is_file():
        interrupted = any(home.parent.glob("incomplete.*"))
        state = "only half prepared (it was interrupted)" if interrupted else "not prepared"
        raise UserError(
            f"{title} is {state} in {cache.data_dir()}: run `python -m cnn_research.data prepare "
            f"{name} --source=PATH` {advice}"
        )
    told = json.loads(info.read_bytes())
    if told.get("fileFormat") != "array_record" or not told.get("disableShuffling"):
        raise UserError(
            f"{home} was prepared by another program, in another format or order: set "
            "TFDS_DATA_DIR to another folder and prepare it there"
        )
    fingerprint = hashlib.sha256(info.read_bytes()).hexdigest()

    def build(folder: Path) -> None:
        with cache.scratch(folder.with_name("records")) as scratch:
            examples, told = read(home, scratch)
            indices, report = assign(examples, sizes, source.split_seed)
            told.pop("heads", None)
            provenance = {"source": source.description, "version": home.name, **told, **report}
            cache.write(folder, fingerprint, name, examples, indices, provenance)

    return cache.load(home, fingerprint, cache.key_of(dataclasses.asdict(source)), build)


@register_config
@dataclasses.dataclass(frozen=True)
class ImageFolder:
    """A folder or archive of images, `<split>/<class>/*` or `<class>/*`; prepared on first use.

    Splits are train, validation, test and target. Validation and test are drawn from train where
    they have no folder; target, another domain to evaluate on, is only there where it has one, and
    what is of a class that no other split has is there counted as wrong.
    """

    path: str
    """The folder, or a .tar, .tar.gz, .tar.xz or .zip archive of it."""
    image_size: tuple[int, int] = (64, 64)
    """Height and width to which every image is stretched."""
    validation: float = 0.1
    """Which fraction of train is held out for validation, where no folder is; 0 for none."""
    test: float = 0.1
    """Which fraction of train is held out for the test, where no folder is; 0 for none."""
    split_seed: int = 0
    """Decides which examples are held out."""
    on_bad_image: Literal["stop", "skip"] = "stop"
    """What to do with a file that is no image: stop and name it, or leave it out and count it."""

    @property
    def description(self) -> str:
        return f"images of {_stem(self.path)}, {self.image_size[0]}x{self.image_size[1]}x3"

    def load(self) -> Dataset:
        """Images are uint8 `[examples, *image_size, 3]`, memory maps; one head, `label`."""
        path = existing(self.path)

        def plan(folder: Path) -> images.Plan:
            return self.plan(folder, images.printable(path))

        return _load_images("image_folder", self, path, content_of(path), plan)

    def plan(self, folder: Path, shown: str) -> images.Plan:
        """What is in `folder`, which errors call `shown`; no image is opened."""
        return images.plan_folder(folder, shown)


@register_config
@dataclasses.dataclass(frozen=True)
class Artworks(ImageFolder):
    """8,355 paintings by 50 artists.

    Prepared once by `python -m cnn_research.data prepare artworks` from a folder per artist or from
    Kaggle's archive 'Best Artworks of All Time', whose damaged names are repaired.
    """

    path: str = ""
    """A folder or archive of paintings, prepared on first use; empty for what is prepared."""
    image_size: tuple[int, int] = (244, 244)
    """Height and width to which every image is stretched; up to 256 of what was prepared."""

    @property
    def description(self) -> str:
        which = f" of {_stem(self.path)}" if self.path else ""
        return f"paintings{which} by artist, {self.image_size[0]}x{self.image_size[1]}x3"

    @staticmethod
    def home() -> Path:
        """The folder of the prepared records."""
        return cache.data_dir() / "artworks" / "1.0.0"

    def load(self) -> Dataset:
        """Images are uint8 `[examples, *image_size, 3]`, memory maps; one head, `label`."""
        if self.path:
            return super().load()

        def read(home: Path, scratch: Path) -> tuple[Examples, dict[str, Any]]:
            from cnn_research.data.prepare import builders

            if max(self.image_size) > builders.PAINTING_SIZE:
                raise UsageError(
                    f"image_size is {self.image_size}, and the paintings were prepared at up to "
                    f"{builders.PAINTING_SIZE}: ask for no more, or name their folder or archive "
                    "with --data.path"
                )
            return builders.read(home, scratch, self.image_size)

        return _load_prepared(self, "artworks", FROM_FILES, _fractions(self), read)

    def plan_to_prepare(self, folder: Path, shown: str) -> images.Plan:
        """Every painting below `folder`."""
        return self.plan(folder, shown)

    def plan(self, folder: Path, shown: str) -> images.Plan:
        return artworks.plan(folder, shown)


@register_config
@dataclasses.dataclass(frozen=True)
class Photos(ImageFolder):
    """Photographs without labels: every image in a folder or an archive.

    Those that stand where `image_size` lies, or the other way round, are turned by a quarter, so
    that none is squeezed for it. A file is in the same split at every size.
    """

    path: str = ""
    """A folder or archive, prepared on first use; empty for pieces of the two photographs that ship
    with scikit-learn: as many as have room side by side, quarters at least."""
    image_size: tuple[int, int] = (321, 481)
    """Height and width to which every image is stretched."""
    test: float = 0.2
    """Which fraction of train is held out for the test; 0 for none."""

    @property
    def description(self) -> str:
        which = _stem(self.path) if self.path else "scikit-learn's photographs, in pieces"
        return f"{which}, {self.image_size[0]}x{self.image_size[1]}x3"

    def load(self) -> Dataset:
        """Images are uint8 `[examples, *image_size, 3]`; no labels."""
        if self.path:
            path = existing(self.path)
            return _load_images(
                "photos",
                self,
                path,
                content_of(path),
                lambda folder: images.plan_photos(folder, images.printable(path)),
            )
        from sklearn.datasets import load_sample_images

        sizes = _fractions(self)
        bunch = load_sample_images()
        names, pieces = [], []
        for file, photograph in zip(bunch.filenames, bunch.images, strict=True):
            sides = photograph.shape[:2]
            rows, columns = (max(2, a // b) for a, b in zip(sides, self.image_size, strict=True))
            height, width = sides[0] // rows, sides[1] // columns
            for row, column in itertools.product(range(rows), range(columns)):
                part = photograph[row * height :, column * width :][:height, :width]
                pieces.append(images.resized(images.turned(part, self.image_size), self.image_size))
                names.append(f"{Path(file).name} {row},{column}")
        examples = Examples(np.stack(pieces), {}, {}, np.array(names), np.full(len(names), "train"))
        return _with_scikit_learn("sample_photographs", self, examples, sizes)


@register_config
@dataclasses.dataclass(frozen=True)
class ImageTable:
    """A CSV file with one image per row and columns of classes or numbers; prepared on first use.

    An empty cell is a label that is not known. A column `split` (train, validation, test, target)
    is used if there is one; validation and test are drawn from train where it does not mention
    them.

    The split `target` is another domain to evaluate on, and the others are the source: `target`
    says which rows are its own, or the column `split`. Classes are those of the source; in the
    target a label that is none of them is counted as wrong, and an image that the source has too is
    left out.
    """

    path: str
    """The CSV file, or a folder or archive with one in it."""
    image: str = "image"
    """The column with the image's path as seen from the CSV file, or a pattern of columns such
    as 'images/{id}.jpg'."""
    label: tuple[str, ...] = ("label",)
    """The columns with classes, each a head of its own; splits are stratified by the first."""
    number: tuple[str, ...] = ()
    """The columns with numbers to estimate, each a head of its own."""
    min_examples: int = 1
    """A class that has fewer rows counts as not known."""
    rows: tuple[str, ...] = ()
    """Conditions that a row must meet, all of them: COLUMN OP VALUE, such as 'year<=2012' or
    'gender=Women', where OP is one of <= >= < > = !=. Numbers compare as numbers, and an empty cell
    meets none."""
    target: tuple[str, ...] = ()
    """Conditions that make a row part of the split `target` instead, all of them."""
    image_size: tuple[int, int] = (64, 64)
    """Height and width to which every image is stretched."""
    validation: float = 0.1
    """Which fraction of train is held out for validation; 0 for none."""
    test: float = 0.1
    """Which fraction of train is held out for the test; 0 for none."""
    split_seed: int = 0
    """Decides which examples are held out."""
    on_bad_image: Literal["stop", "skip"] = "stop"
    """What to do with a file that is no image: stop and name it, or leave it out and count it."""

    @property
    def description(self) -> str:
        size = f"{self.image_size[0]}x{self.image_size[1]}x3"
        heads = ", ".join((*self.label, *self.number))
        return f"images of {_stem(self.path)}, {size}, labels {heads}"

    def load(self) -> Dataset:
        """Images are uint8 `[examples, *image_size, 3]`, memory maps; a head per column."""
        path = existing(self.path)
        shown = images.printable(path)

        def plan(folder: Path) -> images.Plan:
            return self.plan(folder, shown)

        if path.is_dir() or path.suffix.lower() == ".csv":
            table = tables.find_table(path, shown) if path.is_dir() else path
            files = [table, *(record.path for record in plan(path).records)]
        else:
            files = [path]
        content = [_status(file) for file in files]
        return _load_images("image_table", self, path, cache.key_of(content), plan)

    def plan(self, folder: Path, shown: str) -> images.Plan:
        """What the table at, or below, `folder` names, which errors call `shown`; no image is
        opened."""
        table = tables.find_table(folder, shown) if folder.is_dir() else folder
        return self._plan(tables.read_table(table, shown), shown, table.parent)

    def _plan(self, rows: Sequence[Mapping[str, str]], shown: str, folder: Path) -> images.Plan:
        """The records of a table's rows; `folder` is where the images' names start from."""
        return tables.plan_rows(
            rows, shown, folder, self.image, self.label, self.number, self.min_examples, self.rows,
            self.target,
        )  # fmt: skip


@register_config
@dataclasses.dataclass(frozen=True)
class Products(ImageTable):
    """19,298 catalogue photographs, 60 wide and 80 high, with what is sold and when.

    Prepared once by `python -m cnn_research.data prepare products`, with every column of the table,
    so that any labels and rows can be asked for afterwards. The source is the catalogue up to 2012
    and the target the one from 2015 on, as far as the fields do not say otherwise.
    """

    path: str = ""
    """The CSV file, or a folder or archive with one, prepared on first use; empty for what is
    prepared."""
    image: str = "images/{id}.jpg"
    """The column with the image's path as seen from the CSV file, or a pattern of columns."""
    label: tuple[str, ...] = ("material", "type", "brand")
    """The columns with classes, each a head of its own; splits are stratified by the first."""
    min_examples: int = 10
    """A class that has fewer rows counts as not known."""
    rows: tuple[str, ...] = ("year<=2012",)
    """Conditions that a row must meet to be in the source."""
    target: tuple[str, ...] = ("year>=2015",)
    """Conditions that make a row part of the split `target` instead."""
    image_size: tuple[int, int] = (80, 60)
    """Height and width to which every image is stretched."""

    @property
    def description(self) -> str:
        if self.path:
            return super().description
        return dataclasses.replace(self, path="products").description

    @staticmethod
    def home() -> Path:
        """The folder of the prepared records."""
        return cache.data_dir() / "products" / "1.0.0"

    def load(self) -> Dataset:
        """Images are uint8 `[examples, *image_size, 3]`, memory maps; a head per column."""
        if self.path:
            return super().load()

        def read(home: Path, scratch: Path) -> tuple[Examples, dict[str, Any]]:
            from cnn_research.data.prepare import builders

            def plan(rows: Sequence[Mapping[str, str]]) -> images.Plan:
                return self._plan(rows, "products", home)

            return builders.read_table(home, scratch, self.image_size, plan)

        return _load_prepared(self, "products", FROM_FILES, _fractions(self), read)

    def plan_to_prepare(self, folder: Path, shown: str) -> images.Plan:
        """Every row of the table in `folder`, or of that file, to be prepared as it is."""
        table = tables.find_table(folder, shown) if folder.is_dir() else folder
        rows = tables.read_table(table, shown)
        return tables.plan_every_row(rows, shown, table.parent, self.image)


def _with_scikit_learn(
    name: str, source: Digits | Photos, examples: Examples, sizes: Mapping[str, float]
) -> Dataset:
    """What ships with scikit-learn, in splits."""
    import sklearn

    indices, report = assign(examples, sizes, source.split_seed)
    return Dataset(
        name=name,
        splits={
            split: Split(
                images=examples.images[chosen],
                labels={head: labels[chosen] for head, labels in examples.labels.items()},
                names=examples.names[chosen],
            )
            for split, chosen in indices.items()
        },
        class_names=examples.class_names,
        provenance={
            "source": source.description,
            "version": f"scikit-learn {sklearn.__version__}",
            **report,
        },
    )


def _load_images(
    kind: str,
    source: ImageFolder | ImageTable,
    path: Path,
    fingerprint: str,
    plan: Callable[[Path], images.Plan],
) -> Dataset:
    """Prepares `source` if its files have changed since last time, and opens its arrays."""
    sizes = _fractions(source)
    fields = dataclasses.asdict(source)
    for drawn in ("validation", "test", "split_seed"):
        del fields[drawn]
    stem = _stem(str(path))
    fields["path"] = images.printable(path)
    if isinstance(source, Artworks):
        fields["layout"] = "artworks"  # of the same files `ImageFolder` makes other classes
    config = f"{re.sub(r'[^A-Za-z0-9]+', '_', stem)}-{cache.key_of(fields)}"
    home = cache.data_dir() / kind / config / "1.0.0"

    def build(folder: Path) -> None:
        from cnn_research.data.prepare import builders

        if not builders.is_prepared(home, fingerprint):
            with images.opened(path) as root:
                builders.prepare_images(
                    kind, cache.data_dir(), plan(root), source.on_bad_image, fingerprint,
                    config, source.image_size,
                )  # fmt: skip
        with cache.scratch(folder.with_name("records")) as scratch:
            examples, metadata = builders.read(home, scratch)
            examples = dataclasses.replace(examples, by_name=isinstance(source, Photos))
            indices, report = assign(examples, sizes, source.split_seed)
            provenance = {
                "source": source.description,
                "path": images.printable(path.name),
                **{key: value for key, value in metadata.items() if key != "heads"},
                **report,
            }
            cache.write(folder, fingerprint, stem, examples, indices, provenance)

    return cache.load(home, fingerprint, cache.key_of([sizes, source.split_seed]), build)


def _fractions(source: ImageFolder | ImageTable) -> dict[str, float]:
    """Which fraction of train each split is to have, checked as `image_size` is."""
    sizes = {"validation": source.validation, "test": source.test}
    if min(sizes.values()) < 0 or sum(sizes.values()) >= 1:
        raise UsageError(
            f"validation {source.validation} and test {source.test} are not fractions that leave "
            "examples to train on: together they must be below 1"
        )
    if min(source.image_size) < 1:
        raise UsageError(f"image_size is {source.image_size}: both must be 1 or more")
    return sizes


def existing(path: str) -> Path:
    """`path` made absolute; an error if there is nothing."""
    if not path:
        raise UsageError("say where your images are: --data.path=FOLDER, or a CSV file of them")
    found = Path(path).expanduser().resolve()  # one name, from wherever it is named
    if not found.exists():
        raise UserError(f"{images.printable(found)} does not exist: check the path")
    return found


def content_of(path: Path) -> str:
    """A name for the state of a folder or file: another one when anything in it has changed."""
    files = images.files_below(path) if path.is_dir() else [(path, path.stat())]
    return cache.key_of(
        [
            (os.fsencode(file.relative_to(path)).hex(), status.st_size, status.st_mtime_ns)
            for file, status in files
        ]
    )


def _status(file: Path) -> tuple[str, int, int]:
    """What changes when a file does; an absent one is left to be reported when it is read."""
    name = os.fsencode(file).hex()
    try:
        status = file.stat()
    except OSError:
        return name, 0, 0
    return name, status.st_size, status.st_mtime_ns


def _stem(path: str) -> str:
    return images.printable(Path(path).name.split(".")[0]) or "images"


@register_config
@dataclasses.dataclass(frozen=True)
class Synthetic:
    """Noise with random labels, of any shape: for tests and benchmarks."""

    train: int = 256
    """How many training examples."""
    validation: int = 64
    """How many validation examples; 0 for no validation split."""
    test: int = 64
    """How many test examples."""
    target: int = 0
    """How many examples of another domain, a few of classes that training lacks; 0 for none."""
    image_shape: tuple[int, int, int] = (32, 32, 3)
    """Height, width and channels."""
    heads: tuple[str, ...] = ("label",)
    """The name of each set of classes."""
    classes: tuple[int, ...] = (10,)
    """How many classes each head has."""
    numbers: tuple[str, ...] = ()
    """The name of each set of numbers, which are normally distributed."""
    palette: int = 0
    """The most colours that a person's palette of an image has; 0 for no palettes."""
    seed: int = 0
    """Decides every pixel and label."""

    @property
    def description(self) -> str:
        shape = "x".join(map(str, self.image_shape))
        labels = [f"{classes} classes" for classes in self.classes]
        return f"random images, {shape}, {' and '.join([*labels, *self.numbers])}"

    def load(self) -> Dataset:
        """Images are uint8 `[examples, *image_shape]`, uniform noise."""
        if len(self.heads) != len(self.classes):
            raise UsageError(
                f"{len(self.heads)} heads {self.heads} but {len(self.classes)} numbers of classes "
                f"{self.classes}: give one for each"
            )
        sizes = {
            **{"train": self.train, "validation": self.validation},
            **{"test": self.test, "target": self.target},
        }
        random = np.random.default_rng(self.seed)
        splits = {
            name: Split(
                images=random.integers(0, 256, (size, *self.image_shape), dtype=np.uint8),
                labels={
                    head: random.integers(0, classes, size, dtype=np.int32)
                    for head, classes in zip(self.heads, self.classes, strict=True)
                }
                | {head: random.standard_normal(size, np.float32) for head in self.numbers}
                | ({PALETTE: self._palettes(random, size)} if self.palette else {}),
                names=np.array([f"{name}/{index}" for index in range(size)]),
            )
            for name, size in sizes.items()
            if size
        }
        if "target" in splits:
            for head in self.heads:
                splits["target"].labels[head][::5] = UNSEEN
        return Dataset(
            name="synthetic",
            splits=splits,
            class_names={
                head: tuple(f"class {index}" for index in range(classes))
                for head, classes in zip(self.heads, self.classes, strict=True)
            },
            provenance={"source": self.description, **dataclasses.asdict(self)},
        )

    def _palettes(self, random: np.random.Generator, size: int) -> np.ndarray:
        """Every second one lacks its last colour."""
        palettes = random.random((size, self.palette, 3), np.float32)
        palettes[::2, -1] = np.nan
        return palettes
