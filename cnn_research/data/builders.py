"""Builders for tensorflow-datasets that prepare and read without TensorFlow.

Records are array_record files that any TFDS reader opens; `read` decodes all of them once.
"""

from __future__ import annotations

import gzip
import io
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from absl import logging
from PIL import Image
from tensorflow_datasets.core.download import checksums
from tensorflow_datasets.image_classification import mnist
from tqdm import tqdm

from cnn_research.data.splits import Examples
from cnn_research.errors import UserError

CHUNK = 1024

FASHION_FILES = {
    "train": ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"),
    "test": ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"),
}

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


def fashion_mnist(data_dir: Path) -> FashionMnist:
    """The builder of Fashion-MNIST under `data_dir`, prepared or not."""
    return FashionMnist(data_dir=data_dir, file_format="array_record")


def prepare_fashion_mnist(data_dir: Path, source: Path | None) -> None:
    """Prepares Fashion-MNIST from the four official files in the folder `source`, or downloads."""
    if source is not None:
        _check_fashion_files(source)
    try:
        prepare(fashion_mnist(data_dir), data_dir, manual_dir=source)
    except UserError:
        raise
    except Exception as error:
        files = ", ".join(file for files in FASHION_FILES.values() for file in files)
        raise UserError(
            f"Fashion-MNIST could not be downloaded ({type(error).__name__}): fetch {files} as "
            "described at https://github.com/zalandoresearch/fashion-mnist and pass their folder "
            "with --source=FOLDER"
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


def prepare(
    builder: tfds.core.GeneratorBasedBuilder, data_dir: Path, manual_dir: Path | None = None
) -> None:
    """Writes the records of `builder`; all of them, or none and an exception."""
    home = Path(builder.data_dir)
    for leftover in home.parent.glob(f"incomplete.*_{home.name}"):
        logging.info("removing %s, left by a preparation that was interrupted", leftover)
        shutil.rmtree(leftover, ignore_errors=True)
    tfds.disable_progress_bar()  # TFDS's bars also print where there is no terminal; ours do not
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


def read(builder: tfds.core.GeneratorBasedBuilder, scratch: Path) -> Examples:
    """Every record of a prepared builder, decoded; the images are a memory map in `scratch`."""
    features = builder.info.features
    heads = {"label": features["label"]}
    total = sum(split.num_examples for split in builder.info.splits.values())
    images = np.lib.format.open_memmap(
        scratch / "images.npy", "w+", np.uint8, shape=(total, *features["image"].shape)
    )
    labels = {head: np.empty(total, np.int32) for head in heads}
    names, given = [], []
    progress = tqdm(total=total, desc="decoding", disable=None)
    for split in builder.info.splits:
        records = builder.as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()})
        for start in range(0, len(records), CHUNK):
            rows = range(start, min(start + CHUNK, len(records)))
            for index, record in zip(rows, records.__getitems__(list(rows)), strict=True):
                image = np.asarray(Image.open(io.BytesIO(record["image"])))
                images[len(names)] = image.reshape(images.shape[1:])
                for head in heads:
                    labels[head][len(names)] = record[head]
                names.append(f"{split}/{index}")
                given.append(split)
            progress.update(len(rows))
    progress.close()
    return Examples(
        images=images,
        labels=labels,
        class_names={head: tuple(feature.names) for head, feature in heads.items()},
        names=np.array(names),
        given=np.array(given),
    )


def fashion_checksums() -> dict[str, str]:
    """SHA-256 of each official file, which preparation has compared with."""
    known = checksums.get_all_url_infos()
    return {
        file: known[FashionMnist.URL + file].checksum
        for files in FASHION_FILES.values()
        for file in files
    }
