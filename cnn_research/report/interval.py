"""How far a figure may be off, by the images that happen to be in a split."""

from __future__ import annotations

import numpy as np

DRAWS = 2000
MOST_NUMBERS = 40_000_000
"""Of very many images fewer samples are drawn: their interval is narrow however few there are."""
FEWEST_DRAWS = 200


def sums_of_groups(values: np.ndarray, groups: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Sum and number of the values of each group, float64 `[groups]`.

    Without groups, and where its group is "", each value is by itself.
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
    """The `interval` of values, with numbers as `form` says, and over what, in brackets; "" for
    none."""
    if found is None:
        return ""
    over = "images" if groups is None else f"{len(sums_of_groups(values, groups)[0]):,} groups"
    return f" (95% interval {found[0]:{form}} to {found[1]:{form}}, over {over})"


def interval(values: np.ndarray, groups: np.ndarray | None = None) -> tuple[float, float] | None:
    """The 95% interval of a mean, by the bootstrap's percentiles (Efron and Tibshirani 1993).

    Images are drawn with replacement or, as images of one group are alike, whole groups. Where all
    values are the same, true or false, no sample differs, and the interval is that of Clopper and
    Pearson (1934) for as many units. None for fewer than two units, or for equal numbers.

    Args:
        values: bool or float `[examples]`.
        groups: str `[examples]`, as of `Split`.
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
