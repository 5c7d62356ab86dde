"""Curves of runs, and helpers for all plots; matplotlib's global state is not used."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cnn_research.core.metrics import Direction, best, direction_of
from cnn_research.report.names import in_picture, pictured, shortened

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.legend import Legend

# Okabe and Ito's colours, which suit all kinds of colour vision; the markers also differ, for
# printing without colour.
SERIES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")
MARKERS = ("o", "s", "^", "D")
COMPARED = (*SERIES, "#56B4E9", "#E69F00", "#111111", "#8C510A")
"""Brown replaces Okabe and Ito's yellow, which is pale on white."""
TRAINING: dict[str, Any] = {"color": SERIES[0], "marker": "o", "label": "training"}
VALIDATION: dict[str, Any] = {"color": SERIES[1], "marker": "s", "label": "validation"}
GREY = "#555555"
CURVES_IN_A_ROW = 3
LONGEST_METRIC = 40
"""Maximum length of a curve's title."""
VERBATIM: dict[str, Any] = {"parse_math": False}
"""For texts from data, in which matplotlib would parse formulas between dollar signs."""


# Shared parts ------------------------------------------------------------------------------------


def blank_grid(
    rows: int, columns: int, size: tuple[float, float], padding: float | None = None, **how: Any
) -> tuple[Figure, np.ndarray]:
    """Make a figure of `size` inches with axes `[rows, columns]` without frames and ticks.

    `padding` is in inches, above and below each of the axes; by default it is matplotlib's. `how`
    are arguments of its `subplots`, such as `width_ratios`.
    """
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    figure = Figure(figsize=size, dpi=144, layout=ConstrainedLayoutEngine(h_pad=padding))
    axes = figure.subplots(rows, columns, squeeze=False, **how)
    for each in axes.ravel():
        each.set_axis_off()
    return figure, axes


