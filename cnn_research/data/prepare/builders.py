"""Builders for tensorflow-datasets that prepare and read without TensorFlow.

Records are array_record files that any TFDS reader opens; `read` decodes all of them once.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import shutil
import tempfile
import urllib.request
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from absl import logging
from PIL import Image
from tensorflow_datasets.core import shuffle
from tensorflow_datasets.core.download import checksums
from tensorflow_datasets.core.download.download_manager import NonMatchingChecksumError
from tensorflow_datasets.image_classification import cifar, mnist
from tqdm import tqdm

from cnn_research.core.errors import UserError
from cnn_research.core.preemption import raise_if_interrupted
from cnn_research.data.dataset import UNKNOWN_CLASS
from cnn_research.data.images import BadImage, encode, resized
from cnn_research.data.prepare import cache, cifar10
from cnn_research.data.prepare.files import Plan, Record
from cnn_research.data.prepare.splits import Examples

CHUNK = 1024
POOL_CHUNK = 256

UNKNOWN_CLASS_NAME = "(a class that only the target has)"
"""What records name `UNKNOWN_CLASS`, after the classes of a head: TFDS takes no label -2."""

FASHION_FILES = {
    "train": ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"),
    "test": ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"),
}


def _in_its_order(builder: Any, official: tfds.core.DatasetInfo, **options: Any) -> Any:
    """The official description of a data set, whose examples keep the order of its files."""
    return tfds.core.DatasetInfo(
        builder=builder,
        description=official.description,
        features=official.features,
        homepage=official.homepage,
        citation=official.citation,
        disable_shuffling=True,
        **options,
    )


# Not registered: they share TFDS's names or make sense only with a plan.
with tfds.core.registered.skip_registration():

    class FashionMnist(mnist.FashionMNIST):
        """The official builder, reading the official files with gzip and NumPy.

        Examples keep the order of the files, so that an index means what it means to everyone.
        """

        def _info(self) -> tfds.core.DatasetInfo:
            return _in_its_order(self, super()._info())

        def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
            return {
                split: self._generate_examples(
                    split, *dl_manager.download([self.URL + file for file in files])
                )
                for split, files in FASHION_FILES.items()
            }

        def _generate_examples(
            self, split: str, image_file: Path, label_file: Path
        ) -> Iterator[tuple[int, dict[str, Any]]]:
            # The headers are 16 and 8 bytes; the checksums have vouched for the rest.
            pixels = np.frombuffer(gzip.decompress(image_file.read_bytes())[16:], np.uint8)
            labels = np.frombuffer(gzip.decompress(label_file.read_bytes())[8:], np.uint8)
            for index, label in enumerate(tqdm(labels, f"preparing {split}", disable=None)):
                image = Image.fromarray(pixels.reshape(-1, 28, 28)[index])
                yield index, {"image": image, "label": int(label)}

    class Cifar10(cifar.Cifar10):
        """The official builder, reading either official archive with NumPy, in its order."""

        def __init__(self, *, archive: Path, **kwargs: Any):
            self.archive = archive
            super().__init__(**kwargs)

        def _info(self) -> tfds.core.DatasetInfo:
            official = super()._info()
            official.features["label"].names = cifar10.CLASSES
            return _in_its_order(self, official, metadata=tfds.core.MetadataDict())

        def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
            kind = cifar10.kind_of(self.archive)
            self.info.metadata.update(heads=["label"], sha256={kind: cifar10.SHA256[kind]})
            return {
                split: self._generate_examples(split, images, labels)
                for split, (images, labels) in cifar10.read(self.archive).items()
            }

        def _generate_examples(
            self, split: str, images: np.ndarray, labels: np.ndarray
        ) -> Iterator[tuple[int, dict[str, Any]]]:
            for index, label in enumerate(tqdm(labels, f"preparing {split}", disable=None)):
                name = f"{split}_{index:05d}"
                yield index, {"id": name, "image": encode(images[index]), "label": int(label)}

    class Images(tfds.core.GeneratorBasedBuilder):
        """Images of a plan, decoded, as PNG; with a class or a number per head."""

        VERSION = tfds.core.Version("1.0.0")

        def __init__(
            self,
            *,
            kind: str,
            plan: Plan,
            pixels: Callable[[Path], np.ndarray],
            image_size: tuple[int, int] | None,
            on_bad_image: str,
            fingerprint: str,
            **kwargs: Any,
        ):
            self.name = kind
            self.plan, self.pixels, self.image_size = plan, pixels, image_size
            self.on_bad_image, self.fingerprint = on_bad_image, fingerprint
            self.skipped: list[str] = []
            super().__init__(**kwargs)

        def _info(self) -> tfds.core.DatasetInfo:
            return tfds.core.DatasetInfo(
                builder=self,
                description="Images with classes and numbers; -1 and NaN: not known.",
                features=tfds.features.FeaturesDict(
                    {
                        "image": tfds.features.Image(
                            shape=(*(self.image_size or (None, None)), 3), encoding_format="png"
                        ),
                        "file": tfds.features.Text(),
                        **{
                            head: tfds.features.ClassLabel(names=self._names(head))
                            for head in self.plan.class_names
                        },
                        **{head: tfds.features.Scalar(np.float32) for head in self.plan.numbers},
                        **self._columns(),
                    }
                ),
                metadata=tfds.core.MetadataDict(),
                disable_shuffling=True,
            )

        def _names(self, head: str) -> list[str]:
            unseen = any(record.labels[head] == UNKNOWN_CLASS for record in self.plan.records)
            return [*self.plan.class_names[head], *[UNKNOWN_CLASS_NAME] * unseen]

        def _columns(self) -> dict[str, Any]:
            cells = self.plan.records[0].cells
            if cells is None:
                return {}
            return {"row": {column: tfds.features.Text() for column in cells}}

        def _example(self, record: Record, image: bytes) -> dict[str, Any]:
            labels = {
                head: len(self.plan.class_names[head]) if label == UNKNOWN_CLASS else label
                for head, label in record.labels.items()
            }
            cells = {} if record.cells is None else {"row": record.cells}
            return {"image": image, "file": record.name, **labels, **cells}

        def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
            by_split: dict[str, list[Record]] = defaultdict(list)
            for record in self.plan.records:
                by_split[record.split].append(record)
            return {
                split: self._generate_examples(split, records)
                for split, records in by_split.items()
            }

        def _generate_examples(
            self, split: str, records: Sequence[Record]
        ) -> Iterator[tuple[int, dict[str, Any]]]:
            progress = tqdm(total=len(records), desc=f"preparing {split}", disable=None)
            skipped = len(self.skipped)
            with ThreadPoolExecutor() as pool:  # Pillow decodes and resizes outside of the lock
                for start in range(0, len(records), POOL_CHUNK):
                    raise_if_interrupted()
                    chunk = records[start : start + POOL_CHUNK]
                    for offset, (record, image) in enumerate(
                        zip(chunk, pool.map(self._encoded, chunk), strict=True)
                    ):
                        if isinstance(image, BadImage):
                            if self.on_bad_image == "stop":
                                raise BadImage(
                                    f"{image}; with --on-bad-image=skip (in a training "
                                    "--data.on-bad-image=skip) such images are counted and left out"
                                )
                            self.skipped.append(str(image))
                        else:
                            yield start + offset, self._example(record, image)
                    progress.update(len(chunk))
            progress.close()
            bad = self.skipped[skipped:]
            if len(bad) == len(records):  # TFDS would only say that nothing came
                raise UserError(
                    f"none of the {len(bad):,} images of the split '{split}' can be used; the "
                    f"first: {bad[0]}: replace them, or leave the split out"
                )
            self.info.metadata.update(
                fingerprint=self.fingerprint,
                heads=[*self.plan.class_names, *self.plan.numbers],
                skipped=self.skipped,
                **self.plan.notes,
            )

        def _encoded(self, record: Record) -> bytes | BadImage:
            try:
                return encode(self.pixels(record.path))
            except BadImage as error:
                return error


def prepare_fashion_mnist(data_dir: Path, folder: Path | None) -> None:
    """Prepares Fashion-MNIST from the four official files below `folder`, or downloads them."""
    if folder is not None:
        first = next(folder.rglob(FASHION_FILES["train"][0]), folder / "-")
        _check_fashion_files(first.parent if first.exists() else folder)
        folder = first.parent
    builder = FashionMnist(data_dir=data_dir, file_format="array_record")
    try:
        if folder is None:  # TFDS itself would retry for minutes where there is no network
            urllib.request.urlopen(builder.URL + FASHION_FILES["train"][1], timeout=20).close()
        prepare(builder, data_dir, manual_dir=folder)
    except (OSError, tfds.download.DownloadError, NonMatchingChecksumError) as error:
        if folder is not None:
            raise
        for unfinished in (data_dir / "downloads" / "fashion_mnist").glob("**/*.tmp.*"):
            shutil.rmtree(unfinished, ignore_errors=True)
        files = ", ".join(file for files in FASHION_FILES.values() for file in files)
        raise UserError(
            f"Fashion-MNIST could not be downloaded ({type(error).__name__}): fetch {files} as "
            f"described at {builder.info.homepage} and pass their folder with --source=FOLDER"
        ) from error


def _check_fashion_files(folder: Path) -> None:
    known = checksums.get_all_url_infos()
    for file in (file for files in FASHION_FILES.values() for file in files):
        if not (folder / file).is_file():
            raise UserError(f"{folder} has no {file}: the four official .gz files are needed")
        if checksums.compute_url_info(folder / file) != known[FashionMnist.URL + file]:
            raise UserError(
                f"{folder / file} is not the official file (its SHA-256 differs): it is damaged "
                "or another version; fetch it again"
            )


def prepare_cifar10(data_dir: Path, archive: Path) -> None:
    """Prepares CIFAR-10 from an official archive, as `cifar10.find` or `cifar10.fetch` gives it."""
    prepare(Cifar10(archive=archive, data_dir=data_dir, file_format="array_record"), data_dir)


class _InOrder:
    """Holds records on the disk until all are there, in the order in which they come.

    In place of TFDS's Shuffler, which holds a gigabyte in memory and needs TensorFlow for more.
    """

    def __init__(self, dirpath: Path, hash_salt: str, **unused: Any):
        Path(dirpath).mkdir(parents=True, exist_ok=True)
        self._file = tempfile.TemporaryFile(dir=dirpath)  # noqa: SIM115 - gone with this object
        self._sizes: list[tuple[int, int]] = []
        self.size = 0

    @property
    def num_examples(self) -> int:
        return len(self._sizes)

    @property
    def bucket_lengths(self) -> list[int]:
        return [len(self._sizes)]

    def add(self, key: int, data: bytes) -> None:
        if self._sizes and key <= self._sizes[-1][0]:
            raise ValueError(f"record {key} comes after record {self._sizes[-1][0]}")
        self._file.write(data)
        self._sizes.append((key, len(data)))
        self.size += len(data)

    def __iter__(self) -> Iterator[tuple[int, bytes]]:
        self._file.seek(0)
        for key, size in self._sizes:
            yield key, self._file.read(size)


@contextlib.contextmanager
def _without_shuffling() -> Iterator[None]:
    """All builders here ask for records in order: within it, TFDS has no need of TensorFlow."""
    theirs = shuffle.Shuffler
    shuffle.Shuffler = _InOrder
    try:
        yield
    finally:
        shuffle.Shuffler = theirs


def prepare(
    builder: tfds.core.GeneratorBasedBuilder, data_dir: Path, manual_dir: Path | None = None
) -> None:
    """Writes the records of `builder`; all of them, or none and an exception."""
    home = Path(builder.data_dir)
    for leftover in home.parent.glob(f"incomplete.*_{home.name}"):
        logging.info("removing %s, left by a preparation that was interrupted", leftover)
        shutil.rmtree(leftover, ignore_errors=True)
    tfds.disable_progress_bar()  # TFDS's bars also print where there is no terminal; ours do not
    with contextlib.redirect_stdout(io.StringIO()), _without_shuffling():
        builder.download_and_prepare(
            download_dir=data_dir / "downloads",
            download_config=tfds.download.DownloadConfig(
                manual_dir=manual_dir,
                force_checksums_validation=True,
                try_download_gcs=False,
                download_mode=tfds.GenerateMode.REUSE_CACHE_IF_EXISTS,
            ),
            file_format="array_record",
        )


def prepare_images(
    home: Path,
    plan: Plan,
    pixels: Callable[[Path], np.ndarray],
    image_size: tuple[int, int] | None,
    on_bad_image: str,
    fingerprint: str,
) -> None:
    """Writes the images of a plan as records in `home`, in place of older ones.

    Args:
        home: below the data folder, `<kind>/<version>` or `<kind>/<config>/<version>`.
        plan: which images.
        pixels: decodes one.
        image_size: the size that it gives all of them; None if they differ.
        on_bad_image: `stop` or `skip`.
        fingerprint: of the files, for `is_prepared`.
    """
    kind, *config = home.parent.relative_to(cache.data_dir()).parts
    if home.exists():  # of an older state of the files; moved first, so never half there
        home.rename(home.with_name(f"incomplete.old_{home.name}"))
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)  # TFDS warns of every config that is made on the way
    try:
        builder = Images(
            kind=kind,
            plan=plan,
            pixels=pixels,
            image_size=image_size,
            on_bad_image=on_bad_image,
            fingerprint=fingerprint,
            data_dir=cache.data_dir(),
            config=tfds.core.BuilderConfig(name=config[0]) if config else None,
            file_format="array_record",
        )
    finally:
        logging.set_verbosity(verbosity)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, on odd but readable files
        prepare(builder, cache.data_dir())
    if left_out := plan.notes.get("folders_without_images"):
        logging.warning("left out %d folders in which no file is named as an image", left_out)
    if builder.skipped:
        logging.warning("left out %d bad images: %s, ...", len(builder.skipped), builder.skipped[0])


def is_prepared(home: Path, fingerprint: str) -> bool:
    """Whether `home` holds images that were prepared from files in just this state."""
    try:
        return json.loads((home / "metadata.json").read_text())["fingerprint"] == fingerprint
    except (OSError, ValueError, KeyError):
        return False


def read(
    home: Path, scratch: Path, image_size: tuple[int, int] | None = None
) -> tuple[Examples, dict[str, Any]]:
    """Every record prepared in `home`, decoded, and the metadata that preparation left there.

    The images are a memory map of a file in `scratch`, so memory holds only what is in use. They
    are stretched to `image_size`; it can be absent where they were prepared at one size.

    Raises:
        UserError: the records are damaged.
    """
    with _named_errors(home):
        builder = tfds.builder_from_directory(home)
        features = builder.info.features
        metadata = dict(builder.info.metadata or {})
        heads = metadata.pop("heads", ["label"])
        total = sum(split.num_examples for split in builder.info.splits.values())
        shape = (*image_size, 3) if image_size else features["image"].shape
        images = _memory_map(scratch, total, shape)
        class_names = {
            head: tuple(name for name in features[head].names if name != UNKNOWN_CLASS_NAME)
            for head in heads
            if isinstance(features[head], tfds.features.ClassLabel)
        }
        labels = {
            head: np.empty(total, np.int32 if head in class_names else np.float32) for head in heads
        }
        names: list[str] = []
        given: list[str] = []
        for split in builder.info.splits:
            for index, record in _records(builder, split):
                images[len(names)] = _pixels(record["image"], image_size).reshape(shape)
                for head, values in labels.items():
                    values[len(names)] = record[head]
                file = record.get("file")
                names.append(f"{split}/{index}" if file is None else file.decode())
                given.append(split)
        for head, classes in class_names.items():
            labels[head][labels[head] == len(classes)] = UNKNOWN_CLASS
        examples = Examples(
            images=images,
            labels=labels,
            class_names=class_names,
            names=np.array(names),
            given=np.array(given),
        )
        return examples, metadata


def read_table(
    home: Path,
    scratch: Path,
    image_size: tuple[int, int],
    plan: Callable[[list[dict[str, str]]], Plan],
) -> tuple[Examples, dict[str, Any]]:
    """The records in `home` that `plan(rows)` asks for, with its labels; otherwise as `read`.

    Raises:
        UserError: the records are damaged, or `plan` names an image that is not among them.
    """
    with _named_errors(home):
        builder = tfds.builder_from_directory(home)
        ((split, _),) = builder.info.splits.items()
        rows = []
        at: dict[str, int] = {}
        for index, record in _records(builder, split):
            rows.append({column: cell.decode() for column, cell in record["row"].items()})
            at[record["file"].decode()] = index
    found = plan(rows)
    indices = []
    for planned in found.records:
        if planned.name not in at:
            raise UserError(
                f"there is no image {planned.name} in {home}, such as {next(iter(at))}: correct "
                "--data.image, or delete that folder and prepare again"
            )
        indices.append(at[planned.name])
    with _named_errors(home):
        images = _memory_map(scratch, len(indices), (*image_size, 3))
        for place, (_, record) in enumerate(_records(builder, split, indices)):
            images[place] = _pixels(record["image"], image_size)
    examples = Examples(
        images=images,
        labels={
            head: np.array(
                [planned.labels[head] for planned in found.records],
                np.int32 if head in found.class_names else np.float32,
            )
            for head in (*found.class_names, *found.numbers)
        },
        class_names=found.class_names,
        names=np.array([planned.name for planned in found.records]),
        given=np.array([planned.split for planned in found.records]),
    )
    facts = {**builder.info.metadata, **found.notes}
    del facts["heads"]
    return examples, facts


@contextlib.contextmanager
def _named_errors(home: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, RuntimeError, ValueError) as error:
        raise UserError(
            f"the records in {home} cannot be read ({error}): delete that folder and prepare again"
        ) from error


def _records(
    builder: Any, split: str, indices: Sequence[int] | None = None
) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """The records of a split, or those at `indices`, with their index; images as PNG."""
    records = builder.as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()})
    chosen = range(len(records)) if indices is None else indices
    with tqdm(total=len(chosen), desc=f"reading {split}", disable=None) as progress:
        for start in range(0, len(chosen), CHUNK):
            raise_if_interrupted()
            part = list(chosen[start : start + CHUNK])
            yield from zip(part, records.__getitems__(part), strict=True)
            progress.update(len(part))


def _memory_map(scratch: Path, count: int, shape: tuple[int, ...]) -> np.ndarray:
    return np.lib.format.open_memmap(scratch / "images.npy", "w+", np.uint8, shape=(count, *shape))


def _pixels(png: bytes, image_size: tuple[int, int] | None) -> np.ndarray:
    image = np.asarray(Image.open(io.BytesIO(png)))
    return resized(image, image_size) if image_size else image


def fashion_checksums() -> dict[str, str]:
    """SHA-256 of each official file, which preparation has compared with."""
    known = checksums.get_all_url_infos()
    return {
        file: known[FashionMnist.URL + file].checksum
        for files in FASHION_FILES.values()
        for file in files
    }
