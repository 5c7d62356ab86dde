"""A gallery's folder and page, and its photographs."""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from PIL import Image, ImageOps
from PIL.Image import Resampling

from cnn_research.core import run_folder as folders
from cnn_research.core.config import flatten
from cnn_research.core.distributed import is_first_process
from cnn_research.core.errors import UsageError
from cnn_research.core.experiment import Experiment
from cnn_research.core.ranges import Range
from cnn_research.data.images import MAX_PIXELS, decode
from cnn_research.ops.filters import output_size
from cnn_research.report.html import MARKDOWN
from cnn_research.report.loggers import TensorBoard
from cnn_research.report.tensorboard import show_page
from cnn_research.workflows.page import Page, new_page

SAMPLES = ("china.jpg", "flower.jpg")
"""scikit-learn's sample photographs."""

Size = tuple[Annotated[int, Range(minimum=1)], Annotated[int, Range(minimum=1)]]


@contextlib.contextmanager
def gallery_page(experiment: Experiment, workdir: Path, title: str, **facts: Any) -> Iterator[Page]:
    """Open a gallery's page, in a folder with config.json, run.json and TensorBoard events.

    `facts` are JSON values for run.json. The folder of another experiment is rejected.
    """
    # All fields may differ from an earlier page's, as everything is drawn again.
    folders.check_same(experiment, workdir, tuple(flatten(experiment)))
    with folders.locked(workdir):
        with new_page(experiment, workdir, title) as page:
            yield page
        folders.write_metadata(experiment, workdir, finished=folders.now(), **facts)
        if is_first_process():
            events = TensorBoard().open(workdir, experiment, -1)
            folder = workdir / folders.REPORT_FOLDER
            pictures = {name: folder / f"{name}.png" for name in page.pictures}
            show_page(events, folder / MARKDOWN, pictures, 0)
            events.close(failed=False)
        print(f"TensorBoard: tensorboard --logdir {shlex.quote(str(workdir.parent))}")


def photographs(image: str, size: tuple[int, int] | None = None) -> dict[str, np.ndarray]:
    """Load a gallery's images by name, uint8 `[height, width, 3]` each; "" loads the samples.

    They are cropped and resized to `size` (height, width), if given.

    Raises:
        UserError: the file is not an image.
        UsageError: the size has too many pixels.
    """
    if size and size[0] * size[1] > MAX_PIXELS:
        raise UsageError(
            f"--size is {size[0]} {size[1]}: must be at most {MAX_PIXELS // 1_000_000} million "
            "pixels in all"
        )
    if image:
        images = {"image": decode(Path(image), None)}
    else:
        from sklearn.datasets import load_sample_image

        images = {Path(name).stem: load_sample_image(name) for name in SAMPLES}
    if size is None:
        return images
    return {
        name: np.asarray(ImageOps.fit(Image.fromarray(pixels), size[::-1], Resampling.BICUBIC))
        for name, pixels in images.items()
    }


def heading(image: str, name: str) -> str:
    """Heading of a photograph: the name of its file or sample."""
    return f"## {Path(image).name or name}"


def size_formula(size: int, kernel: int, padding: int, stride: int) -> str:
    """Format `output_size` as a formula with its numbers: 1 + (2P + I − K)/S."""
    places = output_size(size, kernel, padding, stride)
    exact = Fraction(2 * padding + size - kernel, stride) + 1
    floored = "" if exact == places else f"{float(exact):.2f}, floored: "
    return f"1 + (2·{padding} + {size} − {kernel})/{stride} = {floored}{places}"
