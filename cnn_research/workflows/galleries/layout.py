"""Layout of gallery figures: a grid of images below a title."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from cnn_research.report.plots import GREY, VERBATIM, blank_grid

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NARROWEST = 5.5
"""Minimum width in inches, for the title."""


def ratio(shape: tuple[int, ...], largest: float = 2.5, smallest: float = 0.0) -> float:
    """Height by width of images `[height, width, ...]`, within bounds."""
    return min(largest, max(smallest, shape[0] / shape[1]))


def grid(
    rows: int, columns: int, cell: tuple[float, float], title: str, subtitle: str
) -> tuple[Figure, np.ndarray]:
    """Create a titled figure with axes `[rows, columns]`, each of `cell` (width, height) inches."""
    top = 0.22 * (1 + len(subtitle.splitlines())) + 0.2
    width, height = max(NARROWEST, cell[0] * columns), cell[1] * rows + top
    figure, axes = blank_grid(rows, columns, (width, height), padding=0.06)
    figure.get_layout_engine().set(w_pad=0.06, rect=(0.0, 0.0, 1.0, 1 - top / height))  # type: ignore
    style: dict[str, Any] = {"va": "top", "linespacing": 1.45, **VERBATIM}
    figure.text(0.1 / width, 1 - 0.12 / height, title, fontsize=13, fontweight="bold", **style)
    figure.text(0.1 / width, 1 - 0.4 / height, subtitle, fontsize=9.5, color=GREY, **style)
    for each in axes.ravel():
        each.set_anchor("N")  # leaves spare space for the note below
    return figure, axes


def show(axes: Axes, pixels: np.ndarray, title: str = "", note: str = "", size: float = 10) -> None:
    """Show an image, 0 to 255: `[height, width, 3]`, or grey without or with 1 channel.

    The title, of `size` points, is above it; the note, in a monospaced font, is below.
    """
    # Shows the pixels of small images, and avoids aliasing of large ones.
    smooth = "nearest" if max(pixels.shape[:2]) <= 256 else "auto"
    axes.imshow(pixels, cmap="gray", vmin=0, vmax=255, interpolation=smooth)
    axes.set_title(title, fontsize=size, **VERBATIM)
    if note:
        axes.text(
            *(0.5, -0.04, note),
            transform=axes.transAxes,
            ha="center",
            va="top",
            family="DejaVu Sans Mono",
            fontsize=8,
            linespacing=1.2,
            **VERBATIM,
        )


def label_row(first: Axes, label: str, size: float = 10) -> None:
    """Write a label above a row's first cell, extending over its neighbours.

    A title would widen its column. The neighbours need titles, possibly blank, to leave space.
    """
    first.annotate(
        label,
        *((0, 1), (0, 5)),
        xycoords="axes fraction",
        textcoords="offset points",
        fontsize=size,
        **VERBATIM,
    ).set_in_layout(False)
