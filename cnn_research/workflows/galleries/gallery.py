"""What galleries share: their pages of pictures, and the photographs that they are drawn on."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cnn_research.core import run_folder as folders
from cnn_research.core.config import flatten, to_dict
from cnn_research.core.experiment import Experiment
from cnn_research.data.images import decode
from cnn_research.report.html import MARKDOWN, write_page
from cnn_research.report.plots import GREY, VERBATIM
from cnn_research.report.writers import MetricsWriter

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

REPORT_FOLDER = "report"
SAMPLES = ("china.jpg", "flower.jpg")
"""The photographs that ship with scikit-learn."""


@dataclasses.dataclass
class Page:
    """A page of pictures that is being written.

    Attributes:
        folder: where its pictures go.
        parts: its Markdown so far.
        pictures: the names of its pictures, without the ending.
    """

    folder: Path
    parts: list[str]
    pictures: list[str] = dataclasses.field(default_factory=list)

    def text(self, markdown: str) -> None:
        """Adds a paragraph, a heading or a table."""
        self.parts.append(markdown)

    def picture(self, name: str, figure: Figure, caption: str) -> None:
        """Adds a picture as `name.png`, with its caption below."""
        figure.savefig(self.folder / f"{name}.png")
        self.pictures.append(name)
        self.parts.append(f"![{name.replace('_', ' ')}]({name}.png)\n\n{caption}")


@contextlib.contextmanager
def new_page(experiment: Experiment, workdir: Path, title: str, **facts: Any) -> Iterator[Page]:
    """The page of a gallery's folder, to be filled; it replaces an earlier one when it is whole.

    Writes `report/` with its pictures, config.json and run.json, and shows the same in TensorBoard.

    Args:
        experiment: what is drawn.
        workdir: where; another experiment's folder is refused.
        title: the page's heading.
        **facts: JSON values for run.json.
    """
    # Drawn anew from any fields: all of them may differ from an earlier page's.
    folders.check_same(experiment, workdir, tuple(flatten(experiment)))
    with folders.locked(workdir):
        with folders.atomic_directory(workdir / REPORT_FOLDER) as partial:
            page = Page(partial, [f"# {title}"])
            yield page
            written = write_page(partial, page.parts, to_dict(experiment))
        folders.write_metadata(experiment, workdir, **facts)
        report = workdir / REPORT_FOLDER / written.name
        with MetricsWriter(workdir, restored_step=None) as writer:
            for name in page.pictures:
                writer.picture(name, report.with_name(f"{name}.png"), 0)
            writer.text("report", report.with_name(MARKDOWN).read_text(encoding="utf-8"), 0)
        print(f"{len(page.pictures)} pictures: {report}")
        print(f"Look at them: tensorboard --logdir {workdir.parent}")


def photographs(image: str) -> dict[str, np.ndarray]:
    """The images that a gallery is drawn on, by a name for files: uint8 `[height, width, 3]` each.

    Args:
        image: a file, rotated as EXIF says, in RGB at its own size; or "" for the samples.

    Raises:
        UserError: the file is not an image.
    """
    if image:
        return {"image": decode(Path(image), None)}
    from sklearn.datasets import load_sample_image

    return {Path(name).stem: load_sample_image(name) for name in SAMPLES}


# Parts of pictures -------------------------------------------------------------------------------


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
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    lines = 1 + len(subtitle.splitlines())
    top = 0.22 * lines + 0.2
    width, height = cell[0] * columns, cell[1] * rows + top
    room = ConstrainedLayoutEngine(h_pad=0.06, w_pad=0.06, rect=(0.0, 0.0, 1.0, 1 - top / height))
    figure = Figure(figsize=(width, height), dpi=144, layout=room)
    figure.text(
        *(0.1 / width, 1 - 0.12 / height, title),
        fontsize=13,
        fontweight="bold",
        va="top",
        **VERBATIM,
    )
    figure.text(
        *(0.1 / width, 1 - 0.4 / height, subtitle),
        fontsize=9.5,
        color=GREY,
        va="top",
        linespacing=1.45,
        **VERBATIM,
    )
    axes = figure.subplots(rows, columns, squeeze=False)
    for each in axes.ravel():
        each.set_axis_off()
        each.set_anchor("N")  # what is spare of a place is for the note below
    return figure, axes


def show(axes: Axes, pixels: np.ndarray, title: str = "", note: str = "", **how: Any) -> None:
    """Puts an image into its place.

    Args:
        axes: the place.
        pixels: `[height, width, 3]`, or a map `[height, width]`: grey, 0 is black and 255 white
            unless `how` says otherwise.
        title: above it.
        note: below it, in type of one width.
        **how: for matplotlib's `imshow`.
    """
    if pixels.ndim == 2:
        how = {"cmap": "gray", "vmin": 0, "vmax": 255, **how}
    # Small images are to show their pixels, large ones not to flicker.
    smooth = "nearest" if max(pixels.shape[:2]) <= 256 else "auto"
    axes.imshow(pixels, **{"interpolation": smooth, **how})
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
