"""The pictures of a network's features, from arrays."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import jax
import numpy as np

from cnn_research.models.layer_outputs import Layer, TopActivations
from cnn_research.report.plots import shortened
from cnn_research.workflows.galleries.layout import Canvas, ratio

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INPUTS = 4
"""Slices of a kernel that are shown."""


TOP = 0.75
"""Inches above the first row of a canvas."""


def maps_figure(
    image: np.ndarray, label: str, chosen: Sequence[Layer], found: Sequence[np.ndarray]
) -> Figure:
    """An image, uint8 `[height, width, channels]`, and a row of maps for each layer.

    Args:
        image: the one that the maps are of.
        label: what it is.
        chosen: the layers.
        found: for each, `[map_height, map_width, units]`.
    """
    side, gap = 1.05, 0.28
    tall = side * ratio(image.shape, 2.0, 0.5)
    row = tall + gap
    columns = max(each.shape[2] for each in found)
    width = max(5.5, 0.2 + (side + 0.06) * columns)
    canvas = Canvas(
        width,
        TOP + row * (1 + len(chosen)) + 0.1,
        "Feature maps",
        "from the first convolution, below the image, to the last",
    )
    canvas.text(0.1, TOP, f"image: {label}")
    canvas.image(0.1, TOP + 0.18, side, tall, image)
    for at, (layer, each) in enumerate(zip(chosen, found, strict=True), start=1):
        y = TOP + at * row
        height, wide, units = layer.shape
        canvas.text(
            *(0.1, y),
            f"{layer.path}: {height}x{wide}, units 0 to {each.shape[2] - 1} of {units}",
        )
        for unit in range(each.shape[2]):
            x = 0.1 + unit * (side + 0.06)
            canvas.image(x, y + 0.18, side, tall, stretched(each[..., unit]))
    return canvas.figure


def stretched(values: np.ndarray) -> np.ndarray:
    """Values `[height, width]` as grey levels from 0, the least, to 255, the largest."""
    low, high = values.min(), values.max()
    return np.round(255 * (values - low) / max(high - low, 1e-12)).astype(np.uint8)


def layer_figure(
    layer: Layer,
    kernels: np.ndarray,
    images: np.ndarray,
    activations: TopActivations,
    label: Callable[[int], str],
) -> Figure:
    """A row for each unit: its filter, and the images that excite it most.

    Args:
        layer: a convolution.
        kernels: float32 `[height, width, inputs, units]`.
        images: uint8 `[examples, height, width, channels]`.
        activations: which of them, for each unit that is shown.
        label: gives the class of an image by its place.
    """
    colour = kernels.shape[2] == images.shape[3] == 3
    slices = 1 if colour else min(INPUTS, kernels.shape[2])
    side, gap = 1.05, 0.25
    tall = side * ratio(images.shape[1:], 2.0, 0.5)
    left = 0.65
    right = left + slices * (0.75 + 0.06) + 0.3
    row = tall + gap
    shown = activations.indices.shape[1]
    width = max(6.0, right + shown * (side + 0.06) + 0.1)
    height, wide, inputs = kernels.shape[:3]
    subtitle = f"{height}x{wide} over {inputs} input" + "s" * (inputs > 1)
    if not colour and slices < inputs:
        subtitle += f", of which the first {slices} are shown"
    canvas = Canvas(width, TOP + 0.2 + row * len(activations.indices) + 0.05, layer.path, subtitle)
    canvas.text(left, TOP, "filter", fontweight="bold")
    canvas.text(right, TOP, "images that excite it most", fontweight="bold")
    for unit, chosen in enumerate(activations.indices):
        y = TOP + 0.22 + unit * row
        canvas.text(0.1, y + 0.18, f"unit {unit}")
        for at, part in enumerate(filter_slices(kernels[..., unit], slices, colour)):
            high, broad = 0.75 * np.array(part.shape[:2]) / max(part.shape[:2])
            canvas.image(left + at * 0.81, y + 0.18, float(broad), float(high), part)
        for at, index in enumerate(chosen):
            x = right + at * (side + 0.06)
            canvas.text(x, y, shortened(label(int(index)), 16), fontsize=7.5)
            canvas.image(x, y + 0.18, side, tall, images[index])
            down, along = (activations.places[unit, at] + 0.5) / images.shape[1:3]
            canvas.cross(x + along * side, y + 0.18 + down * tall)
    return canvas.figure


def filter_slices(kernel: np.ndarray, slices: int, colour: bool) -> list[np.ndarray]:
    """A unit's kernel, `[height, width, inputs]`, as uint8 pictures in which zero is mid-grey."""
    shown = kernel if colour else kernel[..., :slices]
    pixels = 127.5 + 127.5 * shown / max(float(abs(shown).max()), 1e-12)
    pixels = np.round(pixels).astype(np.uint8)
    return [pixels] if colour else [pixels[..., at] for at in range(slices)]


def cams_figure(
    images: np.ndarray,
    cams: np.ndarray,
    labels: Sequence[str],
    said: Sequence[str],
    title: str,
    subtitle: str,
) -> Figure:
    """Images, each beside itself with its map laid over it.

    Args:
        images: uint8 `[shown, height, width, channels]`.
        cams: float32 `[shown, map_height, map_width]`.
        labels: what each image is.
        said: what the network says it is.
        title: of the figure.
        subtitle: a line.
    """
    side, gap = 1.45, 0.5
    tall = side * ratio(images.shape[1:], 2.0, 0.5)
    columns = min(4, len(images))
    rows = -(-len(images) // columns)
    pair = 2 * side + 0.3
    width = max(4.0, 0.1 + columns * pair)
    row = tall + gap
    canvas = Canvas(width, TOP + rows * row, title, subtitle)
    for at, (image, cam) in enumerate(zip(images, cams, strict=True)):
        x, y = 0.1 + at % columns * pair, TOP + at // columns * row
        canvas.text(x, y, f"true: {shortened(labels[at], 40)}")
        canvas.text(x, y + 0.15, shortened(said[at], 46))
        canvas.image(x, y + 0.33, side, tall, image)
        canvas.image(x + side + 0.04, y + 0.33, side, tall, overlaid(image, cam))
    return canvas.figure


def overlaid(image: np.ndarray, cam: np.ndarray) -> np.ndarray:
    """An image in grey, uint8 `[height, width, 3]`, under a map `[map_height, map_width]`."""
    from matplotlib import colormaps

    # A small image is enlarged, or the map would be as coarse as its pixels.
    factor = max(1, 128 // max(image.shape[:2]))
    grey = image.mean(axis=2).repeat(factor, axis=0).repeat(factor, axis=1)
    smooth = np.asarray(jax.image.resize(cam, grey.shape, "linear"))
    strength = smooth / max(float(smooth.max()), 1e-12)
    colour = 255 * colormaps["autumn_r"](strength)[..., :3]
    share = 0.75 * strength[..., None]
    return np.round((1 - share) * grey[..., None] + share * colour).astype(np.uint8)