def image_grid(images: Sequence[np.ndarray] | np.ndarray, titles: Sequence[str]) -> Figure:
    """Draw images, uint8 `[height, width, channels]` each, six per row, with titles."""
    columns = min(6, len(images))
    rows = -(-len(images) // columns)
    figure, grid = blank_grid(rows, columns, (1.6 * columns, 2 * rows), padding=0.08)
    for axes, image, title in zip(grid.ravel(), images, titles, strict=False):
        show_image(axes, image)
        axes.set_title(title, fontsize=7.5, linespacing=1.3, **VERBATIM)
    return figure


def no_mistakes() -> Figure:
    """Draw a figure that says that there are no mistakes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4, 1), dpi=144)
    figure.text(0.5, 0.5, "No mistakes.", ha="center", va="center", color=GREY)
    return figure


def show_image(axes: Axes, image: np.ndarray) -> None:
    """Draw a uint8 image `[height, width, channels]`; 1 channel is grey."""
    axes.imshow(image, cmap="gray", vmin=0, vmax=255)


def saved(figure: Figure, file: Path, alt: str) -> str:
    """Save a figure beside a page; return its Markdown."""
    figure.savefig(file)
    return f"![{alt}]({file.name})"


def plain_plot(width: float, height: float) -> tuple[Figure, Axes]:
    """Make a figure of `width` by `height` inches with one plot in the plain style."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=144, layout="constrained")
    axes = figure.subplots()
    plain_axes(axes)
    return figure, axes


def plain_axes(axes: Axes) -> None:
    """Apply the plain style: no frame at the top and right, and horizontal grid lines."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#DDDDDD", linewidth=0.8)
    axes.set_axisbelow(True)


def verbatim_legend(legend: Legend) -> None:
    """Apply `VERBATIM` to a legend, which has no such option."""
    for text in legend.get_texts():
        text.set_parse_math(False)


# Curves ------------------------------------------------------------------------------------------


def curve_names(
    epochs: Sequence[Mapping[str, Any]], directions: Mapping[str, Direction]
) -> list[str]:
    """List metrics for curves: the loss, and others with a direction, except losses of heads."""
    seen = {name for epoch in epochs for name in (*epoch["train"], *epoch["validation"])}
    others = {name for name in seen if name.split()[-1] != "loss"}
    return ["loss", *sorted(name for name in others if direction_of(name, directions))]


def training_curves(
    epochs: Sequence[Mapping[str, Any]], directions: Mapping[str, Direction]
) -> Figure:
    """Plot training and validation metrics by epoch, as returned by `metrics_log.by_epoch`.

    Each metric has a panel, whose title is made by `pictured` and has the best validation value.
    """
    names = curve_names(epochs, directions)
    figure, grid = _panels(len(names))
    for axes, name, shown in zip(grid, names, pictured(names, LONGEST_METRIC), strict=True):
        extreme = ""
        for split, style in (("train", TRAINING), ("validation", VALIDATION)):
            points = [(e["epoch"], e[split][name]) for e in epochs if name in e[split]]
            if points:
                # Fewer markers for many epochs, as they would hide the line.
                spacing = max(1, len(points) // 20)
                line: dict[str, Any] = {**style, "markersize": 4, "markevery": spacing}
                axes.plot(*zip(*points, strict=True), **line, linewidth=1.8)
            if split == "validation":
                extreme = _best_point(points, direction_of(name, directions))
        _epoch_axes(axes, _titled(shown), pad=20 if extreme else 6)
        axes.text(0, 1.025, extreme, transform=axes.transAxes, fontsize=9, color=GREY)
        if axes.lines:
            # Space for a tick if there is only one epoch, and for epochs without a finite value.
            axes.set_xlim(epochs[0]["epoch"] - 0.4, epochs[-1]["epoch"] + 0.4)
            axes.legend(frameon=False)
    return figure


def _best_point(points: Sequence[tuple[int, float]], direction: Direction | None) -> str:
    """Describe the best value and its epoch; "" if there is none."""
    finite = [point for point in points if np.isfinite(point[1])]
    if not finite or direction is None:
        return ""
    value = best([value for _, value in finite], direction)
    epoch = next(epoch for epoch, each in finite if each == value)
    word = "highest" if direction == "maximize" else "lowest"
    return f"{word} validation value: {value:.4f}, epoch {epoch}"


def compared_curves(
    groups: Mapping[str, Sequence[Sequence[Mapping[str, Any]]]], directions: Mapping[str, Direction]
) -> Figure:
    """Plot the runs of several configs: one panel per metric, one line per config.

    `groups` has each config's runs, as returned by `metrics_log.by_epoch`. Lines are means over
    runs, shaded from the lowest to the highest, of validation values if the metric has any,
    otherwise of training values. Configs after the first `len(COMPARED)` are grey.
    """
    every = [epoch for runs in groups.values() for epochs in runs for epoch in epochs]
    names = curve_names(every, directions)
    figure, grid = _panels(len(names), 0.2 + 0.2 * min(len(groups), len(COMPARED) + 1))
    for axes, name in zip(grid, names, strict=True):
        validated = any(name in epoch["validation"] for epoch in every)
        for place, (group, runs) in enumerate(groups.items()):
            values = _by_epoch(runs, "validation" if validated else "train", name)
            named = place < len(COMPARED)
            style: dict[str, Any] = {"color": COMPARED[place] if named else "#BBBBBB"}
            style["zorder"] = 3 if named else 2
            axes.plot(
                list(values),
                [sum(each) / len(each) for each in values.values()],
                **style,
                marker="o" if len(values) == 1 else "",
                linewidth=1.8,
                label=in_picture(shortened(group, 70)) if named else "others",
            )
            lowest, highest = map(min, values.values()), map(max, values.values())
            shade: dict[str, Any] = {"alpha": 0.2, "linewidth": 0}
            axes.fill_between(list(values), list(lowest), list(highest), **style, **shade)
        _epoch_axes(axes, f"{_titled(name)} in {'validation' if validated else 'training'}")
    legend = figure.legend(
        handles=grid[-1].lines[: len(COMPARED) + 1],
        loc="outside lower left",
        frameon=False,
        fontsize=9,
        ncols=1 if max(map(len, groups)) > 40 else 3,
    )
    verbatim_legend(legend)
    return figure


def _by_epoch(
    runs: Sequence[Sequence[Mapping[str, Any]]], split: str, name: str
) -> dict[int, list[float]]:
    """Values of a metric by epoch, of all runs that have it."""
    values: dict[int, list[float]] = {}
    for epoch in (epoch for epochs in runs for epoch in epochs):
        if name in epoch[split]:
            values.setdefault(epoch["epoch"], []).append(epoch[split][name])
    return values


def _panels(count: int, below: float = 0) -> tuple[Figure, Sequence[Axes]]:
    """Make a figure with `count` panels, and `below` inches for a legend."""
    from matplotlib.figure import Figure

    columns = min(CURVES_IN_A_ROW, count)
    rows = -(-count // columns)
    size = (4.8 * columns, 3.6 * rows + below)
    figure = Figure(figsize=size, dpi=144, layout="constrained")
    grid = [*figure.subplots(rows, columns, squeeze=False).ravel()]
    for axes in grid[count:]:
        axes.remove()
    return figure, grid[:count]


def _titled(name: str) -> str:
    return f"{name[0].upper()}{name[1:]}".replace("_", " ")


def _epoch_axes(axes: Axes, title: str, pad: float = 6) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set_title(
        in_picture(title), loc="left", fontsize=11, fontweight="bold", pad=pad, **VERBATIM
    )
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    plain_axes(axes)
