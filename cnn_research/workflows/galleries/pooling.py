"""The pooling pyramid: photographs pooled repeatedly by maximum, mean and minimum."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

from cnn_research import ops
from cnn_research.core.config import register_config
from cnn_research.core.errors import UsageError
from cnn_research.core.experiment import Experiment, Result
from cnn_research.core.ranges import PositiveInt
from cnn_research.ops.filters import output_size
from cnn_research.report.markdown import markdown_table
from cnn_research.workflows.galleries.gallery import (
    Size,
    gallery_page,
    heading,
    photographs,
    size_formula,
)
from cnn_research.workflows.galleries.layout import grid, ratio, show

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WINDOW = 2

POOLS: dict[str, Callable[..., jax.Array]] = {
    "max": ops.max_pool,
    "average": ops.avg_pool,
    "min": ops.min_pool,
}


@register_config
@dataclasses.dataclass(frozen=True, kw_only=True)
class PoolingPyramid(Experiment):
    """Photographs pooled repeatedly in windows of 2x2 pixels with stride 2."""

    image: str = ""
    """Image file; by default, scikit-learn's two sample photographs."""
    size: Size = (446, 450)
    """Height and width to which the image is cropped and resized."""
    rounds: PositiveInt = 3
    """Number of successive pools."""

    def check(self) -> None:
        super().check()
        # Until one pixel is left of the shorter side.
        most = min(self.size).bit_length() - 1
        if self.rounds > most:
            raise UsageError(
                f"--rounds is {self.rounds}: an image of {self.size[0]}x{self.size[1]} can be "
                f"halved {most} times"
            )


def draw(experiment: PoolingPyramid, workdir: Path) -> Result:
    """Draw the pyramids into a folder; raise `UserError` if the image cannot be read."""
    images = photographs(experiment.image, experiment.size)
    sides: Sequence[int] = experiment.size
    rows = [("image", *map(str, sides))]
    for number in range(1, experiment.rounds + 1):
        rows.append((str(number), *(size_formula(side, WINDOW, 0, WINDOW) for side in sides)))
        sides = [output_size(side, WINDOW, stride=WINDOW) for side in sides]
    with gallery_page(experiment, workdir, "Pooling pyramid") as page:
        page.text(
            f"Windows of {WINDOW}x{WINDOW} pixels, stride {WINDOW}, no padding: "
            "O = 1 + (2P + I − K)/S, rounded down. If a size is odd, the last row or column is "
            "ignored."
        )
        page.text(markdown_table(("round", "height", "width"), rows))
        for name, pixels in images.items():
            page.text(heading(experiment.image, name))
            page.picture(
                f"pyramid_{name}",
                pyramid_figure(pixels, experiment.rounds),
                "The maximum keeps bright details, the minimum dark ones, and the mean blurs.",
            )
    return Result(workdir, 0, {})


def pyramid(pixels: np.ndarray, pool: Callable[..., jax.Array], rounds: int) -> list[np.ndarray]:
    """Pool an image, `[height, width, channels]`, repeatedly; return all levels, float32."""
    levels = [jnp.asarray(pixels, jnp.float32)[None]]
    for _ in range(rounds):
        levels.append(pool(levels[-1], WINDOW))
    return [np.asarray(level[0]) for level in levels]


def pyramid_figure(pixels: np.ndarray, rounds: int) -> Figure:
    """Draw one row per kind of pool and one column per round, all at one size."""
    cell = (2.6, 2.6 * ratio(pixels.shape) + 0.3)
    figure, axes = grid(
        len(POOLS),
        rounds + 1,
        cell,
        f"Pooling {WINDOW}x{WINDOW}, stride {WINDOW}",
        "(height, width) in pixels; every image is drawn at the same size",
    )
    for row, (name, pool) in enumerate(POOLS.items()):
        for column, level in enumerate(pyramid(pixels, pool, rounds)):
            shown = np.clip(np.round(level), 0, 255).astype(np.uint8)
            show(axes[row, column], shown, f"{name if column else 'image'}  {level.shape[:2]}")
    return figure
