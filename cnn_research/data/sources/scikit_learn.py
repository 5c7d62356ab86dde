"""scikit-learn's handwritten digits."""

from __future__ import annotations

import dataclasses

import numpy as np

from cnn_research.core.config import register_config
from cnn_research.core.ranges import NonNegativeInt, Seed
from cnn_research.data.dataset import Examples
from cnn_research.data.sources.loading import Origin, Source, from_scikit_learn


@register_config
@dataclasses.dataclass(frozen=True)
class Digits(Source):
    """scikit-learn's 1,797 handwritten digits, 8x8x1: no download, no preparation."""

    validation: NonNegativeInt = 300
    """Number of examples held out for validation."""
    test: NonNegativeInt = 300
    """Number of examples held out for testing."""
    split_seed: Seed = 0
    """Seed of the choice of held-out examples."""

    @property
    def description(self) -> str:
        return "scikit-learn's digits, 8x8x1, 10 classes"

    @property
    def sizes(self) -> dict[str, int]:
        return {"validation": self.validation, "test": self.test}

    def origin(self) -> Origin:
        return from_scikit_learn("digits", _digits)


def _digits() -> Examples:
    """Load images, uint8 `[examples, 8, 8, 1]`, scaled from 0..16 to 0..255."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    return Examples(
        images=np.round(digits.images * (255 / 16)).astype(np.uint8)[..., None],
        labels={"label": digits.target.astype(np.int32)},
        class_names={"label": tuple(str(name) for name in digits.target_names)},
        names=np.array([f"digits/{index}" for index in range(len(digits.target))]),
        given=np.full(len(digits.target), "train"),
    )
