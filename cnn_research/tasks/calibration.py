"""Calibration: measure whether predictions at 80% are right in 80% of cases, and correct them.

Guo, Pleiss, Sun and Weinberger 2017, "On Calibration of Modern Neural Networks": outputs are
divided by a temperature fitted to validation examples, which changes probabilities but not classes.
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
"""Number of equally wide bins from 0 to 1, as in the paper."""
FEWEST = 50
"""Minimum number of validation examples for fitting a temperature."""
LARGEST = 20.0
"""Temperatures are searched between its inverse and this."""


@dataclasses.dataclass(frozen=True, eq=False)
class Reliability:
    """Probabilities, of predicted classes or of each label, and whether they were right."""

    probabilities: np.ndarray
    """float `[predictions]`, 0 to 1."""
    right: np.ndarray
    """bool `[predictions]`."""

    @functools.cached_property
    def bins(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Per bin, the count, mean probability and observed frequency, float64 `[15]` each.

        Means of empty bins are 0.
        """
        # Each bin includes its upper end, as in the paper.
        places = np.clip(np.ceil(self.probabilities * BINS).astype(int) - 1, 0, BINS - 1)
        count = np.bincount(places, minlength=BINS).astype(np.float64)
        sums = (np.bincount(places, each, BINS) for each in (self.probabilities, self.right))
        expected, observed = (each / np.maximum(count, 1) for each in sums)
        return count, expected, observed

    @property
    def error(self) -> float:
        """Expected calibration error: mean of |probability - observed frequency| over the bins,
        weighted by their counts (Guo et al. 2017, equation 3)."""
        count, expected, observed = self.bins
        return float((count * np.abs(expected - observed)).sum() / count.sum())


def temperature(mean_loss: Callable[[float], float], examples: int) -> float | None:
    """Find the temperature with the lowest loss; None with fewer than 50 examples.

    `mean_loss` is the examples' mean negative log-likelihood at a temperature. A normal prior of
    deviation 1 on the temperature's logarithm has the weight of one example: without it,
    probabilities would become 1 if all predictions are right.
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
    """Predictions with probabilities, which a temperature calibrates."""

    temperature: float | None = dataclasses.field(default=None, kw_only=True)
    """Divisor of the logits, fitted to the validation split; None if not fitted."""

    @abc.abstractmethod
    def reliability(self) -> Reliability:
        """Reliability of the probabilities, with the temperature."""

    @functools.cached_property
    def reliabilities(self) -> tuple[Reliability, Reliability | None]:
        """The reliability; and that of temperature 1, if another one was fitted."""
        plain = dataclasses.replace(self, temperature=None)
        return self.reliability(), None if self.temperature is None else plain.reliability()

    def calibration_metrics(self) -> dict[str, float]:
        """The expected calibration error, and that of temperature 1 if another one was fitted."""
        now, before = self.reliabilities
        return {"ECE": now.error, **({"ECE before calibration": before.error} if before else {})}

    def calibration_page(self, folder: Path, suffix: str) -> Iterator[str]:
        """Explain the calibration error, and plot the reliability curve."""
        how = "No temperature was fitted, as there are too few validation images."
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
    """Plot the observed frequency against the probability by bin, above the sizes of the bins.

    The points of a well-calibrated network lie on the diagonal. `before` is the reliability at
    temperature 1.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.8, 5.4), dpi=144, layout="constrained")
    axes, counts = figure.subplots(2, 1, sharex=True, height_ratios=[4, 1])
    axes.plot((0, 1), (0, 1), color=GREY, linewidth=1, linestyle="--", label="ideal")
    curves = [] if before is None else [(before, f"before, ECE {before.error:.3f}", SERIES[1], "s")]
    curves.append((now, f"{'after' if curves else 'now'}, ECE {now.error:.3f}", SERIES[0], "o"))
    for each, label, colour, marker in curves:
        count, expected, observed = each.bins
        style: dict[str, Any] = {"color": colour, "marker": marker, "markersize": 4}
        axes.plot(expected[count > 0], observed[count > 0], **style, label=label)
        edges = np.linspace(0, 1, BINS + 1)
        counts.stairs(count / count.sum(), edges, color=colour, linewidth=1.4)
    axes.set(xlim=(0, 1), ylim=(0, 1), ylabel="observed frequency")
    counts.set(xlabel="probability", ylabel="share of predictions", ylim=(0, None))
    for each in (axes, counts):
        each.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9, loc="upper left")
    return figure
