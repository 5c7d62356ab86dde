"""What the choices for a user's images depend on."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from cnn_research.core.experiment import Choices
from cnn_research.data.sources.survey import Survey
from cnn_research.train.auto_mirror import may_mirror


@dataclasses.dataclass(frozen=True)
class Case:
    """An experiment as typed, its images, and the time that it may take."""

    choices: Choices
    seen: Survey
    images: Mapping[str, int]
    """Number of images by split, with those splits that are yet to be drawn from train."""
    minutes: float
    """Of a machine with `speed.CORES` cores."""

    @classmethod
    def of(cls, choices: Choices, seen: Survey, data: Any, minutes: float) -> Case:
        """The case of a survey of `data`."""
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
        """A batch size of at most `size` that `accumulate` divides.

        Of a few images some may turn out to be damaged: half of them still fill a batch.
        """
        parts = self.choices.experiment.accumulate
        size = min(size, max(1, self.train // 2))
        return max(parts, size - size % parts)

    @property
    def image_size(self) -> tuple[int, int] | None:
        """Height and width, if they are named."""
        named = "data.image_size" in self.choices.named
        return self.choices.experiment.data.image_size if named else None

    @property
    def mirror(self) -> tuple[bool, str]:
        """Whether images are to be mirrored, and why; as named, if it is."""
        if "augmentation.mirror" in self.choices.named:
            return self.choices.experiment.augmentation.mirror, ""
        return may_mirror(self.seen)
