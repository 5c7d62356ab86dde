"""The filter gallery: what a kernel does to a photograph, and to a signal."""

from __future__ import annotations

import dataclasses
import math
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cnn_research.core.config import did_you_mean, register_config
from cnn_research.core.errors import UsageError
from cnn_research.core.experiment import Experiment, Result
from cnn_research.core.ranges import NonNegativeInt, PositiveInt
from cnn_research.data.images import MAX_PIXELS
from cnn_research.ops.filters import (
    KERNELS,
    Border,
    Kernel,
    Operation,
    filter_image,
    filter_signal,
    gaussian,
)
from cnn_research.workflows.galleries.gallery import (
    gallery_page,
    heading,
    photographs,
    size_formula,
)
from cnn_research.workflows.galleries.layout import grid, ratio, show
from cnn_research.workflows.page import Page

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ORDER: dict[Operation, str] = {
    "correlation": "the kernel as it is written",
    "convolution": "the kernel turned by 180 degrees",
}
STRONG = 0.998
"""The share of a signed result that is drawn between black and white; the rest is one of them."""
LARGEST_WRITTEN = 7
"""Rows of a kernel whose numbers a picture shows."""
SMALLEST_WITH_DETAIL = 128
"""Pixels of the shorter side."""


@register_config
@dataclasses.dataclass(frozen=True, kw_only=True)
class Filters(Experiment):
    """Photographs filtered with kernels; their channels; a signal filtered in one dimension."""

    image: str = ""
    """An image file; by default, scikit-learn's two sample photographs."""
    kernel: str = ""
    """One kernel: a name (identity, sharpen, mean_blur, gaussian_blur, laplacian, sobel_x,
    sobel_y) or its numbers, row by row: "0 -1 0; -1 5 -1; 0 -1 0", fractions as 1/9. The default
    shows all that have names."""
    stride: PositiveInt = 1
    """Pixels from one place of the kernel to the next."""
    padding: NonNegativeInt = 1
    """Pixels added at each side."""
    border: Border = "zeros"
    """Values of those pixels: zeros, or the outermost pixels, repeated."""
    operation: Operation = "correlation"
    """Correlation takes the kernel as it is written, as deep learning does; convolution, the
    mathematical one, turns it by 180 degrees."""

    def check(self) -> None:
        super().check()
        if self.kernel:
            parse_kernel(self.kernel)

    def kernels(self) -> dict[str, Kernel]:
        if not self.kernel:
            return {_title(name): kernel for name, kernel in KERNELS.items()}
        title = _title(self.kernel) if self.kernel in KERNELS else "Given kernel"
        return {title: parse_kernel(self.kernel)}


def _title(name: str) -> str:
    return name.replace("_", " ").capitalize()


def parse_kernel(text: str) -> Kernel:
    """Kernel of that name, or of these numbers.

    Rows are divided by `;` (9 numbers without it make 3 rows), numbers by spaces or commas.

    Raises:
        UsageError: neither a name nor a square of numbers.
    """
    if text in KERNELS:
        return KERNELS[text]
    if not any(character.isdigit() for character in text):
        raise UsageError(
            f"--kernel: no kernel is named '{text}'{did_you_mean(text, list(KERNELS))}; there are "
            f"{', '.join(KERNELS)}, or give its numbers"
        )
    rows = [row.replace(",", " ").split() for row in text.strip(" ;").split(";")]
    try:
        numbers = np.array([[float(Fraction(word)) for word in row] for row in rows])
        side = math.isqrt(numbers.size)
        if len(rows) not in (1, side):
            raise ValueError
        return tuple(map(tuple, numbers.reshape(side, side).tolist()))
    except (ValueError, ZeroDivisionError, OverflowError):
        raise UsageError(
            f"--kernel '{text}' is not a square of numbers: give its rows, as in "
            "'0 -1 0; -1 5 -1; 0 -1 0'"
        ) from None


def draw(experiment: Filters, workdir: Path) -> Result:
    """Draw the gallery into a folder.

    Raises `UserError` if the image cannot be read, or the kernel is larger than it.
    """
    images, kernels = photographs(experiment.image), experiment.kernels()
    for pixels in images.values():
        for kernel in kernels.values():
            _check_size(experiment, pixels, len(kernel))
    with gallery_page(experiment, workdir, "Filters") as page:
        page.text(
            f"{experiment.operation.capitalize()}: {ORDER[experiment.operation]}. Each channel is "
            "filtered by itself. Where a kernel's numbers sum to zero the result has no "
            "brightness of its own: it is drawn with zero as mid-grey, its strongest two in a "
            "thousand cut; other results are cut to 0..255. The padding is "
            f"{'zeros' if experiment.border == 'zeros' else 'the outermost pixels, repeated'}."
        )
        for name, pixels in images.items():
            page.text(heading(experiment.image, name))
            _filters(page, experiment, name, pixels, kernels)
            page.picture(
                f"channels_{name}",
                channels_figure(pixels),
                "The three channels, each as grey levels: bright is much of that colour.",
            )
        page.text("## In one dimension")
        page.picture(
            "signal",
            signal_figure(experiment.operation),
            "Above: convolution puts a copy of the kernel in place of each impulse, correlation "
            "a mirrored one. Below: a moving average, which is a kernel of equal weights, and a "
            "Gaussian kernel over the same noise.",
        )
    return Result(workdir, 0, {})


