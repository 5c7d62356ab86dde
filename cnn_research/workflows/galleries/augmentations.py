"""A gallery of augmentations: each change on its own, and mixtures of two images."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import jax
import jax.numpy as jnp
import numpy as np

from cnn_research.core.config import register_config
from cnn_research.core.errors import UsageError
from cnn_research.core.experiment import Experiment, Result
from cnn_research.core.random import example_keys, stream_key
from cnn_research.core.ranges import Range, Seed
from cnn_research.data.augmentation.config import Augmentation
from cnn_research.workflows.galleries.gallery import Size, gallery_page, heading, photographs
from cnn_research.workflows.galleries.layout import grid, label_row, ratio, show

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PLACING = (
    *("mirror", "flip", "crop", "zoom", "rotation"),
    *("left", "right", "up", "down", "shift"),
)
FIGURE_12 = {
    "rotation": "rotation",
    "flip": "vertical mirror",
    "mirror": "horizontal mirror",
    "zoom": "zoom",
    "left": "shifted to the left",
    "right": "shifted to the right",
}
"""The painters paper's augmentations, in its order."""
OUTSIDE = {"black": "black", "edge": "the edge pixels", "reflect": "the image's reflection"}
"""Description of each `Augmentation.fill`."""
RANGES = {
    "crop": "{0:.0%} to {1:.0%} of the area",
    "zoom": "{0:g} to {1:g}",
    "rotation": "−{0:g}° to {0:g}°",
    **dict.fromkeys(("left", "right"), "up to {0:.0%} of the width"),
    **dict.fromkeys(("up", "down"), "up to {0:.0%} of the height"),
    "shift": "up to {0} pixels in each direction",
    "rand_augment": "{0} of 14 changes",
    **dict.fromkeys(("brightness", "contrast", "saturation"), "factor 1 ± {0:g}"),
    "cutout": "{0}x{0} pixels",
    "erasing": "a box, with probability {0:g}",
}
"""Format of a change's value."""
Rows = dict[str, list[tuple[np.ndarray, str]]]
"""Images by the label of their row, each with a title, or ""."""


@register_config
@dataclasses.dataclass(frozen=True, kw_only=True)
class Augmentations(Experiment):
    """Photographs with each change of an augmentation on its own, as used in training."""

    image: str = ""
    """Image file; by default, scikit-learn's two sample photographs."""
    size: Size = (244, 244)
    """Height and width to which the image is cropped and resized."""
    draws: Annotated[int, Range(minimum=1, maximum=20)] = 6
    """Number of random draws of each change."""
    seed: Seed = 0
    """Seed of the changes."""
    augmentation: Augmentation = Augmentation(
        mirror=True,
        flip=True,
        crop=(0.25, 1.0),
        zoom=(0.75, 1.5),
        rotation=30,
        left=0.25,
        right=0.25,
        up=0.25,
        down=0.25,
        shift=24,
        rand_augment=2,
        brightness=0.5,
        contrast=0.5,
        saturation=0.9,
        cutout=80,
        erasing=1.0,
        erase_fill="noise",
        mixup=1.0,
        cutmix=1.0,
    )
    """The changes to show, with their strengths."""

    def check(self) -> None:
        super().check()
        self.augmentation.check()
        if self.augmentation.size:
            raise UsageError(
                "--augmentation.size cannot be used here, because each change is shown beside the "
                "original image: use --size"
            )
        if not (self.augmentation.changes or self.augmentation.mixes):
            raise UsageError("--augmentation has all changes off: turn one on to show it")


def draw(experiment: Augmentations, workdir: Path) -> Result:
    """Draw the pictures into a folder; raise `UserError` if the image cannot be read."""
    how = experiment.augmentation
    photos = photographs(experiment.image, experiment.size)
    others = list(photos.values())[1:] or [photographs("", experiment.size)["flower"]]
    others.append(next(iter(photos.values())))
    with gallery_page(experiment, workdir, "Augmentations") as page:
        page.text(
            "Several random draws of each change, as used in training. Images are padded with "
            f"{OUTSIDE[how.fill]}; erased boxes are filled with {how.erase_fill}; RandAugment's "
            f"magnitude is {how.magnitude:g} of 30."
        )
        for (name, pixels), other in zip(photos.items(), others):
            page.text(heading(experiment.image, name))
            changed = alone(how, pixels, experiment.draws, experiment.seed)
            if set(FIGURE_12) <= set(changed):
                page.picture(
                    f"figure_12_{name}",
                    figure_12(pixels, changed, how),
                    "As in the painters paper: the image, and six copies, each augmented once.",
                )
            places: Rows = {}
            colours: Rows = {}
            for change, images in changed.items():
                rows = places if change in PLACING else colours
                rows[described(how, change)] = [(image, "") for image in images]
            mixed = mixtures(how, pixels, other, experiment.draws, experiment.seed)
            one = "One change per row."
            shares = "The numbers are the weights of the first image's label."
            for kind, rows, title, caption in (
                ("places", places, "Geometric changes", one),
                ("pixels", colours, "Changes of pixel values", one),
                ("mixed", mixed, "Two images and their labels", shares),
            ):
                if rows:
                    page.picture(f"{kind}_{name}", rows_figure(pixels, rows, title), caption)
    return Result(workdir, 0, {})


