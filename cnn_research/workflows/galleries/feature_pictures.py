"""Figures of a network's features, from arrays."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import jax
import numpy as np

from cnn_research.models.layer_outputs import Layer, TopActivations
from cnn_research.report.names import shortened
from cnn_research.workflows.galleries.layout import grid, label_row, ratio, show

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INPUTS = 4
"""Maximum number of slices shown of a kernel."""
SIDE = 1.1
"""Width of an image's cell in inches."""
SMALL = 8
"""Font size above an image in points."""


def _cell(shape: tuple[int, ...], lines: int = 1) -> tuple[float, float]:
    """Width and height of the cell of an image `[height, width, ...]` below lines of text."""
    return SIDE, SIDE * ratio(shape, 2.0, 0.5) + 0.12 + 0.14 * lines


def maps_figure(
    image: np.ndarray, label: str, chosen: Sequence[Layer], maps: Sequence[np.ndarray]
) -> Figure:
    """Draw an image and one row of maps for each of the `chosen` layers.

    The image is uint8 `[height, width, channels]`; `maps` are `[map_height, map_width, units]`.
    """
    columns = max(each.shape[2] for each in maps)
    subtitle = "from the first convolution, at the top, to the last"
    cell = _cell(image.shape)
    figure, axes = grid(1 + len(chosen), columns, cell, "Feature maps", subtitle)
    show(axes[0, 0], image, " ")
    label_row(axes[0, 0], f"image: {label}", SMALL)
    for row, layer, each in zip(axes[1:], chosen, maps, strict=True):
        height, width, units = layer.shape
        for place, values in zip(row, np.moveaxis(each, 2, 0), strict=False):
            show(place, stretched(values), " ")
        words = f"{layer.path}: {height}x{width}, units 0 to {each.shape[2] - 1} of {units}"
        label_row(row[0], words, SMALL)
    return figure


def stretched(values: np.ndarray) -> np.ndarray:
    """Scale values `[height, width]` to grey levels from 0 (minimum) to 255 (maximum)."""
    low, high = values.min(), values.max()
    return np.round(255 * (values - low) / max(high - low, 1e-12)).astype(np.uint8)


def layer_figure(
    layer: Layer,
    kernels: np.ndarray,
    images: np.ndarray,
    activations: TopActivations,
    label: Callable[[int], str],
) -> Figure:
    """Draw one row per unit of a convolution: its filter, and its top-activating images.

    Kernels are float32 `[height, width, inputs, units]`, images uint8
    `[examples, height, width, channels]`; `label` returns the class of an image by its index.
    """
    height, width, inputs, _ = kernels.shape
    colour = inputs == images.shape[3] == 3
    slices = 1 if colour else min(INPUTS, inputs)
    subtitle = f"Filters of {height}x{width} over {inputs} input{'s' * (inputs > 1)}"
    if not colour and slices < inputs:
        subtitle += f", of which the first {slices} are shown"
    units, shown = activations.indices.shape
    figure, axes = grid(
        *(units, slices + shown, _cell(images.shape[1:]), layer.path),
        f"{subtitle}; beside each, the images that activate it most.",
    )
    for unit, row in enumerate(axes):
        for place, part in zip(row, filter_slices(kernels[..., unit], slices, colour)):
            show(place, part, " ")
        label_row(row[0], f"unit {unit}", SMALL)
        strongest = zip(activations.indices[unit], activations.places[unit], strict=True)
        for place, (index, (down, along)) in zip(row[slices:], strongest, strict=True):
            show(place, images[index], shortened(label(int(index)), 16), size=SMALL)
            for thick, shade in ((3.0, "white"), (1.2, "#D55E00")):
                place.plot(along, down, "+", color=shade, markersize=8, markeredgewidth=thick)
    return figure


def filter_slices(kernel: np.ndarray, slices: int, colour: bool) -> list[np.ndarray]:
    """Convert a unit's kernel, `[height, width, inputs]`, to uint8 images with zero as mid-grey."""
    shown = kernel if colour else kernel[..., :slices]
    pixels = 127.5 + 127.5 * shown / max(float(abs(shown).max()), 1e-12)
    pixels = np.round(pixels).astype(np.uint8)
    return [pixels] if colour else [*np.moveaxis(pixels, 2, 0)]


def cams_figure(
    images: np.ndarray,
    cams: np.ndarray,
    labels: Sequence[str],
    answers: Sequence[str],
    title: str,
    subtitle: str,
) -> Figure:
    """Draw images beside copies with the class activation map as an overlay.

    Images are uint8 `[shown, height, width, channels]`, maps float32
    `[shown, map_height, map_width]`; each image has its label and the network's prediction.
    """
    pairs = min(4, len(images))
    cell = _cell(images.shape[1:], lines=2)
    figure, axes = grid(-(-len(images) // pairs), 2 * pairs, cell, title, subtitle)
    for (left, right), *each in zip(axes.reshape(-1, 2), images, cams, labels, answers):
        image, cam, label, answer = each
        show(left, image)
        show(right, overlaid(image, cam), " \n ", size=SMALL)
        label_row(left, f"true: {shortened(label, 30)}\n{shortened(answer, 36)}", SMALL)
    return figure


def overlaid(image: np.ndarray, cam: np.ndarray) -> np.ndarray:
    """Overlay a map `[map_height, map_width]` on the grey image: uint8 `[height, width, 3]`."""
    from matplotlib import colormaps

    # Small images are enlarged, so that the map is smooth.
    factor = max(1, 128 // max(image.shape[:2]))
    grey = image.mean(axis=2).repeat(factor, axis=0).repeat(factor, axis=1)
    smooth = np.asarray(jax.image.resize(cam, grey.shape, "linear"))
    strength = smooth / max(float(smooth.max()), 1e-12)
    colour = 255 * colormaps["autumn_r"](strength)[..., :3]
    share = 0.75 * strength[..., None]
    return np.round((1 - share) * grey[..., None] + share * colour).astype(np.uint8)
