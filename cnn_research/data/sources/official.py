"""Data sets with an official test split, prepared once from the official files."""

from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path
from typing import Annotated, Any, Self

from cnn_research.core.config import register_config
from cnn_research.core.errors import UserError
from cnn_research.core.ranges import Range, Seed
from cnn_research.data.dataset import Dataset
from cnn_research.data.images import printable
from cnn_research.data.prepare import cache, cifar10
from cnn_research.data.prepare.files import existing, opened, stem_of
from cnn_research.data.prepare.splits import Examples
from cnn_research.data.sources.folder import ImageFolder
from cnn_research.data.sources.loading import Origin, Share, from_records, load, prepare_once


@register_config
@dataclasses.dataclass(frozen=True)
class FashionMnist:
    """60,000 + 10,000 photographs of clothes, 28x28x1, 10 classes.

    Prepared once by `python -m cnn_research.data prepare fashion_mnist`.
    """

    validation: Annotated[int, Range(minimum=0, maximum=59_999)] = 10_000
    """How many of the 60,000 training examples are held out; 0 for no validation split."""
    split_seed: Seed = 0
    """Decides which examples are held out."""

    @property
    def description(self) -> str:
        return "Fashion-MNIST, 28x28x1, 10 classes"

    @property
    def sizes(self) -> dict[str, int]:
        return {"validation": self.validation, "test": 0}

    @staticmethod
    def home() -> Path:
        """The folder of the prepared records."""
        return cache.data_dir() / "fashion_mnist" / "3.0.1"

    def prepare(self, given: str | None) -> Self:
        """Prepares the four official files below `given`, or downloads them."""
        from cnn_research.data.prepare import builders

        path = None if given is None else existing(given)

        def write() -> None:
            with opened(path) if path else contextlib.nullcontext() as folder:
                builders.prepare_fashion_mnist(cache.data_dir(), folder)

        prepare_once(self.home(), write)
        return self

    def load(self) -> Dataset:
        """Images are uint8 `[examples, 28, 28, 1]`, memory maps; the test split is the official."""
        return load(self)

    def origin(self) -> Origin:
        advice = "with the folder of the four official .gz files, or no --source to download them"
        return from_records(self, self.home(), "Fashion-MNIST", _read, advice)


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
    validation: Share = 0.1
    """Which fraction of the training examples is held out; 0 for no validation split."""
    split_seed: Seed = 0
    """Decides which examples are held out."""

    @property
    def description(self) -> str:
        which = f"the image files of {stem_of(self.path)}" if self.path else "the official data"
        return f"CIFAR-10, {which}, 32x32x3, 10 classes"

    @property
    def sizes(self) -> dict[str, float]:
        return {"validation": self.validation, "test": 0}

    @staticmethod
    def home() -> Path:
        """The folder of the prepared records of the official data."""
        return cache.data_dir() / "cifar10" / "3.0.2"

    def prepare(self, given: str | None) -> Self:
        """Prepares the official data from an archive, a mirror's address or the official address.

        Args:
            given: one of these, or a folder or archive of image files; None for the last.

        Returns:
            The source of what was given; image files are prepared by `load`.
        """
        from cnn_research.data.prepare import builders

        if self.path:
            return self
        address = f"{cifar10.HOMEPAGE}{cifar10.BINARY}" if given is None else given
        archive = None if "://" in address else cifar10.find(existing(address))
        if archive is None and "://" not in address:
            return dataclasses.replace(self, path=address)

        def write() -> None:
            if archive is not None:
                return builders.prepare_cifar10(cache.data_dir(), archive)
            with cache.scratch(self.home().with_name("download")) as folder:
                builders.prepare_cifar10(cache.data_dir(), cifar10.fetch(address, folder))

        prepare_once(self.home(), write)
        return self

    def load(self) -> Dataset:
        """Images are uint8 `[examples, 32, 32, 3]`, memory maps; the test split is the official."""
        if not self.path:
            return load(self)
        found = ImageFolder(self.path, (32, 32), self.validation, split_seed=self.split_seed).load()
        if found.class_names["label"] != cifar10.CLASSES:
            raise UserError(
                f"{stem_of(self.path)} has other classes than CIFAR-10's ({cifar10.CLASSES[0]} to "
                f"{cifar10.CLASSES[-1]}): use image_folder for other images"
            )
        provenance = {**found.provenance, "source": self.description}
        provenance["path"] = printable(Path(self.path).name)
        return dataclasses.replace(
            found, name=f"cifar10, image files of {stem_of(self.path)}", provenance=provenance
        )

    def origin(self) -> Origin:
        advice = (
            f"with {cifar10.BINARY} or {cifar10.PYTHON}, or without --source to download it; "
            "or name a folder or archive of image files with --data.path"
        )
        return from_records(self, self.home(), "CIFAR-10", _read, advice)


def _read(home: Path, scratch: Path) -> tuple[Examples, dict[str, Any]]:
    from cnn_research.data.prepare import builders

    examples, facts = builders.read(home, scratch)
    return examples, {"sha256": facts.get("sha256") or builders.fashion_checksums()}
