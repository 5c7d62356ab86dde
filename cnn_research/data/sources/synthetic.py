"""Random images with random labels, for tests and benchmarks."""

from __future__ import annotations

import dataclasses

import numpy as np

from cnn_research.core.config import register_config
from cnn_research.core.errors import UsageError
from cnn_research.core.ranges import NonNegativeInt, PositiveInt, Seed
from cnn_research.data.dataset import PALETTE, UNKNOWN_CLASS, Dataset, Split


@register_config
@dataclasses.dataclass(frozen=True)
class Synthetic:
    """Random images with random labels, for tests and benchmarks."""

    train: PositiveInt = 256
    """Number of training examples."""
    validation: NonNegativeInt = 64
    """Number of validation examples; 0 for no validation split."""
    test: NonNegativeInt = 64
    """Number of test examples."""
    target: NonNegativeInt = 0
    """Number of examples of another domain, some of unseen classes; 0 for none."""
    image_shape: tuple[PositiveInt, PositiveInt, PositiveInt] = (32, 32, 3)
    """Height, width and channels."""
    heads: tuple[str, ...] = ("label",)
    """Names of the heads of classes."""
    classes: tuple[PositiveInt, ...] = (10,)
    """Number of classes of each head."""
    numbers: tuple[str, ...] = ()
    """Names of the heads of numbers, which are normally distributed."""
    palette: NonNegativeInt = 0
    """Maximum number of colours in an image's palette; 0 for no palettes."""
    seed: Seed = 0
    """Seed of every pixel and label."""

    @property
    def description(self) -> str:
        shape = "x".join(map(str, self.image_shape))
        labels = [f"{classes} classes" for classes in self.classes]
        return f"random images, {shape}, {' and '.join([*labels, *self.numbers])}"

    def check(self) -> None:
        """Raise `UsageError` for fields that contradict each other."""
        if len(self.heads) != len(self.classes):
            raise UsageError(
                f"{len(self.heads)} heads {self.heads} but {len(self.classes)} numbers of classes "
                f"{self.classes}: set one for each"
            )

    def load(self) -> Dataset:
        """Generate images, uint8 `[examples, *image_shape]`, of uniform noise."""
        self.check()
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
                splits["target"].labels[head][::5] = UNKNOWN_CLASS
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
        """Generate palettes, every other one without its last colour."""
        palettes = random.random((size, self.palette, 3), np.float32)
        palettes[::2, -1] = np.nan
        return palettes