def _filters(
    page: Page, experiment: Filters, name: str, pixels: np.ndarray, kernels: dict[str, Kernel]
) -> None:
    results = {}
    for title, kernel in kernels.items():
        filtered = filter_image(
            pixels[None],
            np.array(kernel),
            stride=experiment.stride,
            padding=experiment.padding,
            border=experiment.border,
            operation=experiment.operation,
        )
        results[title] = np.asarray(filtered[0])
    sizes = "\n".join(size_lines(experiment, pixels, len(next(iter(kernels.values())))))
    title = f"{experiment.operation.capitalize()}: {ORDER[experiment.operation]}"
    figure = filters_figure(pixels, kernels, results, title, sizes)
    page.picture(f"filters_{name}", figure, "Output size: " + sizes.replace("\n", "; ") + ".")
    if min(pixels.shape[:2]) >= SMALLEST_WITH_DETAIL:
        close = {title: middle(result) for title, result in results.items()}
        figure = filters_figure(middle(pixels), kernels, close, title, "the middle, enlarged")
        page.picture(f"detail_{name}", figure, "The middle of each, enlarged.")


def middle(pixels: np.ndarray) -> np.ndarray:
    """A quarter of the height and of the width, from the middle of `[height, width, channels]`."""
    rows, columns = (slice(size * 3 // 8, size * 5 // 8) for size in pixels.shape[:2])
    return pixels[rows, columns]


def size_lines(experiment: Filters, pixels: np.ndarray, kernel: int) -> list[str]:
    """The formula of the output's size with its numbers, for height and width."""
    return [
        f"{side} O = 1 + (2P + I − K)/S = "
        + size_formula(size, kernel, experiment.padding, experiment.stride)
        for side, size in zip(("height", "width"), pixels.shape, strict=False)
    ]


def _check_size(experiment: Filters, pixels: np.ndarray, kernel: int) -> None:
    height, width = (size + 2 * experiment.padding for size in pixels.shape[:2])
    if kernel > min(height, width):
        raise UsageError(
            f"the kernel of {kernel}x{kernel} is larger than the image of {height}x{width} with "
            "its padding: give a smaller --kernel, more --padding or a larger --image"
        )
    if height * width > MAX_PIXELS:
        raise UsageError(
            f"--padding {experiment.padding} makes an image of {height}x{width} pixels, more than "
            f"{MAX_PIXELS // 1_000_000} million: give less"
        )


# Pictures ----------------------------------------------------------------------------------------


def filters_figure(
    pixels: np.ndarray,
    kernels: dict[str, Kernel],
    results: dict[str, np.ndarray],
    title: str,
    subtitle: str,
) -> Figure:
    """Draw the image, uint8 `[height, width, 3]`, beside each result with its size and kernel.

    Results, by title, are float32 `[out_height, out_width, 3]`, with 0 to 255 in the image's range.
    """
    columns = min(4, 1 + len(kernels))
    rows = -(-(1 + len(kernels)) // columns)
    width = 3.1 if len(kernels) > 1 else 4.2
    largest = max(map(len, kernels.values()))
    note = 0.16 * (largest if largest <= LARGEST_WRITTEN else 1) + 0.15
    cell = (width, width * ratio(pixels.shape) + 0.35 + note)
    figure, axes = grid(rows, columns, cell, title, subtitle)
    show(axes[0, 0], pixels, f"Image {pixels.shape[:2]}")
    for place, (name, kernel) in zip(axes.ravel()[1:], kernels.items(), strict=False):
        result = results[name]
        label = f"{name}, zero is grey" if signed(kernel) else name
        show(place, visible(result, kernel), f"{label} {result.shape[:2]}", matrix(kernel))
    return figure


def signed(kernel: Kernel) -> bool:
    """Return whether the numbers sum to zero, so that an even surface gives zero."""
    flat = np.array(kernel)
    return bool(abs(flat.sum()) < 1e-6 * abs(flat).sum())


def visible(result: np.ndarray, kernel: Kernel) -> np.ndarray:
    """A result as uint8: zero as mid-grey if the kernel is `signed`, else cut to 0..255."""
    if signed(kernel):
        # Not to the largest: a single white speck would leave all else grey.
        strong = float(np.quantile(abs(result), STRONG))
        result = 127.5 + 127.5 * result / max(strong, 1e-6)
    return np.clip(np.round(result), 0, 255).astype(np.uint8)


def matrix(kernel: Kernel) -> str:
    """The kernel in brackets, a line for each row; 1/9 before them if all are small ninths."""
    if len(kernel) > LARGEST_WRITTEN:
        return f"{len(kernel)}x{len(kernel)} numbers"
    numbers = np.array(kernel)
    whole = [n for n in range(1, 1025) if np.allclose(numbers * n, np.round(numbers * n))]
    divisor = whole[0] if whole and abs(numbers).max() * whole[0] < 100 else 1
    shown = [[f"{number * divisor:.4g}" for number in row] for row in kernel]
    width = max(len(number) for row in shown for number in row)
    before, rows = f"1/{divisor} " if divisor > 1 else "", len(kernel)
    brackets = ["⎡⎤", *["⎢⎥"] * (rows - 2), "⎣⎦"] if rows > 1 else ["[]"]
    lines = []
    for row, (words, bracket) in enumerate(zip(shown, brackets, strict=True)):
        start = before if row == (rows - 1) // 2 else " " * len(before)
        numbers_of_row = " ".join(word.rjust(width) for word in words)
        lines.append(f"{start}{bracket[0]}{numbers_of_row}{bracket[1]}")
    return "\n".join(lines).replace("-", "−")


def channels_figure(pixels: np.ndarray) -> Figure:
    """An image, uint8 `[height, width, 3]`, and its three channels as grey levels."""
    cell = (3.1, 3.1 * ratio(pixels.shape) + 0.35)
    figure, axes = grid(1, 4, cell, "Channels", "each as grey levels, 0 black and 255 white")
    show(axes[0, 0], pixels, "image")
    for channel, title in enumerate(("red (R)", "green (G)", "blue (B)")):
        show(axes[0, 1 + channel], pixels[..., channel], title)
    return figure


def signal_figure(operation: Operation) -> Figure:
    """Impulses and a kernel that is not symmetric; and noise, smoothed by two kernels."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 6.2), dpi=144, layout="constrained")
    panels = figure.subplot_mosaic(
        [["signal", "kernel", "result"], ["noise"] * 3],
        width_ratios=(3, 1.3, 3),
        height_ratios=(1, 1.5),
    )
    impulses = np.zeros(48, np.float32)
    impulses[[6, 18, 24, 38]] = (1, 0.5, 1, 0.75)
    bell = np.array([0, 1, 0.75, 0.55, 0.4, 0.28, 0.18, 0.1, 0], np.float32)
    result = filter_signal(impulses[None], bell, padding=4, operation=operation)[0]
    _stems(panels["signal"], impulses, "signal f[n]")
    _stems(panels["kernel"], bell, "kernel g[n]")
    _stems(panels["result"], np.asarray(result), f"{operation}: {ORDER[operation]}")

    # The same operation smooths noise: here on a step between two waves.
    axes, time, length = panels["noise"], np.arange(300), 15
    clean = np.sin(time / 18) + 1.2 * (time > 150)
    noisy = clean + np.random.default_rng(0).normal(0, 0.45, len(time))
    axes.plot(noisy, color="#BBBBBB", linewidth=1, label="noisy signal")
    axes.plot(clean, color="black", linewidth=1, linestyle=":", label="without the noise")
    for label, kernel, colour in (
        (f"moving average of {length}", (1 / length,) * length, "#0072B2"),
        (f"Gaussian of {length}, σ = 3", gaussian(length, 3), "#D55E00"),
    ):
        smooth = filter_signal(
            noisy[None], np.array(kernel), padding=length // 2, border="edge", operation=operation
        )
        axes.plot(np.asarray(smooth[0]), color=colour, linewidth=1.8, label=label)
    axes.set_xlabel("n")
    axes.margins(x=0.01)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, ncols=4, loc="lower center", bbox_to_anchor=(0.5, 1.0), fontsize=9)
    return figure


def _stems(axes: Axes, values: np.ndarray, title: str) -> None:
    marker, *_ = axes.stem(values, linefmt="#0072B2", markerfmt="o", basefmt="#555555")
    marker.set_markersize(2.5)
    axes.set_ylim(-0.05, 1.15)
    axes.set_title(title, fontsize=10)
    axes.set_xlabel("n", fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)
