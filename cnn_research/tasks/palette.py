"""A palette of colours for each image: the palette paper's last output."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal
from zlib import crc32

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from cnn_research.core.config import register_config
from cnn_research.core.errors import UsageError, UserError
from cnn_research.core.ranges import PositiveInt, Range
from cnn_research.data.dataset import PALETTE, Dataset
from cnn_research.data.images import decode, printable
from cnn_research.ops import palettes
from cnn_research.ops.colours import ciede2000, srgb_to_lab
from cnn_research.report.page import Predictions
from cnn_research.report.pictures import Shown
from cnn_research.report.plots import blank_grid, saved, show_image
from cnn_research.tasks.decode import DIGITS, Answer, PaletteColours, palette_of
from cnn_research.tasks.task import PIXELS, FittedTask, Sums

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LOOKED_AT = 32
"""Approximate number of rows and columns of pixels that are compared with a palette."""
MOST_IMAGES = 24
STRIP = 0.2
"""Height of the strip of colours below an image, relative to the image's."""
SHOWN = 3
"""Number of colours in a prediction's text."""
UNFIT = {
    *(0x03FDA147, 0x40A69E9A, 0x67C05A6C, 0x70AD389F, 0x94D8BAE3, 0xA390F280),
    *(0xAF8AF409, 0xBB90F5C9, 0xC063859C, 0xCADA2BED, 0xFD5D2F3D),
}
"""CRC-32 of indecent words in XKCD's colour names; names with one of them are not used."""


@register_config
@dataclasses.dataclass(frozen=True)
class Palette(FittedTask):
    """Colours in any order, compared with the image's own pixels or with palettes made by people.

    The loss is a mean CIEDE2000 colour difference: from each pixel to the nearest colour or, with
    people's palettes, from each colour of either palette to the nearest of the other, averaged over
    both directions (Q. Pan and S. Westland, "Comparative evaluation of color differences between
    color palettes", 2018).
    """

    metrics: ClassVar = {"loss": "minimize"}
    needs_pixels: ClassVar = True
    counts_colours: ClassVar = True

    colours: PositiveInt = 10
    """Number of colours in a palette."""
    target: Literal["pixels", "kmeans", "people"] = "pixels"
    """Target of the training loss: the image's pixels, their palette by k-means in CIELAB, or a
    person's palette."""
    difference: Literal["ciede2000", "lab", "oklab", "rgb"] = "ciede2000"
    """Colour difference in the training loss: CIEDE2000, or the distance in a colour space."""
    power: Annotated[float, Range(minimum=1)] = 1.0
    """Power of the difference to each pixel in the training loss: above 1, the few pixels far from
    all colours weigh more. People choose such accents, too."""
    matching: Literal["nearest", "transport"] = "nearest"
    """Matching of two palettes in the training loss: each colour to the nearest of the other
    palette, or by optimal transport."""

    @property
    def heads(self) -> tuple[str, ...]:
        return (PALETTE,)

    def check(self) -> None:
        """Raise `UsageError` for contradictory fields."""
        if self.power != 1 and self.target != "pixels":
            raise UsageError(
                "--task.power applies to differences to pixels: it needs --task.target=pixels"
            )
        if self.matching != "nearest" and self.target == "pixels":
            raise UsageError(
                "--task.matching=transport compares palettes: it needs --task.target=kmeans or "
                "people"
            )

    def check_data(self, dataset: Dataset) -> None:
        """Raise `UserError` for images without colours, or without required palettes."""
        if dataset.image_shape[2] != 3:
            raise UserError(
                f"data set {dataset.name} has images with {dataset.image_shape[2]} channels: "
                "palettes need 3"
            )
        labels = dataset.splits["train"].labels.get(PALETTE)
        if self.target == "people" and (labels is None or labels.ndim != 3):
            raise UserError(
                f"data set {dataset.name} has no palettes made by people: use "
                "data=Palettes(...), or --task.target=pixels"
            )

    def num_outputs(self, dataset: Dataset) -> int:
        """L*, a*, b* and a share for each colour."""
        return 4 * self.colours

    def bind(self, model: nn.Module, dataset: Dataset) -> nn.Module:
        """Set the model's number of colours; raise `UsageError` if it does not predict colours."""
        if not hasattr(model, "colours"):
            raise UsageError(
                f"{type(model).__name__} does not predict colours: this task needs a PaletteNet"
            )
        return model.clone(colours=self.colours)

    def fitted(self, dataset: Dataset) -> Palette:
        """Return the task itself, which needs no facts about the data."""
        return self

    @property
    def _reported(self) -> Palette:
        """The task whose training loss is the metric `loss`."""
        return Palette(self.colours, "people" if self.target == "people" else "pixels")

    @property
    def has_training_loss(self) -> bool:
        return self != self._reported

    def sums(self, outputs: jax.Array, labels: Mapping[str, jax.Array], weights: jax.Array) -> Sums:
        """Mean CIEDE2000 colour difference to the pixels or to people's palettes.

        Outputs are L*, a*, b* and share of each colour, float32 `[batch, colours * 4]`. Labels have
        the images under `PIXELS`, 0 to 255, `[batch, height, width, 3]`, and people's palettes
        under `palette`, sRGB 0 to 1, float32 `[batch, most, 3]`, padded with NaN.
        """
        return self._reported.training_loss(outputs, labels, weights)

    def training_loss(
        self, outputs: jax.Array, labels: Mapping[str, jax.Array], weights: jax.Array
    ) -> Sums:
        palette = outputs.reshape(len(outputs), -1, 4)[..., :3]  # CIELAB [batch, colours, 3]
        if self.target == "pixels":
            losses = palettes.to_nearest(
                _sampled(labels[PIXELS]), palette, self.difference, self.power
            )
        else:
            if self.target == "people":
                people = labels[PALETTE]
                known = ~jnp.isnan(people[..., 0])
                theirs = srgb_to_lab(jnp.where(known[..., None], people, 0.0))
            else:
                theirs = palettes.found_by_kmeans(_sampled(labels[PIXELS]), self.colours)
                known = jnp.ones(theirs.shape[:2], bool)
            compare = palettes.transported if self.matching == "transport" else palettes.between
            losses = compare(palette, theirs, known, self.difference)
        return {"loss": (jnp.sum(weights * losses), weights.sum())}

    def average_views(self, views: Sequence[jax.Array]) -> jax.Array:
        """Use the first view only, as the order of colours differs between views."""
        return views[0]

    def predictions(
        self, dataset: Dataset, split: str, outputs: np.ndarray, means: Mapping[str, float]
    ) -> dict[str, Predictions]:
        predicted = PalettePredictions(
            split=split,
            palettes=[palette_of(row) for row in outputs],
            people=dataset.splits[split].labels.get(PALETTE) if self.target == "people" else None,
            loss=means["loss"],
        )
        return {PALETTE: predicted}

    def output_spec(self, class_names: Mapping[str, tuple[str, ...]]) -> list[dict[str, Any]]:
        return [{"name": PALETTE, "kind": "palette", "start": 0, "stop": 4 * self.colours}]

    def write_files(self, base: Path, file: Path, answers: Mapping[str, Answer]) -> None:
        """Write the image with a strip of its colours, and the palette for GIMP and as CSS."""
        write_palette(base, file, answers[PALETTE].values["colours"])


