"""Confusion matrices and confused classes, in figures readable for 2 to 1,000 classes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cnn_research.report.names import shortened
from cnn_research.report.plots import VERBATIM, saved, show_image

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import PowerNorm
    from matplotlib.figure import Figure

MOST_PAIRS = 10
MOST_CLASSES_WITH_COUNTS = 30
MOST_CLASSES_WITH_NAMES = 60
"""With more classes the whole matrix is drawn without names."""
WORST_CLASSES = 24
"""Number of classes, those confused most often, in the detailed figure for many classes."""
MOST_CELLS = 500
"""Rows in the figure of a whole matrix; with more classes, several share a row."""
CONFUSED_ROWS, CONFUSED_COLUMNS = 6, 3


def matrix_parts(
    folder: Path, suffix: str, matrix: np.ndarray, class_names: Sequence[str], shown: Sequence[str]
) -> Iterator[str]:
    """Yield the parts of a page on the confusion matrix, int `[classes, classes]`.

    Writes figures and a CSV file to `folder`. `shown` are the class names in figures.
    """
    import pandas

    table = pandas.DataFrame(matrix, index=pandas.Index(class_names, name="true class"))
    table.columns = pandas.Index(class_names)
    csv = f"confusion_matrix{suffix}.csv"
    table.to_csv(folder / csv, lineterminator="\n")
    alt = "Confusion matrix: true classes down, predicted ones across"
    totals = matrix.sum(axis=1)
    if len(matrix) > MOST_CLASSES_WITH_COUNTS and most_confused(matrix):
        worst = worst_classes(matrix)
        part = matrix[np.ix_(worst, worst)]
        names = [shown[place] for place in worst]
        yield (
            f"The classes, out of {len(matrix):,}, that are confused most often, with similar "
            f"ones next to each other. {csv} has all counts."
        )
        figure = confusion_matrix_plot(part, names, totals[worst])
        yield saved(figure, folder / f"confused_classes{suffix}.png", f"{alt}, the worst classes")
        yield "All classes, sorted by name:"
    if len(matrix) > MOST_CLASSES_WITH_NAMES:
        figure = overview_plot(matrix)
    else:
        figure = confusion_matrix_plot(matrix, shown, totals)
    yield saved(figure, folder / f"confusion_matrix{suffix}.png", alt)


def most_confused(matrix: np.ndarray) -> list[tuple[int, int]]:
    """Most frequent confusions as (true class, predicted class)."""
    confusions = matrix - np.diag(np.diag(matrix))
    order = np.argsort(-confusions, axis=None, kind="stable")[:MOST_PAIRS]
    return [divmod(place, len(matrix)) for place in order.tolist() if confusions.flat[place]]


def worst_classes(matrix: np.ndarray) -> np.ndarray:
    """Classes confused most often, int `[at most 24]`, with similar ones next to each other.

    `matrix`, int `[classes, classes]`, must have a non-zero element off the diagonal.
    """
    from scipy.cluster.hierarchy import leaves_list, linkage
    from scipy.spatial.distance import squareform

    confusions = matrix + matrix.T
    np.fill_diagonal(confusions, 0)
    order = np.argsort(-confusions, axis=None, kind="stable")[: 4 * WORST_CLASSES**2]
    order = order[confusions.flat[order] > 0]
    ends = np.stack(np.unravel_index(order, matrix.shape), axis=1).ravel()
    chosen = np.array(list(dict.fromkeys(ends.tolist()))[:WORST_CLASSES])
    near = confusions[np.ix_(chosen, chosen)].astype(np.float64)
    distances = squareform(1 / (1 + near), checks=False)
    return chosen[leaves_list(linkage(distances, "average", optimal_ordering=True))]


def confusion_matrix_plot(
    matrix: np.ndarray, class_names: Sequence[str], totals: np.ndarray | None = None
) -> Figure:
    """Plot counts of (true class, predicted class), int `[classes, classes]`.

    Colours are shares of the true class, whose `totals`, `[classes]`, default to the sums of the
    rows. The figure grows with the number of classes; it shows counts for up to 30 classes.
    """
    from matplotlib.figure import Figure

    classes = len(class_names)
    with_counts = classes <= MOST_CLASSES_WITH_COUNTS
    cell = 0.4 if with_counts else 0.17  # inches: four digits, or one line of small type
    font = 8 if with_counts else 6
    names = [shortened(name, 24) for name in class_names]
    margin = 1.2 + 0.012 * font * max(map(len, names))  # for the labels and the colour bar
    side = max(3.2, cell * classes + margin)
    figure = Figure(figsize=(side + 0.9, side), dpi=144, layout="constrained")
    axes = figure.subplots()
    shares = _shares(matrix, totals)
    scale = _draw_shares(figure, axes, shares)
    _class_ticks(axes, names, font, slanted=with_counts)
    if with_counts:
        for row, column in zip(*np.nonzero(matrix), strict=True):
            colour = "white" if scale(shares[row, column]) > 0.6 else "black"
            text: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": font}
            axes.text(column, row, f"{matrix[row, column]}", **text, color=colour)
    return figure


def overview_plot(matrix: np.ndarray) -> Figure:
    """Plot the shares of `confusion_matrix_plot` at a fixed size, without names and counts.

    With more than 500 classes, a cell shows the largest share of several.
    """
    from matplotlib.figure import Figure

    shares, classes = _shares(matrix, None), len(matrix)
    starts = np.arange(0, classes, -(-classes // MOST_CELLS))
    for axis in (0, 1):
        shares = np.maximum.reduceat(shares, starts, axis=axis)
    figure = Figure(figsize=(8.4, 7.5), dpi=144, layout="constrained")
    axes = figure.subplots()
    _draw_shares(figure, axes, shares, extent=(0.5, classes + 0.5, classes + 0.5, 0.5))
    axes.set_xlabel("predicted class, by number")
    axes.set_ylabel("true class, by number")
    return figure


def _shares(matrix: np.ndarray, totals: np.ndarray | None) -> np.ndarray:
    """Convert counts to shares of the true class, float64 `[classes, classes]`."""
    totals = matrix.sum(axis=1) if totals is None else totals
    return matrix / np.maximum(totals, 1)[:, None]


def _draw_shares(figure: Figure, axes: Axes, shares: np.ndarray, **how: Any) -> PowerNorm:
    """Draw shares and their colour bar, and return the colour scale."""
    from matplotlib.colors import PowerNorm

    # On a square-root scale, a confused hundredth of a class is visible.
    scale = PowerNorm(0.5, vmin=0, vmax=1)
    picture = axes.imshow(shares, cmap="Blues", norm=scale, **how)
    bar = figure.colorbar(picture, ax=axes, shrink=0.6, pad=0.02)
    bar.set_ticks([0, 0.01, 0.05, 0.2, 0.5, 1])
    bar.set_label("share of the true class", fontsize=9)
    bar.ax.tick_params(labelsize=8)
    bar.outline.set_visible(False)
    return scale


def _class_ticks(axes: Axes, names: Sequence[str], font: int, slanted: bool) -> None:
    """Label both axes with the classes, and draw lines between their cells."""
    ticks = np.arange(len(names))
    # Slanted names need space between them; vertical ones fit any column.
    slant: dict[str, Any] = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"}
    if not slanted:
        slant = {"rotation": 90}
    elif max(map(len, names)) <= 3:
        slant = {}
    axes.set_xticks(ticks, names, fontsize=font, **slant, **VERBATIM)
    axes.set_yticks(ticks, names, fontsize=font, **VERBATIM)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    # Lines between the cells, drawn as a grid of minor ticks.
    axes.set_xticks(ticks[1:] - 0.5, minor=True)
    axes.set_yticks(ticks[1:] - 0.5, minor=True)
    axes.grid(which="minor", color="#EEEEEE", linewidth=0.6)
    axes.tick_params(which="minor", length=0)


def confusions_plot(
    images: np.ndarray,
    labels: np.ndarray,
    predictions: np.ndarray,
    pairs: Sequence[tuple[int, int]],
    class_names: Sequence[str],
) -> Figure:
    """Draw one row for each of the first 6 pairs (true class, predicted class).

    Misclassified examples are on the left, examples of the predicted class on the right. Images are
    uint8 `[examples, height, width, channels]`, of which few are read; labels and predictions int
    `[examples]`.
    """
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    shown = pairs[:CONFUSED_ROWS]
    size = (1.6 * 2 * CONFUSED_COLUMNS + 0.4, 1.9 * len(shown))
    layout = ConstrainedLayoutEngine(h_pad=0.06, w_pad=0.04)
    figure = Figure(figsize=size, dpi=144, layout=layout)
    rows: Any = figure.subfigures(len(shown), 1, squeeze=False)
    for row, (true, predicted) in zip(rows.ravel(), shown, strict=True):
        left = np.flatnonzero((labels == true) & (predictions == predicted))
        of_other = np.flatnonzero(labels == predicted)
        # Correctly classified ones first, as a label may be wrong.
        right = of_other[np.argsort(predictions[of_other] != predicted, kind="stable")]
        mistaken, other = shortened(class_names[true], 26), shortened(class_names[predicted], 34)
        halves = zip(row.subfigures(1, 2), (left, right), (f"{mistaken}, predicted as", other))
        for half, chosen, title in halves:
            half.suptitle(title, fontsize=9, **VERBATIM)
            for place, axes in enumerate(half.subplots(1, CONFUSED_COLUMNS)):
                axes.set_axis_off()
                if place < len(chosen):
                    show_image(axes, images[chosen[place]])
    return figure
