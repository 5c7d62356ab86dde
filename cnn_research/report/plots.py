"""Figures of a run: pure functions from numbers to matplotlib figures, without global state."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from cnn_research.core.metrics import Direction, best, direction_of
from cnn_research.data.dataset import MISSING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.legend import Legend

# Two of Okabe and Ito's colours, which people with any colour vision tell apart; the markers
# differ as well, for print without colour.
TRAINING: dict[str, Any] = {"color": "#0072B2", "marker": "o", "label": "training"}
VALIDATION: dict[str, Any] = {"color": "#D55E00", "marker": "s", "label": "validation"}
GREY = "#555555"

TERMS = {
    **{"black": "#111111", "blue": "#1f4ee0", "brown": "#7a4a21", "green": "#1f9e3a"},
    **{"grey": "#8c8c8c", "gray": "#8c8c8c", "orange": "#ff8a1f", "pink": "#ff8fc2"},
    **{"purple": "#7d2fb0", "red": "#d9182b", "white": "#f7f7f7", "yellow": "#f7dc1f"},
}
"""What the basic colour terms are painted in."""
MOST_MISTAKES = 24
MOST_CLASSES_WITH_COUNTS = 30
CURVES_IN_A_ROW = 3
CONFUSED_ROWS, CONFUSED_COLUMNS = 6, 3
HISTOGRAMS = 24
PALETTES = 24
AS_IT_IS: dict[str, Any] = {"parse_math": False}
"""For texts from data: between two dollar signs matplotlib would read a formula, or fail to."""


def curve_names(
    epochs: Sequence[Mapping[str, Any]], directions: Mapping[str, Direction]
) -> list[str]:
    """The metrics that curves show: the loss, and the others that have a direction.

    Of a task with several heads these are of each head, but not its loss.
    """
    seen = {name for epoch in epochs for name in (*epoch["train"], *epoch["validation"])}
    others = {name for name in seen if name.split()[-1] != "loss"}
    return ["loss", *sorted(name for name in others if direction_of(name, directions))]


def training_curves(
    epochs: Sequence[Mapping[str, Any]], directions: Mapping[str, Direction]
) -> Figure:
    """The metrics of training and validation, by epoch.

    Args:
        epochs: as `writers.by_epoch` gives them.
        directions: of the metrics.

    Returns:
        A figure with one panel for each metric; its title names the best validation value.
    """
    names = curve_names(epochs, directions)
    figure, grid = _panels(len(names))
    for axes, name in zip(grid, names, strict=True):
        _curves(axes, epochs, name, direction_of(name, directions))
    return figure


def _panels(count: int, below: float = 0) -> tuple[Figure, Sequence[Axes]]:
    """A figure with so many panels, and inches for a legend below them."""
    from matplotlib.figure import Figure

    columns = min(CURVES_IN_A_ROW, count)
    rows = -(-count // columns)
    size = (4.8 * columns, 3.6 * rows + below)
    figure = Figure(figsize=size, dpi=144, layout="constrained")
    grid = [*figure.subplots(rows, columns, squeeze=False).ravel()]
    for axes in grid[count:]:
        axes.remove()
    return figure, grid[:count]


def compared_curves(
    groups: Mapping[str, Sequence[Sequence[Mapping[str, Any]]]], directions: Mapping[str, Direction]
) -> Figure:
    """What the runs of several configs had in each epoch: a panel per metric, a line per config.

    Args:
        groups: of each config its runs, each as `writers.by_epoch` gives them.
        directions: of the metrics.

    Returns:
        A figure with the means over runs, shaded from the lowest to the highest; validation where
        a metric has it, otherwise training. Configs after the first `len(COMPARED)` are grey.
    """
    from matplotlib.ticker import MaxNLocator

    every = [epoch for runs in groups.values() for epochs in runs for epoch in epochs]
    names = curve_names(every, directions)
    figure, grid = _panels(len(names), 0.2 + 0.2 * min(len(groups), len(COMPARED) + 1))
    handles = []
    for axes, name in zip(grid, names, strict=True):
        split = "validation" if any(name in epoch["validation"] for epoch in every) else "train"
        lines = []
        for place, (group, runs) in enumerate(groups.items()):
            values: dict[int, list[float]] = {}
            for epoch in (epoch for epochs in runs for epoch in epochs):
                if name in epoch[split]:
                    values.setdefault(epoch["epoch"], []).append(epoch[split][name])
            color = COMPARED[place] if place < len(COMPARED) else "#BBBBBB"
            style: dict[str, Any] = {"color": color, "zorder": 3 if place < len(COMPARED) else 2}
            means = [sum(found) / len(found) for found in values.values()]
            dot = "o" if len(values) == 1 else ""
            label = _shortened(group, 70) if place < len(COMPARED) else "others"
            lines += axes.plot(list(values), means, **style, marker=dot, linewidth=1.8, label=label)
            lowest, highest = map(min, values.values()), map(max, values.values())
            axes.fill_between(
                list(values), list(lowest), list(highest), **style, alpha=0.2, linewidth=0
            )
        axes.set_title(
            f"{name[0].upper()}{name[1:]}".replace("_", " ")
            + (" in validation" if split == "validation" else " in training"),
            loc="left",
            fontsize=11,
            fontweight="bold",
            **AS_IT_IS,
        )
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        _plain(axes)
        handles = lines
    legend = figure.legend(
        handles=handles[: len(COMPARED) + 1],
        loc="outside lower left",
        frameon=False,
        fontsize=9,
        ncols=1 if max(map(len, groups)) > 40 else 3,
    )
    _as_it_is(legend)
    return figure


def _curves(
    axes: Axes, epochs: Sequence[Mapping[str, Any]], name: str, direction: Direction | None
) -> None:
    from matplotlib.ticker import MaxNLocator

    title = f"{name[0].upper()}{name[1:]}".replace("_", " ")
    for split, style in (("train", TRAINING), ("validation", VALIDATION)):
        points = [(e["epoch"], e[split][name]) for e in epochs if name in e[split]]
        if not points:
            continue
        # Fewer markers where there are many epochs, or they hide the line.
        spacing = max(1, len(points) // 20)
        axes.plot(
            *zip(*points, strict=True), **style, markersize=4, markevery=spacing, linewidth=1.8
        )
        finite = [point for point in points if np.isfinite(point[1])]
        if split == "validation" and finite and direction:
            word = "highest" if direction == "maximize" else "lowest"
            value = best([value for _, value in finite], direction)
            epoch = next(epoch for epoch, each in finite if each == value)
            title += f"\n{word} in validation: {value:.4f}, epoch {epoch}"
    heading, _, extreme = title.partition("\n")
    pad = 20 if extreme else 6
    axes.set_title(heading, loc="left", fontsize=11, fontweight="bold", pad=pad, **AS_IT_IS)
    if extreme:
        axes.text(0, 1.025, extreme, transform=axes.transAxes, fontsize=9, color=GREY)
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#DDDDDD", linewidth=0.8)
    axes.set_axisbelow(True)
    if axes.lines:
        # Room for a tick where there is one epoch, and for each epoch whose value is not finite.
        axes.set_xlim(epochs[0]["epoch"] - 0.4, epochs[-1]["epoch"] + 0.4)
        axes.legend(frameon=False)


def confusion_matrix(matrix: np.ndarray, class_names: Sequence[str]) -> Figure:
    """Counts of (true class, predicted class); the colours are shares of the true class.

    Args:
        matrix: int `[classes, classes]`; a row is a true class, a column a predicted one.
        class_names: one for each class.

    Returns:
        A figure that grows with the classes; the counts are written into the cells of up to
        30 classes.
    """
    from matplotlib.colors import PowerNorm
    from matplotlib.figure import Figure

    classes = len(class_names)
    with_counts = classes <= MOST_CLASSES_WITH_COUNTS
    cell = 0.4 if with_counts else 0.17  # inches: four digits, or one line of small type
    font = 8 if with_counts else 6
    names = [_shortened(name, 24) for name in class_names]
    margin = 1.2 + 0.012 * font * max(map(len, names))  # the labels, and the bar of colours
    side = max(3.2, cell * classes + margin)
    figure = Figure(figsize=(side + 0.9, side), dpi=144, layout="constrained")
    axes = figure.subplots()
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    # By the square root: a hundredth of a class, once confused, is to be seen.
    scale = PowerNorm(0.5, vmin=0, vmax=1)
    picture = axes.imshow(shares, cmap="Blues", norm=scale)
    ticks = np.arange(classes)
    # Slanted names need room between them; upright ones fit over any column.
    slant: dict[str, Any] = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"}
    if not with_counts:
        slant = {"rotation": 90}
    elif max(map(len, names)) <= 3:
        slant = {}
    axes.set_xticks(ticks, names, fontsize=font, **slant, **AS_IT_IS)
    axes.set_yticks(ticks, names, fontsize=font, **AS_IT_IS)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    # Lines between the cells, drawn as a grid of minor ticks.
    axes.set_xticks(ticks[1:] - 0.5, minor=True)
    axes.set_yticks(ticks[1:] - 0.5, minor=True)
    axes.grid(which="minor", color="#EEEEEE", linewidth=0.6)
    axes.tick_params(which="minor", length=0)
    if with_counts:
        for row, column in zip(*np.nonzero(matrix), strict=True):
            axes.text(
                column,
                row,
                f"{matrix[row, column]}",
                ha="center",
                va="center",
                fontsize=font,
                color="white" if scale(shares[row, column]) > 0.6 else "black",
            )
    bar = figure.colorbar(picture, ax=axes, shrink=0.6, pad=0.02)
    bar.set_ticks([0, 0.01, 0.05, 0.2, 0.5, 1])
    bar.set_label("share of the true class", fontsize=9)
    bar.ax.tick_params(labelsize=8)
    bar.outline.set_visible(False)
    return figure


def mistakes(
    images: np.ndarray,
    labels: np.ndarray,
    predictions: np.ndarray,
    probabilities: np.ndarray,
    class_names: Sequence[str],
) -> Figure:
    """The mistakes that were made with most confidence, the worst first.

    Args:
        images: uint8 `[examples, height, width, channels]`, all examples; few are read.
        labels: int `[examples]`; -1, not known, is no mistake.
        predictions: int `[examples]`.
        probabilities: float `[examples]`, that of the predicted class.
        class_names: one for each class.

    Returns:
        A grid of up to 24 images, each with its predicted class, probability and true class.
    """
    wrong = np.flatnonzero((labels != MISSING) & (predictions != labels))
    # A stable sort: of equal probabilities, the earlier example comes first.
    worst = wrong[np.argsort(-probabilities[wrong], kind="stable")][:MOST_MISTAKES]
    return _gallery(
        images,
        worst,
        [
            f"{_shortened(class_names[predictions[index]], 15)}, {probabilities[index]:.0%}\n"
            f"true: {_shortened(class_names[labels[index]], 16)}"
            for index in worst
        ],
    )


def confusions(
    images: np.ndarray,
    labels: np.ndarray,
    predictions: np.ndarray,
    pairs: Sequence[tuple[int, int]],
    class_names: Sequence[str],
) -> Figure:
    """Pairs of classes that are confused: images of the one, beside images of the other.

    Args:
        images: uint8 `[examples, height, width, channels]`, all examples; few are read.
        labels: int `[examples]`.
        predictions: int `[examples]`.
        pairs: (true class, predicted class) each; up to 6 are shown.
        class_names: one for each class.

    Returns:
        A row for each pair: on the left examples of the true class that were taken for the other,
        on the right examples of that other.
    """
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    shown = pairs[:CONFUSED_ROWS]
    height = 1.9 * len(shown)
    figure = Figure(
        figsize=(1.6 * 2 * CONFUSED_COLUMNS + 0.4, height),
        dpi=144,
        layout=ConstrainedLayoutEngine(h_pad=0.06, w_pad=0.04),
    )
    rows: Any = figure.subfigures(len(shown), 1, squeeze=False)
    for row, (true, predicted) in zip(rows.ravel(), shown, strict=True):
        left = np.flatnonzero((labels == true) & (predictions == predicted))
        of_other = np.flatnonzero(labels == predicted)
        # Those that were recognised first: a label may be wrong.
        right = of_other[np.argsort(predictions[of_other] != predicted, kind="stable")]
        titles = (
            f"{_shortened(class_names[true], 28)}, taken for",
            _shortened(class_names[predicted], 34),
        )
        for half, chosen, title in zip(row.subfigures(1, 2), (left, right), titles, strict=True):
            half.suptitle(title, fontsize=9, **AS_IT_IS)
            for axes, place in zip(half.subplots(1, CONFUSED_COLUMNS), range(len(images))):
                axes.set_axis_off()
                if place < len(chosen):
                    _image(axes, images[chosen[place]])
    return figure


def predictions(
    images: Sequence[np.ndarray],
    names: Sequence[str],
    answers: Sequence[str],
    neighbours: Sequence[Sequence[tuple[np.ndarray, str]]],
) -> Figure:
    """Images with the answers to them and, in the same row, the nearest training images.

    Args:
        images: uint8 `[height, width, channels]` each.
        names: of each image.
        answers: to each image, a line for each head.
        neighbours: of each image, (image, title) each; empty for a plain grid.
    """
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    titles = [
        "\n".join([_shortened(name, 22), *_wrapped(answer, 24)])
        for name, answer in zip(names, answers, strict=True)
    ]
    lines = max(title.count("\n") + 1 for title in titles)
    columns = 1 + len(neighbours[0]) if neighbours else min(6, len(images))
    rows = len(images) if neighbours else -(-len(images) // columns)
    figure = Figure(
        figsize=(1.8 * columns, (1.7 + 0.14 * lines) * rows),
        dpi=144,
        layout=ConstrainedLayoutEngine(h_pad=0.08, w_pad=0.04),
    )
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.ravel():
        axes.set_axis_off()
    for place, (image, title) in enumerate(zip(images, titles, strict=True)):
        axes = grid[place, 0] if neighbours else grid.ravel()[place]
        _image(axes, image)
        axes.set_title(title, fontsize=7.5, linespacing=1.3, fontweight="bold", **AS_IT_IS)
        for column, (near, said) in enumerate(neighbours[place] if neighbours else (), start=1):
            _image(grid[place, column], near)
            grid[place, column].set_title(said, fontsize=7, linespacing=1.3, color=GREY, **AS_IT_IS)
    return figure


def estimates(true: np.ndarray, predicted: np.ndarray, name: str, training_mean: float) -> Figure:
    """Estimated numbers against true ones, a point for each example.

    Args:
        true: float `[examples]`.
        predicted: float `[examples]`.
        name: what the numbers are; it labels the axes.
        training_mean: marked: the estimate of who sees no image.

    Returns:
        A square figure with equal axes and the line on which all points would lie. Where the true
        numbers are whole, their points are spread sideways, or they would hide each other.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    whole = bool((true == np.round(true)).all())
    # Steps of the golden ratio fill a column evenly, and the same each time.
    aside = 0.6 * (np.arange(len(true)) * 0.618034 % 1 - 0.5) if whole else 0
    low, high = (f([f(true), f(predicted)]) for f in (np.min, np.max))
    margin = 0.05 * (high - low) or 1.0
    limits = (low - margin, high + margin)
    figure = Figure(figsize=(4.8, 4.8), dpi=144, layout="constrained")
    axes = figure.subplots()
    faint = float(np.clip(300 / len(true), 0.08, 0.8))
    axes.scatter(true + aside, predicted, s=6, alpha=faint, color="#0072B2", linewidths=0)
    axes.axline((low, low), slope=1, color=GREY, linewidth=1.2, label="estimated = true")
    axes.axhline(
        training_mean, color="#D55E00", linestyle="--", linewidth=1.2, label="training mean"
    )
    axes.set(xlim=limits, ylim=limits, aspect="equal")
    spread = " (points spread sideways)" if whole else ""
    axes.set_xlabel(f"true {name}{spread}", **AS_IT_IS)
    axes.set_ylabel(f"estimated {name}", **AS_IT_IS)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(7, integer=whole))
    axes.ticklabel_format(useOffset=False)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9, loc="upper left")
    return figure