# What is shown -----------------------------------------------------------------------------------


def alone(how: Augmentation, pixels: np.ndarray, draws: int, seed: int) -> dict[str, np.ndarray]:
    """Apply each change on its own: uint8 `[draws, height, width, 3]` by the change's name."""
    how = dataclasses.replace(how, choose="copies", mixup=0.0, cutmix=0.0)
    if not how.changes:
        return {}
    images = jnp.broadcast_to(jnp.asarray(pixels), (draws, *pixels.shape))
    change = jax.jit(how)
    return {
        name: np.asarray(change(_keys(draws, seed), images, jnp.full(draws, copy)))
        for copy, name in enumerate(how.changes, start=1)
    }


def mixtures(
    how: Augmentation, pixels: np.ndarray, other: np.ndarray, draws: int, seed: int
) -> Rows:
    """Mix two images; the titles are the weights of the first one's label."""
    images, others = (
        jnp.broadcast_to(jnp.asarray(image), (draws, *image.shape)) for image in (pixels, other)
    )
    rows = {}
    for name, words in (("mixup", "mixup"), ("cutmix", "CutMix")):
        alpha = getattr(how, name)
        if alpha:
            one = Augmentation(**{name: alpha})
            mixed, shares = jax.jit(one.mixed)(_keys(draws, seed), images, others)
            rows[f"{words}, Beta({alpha:g}, {alpha:g})"] = [
                (np.asarray(image), f"{share:.2f}") for image, share in zip(mixed, shares)
            ]
    return rows


def _keys(draws: int, seed: int) -> jax.Array:
    """Keys of the first training example in the first epochs."""
    epochs = jnp.arange(draws, dtype=jnp.uint32)
    return example_keys(stream_key(seed, "augmentation"), epochs, jnp.zeros_like(epochs))


def described(how: Augmentation, name: str) -> str:
    """Describe a change with its range."""
    value = getattr(how, name)
    if name not in RANGES:
        return name
    return f"{name}: " + RANGES[name].format(*(value if isinstance(value, tuple) else (value,)))


# Pictures ----------------------------------------------------------------------------------------


def rows_figure(pixels: np.ndarray, rows: Rows, title: str) -> Figure:
    """Draw one row per label: the image, and the changed images."""
    columns = 1 + max(len(shown) for shown in rows.values())
    above = "\n" if any(word for row in rows.values() for _, word in row) else ""
    cell = (1.5, 1.5 * ratio(pixels.shape) + (0.5 if above else 0.3))
    figure, axes = grid(len(rows), columns, cell, title, "The first column is the original image.")
    for places, (label, row) in zip(axes, rows.items()):
        show(places[0], pixels)
        for place, (image, word) in zip(places[1:], row):
            show(place, image, f"{above}{word}" or " ")
        label_row(places[0], label + above)
    return figure


def figure_12(pixels: np.ndarray, rows: Mapping[str, np.ndarray], how: Augmentation) -> Figure:
    """The image, and for each of the painters paper's augmentations the draw that differs most."""
    cell = (2.2, 2.2 * ratio(pixels.shape) + 0.3)
    title = "The painters paper, figure 12: one augmentation for each copy"
    figure, axes = grid(2, 4, cell, title, f"Outside the image: {OUTSIDE[how.fill]}.")
    places = axes.ravel()
    show(places[0], pixels, "image")
    for place, (name, words) in zip(places[1:], FIGURE_12.items()):
        change = np.abs(rows[name].astype(int) - pixels).mean(axis=(1, 2, 3))
        show(place, rows[name][change.argmax()], words)
    return figure
