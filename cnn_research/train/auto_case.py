"""Inputs of the choices for a user's images."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from cnn_research.core.experiment import Choices
from cnn_research.data.sources.survey import Survey
from cnn_research.train.auto_mirror import may_mirror


@dataclasses.dataclass(frozen=True)
class Case:
    """The experiment as typed, a survey of its images, and the time budget."""

    choices: Choices
    seen: Survey
    images: Mapping[str, int]
    """Number of images by split, including splits that will be drawn from train."""
    minutes: float
    """Time budget on a machine with `speed.CORES` cores."""

    @classmethod
    def of(cls, choices: Choices, seen: Survey, data: Any, minutes: float) -> Case:
        """Create the case of a survey of `data`."""
        drawn = {
            name: round(data.sizes[name] * seen.splits["train"])
            for name in ("validation", "test")
            if name not in seen.splits
        }
        train = seen.splits["train"] - sum(drawn.values())
        return cls(choices, seen, {**seen.splits, **drawn, "train": train}, minutes)

    @property
    def train(self) -> int:
        """Number of training images."""
        return self.images["train"]

    @property
    def validation(self) -> int:
        """Number of validation images."""
        return self.images.get("validation", 0)

    def batch_of(self, size: int) -> int:
        """Return a batch size of at most `size` that `accumulate` divides.

        It is at most half the training images, as some may turn out to be damaged.
        """
        parts = self.choices.experiment.accumulate
        size = min(size, max(1, self.train // 2))
        return max(parts, size - size % parts)

    @property
    def image_size(self) -> tuple[int, int] | None:
        """Height and width, if given."""
        named = "data.image_size" in self.choices.named
        return self.choices.experiment.data.image_size if named else None

    @property
    def mirror(self) -> tuple[bool, str]:
        """Whether to mirror images, as given or as suggested, and the reason."""
        if "augmentation.mirror" in self.choices.named:
            return self.choices.experiment.augmentation.mirror, ""
        return may_mirror(self.seen)