def number_mistakes(images: np.ndarray, true: np.ndarray, predicted: np.ndarray) -> Figure:
    """The estimates that are farthest from the true numbers, the worst first.

    Args:
        images: uint8 `[examples, height, width, channels]`, all examples; few are read.
        true: float `[examples]`; NaN, not known, is no mistake.
        predicted: float `[examples]`.

    Returns:
        A grid of up to 24 images, each with its estimated and its true number.
    """
    errors = np.abs(np.nan_to_num(predicted - true))
    worst = np.argsort(-errors, kind="stable")[:MOST_MISTAKES]
    worst = worst[errors[worst] > 0]
    digits = _digits(np.nanstd(true))
    titles = [
        f"{_rounded(predicted[index], digits)}\ntrue: {_rounded(true[index], digits)}"
        for index in worst
    ]
    return _gallery(images, worst, titles)


def _gallery(images: np.ndarray, chosen: np.ndarray, titles: Sequence[str]) -> Figure:
    """A grid of the images at `chosen`, int `[shown]`, each with its title."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    if not chosen.size:
        figure = Figure(figsize=(4, 1), dpi=144)
        figure.text(0.5, 0.5, "No mistakes.", ha="center", va="center", color=GREY)
        return figure
    columns = min(6, chosen.size)
    rows = -(-chosen.size // columns)
    room = ConstrainedLayoutEngine(h_pad=0.08)  # inches
    figure = Figure(figsize=(1.6 * columns, 2 * rows), dpi=144, layout=room)
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in grid:
        axes.set_axis_off()
    for axes, index, title in zip(grid, chosen, titles, strict=False):
        _image(axes, images[index])
        axes.set_title(title, fontsize=7.5, linespacing=1.3, **AS_IT_IS)
    return figure


def _image(axes: Axes, image: np.ndarray) -> None:
    """Shows a uint8 image `[height, width, channels]`."""
    if image.shape[-1] == 3:
        axes.imshow(image)
    else:
        axes.imshow(image[..., 0], cmap="gray", vmin=0, vmax=255)


def _digits(spread: float) -> int:
    """How many digits after the point show differences of a hundredth of the spread."""
    return max(0, 1 - math.floor(math.log10(spread))) if spread > 0 else 0


def _rounded(number: float, digits: int) -> str:
    """A number with so many digits after the point at most, and no zeros at its end."""
    return np.format_float_positional(round(float(number), digits), trim="-")


def _wrapped(text: str, width: int) -> list[str]:
    return [part for line in text.splitlines() for part in textwrap.wrap(line, width)]


def _shortened(name: str, length: int) -> str:
    return name if len(name) <= length else name[: length - 1] + "…"


# Okabe and Ito's colours again, for lines that a legend names.
SERIES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")
MARKERS = ("o", "s", "^", "D")
COMPARED = (*SERIES, "#56B4E9", "#E69F00", "#111111", "#8C510A")
"""Okabe and Ito's other colours; brown stands for their yellow, which is pale on white."""


