"""Where images come from: one small config per source, with `load()` to a `Dataset`.

A source's fields are all that decides what is loaded, so a run's config names its data
completely. Nothing heavy is imported before `load()`.
"""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path

import numpy as np

from cnn_research.data import cache
from cnn_research.data.dataset import Dataset, Split
from cnn_research.data.splits import Examples, assign
from cnn_research.errors import UsageError, UserError


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
        import sklearn
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
        indices, report = assign(examples, sizes, self.split_seed)
        source = {"source": self.description, "version": f"scikit-learn {sklearn.__version__}"}
        return Dataset(
            name="digits",
            splits={
                name: Split(
                    images=examples.images[chosen],
                    labels={head: labels[chosen] for head, labels in examples.labels.items()},
                    names=examples.names[chosen],
                )
                for name, chosen in indices.items()
            },
            class_names=examples.class_names,
            provenance={**source, **report},
        )


@dataclasses.dataclass(frozen=True)
class FashionMnist:
    """60,000 + 10,000 photographs of clothes, 28x28x1, 10 classes; prepared once, see README."""

    validation: int = 10_000
    """How many of the 60,000 training examples are held out; 0 for no validation split."""
    split_seed: int = 0
    """Decides which examples are held out."""

    @property
    def description(self) -> str:
        return "Fashion-MNIST, 28x28x1, 10 classes"

    def load(self) -> Dataset:
        """Images are uint8 `[examples, 28, 28, 1]`, memory maps; the test split is the official."""
        home = cache.data_dir() / "fashion_mnist" / "3.0.1"
        info = home / "dataset_info.json"
        if not info.is_file():
            interrupted = any(home.parent.glob("incomplete.*"))
            state = "only half prepared (it was interrupted)" if interrupted else "not prepared"
            raise UserError(
                f"Fashion-MNIST is {state} in {cache.data_dir()}: run `python -m "
                "cnn_research.data prepare fashion_mnist --source=FOLDER` with the folder of the "
                "four official .gz files, or without --source to download them"
            )
        fingerprint = hashlib.sha256(info.read_bytes()).hexdigest()

        def build(folder: Path) -> None:
            from cnn_research.data import builders

            with cache.scratch(folder.with_name("records")) as scratch:
                builder = builders.fashion_mnist(cache.data_dir())
                examples = builders.read(builder, scratch)
                sizes = {"validation": self.validation, "test": 0}
                indices, report = assign(examples, sizes, self.split_seed)
                provenance = {
                    "source": self.description,
                    "version": str(builder.version),
                    "sha256": builders.fashion_checksums(),
                    **report,
                }
                cache.write(folder, fingerprint, "fashion_mnist", examples, indices, provenance)

        return cache.load(home, fingerprint, cache.key_of(dataclasses.asdict(self)), build)


@dataclasses.dataclass(frozen=True)
class Synthetic:
    """Noise with random labels, of any shape: for tests and benchmarks."""

    train: int = 256
    """How many training examples."""
    validation: int = 64
    """How many validation examples; 0 for no validation split."""
    test: int = 64
    """How many test examples."""
    image_shape: tuple[int, int, int] = (32, 32, 3)
    """Height, width and channels."""
    heads: tuple[str, ...] = ("label",)
    """The name of each set of labels."""
    classes: tuple[int, ...] = (10,)
    """How many classes each head has."""
    seed: int = 0
    """Decides every pixel and label."""

    @property
    def description(self) -> str:
        shape = "x".join(map(str, self.image_shape))
        return f"random images, {shape}, {' and '.join(map(str, self.classes))} classes"

    def load(self) -> Dataset:
        """Images are uint8 `[examples, *image_shape]`, uniform noise."""
        if len(self.heads) != len(self.classes):
            raise UsageError(
                f"{len(self.heads)} heads {self.heads} but {len(self.classes)} numbers of classes "
                f"{self.classes}: give one for each"
            )
        sizes = {"train": self.train, "validation": self.validation, "test": self.test}
        random = np.random.default_rng(self.seed)
        splits = {
            name: Split(
                images=random.integers(0, 256, (size, *self.image_shape), dtype=np.uint8),
                labels={
                    head: random.integers(0, classes, size, dtype=np.int32)
                    for head, classes in zip(self.heads, self.classes, strict=True)
                },
                names=np.array([f"{name}/{index}" for index in range(size)]),
            )
            for name, size in sizes.items()
            if size
        }
        return Dataset(
            name="synthetic",
            splits=splits,
            class_names={
                head: tuple(f"class {index}" for index in range(classes))
                for head, classes in zip(self.heads, self.classes, strict=True)
            },
            provenance={"source": self.description, **dataclasses.asdict(self)},
        )
