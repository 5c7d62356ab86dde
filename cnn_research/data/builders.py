"""Builders for tensorflow-datasets that prepare and read without TensorFlow.

Records are array_record files that any TFDS reader opens; `read` decodes all of them once.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import shutil
import urllib.request
import warnings
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from absl import logging
from PIL import Image
from tensorflow_datasets.core.download import checksums
from tensorflow_datasets.core.download.download_manager import NonMatchingChecksumError
from tensorflow_datasets.image_classification import cifar, mnist
from tqdm import tqdm

from cnn_research.data import cifar10
from cnn_research.data.images import BadImage, Plan, Record, decode, encode
from cnn_research.data.splits import Examples
from cnn_research.errors import UserError

CHUNK = 1024
POOL_CHUNK = 256

FASHION_FILES = {
    "train": ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"),
    "test": ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"),
}

# Not registered: they share TFDS's names or make sense only with a plan.
with tfds.core.registered.skip_registration():

    class FashionMnist(mnist.FashionMNIST):
        """The official builder, reading the official files with gzip and NumPy.

        Examples keep the order of the files, so that an index means what it means to everyone.
        """

        def _info(self) -> tfds.core.DatasetInfo:
            official = super()._info()
            return tfds.core.DatasetInfo(
                builder=self,
                description=official.description,
                features=official.features,
                homepage=official.homepage,
                citation=official.citation,
                disable_shuffling=True,
            )

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
            return tfds.core.DatasetInfo(
                builder=self,
                description=official.description,
                features=official.features,
                homepage=official.homepage,
                citation=official.citation,
                metadata=tfds.core.MetadataDict(),
                disable_shuffling=True,
            )

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

    class _Images(tfds.core.GeneratorBasedBuilder):
        """Images of a plan, decoded and resized, as PNG; with a class or a number per head."""

        VERSION = tfds.core.Version("1.0.0")

        def __init__(
            self,
            *,
            plan: Plan,
            image_size: tuple[int, int],
            on_bad_image: str,
            fingerprint: str,
            **kwargs: Any,
        ):
            self.plan = plan
            self.image_size = image_size
            self.on_bad_image = on_bad_image
            self.fingerprint = fingerprint
            self.skipped: list[str] = []
            super().__init__(**kwargs)

        def _info(self) -> tfds.core.DatasetInfo:
            return tfds.core.DatasetInfo(
                builder=self,
                description="Images with classes and numbers, resized; -1 and NaN: not known.",
                features=tfds.features.FeaturesDict(
                    {
                        "image": tfds.features.Image(
                            shape=(*self.image_size, 3), encoding_format="png"
                        ),
                        "file": tfds.features.Text(),
                        **{
                            head: tfds.features.ClassLabel(names=names)
                            for head, names in self.plan.class_names.items()
                        },
                        **{head: tfds.features.Scalar(np.float32) for head in self.plan.numbers},
                    }
                ),
                metadata=tfds.core.MetadataDict(),
                disable_shuffling=True,
            )

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
            with ThreadPoolExecutor() as pool:  # Pillow decodes and resizes outside of the lock
                for start in range(0, len(records), POOL_CHUNK):
                    chunk = records[start : start + POOL_CHUNK]
                    for offset, (record, image) in enumerate(
                        zip(chunk, pool.map(self._encoded, chunk), strict=True)
                    ):
                        if isinstance(image, BadImage):
                            if self.on_bad_image == "stop":
                                raise image
                            self.skipped.append(str(image))
                        else:
                            example = {"image": image, "file": record.name, **record.labels}
                            yield start + offset, example
                    progress.update(len(chunk))
            progress.close()
            self.info.metadata.update(
                fingerprint=self.fingerprint,
                heads=[*self.plan.class_names, *self.plan.numbers],
                skipped=self.skipped,
                **self.plan.notes,
            )

        def _encoded(self, record: Record) -> bytes | BadImage:
            try:
                return encode(decode(record.path, self.image_size))
            except BadImage as error:
                return error

    class ImageFolder(_Images):
        """A folder of images: `<class>/*` or `<split>/<class>/*`."""

    class ImageTable(_Images):
        """A CSV file with a row per image."""


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


def prepare(
    builder: tfds.core.GeneratorBasedBuilder, data_dir: Path, manual_dir: Path | None = None
) -> None:
    """Writes the records of `builder`; all of them, or none and an exception."""
    home = Path(builder.data_dir)
    for leftover in home.parent.glob(f"incomplete.*_{home.name}"):
        logging.info("removing %s, left by a preparation that was interrupted", leftover)
        shutil.rmtree(leftover, ignore_errors=True)
    tfds.disable_progress_bar()  # TFDS's bars also print where there is no terminal; ours do not
    with contextlib.redirect_stdout(io.StringIO()):
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
    kind: str,
    data_dir: Path,
    config: str,
    plan: Plan,
    image_size: tuple[int, int],
    on_bad_image: str,
    fingerprint: str,
) -> None:
    """Prepares `kind` (`image_folder` or `image_table`) under the name `config`."""
    builder_class = {"image_folder": ImageFolder, "image_table": ImageTable}[kind]
    home = data_dir / kind / config / str(builder_class.VERSION)
    if home.exists():  # of an older state of the files; moved first, so never half there
        home.rename(home.with_name(f"incomplete.old_{home.name}"))
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)  # TFDS warns of every config that is made on the way
    try:
        builder = builder_class(
            plan=plan,
            image_size=image_size,
            on_bad_image=on_bad_image,
            fingerprint=fingerprint,
            data_dir=data_dir,
            config=tfds.core.BuilderConfig(name=config),
            file_format="array_record",
        )
    finally:
        logging.set_verbosity(verbosity)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, on odd but readable files
        prepare(builder, data_dir)
    if builder.skipped:
        logging.warning("left out %d bad images: %s, ...", len(builder.skipped), builder.skipped[0])


def is_prepared(home: Path, fingerprint: str) -> bool:
    """Whether `home` holds images that were prepared from files in just this state."""
    try:
        return json.loads((home / "metadata.json").read_text())["fingerprint"] == fingerprint
    except (OSError, ValueError, KeyError):
        return False


def read(home: Path, scratch: Path) -> tuple[Examples, dict[str, Any]]:
    """Every record prepared in `home`, decoded, and the metadata that preparation left there.

    The images are a memory map of a file in `scratch`, so memory holds only what is in use.
    """
    try:
        return _read(home, scratch)
    except (OSError, RuntimeError, ValueError) as error:
        raise UserError(
            f"the records in {home} cannot be read ({error}): delete that folder and prepare again"
        ) from error


def _read(home: Path, scratch: Path) -> tuple[Examples, dict[str, Any]]:
    builder = tfds.builder_from_directory(home)
    features = builder.info.features
    metadata = dict(builder.info.metadata or {"heads": ["label"]})
    total = sum(split.num_examples for split in builder.info.splits.values())
    images = np.lib.format.open_memmap(
        scratch / "images.npy", "w+", np.uint8, shape=(total, *features["image"].shape)
    )
    class_names = {
        head: tuple(features[head].names)
        for head in metadata["heads"]
        if isinstance(features[head], tfds.features.ClassLabel)
    }
    labels = {
        head: np.empty(total, np.int32 if head in class_names else np.float32)
        for head in metadata["heads"]
    }
    names: list[str] = []
    given: list[str] = []
    progress = tqdm(total=total, desc="decoding", disable=None)
    for split in builder.info.splits:
        records = builder.as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()})
        for start in range(0, len(records), CHUNK):
            rows = range(start, min(start + CHUNK, len(records)))
            for index, record in zip(rows, records.__getitems__(list(rows)), strict=True):
                image = np.asarray(Image.open(io.BytesIO(record["image"])))
                images[len(names)] = image.reshape(images.shape[1:])
                for head, values in labels.items():
                    values[len(names)] = record[head]
                file = record.get("file")
                names.append(f"{split}/{index}" if file is None else file.decode())
                given.append(split)
            progress.update(len(rows))
    progress.close()
    examples = Examples(
        images=images,
        labels=labels,
        class_names=class_names,
        names=np.array(names),
        given=np.array(given),
    )
    return examples, metadata


def fashion_checksums() -> dict[str, str]:
    """SHA-256 of each official file, which preparation has compared with."""
    known = checksums.get_all_url_infos()
    return {
        file: known[FashionMnist.URL + file].checksum
        for files in FASHION_FILES.values()
        for file in files
    }
