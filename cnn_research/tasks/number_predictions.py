"""What came of a regression: errors beside those of the training mean, a scatter plot, mistakes."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from cnn_research.core.errors import UserError


@dataclasses.dataclass(frozen=True, eq=False)
class NumberPredictions:
    """What a model estimated for every example of a split, for one head.

    Attributes:
        split: `test`, or `validation` where there is no test split.
        name: what the numbers are, `year`.
        predicted: float64 `[examples]`, in the unit of the numbers.
        numbers: float32 `[examples]`; NaN where not known: such an example is left out.
        training_mean: of the numbers, the estimate of who sees no image.
        loss: mean over the examples with a number.
    """

    split: str
    name: str
    predicted: np.ndarray
    numbers: np.ndarray
    training_mean: float
    loss: float

    def __len__(self) -> int:
        return len(self.numbers)

    def figures(self) -> dict[str, float | int]:
        """Mean absolute error and root of the mean squared error, in the unit of the numbers;
        R^2, the share of the split's variance that is explained, where it has any; and both
        errors of one who always says the training mean.

        Raises:
            UserError: no example has a number.
        """
        true, predicted = self.known()
        if not true.size:
            raise UserError(f"split {self.split}: no example has a number to evaluate against")
        constant = np.full_like(true, self.training_mean)
        squared = ((predicted - true) ** 2).mean()
        figures: dict[str, float | int] = {
            "loss": self.loss,
            "MAE": float(np.abs(predicted - true).mean()),
            "RMSE": float(np.sqrt(squared)),
        }
        if true.var() > 0:
            figures["R2"] = float(1 - squared / true.var())
        figures["MAE of the training mean"] = float(np.abs(constant - true).mean())
        figures["RMSE of the training mean"] = float(np.sqrt(((constant - true) ** 2).mean()))
        return {**figures, "count": len(true)}

    def text(self) -> str:
        """The figures, one per line."""
        return "".join(
            f"{value:>12,} {name}\n" if isinstance(value, int) else f"{value:>12.4f} {name}\n"
            for name, value in self.figures().items()
        )

    def page(self, folder: Path, suffix: str, images: np.ndarray | None) -> Iterator[str]:
        """The estimates against the true numbers, and the worst of them as pictures."""
        from cnn_research.report import plots as figures

        true, predicted = self.known()
        name = f"estimates{suffix}.png"
        figures.estimates(true, predicted, self.name, self.training_mean).savefig(folder / name)
        yield (
            "MAE is the mean absolute error, RMSE the root of the mean squared error, both in the "
            f"unit of {self.name}, and beside them those of always saying the training mean; R2 is "
            "the share of the split's variance that is explained."
        )
        yield f"![Estimates against true numbers]({name})"
        if images is not None:
            name = f"mistakes{suffix}.png"
            figures.number_mistakes(images, self.numbers, self.predicted).savefig(folder / name)
            yield "The estimates that are farthest off:"
            yield f"![Images whose estimates are farthest off]({name})"

    def known(self) -> tuple[np.ndarray, np.ndarray]:
        """True and estimated numbers, float64 `[known]` each, of the examples with a number."""
        known = ~np.isnan(self.numbers)
        return self.numbers[known].astype(np.float64), self.predicted[known]
