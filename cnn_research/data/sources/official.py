"""Data sets with an official test split, prepared once from the official files."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Self

import numpy as np

from cnn_research.core.config import register_config
from cnn_research.core.errors import UserError
from cnn_research.core.ranges import Range, Seed
from cnn_research.data.dataset import Dataset, Examples
from cnn_research.data.images import printable
from cnn_research.data.prepare import cache, cifar10, fashion_mnist
from cnn_research.data.prepare.files import existing, opened, stem_of
from cnn_research.data.sources.folder import ImageFolder
from cnn_research.data.sources.loading import (
    Decoded,
    Origin,
    Share,
    Source,
    from_prepared,
    prepare_once,
)


@register_config
@dataclasses.dataclass(frozen=True)
class FashionMnist(Source):
    """60,000 + 10,000 photographs of clothes, 28x28x1, 10 classes, with the official test split.

    Prepared once by `python -m cnn_research.data prepare fashion_mnist`.
    """

    validation: Annotated[int, Range(minimum=0, maximum=59_999)] = 10_000
    """Number of the 60,000 training examples held out; 0 for no validation split."""
    split_seed: Seed = 0
    """Seed of the choice of held-out examples."""

    @property
    def description(self) -> str:
        return "Fashion-MNIST, 28x28x1, 10 classes"

    @property
    def sizes(self) -> dict[str, int]:
        return {"validation": self.validation, "test": 0}

    @staticmethod
    def home() -> Path:
        return cache.data_dir() / "fashion_mnist" / "3.0.1"

    def prepare(self, given: str | None) -> Self:
        """Prepare the four official files below `given`, or download them if it is None."""
        path = None if given is None else existing(given)

        def write(folder: Path) -> None:
            with opened(path) if path else contextlib.nullcontext() as source:
                fashion_mnist.gather(folder, source)

        prepare_once(self.home(), write)
        return self

    def origin(self) -> Origin:
        advice = "with the folder of the official .gz files, or without --source to download them"
        return from_prepared(self, self.home(), "Fashion-MNIST", self._read, advice)

    def _read(self, folder: Path, _: Path) -> Decoded:
        examples = _examples(fashion_mnist.read(fashion_mnist.check(folder)), fashion_mnist.CLASSES)
        return examples, {"sha256": fashion_mnist.SHA256}


@register_config
@dataclasses.dataclass(frozen=True)
class Cifar10(Source):
    """50,000 + 10,000 photographs, 32x32x3, 10 classes: the official data, or image files.

    The official data is prepared once by `python -m cnn_research.data prepare cifar10`. Image
    files re-encoded as JPEG are different images: compare metrics only between runs on the same
    files, which the data set's name identifies.
    """

    path: str = ""
    """Folder or archive of image files, `train/<class>/*` and `test/<class>/*`, prepared on first
    use; empty for the official data."""
    validation: Share = 0.1
    """Fraction of the training examples held out; 0 for no validation split."""
    split_seed: Seed = 0
    """Seed of the choice of held-out examples."""

    @property
    def description(self) -> str:
        which = f"the image files of {stem_of(self.path)}" if self.path else "the official data"
        return f"CIFAR-10, {which}, 32x32x3, 10 classes"

    @property
    def sizes(self) -> dict[str, float]:
        return {"validation": self.validation, "test": 0}

    @staticmethod
    def home() -> Path:
        return cache.data_dir() / "cifar10" / "3.0.2"

    def prepare(self, given: str | None) -> Self:
        """Prepare the official data from an archive or a URL, by default the official one.

        A folder or archive of image files is prepared later, by `load`.
        """
        if self.path:
            return self
        address = f"{cifar10.HOMEPAGE}{cifar10.BINARY}" if given is None else given
        if "://" not in address:
            archive = cifar10.find(existing(address))
            if archive is None:
                return dataclasses.replace(self, path=address)
            address = archive.as_uri()
        prepare_once(self.home(), lambda folder: cifar10.gather(folder, address))
        return self

    def load(self) -> Dataset:
        if not self.path:
            return super().load()
        folder = ImageFolder(
            self.path, (32, 32), validation=self.validation, split_seed=self.split_seed
        )
        dataset = folder.load()
        if dataset.class_names["label"] != cifar10.CLASSES:
            raise UserError(
                f"{stem_of(self.path)} has other classes than CIFAR-10's ({cifar10.CLASSES[0]} to "
                f"{cifar10.CLASSES[-1]}): use image_folder for other images"
            )
        provenance = {**dataset.provenance, "source": self.description}
        provenance["path"] = printable(Path(self.path).name)
        return dataclasses.replace(
            dataset, name=f"cifar10, image files of {stem_of(self.path)}", provenance=provenance
        )

    def origin(self) -> Origin:
        advice = (
            f"with {cifar10.BINARY} or {cifar10.PYTHON}, or without --source to download it; "
            "or name a folder or archive of image files with --data.path"
        )
        return from_prepared(self, self.home(), "CIFAR-10", self._read, advice)

    def _read(self, folder: Path, _: Path) -> Decoded:
        archive = cifar10.find(folder)
        if archive is None:
            raise UserError(f"{folder} contains no archive: delete it and prepare it again")
        examples = _examples(cifar10.read(archive), cifar10.CLASSES)
        return examples, {"sha256": {archive.name: cifar10.SHA256[archive.name]}}


def _examples(
    splits: Mapping[str, tuple[np.ndarray, np.ndarray]], classes: tuple[str, ...]
) -> Examples:
    """Concatenate the images and labels of official splits."""
    sizes = {split: len(labels) for split, (_, labels) in splits.items()}
    return Examples(
        images=np.ascontiguousarray(np.concatenate([images for images, _ in splits.values()])),
        labels={"label": np.concatenate([labels for _, labels in splits.values()], dtype=np.int32)},
        class_names={"label": classes},
        names=np.array([f"{split}/{at}" for split, size in sizes.items() for at in range(size)]),
        given=np.repeat(list(sizes), list(sizes.values())),
    )