def shifted_accuracy(
    shifts: Sequence[int], accuracy: Mapping[str, Sequence[Sequence[float]]]
) -> Figure:
    """Accuracy against the shift of images, a line per kind of network and a band over its seeds.

    Args:
        shifts: in pixels.
        accuracy: per kind, per seed, the accuracy at each shift.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.0), dpi=144, layout="constrained")
    axes = figure.subplots()
    for (kind, values), color, marker in zip(accuracy.items(), SERIES, MARKERS):
        mean = np.mean(values, axis=0)
        axes.fill_between(
            shifts, np.min(values, axis=0), np.max(values, axis=0), color=color, alpha=0.2, lw=0
        )
        axes.plot(shifts, mean, color=color, marker=marker, markersize=4, linewidth=1.8, label=kind)
    axes.set_xlabel("images moved to the right by, pixels")
    axes.set_ylabel("test accuracy")
    axes.set_ylim(0, 1)
    axes.legend(frameon=False, title="pooling", alignment="left")
    _plain(axes)
    return figure


def kinds_accuracy(accuracy: Mapping[str, Sequence[float]]) -> Figure:
    """The accuracy of each kind of network: a point per seed, and their mean.

    Args:
        accuracy: per kind, per seed.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1.5 * len(accuracy) + 1.8, 3.6), dpi=144, layout="constrained")
    axes = figure.subplots()
    for place, (values, color) in enumerate(zip(accuracy.values(), SERIES)):
        mean = float(np.mean(values))
        axes.scatter([place] * len(values), values, color=color, s=28, alpha=0.7, linewidths=0)
        axes.plot([place - 0.2, place + 0.2], [mean, mean], color=color, linewidth=2)
        axes.annotate(f"{mean:.4f}", (place + 0.24, mean), va="center", fontsize=9)
    axes.set_xticks(range(len(accuracy)), list(accuracy))
    axes.set_xlim(-0.5, len(accuracy) - 0.2)
    axes.set_xlabel("pooling")
    axes.set_ylabel("test accuracy")
    _plain(axes)
    return figure


