"""How the pictures of galleries are laid out: images in a grid, or at places in inches."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from cnn_research.report.plots import GREY, VERBATIM

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def _headed(width: float, height: float, title: str, subtitle: str, layout: Any = None) -> Figure:
    """A figure of so many inches with a title in bold at its top, and a subtitle below."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=144, layout=layout)
    left, below = 0.1 / width, 1 / height
    style: dict[str, Any] = {"va": "top", "linespacing": 1.45, **VERBATIM}
    figure.text(left, 1 - 0.12 * below, title, fontsize=13, fontweight="bold", **style)
    figure.text(left, 1 - 0.4 * below, subtitle, fontsize=9.5, color=GREY, **style)
    return figure


def ratio(shape: tuple[int, ...], largest: float = 2.5, smallest: float = 0.0) -> float:
    """Height by width of images `[height, width, ...]`, within bounds for their place."""
    return min(largest, max(smallest, shape[0] / shape[1]))


def grid(
    rows: int, columns: int, cell: tuple[float, float], title: str, subtitle: str = ""
) -> tuple[Figure, np.ndarray]:
    """A figure with a grid of empty places.

    Args:
        rows: how many.
        columns: how many.
        cell: width and height of a place, in inches.
        title: in bold, above everything.
        subtitle: below the title, perhaps of several lines.

    Returns:
        The figure, and its axes `[rows, columns]`.
    """
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    top = 0.22 * (1 + len(subtitle.splitlines())) + 0.2
    width, height = cell[0] * columns, cell[1] * rows + top
    room = ConstrainedLayoutEngine(h_pad=0.06, w_pad=0.06, rect=(0.0, 0.0, 1.0, 1 - top / height))
    figure = _headed(width, height, title, subtitle, room)
    axes = figure.subplots(rows, columns, squeeze=False)
    for each in axes.ravel():
        each.set_axis_off()
        each.set_anchor("N")  # what is spare of a place is for the note below
    return figure, axes


def show(axes: Axes, pixels: np.ndarray, title: str = "", note: str = "") -> None:
    """Puts an image into its place.

    Args:
        axes: the place.
        pixels: `[height, width, 3]`, or grey levels `[height, width]` from 0, black, to 255.
        title: above it.
        note: below it, in type of one width.
    """
    # Small images are to show their pixels, large ones not to flicker.
    smooth = "nearest" if max(pixels.shape[:2]) <= 256 else "auto"
    axes.imshow(pixels, cmap="gray", vmin=0, vmax=255, interpolation=smooth)
    axes.set_title(title, fontsize=10, **VERBATIM)
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


class Canvas:
    """A figure whose parts are placed in inches from its upper left corner."""

    def __init__(self, width: float, height: float, title: str, subtitle: str):
        self.figure = _headed(width, height, title, subtitle)
        self._axes = self.figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(height, 0))
        self._axes.set_axis_off()
        self._axes.set_autoscale_on(False)

    def image(self, x: float, y: float, width: float, height: float, pixels: np.ndarray) -> None:
        """Draws `[height, width, 3]` or, grey from 0 to 255, `[height, width]` or `[..., 1]`."""
        # Grey ones in colour too: their levels are then shown as they are, not stretched.
        self._axes.imshow(
            np.broadcast_to(np.atleast_3d(pixels), (*pixels.shape[:2], 3)),
            extent=(x, x + width, y + height, y),
            aspect="auto",
            interpolation="nearest" if max(pixels.shape[:2]) <= 96 else "auto",
        )

    def text(self, x: float, y: float, words: str, **how: Any) -> None:
        """Writes `words` below and to the right of a point."""
        how = {"fontsize": 8, "va": "top", **VERBATIM, **how}
        self._axes.text(x, y, words, **how)

    def cross(self, x: float, y: float) -> None:
        """Marks a point."""
        for width, colour in ((3.0, "white"), (1.2, "#D55E00")):
            self._axes.plot(x, y, "+", color=colour, markersize=8, markeredgewidth=width)
