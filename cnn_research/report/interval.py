"""Confidence intervals of means over the images of a split."""

from __future__ import annotations

import numpy as np

DRAWS = 2000
MOST_NUMBERS = 40_000_000
"""For very many images fewer samples are drawn, as their interval is narrow anyway."""
FEWEST_DRAWS = 200


def sums_of_groups(values: np.ndarray, groups: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Sum and number of the values of each group, float64 `[groups]`.

    Without groups, or with the group "", each value is its own group.
    """
    if groups is None:
        return values.astype(np.float64), np.ones(len(values))
    _, of = np.unique(groups, return_inverse=True)
    of = np.where(groups == "", len(of) + np.arange(len(of)), of)
    _, of = np.unique(of, return_inverse=True)
    return np.bincount(of, values), np.bincount(of).astype(np.float64)


def interval_text(
    found: tuple[float, float] | None, form: str, values: np.ndarray, groups: np.ndarray | None
) -> str:
    """Format an `interval` of values by the format spec `form`, in brackets; "" for none."""
    if found is None:
        return ""
    over = "images" if groups is None else f"{len(sums_of_groups(values, groups)[0]):,} groups"
    return f" (95% interval {found[0]:{form}} to {found[1]:{form}}, over {over})"


def interval(values: np.ndarray, groups: np.ndarray | None = None) -> tuple[float, float] | None:
    """Compute the 95% percentile-bootstrap interval of a mean (Efron and Tibshirani 1993).

    Images are drawn with replacement or, because images of one group are alike, whole groups. If
    all values are the same bool, all samples are equal, and the interval of Clopper and Pearson
    (1934) is returned. None for fewer than two units, or for equal numbers.

    Args:
        values: bool or float `[examples]`.
        groups: str `[examples]`, as in `Split`.
    """
    sums, counts = sums_of_groups(values, groups)
    if len(sums) < 2:
        return None
    if values.min() == values.max():
        if values.dtype != bool:
            return None
        edge = 0.025 ** (1 / len(sums))
        return (edge, 1.0) if values[0] else (0.0, 1 - edge)
    draw = np.random.default_rng(0).integers
    means = []
    for _ in range(int(np.clip(MOST_NUMBERS // len(sums), FEWEST_DRAWS, DRAWS))):
        chosen = draw(len(sums), size=len(sums))
        means.append(sums[chosen].sum() / counts[chosen].sum())
    low, high = np.quantile(means, (0.025, 0.975))
    return float(low), float(high)