def colour_cube(colours: Sequence[str], shares: np.ndarray) -> Figure:
    """Clusters in the RGB cube: document 000's figure 5.

    Args:
        colours: of each cluster, as hex.
        shares: of each, float `[clusters]`: the area of its point.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4.6), dpi=144, layout="constrained")
    points = np.array([[int(hexed[at : at + 2], 16) for at in (1, 3, 5)] for hexed in colours])
    for place, azimuth in enumerate((35, 125), 1):
        axes: Any = figure.add_subplot(1, 2, place, projection="3d")
        areas = 12 + 120 * shares / shares.max()
        axes.scatter(
            *points.T, c=list(colours), s=areas, edgecolors=GREY, linewidths=0.3, depthshade=False
        )
        axes.set_box_aspect((1, 1, 1), zoom=0.82)  # else a label is cut off
        axes.view_init(elev=22, azim=azimuth)
        for name in "xyz":
            axes.set(**{f"{name}lim": (0, 255), f"{name}ticks": (0, 128, 255)})
        axes.set_xlabel("red")
        axes.set_ylabel("green")
        axes.set_zlabel("blue")
        axes.tick_params(labelsize=7)
    return figure


def histograms(
    images: np.ndarray, true: np.ndarray, estimated: np.ndarray, colours: Sequence[str]
) -> Figure:
    """Images with their histograms as strips of colour, as wide as their share.

    They are equally spaced in how well the estimate fits, the best first.

    Args:
        images: uint8 `[examples, height, width, 3]`.
        true: the share of each cluster, float `[examples, clusters]`.
        estimated: the same, as estimated; shown in the lower strip.
        colours: of each cluster, as hex.
    """
    from matplotlib.figure import Figure

    overlap = np.minimum(true, estimated).sum(axis=1)
    order = np.argsort(-overlap, kind="stable")
    shown = order[np.linspace(0, len(order) - 1, min(HISTOGRAMS, len(order))).astype(int)]
    columns = 3
    rows = -(-len(shown) // columns)
    figure = Figure(figsize=(3.6 * columns, 1.15 * rows), dpi=144, layout="constrained")
    grid = figure.subplots(rows, 2 * columns, width_ratios=[1, 2.6] * columns, squeeze=False)
    for axes in grid.ravel():
        axes.set_axis_off()
    for index, (picture, strips) in zip(shown, grid.reshape(-1, 2), strict=False):
        _image(picture, images[index])
        strips.set_title(f"overlap {overlap[index]:.0%}", fontsize=7.5, loc="left", pad=2)
        for height, shares in ((1, true[index]), (0, estimated[index])):
            ends = np.cumsum(shares)
            strips.barh(height, shares, left=ends - shares, height=0.9, color=list(colours))
        strips.set_xlim(0, 1)
    return figure


def palettes(images: np.ndarray, rows: Mapping[str, Sequence[np.ndarray]]) -> Figure:
    """Images, and below each its palettes as strips.

    Args:
        images: uint8 `[examples, height, width, 3]`; so many as there is room for are shown.
        rows: per title, the palette of each image, uint8 `[colours, 3]`.
    """
    from matplotlib.figure import Figure

    shown = min(PALETTES, len(images))
    columns = min(6, shown)
    lines = -(-shown // columns)
    strips = len(rows)
    figure = Figure(
        figsize=(2 * columns, (1.6 + 0.3 * strips) * lines), dpi=144, layout="constrained"
    )
    heights = [5.0, *[1.0] * strips] * lines
    grid = figure.subplots(len(heights), columns, height_ratios=heights, squeeze=False)
    for axes in grid.ravel():
        axes.set_axis_off()
    for index in range(shown):
        line, column = divmod(index, columns)
        picture, *below = grid[line * (1 + strips) :, column][: 1 + strips]
        _image(picture, images[index])
        for axes, (title, of_images) in zip(below, rows.items(), strict=True):
            axes.imshow(of_images[index][None], aspect="auto")
            axes.set_title(title, fontsize=6, loc="left", pad=1)
    return figure


def named_pixels(image: np.ndarray, labels: np.ndarray, names: Sequence[str]) -> Figure:
    """An image beside a map of its colour names, painted in these colours.

    Args:
        image: uint8 `[height, width, 3]`.
        labels: which name each place of a grid over the image has, int `[rows, columns]`.
        names: basic colour terms, or others, which are painted in colours of their own.
    """
    from matplotlib import colormaps
    from matplotlib.colors import to_rgb
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    other = colormaps["tab20"]
    palette = np.array(
        [
            to_rgb(TERMS[name.lower()]) if name.lower() in TERMS else other(index % 20)[:3]
            for index, name in enumerate(names)
        ]
    )
    height, width = image.shape[:2]
    figure = Figure(figsize=(9, 1 + 4 * min(2.0, height / width)), dpi=120, layout="constrained")
    picture, painted = figure.subplots(1, 2)
    for axes in (picture, painted):
        axes.set_axis_off()
    picture.imshow(image)
    painted.imshow(palette[labels], interpolation="nearest", extent=(0, width, height, 0))
    shares = np.bincount(labels.ravel(), minlength=len(names)) / labels.size
    handles = [
        Patch(facecolor=palette[i], edgecolor=GREY, label=f"{names[i]} {shares[i]:.0%}")
        for i in np.argsort(-shares, kind="stable")
        if shares[i] >= 0.005
    ]
    below: dict[str, Any] = {"loc": "outside lower center", "ncols": 6}
    _as_it_is(figure.legend(handles=handles, **below, frameon=False, fontsize=8))
    return figure


def image_rows(rows: Mapping[str, np.ndarray]) -> Figure:
    """Rows of small images, each with its title before it.

    Args:
        rows: uint8 `[images, height, width, channels]` per title; may be empty.
    """
    from matplotlib.figure import Figure

    columns = max([1, *map(len, rows.values())])
    figure = Figure(figsize=(1.2 + 0.42 * columns, 0.46 * len(rows)), dpi=144, layout="constrained")
    ratios = [1.2 / 0.42, *[1] * columns]
    grid = figure.subplots(len(rows), columns + 1, squeeze=False, width_ratios=ratios)
    for axes in grid.ravel():
        axes.set_axis_off()
    for (title, images), (first, *rest) in zip(rows.items(), grid, strict=True):
        where: dict[str, Any] = {"ha": "right", "va": "center", "transform": first.transAxes}
        first.text(1, 0.5, title, fontsize=7.5, **where, **AS_IT_IS)
        for axes, image in zip(rest, images, strict=False):
            _image(axes, image)
    return figure


def rounds(accuracy: Mapping[str, Sequence[float]]) -> Figure:
    """The accuracy of each round, a line per split.

    Args:
        accuracy: per split, of each round.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 3.2), dpi=144, layout="constrained")
    axes = figure.subplots()
    for (name, values), color in zip(accuracy.items(), SERIES):
        axes.plot(range(len(values)), values, color=color, marker="o", markersize=4, label=name)
        axes.annotate(
            f"{values[-1]:.3f}", (len(values) - 1, values[-1]), xytext=(6, 0),
            textcoords="offset points", va="center", fontsize=8, color=color,
        )  # fmt: skip
    axes.set_xticks(range(len(next(iter(accuracy.values())))))
    axes.set_xlabel("rounds of purification before the training")
    axes.set_ylabel("accuracy, mean of classes")
    axes.legend(frameon=False)
    _plain(axes)
    return figure


def _as_it_is(legend: Legend) -> None:
    """`AS_IT_IS` of a legend, which takes no such option."""
    for text in legend.get_texts():
        text.set_parse_math(False)


def _plain(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#DDDDDD", linewidth=0.8)
    axes.set_axisbelow(True)
