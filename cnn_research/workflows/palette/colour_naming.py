"""Name the colours of an image's pixels: the last round's prediction for the crop around each.

`--experiment=colour_names --mode=predict --input=FILE_OR_FOLDER_OR_GLOB`
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from cnn_research.core import run_folder as folders
from cnn_research.core.errors import UserError
from cnn_research.core.experiment import Result
from cnn_research.data.images import BadImage, decode, printable, resized
from cnn_research.inference.predict import FOLDER, image_files, stems
from cnn_research.ops.batching import apply_in_batches
from cnn_research.report.plots import GREY, blank_grid, verbatim_legend
from cnn_research.train.trained import TrainedModel
from cnn_research.workflows.palette.purification import Purification, last_round

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LONGEST = 240
"""Longer sides are first reduced to this number of pixels."""
MOST_CROPS = 4096
"""Approximate maximum number of crops; in a large image they are several pixels apart."""


def name_pixels(experiment: Purification, workdir: Path, source: str) -> Result:
    """Name the pixels of all images of `source`, and write pictures to `predictions/`.

    `predictions.jsonl` has the share of each name. Raises `UserError` if the rounds are not
    complete, or there is no image.
    """
    model = TrainedModel.load(last_round(experiment, workdir))
    batch_size = model.experiment.evaluation.batch_size
    (head,) = model.experiment.task.heads
    names = model.class_names[head]
    forward = jax.jit(model.forward())

    done = 0
    with folders.locked(workdir), folders.atomic_directory(workdir / FOLDER) as partial:
        with (partial / "predictions.jsonl").open("w", encoding="utf-8") as lines:
            files = image_files(source)
            for file, stem in zip(files, stems(files), strict=True):
                try:
                    image = small(decode(file, None), LONGEST)
                except BadImage as error:
                    print(f"skipped: {error}")
                    continue
                crops, (rows, columns) = crops_around(image, model.image_shape[:2])
                outputs = apply_in_batches(forward, crops, batch_size)
                labels = outputs.argmax(axis=1).reshape(rows, columns)
                shares = np.bincount(labels.ravel(), minlength=len(names)) / labels.size
                by_name = dict(zip(names, shares.round(4).tolist(), strict=True))
                row = {"file": printable(file), "shares": by_name}
                lines.write(json.dumps(row, ensure_ascii=False) + "\n")
                picture = named_pixels_plot(image, labels, names)
                picture.savefig(partial / f"{stem}.png")
                largest = ", ".join(f"{names[i]} {shares[i]:.0%}" for i in np.argsort(-shares)[:3])
                print(f"{printable(file.name)}: {largest}")
                done += 1
        if not done:
            raise UserError(f"{source}: no image could be read")
    print(f"{done:,} images: {workdir / FOLDER}")
    return Result(workdir, int(model.state.step), {})


def small(image: np.ndarray, longest: int) -> np.ndarray:
    """Reduce an image, uint8 `[height, width, 3]`, to at most `longest` pixels per side."""
    height, width = image.shape[:2]
    scale = min(1.0, longest / max(height, width))
    return resized(image, (max(1, round(height * scale)), max(1, round(width * scale))))


def crops_around(image: np.ndarray, window: tuple[int, int]) -> tuple[np.ndarray, tuple[int, int]]:
    """Crop windows centred on a grid of pixels; also return the grid's rows and columns.

    Maps uint8 `[height, width, 3]`, reflected at the border, to uint8
    `[rows * columns, *window, 3]`, at most about `MOST_CROPS`.
    """
    height, width, _ = image.shape
    step = max(1, int(np.ceil(np.sqrt(height * width / MOST_CROPS))))
    before = [side // 2 for side in window]
    pads = [(b, side - 1 - b) for b, side in zip(before, window, strict=True)]
    wide = np.pad(image, [*pads, (0, 0)], mode="symmetric")
    crops = np.lib.stride_tricks.sliding_window_view(wide, window, axis=(0, 1))
    crops = crops[step // 2 :: step, step // 2 :: step]
    rows, columns = crops.shape[:2]
    crops = np.moveaxis(crops, 2, -1).reshape(-1, *window, 3)
    return np.ascontiguousarray(crops), (rows, columns)


TERMS = {
    **{"black": "#111111", "blue": "#1f4ee0", "brown": "#7a4a21", "green": "#1f9e3a"},
    **{"grey": "#8c8c8c", "gray": "#8c8c8c", "orange": "#ff8a1f", "pink": "#ff8fc2"},
    **{"purple": "#7d2fb0", "red": "#d9182b", "white": "#f7f7f7", "yellow": "#f7dc1f"},
}
"""Display colours of the basic colour terms."""


def named_pixels_plot(image: np.ndarray, labels: np.ndarray, names: Sequence[str]) -> Figure:
    """Draw an image, uint8 `[height, width, 3]`, beside a map of its colour names.

    Labels are int `[rows, columns]`, on a grid over the image. Basic colour terms are drawn in
    their colours, other names in arbitrary ones.
    """
    from matplotlib import colormaps
    from matplotlib.colors import to_rgb
    from matplotlib.patches import Patch

    other = colormaps["tab20"]
    palette = np.array(
        [
            to_rgb(TERMS[name.lower()]) if name.lower() in TERMS else other(index % 20)[:3]
            for index, name in enumerate(names)
        ]
    )
    height, width = image.shape[:2]
    figure, ((picture, painted),) = blank_grid(1, 2, (9, 1 + 4 * min(2.0, height / width)))
    picture.imshow(image)
    painted.imshow(palette[labels], interpolation="nearest", extent=(0, width, height, 0))
    shares = np.bincount(labels.ravel(), minlength=len(names)) / labels.size
    handles = [
        Patch(facecolor=palette[i], edgecolor=GREY, label=f"{names[i]} {shares[i]:.0%}")
        for i in np.argsort(-shares, kind="stable")
        if shares[i] >= 0.005
    ]
    below: dict[str, Any] = {"loc": "outside lower center", "ncols": 6}
    verbatim_legend(figure.legend(handles=handles, **below, frameon=False, fontsize=8))
    return figure
