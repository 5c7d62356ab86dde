"""The filter gallery: photographs and signals filtered with kernels."""

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
    "correlation": "the kernel as written",
    "convolution": "the kernel turned by 180 degrees",
}
STRONG = 0.998
"""Fraction of a signed result that is not clipped to black or white."""
LARGEST_WRITTEN = 7
"""Maximum number of rows of a kernel whose numbers are shown."""
SMALLEST_WITH_DETAIL = 128
"""Minimum shorter side, in pixels, of images with an enlarged detail."""


@register_config
@dataclasses.dataclass(frozen=True, kw_only=True)
class Filters(Experiment):
    """Photographs filtered with kernels; their channels; a signal filtered in one dimension."""

    image: str = ""
    """Image file; by default, scikit-learn's two sample photographs."""
    kernel: str = ""
    """One kernel: a name (identity, sharpen, mean_blur, gaussian_blur, laplacian, sobel_x,
    sobel_y) or its numbers, row by row, such as "0 -1 0; -1 5 -1; 0 -1 0"; fractions such as 1/9
    are allowed. By default, all named kernels."""
    stride: PositiveInt = 1
    """Stride in pixels."""
    padding: NonNegativeInt = 1
    """Pixels added on each side."""
    border: Border = "zeros"
    """Values of the added pixels: zeros, or the outermost pixels, repeated."""
    operation: Operation = "correlation"
    """Correlation uses the kernel as written, as in deep learning; mathematical convolution turns
    it by 180 degrees."""

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
    """Parse a kernel's name or numbers.

    Rows are separated by `;` (9 numbers without it are 3 rows), numbers by spaces or commas.

    Raises:
        UsageError: it is neither a name nor a square of numbers.
    """
    if text in KERNELS:
        return KERNELS[text]
    if not any(character.isdigit() for character in text):
        raise UsageError(
            f"--kernel: no kernel is named '{text}'{did_you_mean(text, list(KERNELS))}; use "
            f"{', '.join(KERNELS)}, or a kernel's numbers"
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
            f"--kernel '{text}' is not a square of numbers: separate its rows, as in "
            "'0 -1 0; -1 5 -1; 0 -1 0'"
        ) from None


def draw(experiment: Filters, workdir: Path) -> Result:
    """Draw the gallery into a folder.

    Raises `UserError` if the image cannot be read, or is smaller than the kernel.
    """
    images, kernels = photographs(experiment.image), experiment.kernels()
    for pixels in images.values():
        for kernel in kernels.values():
            _check_size(experiment, pixels, len(kernel))
    with gallery_page(experiment, workdir, "Filters") as page:
        page.text(
            f"{experiment.operation.capitalize()}: {ORDER[experiment.operation]}. Channels are "
            "filtered separately. The result of a kernel whose numbers sum to zero has no mean "
            "brightness: it is drawn with zero as mid-grey, and the strongest 0.2% are clipped. "
            "Other results are clipped to 0..255. The padding is "
            f"{'zeros' if experiment.border == 'zeros' else 'the outermost pixels, repeated'}."
        )
        for name, pixels in images.items():
            page.text(heading(experiment.image, name))
            _filters(page, experiment, name, pixels, kernels)
            page.picture(
                f"channels_{name}",
                channels_figure(pixels),
                "The three channels as grey levels; bright pixels have much of the colour.",
            )
        page.text("## In one dimension")
        page.picture(
            "signal",
            signal_figure(experiment.operation),
            "Above: convolution replaces each impulse by a copy of the kernel, correlation by a "
            "mirrored copy. Below: a moving average, which is a kernel of equal weights, and a "
            "Gaussian kernel, applied to the same noisy signal.",
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
        figure = filters_figure(middle(pixels), kernels, close, title, "the centre, enlarged")
        page.picture(f"detail_{name}", figure, "The centre of each, enlarged.")


def middle(pixels: np.ndarray) -> np.ndarray:
    """Crop the central quarter of the height and width of `[height, width, channels]`."""
    rows, columns = (slice(size * 3 // 8, size * 5 // 8) for size in pixels.shape[:2])
    return pixels[rows, columns]


def size_lines(experiment: Filters, pixels: np.ndarray, kernel: int) -> list[str]:
    """Formulas of the output's height and width with their numbers."""
    return [
        f"{side} O = 1 + (2P + I − K)/S = "
        + size_formula(size, kernel, experiment.padding, experiment.stride)
        for side, size in zip(("height", "width"), pixels.shape, strict=False)
    ]


def _check_size(experiment: Filters, pixels: np.ndarray, kernel: int) -> None:
    height, width = (size + 2 * experiment.padding for size in pixels.shape[:2])
    if kernel > min(height, width):
        raise UsageError(
            f"the {kernel}x{kernel} kernel is larger than the padded image, {height}x{width}: use "
            "a smaller --kernel, more --padding or a larger --image"
        )
    if height * width > MAX_PIXELS:
        raise UsageError(
            f"--padding {experiment.padding} makes an image of {height}x{width} pixels, more than "
            f"{MAX_PIXELS // 1_000_000} million: use less padding"
        )


# Pictures ----------------------------------------------------------------------------------------


def filters_figure(
    pixels: np.ndarray,
    kernels: dict[str, Kernel],
    results: dict[str, np.ndarray],
    title: str,
    subtitle: str,
) -> Figure:
    """Draw the image, uint8 `[height, width, 3]`, and each result with its size and kernel.

    Results, by title, are float32 `[out_height, out_width, 3]`; the image's range is 0 to 255.
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
    """Return whether the numbers sum to zero, so that the result of a constant image is zero."""
    flat = np.array(kernel)
    return bool(abs(flat.sum()) < 1e-6 * abs(flat).sum())


def visible(result: np.ndarray, kernel: Kernel) -> np.ndarray:
    """Convert a result to uint8, clipped to 0..255; zero is mid-grey if the kernel is `signed`."""
    if signed(kernel):
        # Not scaled to the maximum, as a single white pixel would leave all others grey.
        strong = float(np.quantile(abs(result), STRONG))
        result = 127.5 + 127.5 * result / max(strong, 1e-6)
    return np.clip(np.round(result), 0, 255).astype(np.uint8)


def matrix(kernel: Kernel) -> str:
    """Format a kernel in brackets, one line per row, with a common factor such as 1/9."""
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
    """Draw an image, uint8 `[height, width, 3]`, and its three channels as grey levels."""
    cell = (3.1, 3.1 * ratio(pixels.shape) + 0.35)
    figure, axes = grid(1, 4, cell, "Channels", "each as grey levels, 0 black and 255 white")
    show(axes[0, 0], pixels, "image")
    for channel, title in enumerate(("red (R)", "green (G)", "blue (B)")):
        show(axes[0, 1 + channel], pixels[..., channel], title)
    return figure


def signal_figure(operation: Operation) -> Figure:
    """Draw impulses filtered by an asymmetric kernel, and noise smoothed by two kernels."""
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

    # The same operation smooths noise, here on a sine wave with a step.
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