def _sampled(images: jax.Array) -> jax.Array:
    """Sample images, 0 to 255 `[batch, height, width, 3]`, to CIELAB `[batch, pixels, 3]`."""
    step = max(1, min(images.shape[1:3]) // LOOKED_AT)
    return srgb_to_lab(images[:, ::step, ::step].reshape(len(images), -1, 3) / 255)


@dataclasses.dataclass(frozen=True, eq=False)
class PalettePredictions(Predictions):
    """Predicted palettes of all images of a split."""

    palettes: Sequence[PaletteColours]
    people: np.ndarray | None
    """People's palettes, sRGB 0 to 1, float32 `[examples, most, 3]`, padded with NaN; None if
    pixels are the target."""

    def __len__(self) -> int:
        return len(self.palettes)

    def metrics(self) -> dict[str, float | int]:
        """The mean colour difference, and the mean number of colours that cover a pixel."""
        colours = float(np.mean([len(palette.rgb) for palette in self.palettes]))
        return {"loss": self.loss, "colours": colours, "count": len(self)}

    def text(self) -> str:
        """The metrics, one per line."""
        to = "the nearest colour" if self.people is None else "people's palettes, both directions"
        return (
            f"{self.loss:>12.4f} CIEDE2000 to {to}\n"
            f"{self.metrics()['colours']:>12.4f} colours in a palette\n{len(self):>12,} images\n"
        )

    def page(self, folder: Path, suffix: str, shown: Shown | None) -> Iterator[str]:
        if self.people is None:
            yield (
                "The loss is the mean CIEDE2000 difference between about 1,000 pixels of each "
                "image, on a grid, and their nearest colour."
            )
            rows = {"": [palette.rgb for palette in self.palettes]}
        else:
            yield (
                "The loss is the mean CIEDE2000 difference between each colour of either palette "
                "and the nearest of the other. The network's palette is above the person's."
            )
            made = [
                np.rint(colours[~np.isnan(colours[:, 0])] * 255).astype(np.uint8)
                for colours in self.people
            ]
            rows = {"network": [palette.rgb for palette in self.palettes], "person": made}
        if shown is not None:
            file = folder / f"palettes{suffix}.png"
            yield saved(palettes_plot(shown.images, rows), file, "Images with their palettes")


def palettes_plot(images: np.ndarray, rows: Mapping[str, Sequence[np.ndarray]]) -> Figure:
    """Draw images, uint8 `[examples, height, width, 3]`, above their palettes, by title."""
    shown = min(MOST_IMAGES, len(images))
    columns = min(6, shown)
    lines = -(-shown // columns)
    strips = len(rows)
    heights = [5.0, *[1.0] * strips] * lines
    size = (2 * columns, (1.6 + 0.3 * strips) * lines)
    figure, grid = blank_grid(len(heights), columns, size, height_ratios=heights)
    for index in range(shown):
        line, column = divmod(index, columns)
        picture, *below = grid[line * (1 + strips) :, column][: 1 + strips]
        show_image(picture, images[index])
        for axes, (title, of_images) in zip(below, rows.items(), strict=True):
            axes.imshow(of_images[index][None], aspect="auto")
            axes.set_title(title, fontsize=6, loc="left", pad=1)
    return figure


def palette_answer(palette: PaletteColours) -> Answer:
    """Convert a palette to text, JSON values and columns."""
    names = nearest_names(palette.rgb)
    shares = [round(float(share), DIGITS["palette"]) for share in palette.shares]
    colours = [
        {"hex": code, "rgb": rgb, "share": share, "name": name}
        for code, rgb, share, name in zip(palette.hex, palette.rgb.tolist(), shares, names)
    ]
    columns: dict[str, str | float] = {
        "": " ".join(palette.hex),
        "shares": " ".join(f"{share:.4f}" for share in palette.shares),
        "names": ", ".join(names),
    }
    largest = [*zip(names, palette.shares)][:SHOWN]
    text = ", ".join(f"{name} {share:.0%}" for name, share in largest)
    return Answer(text, {"colours": colours}, columns)


def nearest_names(rgb: np.ndarray) -> list[str]:
    """Name colours, uint8 `[colours, 3]`, by the nearest (CIEDE2000) of XKCD's 920 decent names."""
    return [_named()[0][index] for index in np.asarray(_named()[1](jnp.asarray(rgb)))]


@functools.cache
def _named() -> tuple[list[str], Any]:
    """Return the names, and the jitted function from uint8 colours to indices of the nearest."""
    from matplotlib.colors import XKCD_COLORS, to_rgb

    table = {name.removeprefix("xkcd:"): code for name, code in XKCD_COLORS.items()}
    names = [name for name in table if not UNFIT & {crc32(w.encode()) for w in name.split()}]
    codes = jnp.asarray([to_rgb(table[name]) for name in names], jnp.float32)

    @jax.jit
    def nearest(rgb: jax.Array, table: jax.Array) -> jax.Array:
        lab = srgb_to_lab(rgb.astype(jnp.float32) / 255)
        return jnp.argmin(ciede2000(lab[:, None], table[None]), axis=1)

    return names, functools.partial(nearest, table=srgb_to_lab(codes))


def write_palette(base: Path, file: Path, colours: Sequence[Mapping[str, Any]]) -> None:
    """Write `BASE.png` (image and strip), `BASE.gpl` for GIMP and `BASE.css`.

    Raises `BadImage` if the image file no longer exists.
    """
    from PIL import Image

    rgb = np.array([colour["rgb"] for colour in colours], np.uint8)
    picture = Image.fromarray(with_strip(decode(file, None), rgb))
    picture.save(f"{base}.png", compress_level=1)
    lines = ["GIMP Palette", f"Name: {printable(file.name)}", "Columns: 10", "#"]
    for colour in colours:
        red, green, blue = colour["rgb"]
        lines.append(f"{red:3} {green:3} {blue:3}\t{colour['name']}")
    Path(f"{base}.gpl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    rules = [
        f"  --colour-{place}: {c['hex']}; /* {c['name']} */" for place, c in enumerate(colours, 1)
    ]
    Path(f"{base}.css").write_text(":root {\n" + "\n".join(rules) + "\n}\n", encoding="utf-8")


def with_strip(image: np.ndarray, rgb: np.ndarray) -> np.ndarray:
    """Append a strip of colours to an image, uint8 `[height, width, 3]`.

    A narrow image is padded with white.
    """
    missing = max(0, 4 * len(rgb) - image.shape[1])
    image = np.pad(image, [(0, 0), (0, missing), (0, 0)], constant_values=255)
    height, width, _ = image.shape
    gap, strip = max(1, height // 60), max(4, round(STRIP * height))
    columns = np.arange(width) * len(rgb) // width
    white = np.full((gap, width, 3), 255, np.uint8)
    below = np.broadcast_to(rgb[columns], (strip, width, 3))
    return np.concatenate([image, white, below])
