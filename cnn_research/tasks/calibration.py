"""Calibration: are answers that are 80 % sure right in 80 % of cases, and how to make them so.

Guo, Pleiss, Sun and Weinberger 2017, "On Calibration of Modern Neural Networks": outputs are
divided by one temperature, fitted to validation examples: that changes probabilities and no answer.
"""

from __future__ import annotations

import abc
import dataclasses
import functools
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cnn_research.report.page import Predictions
from cnn_research.report.plots import GREY, SERIES, saved

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BINS = 15
"""Of equal width, from 0 to 1, as in the paper."""
FEWEST = 50
"""With fewer validation examples no temperature is fitted: they tell too little."""
LARGEST = 20.0
"""Temperatures are sought from its inverse to it."""


@dataclasses.dataclass(frozen=True, eq=False)
class Reliability:
    """How often probabilities came true: of the answers of a classification, or of each label."""

    probabilities: np.ndarray
    """float `[answers]`, 0 to 1."""
    right: np.ndarray
    """bool `[answers]`, whether each came true."""

    @functools.cached_property
    def bins(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Per bin the count, and the means of the probabilities and of how often they came true.

        float64 `[15]` each; the means are 0 where a bin is empty.
        """
        # Each bin includes its upper end, as in the paper.
        places = np.clip(np.ceil(self.probabilities * BINS).astype(int) - 1, 0, BINS - 1)
        count = np.bincount(places, minlength=BINS).astype(np.float64)
        sums = (np.bincount(places, each, BINS) for each in (self.probabilities, self.right))
        said, true = (each / np.maximum(count, 1) for each in sums)
        return count, said, true

    @property
    def error(self) -> float:
        """The expected calibration error: the mean of |probability - share that came true| over
        the bins, weighted by their counts (Guo et al. 2017, equation 3)."""
        count, said, true = self.bins
        return float((count * np.abs(said - true)).sum() / count.sum())


def temperature(mean_loss: Callable[[float], float], examples: int) -> float | None:
    """The temperature of the least loss; None with fewer than 50 examples.

    `mean_loss` is the mean negative log-likelihood of the examples at a temperature. A normal
    prior of deviation 1 on the temperature's logarithm weighs as much as one example: without it,
    where every answer is right, probabilities would become 1.
    """
    from scipy.optimize import minimize_scalar

    if examples < FEWEST:
        return None

    def objective(logarithm: float) -> float:
        return mean_loss(math.exp(logarithm)) + logarithm**2 / (2 * examples)

    ends = (-math.log(LARGEST), math.log(LARGEST))
    return math.exp(minimize_scalar(objective, bounds=ends, method="bounded").x)


@dataclasses.dataclass(frozen=True, eq=False)
class CalibratedPredictions(Predictions):
    """Predictions with probabilities, which a temperature makes true."""

    temperature: float | None = dataclasses.field(default=None, kw_only=True)
    """Fitted to validation: probabilities are of the logits divided by it. None: not fitted."""

    @abc.abstractmethod
    def reliability(self) -> Reliability:
        """That of the probabilities, with the temperature."""

    @functools.cached_property
    def reliabilities(self) -> tuple[Reliability, Reliability | None]:
        """The reliability; and that of temperature 1, where another one was fitted."""
        plain = dataclasses.replace(self, temperature=None)
        return self.reliability(), None if self.temperature is None else plain.reliability()

    def calibration_metrics(self) -> dict[str, float]:
        """The expected calibration error; that of temperature 1 beside it, where one was fitted."""
        now, before = self.reliabilities
        return {"ECE": now.error, **({"ECE before calibration": before.error} if before else {})}

    def calibration_page(self, folder: Path, suffix: str) -> Iterator[str]:
        """What the calibration error is, and the reliability curve."""
        how = "No temperature was fitted: there are too few validation images."
        if self.temperature is not None:
            how = (
                f"Outputs are divided by {self.temperature:.3f}, the temperature that fits "
                "the validation split best."
            )
        yield (
            "ECE, the expected calibration error, is the average error of the probabilities: it is "
            "0 if, for example, 80% of the predictions with a probability of 80% are correct. "
            f"{how}"
        )
        figure = reliability_plot(*self.reliabilities)
        yield saved(
            figure, folder / f"reliability{suffix}.png", "Observed frequency against probability"
        )


def reliability_plot(now: Reliability, before: Reliability | None) -> Figure:
    """The share that came true against the probability, by bin, and below it how many there are.

    A well calibrated network's points lie on the diagonal. `before` is that of temperature 1.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.8, 5.4), dpi=144, layout="constrained")
    axes, counts = figure.subplots(2, 1, sharex=True, height_ratios=[4, 1])
    axes.plot((0, 1), (0, 1), color=GREY, linewidth=1, linestyle="--", label="ideal")
    curves = [] if before is None else [(before, f"before, ECE {before.error:.3f}", SERIES[1], "s")]
    curves.append((now, f"{'after' if curves else 'now'}, ECE {now.error:.3f}", SERIES[0], "o"))
    for each, label, colour, marker in curves:
        count, said, true = each.bins
        style: dict[str, Any] = {"color": colour, "marker": marker, "markersize": 4}
        axes.plot(said[count > 0], true[count > 0], **style, label=label)
        edges = np.linspace(0, 1, BINS + 1)
        counts.stairs(count / count.sum(), edges, color=colour, linewidth=1.4)
    axes.set(xlim=(0, 1), ylim=(0, 1), ylabel="observed frequency")
    counts.set(xlabel="probability", ylabel="share of predictions", ylim=(0, None))
    for each in (axes, counts):
        each.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9, loc="upper left")
    return figure
