"""A palette for people and for their programs: names, a strip below the image, GIMP and CSS."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cnn_research.data.images import decode, printable
from cnn_research.tasks.task import Answer

STRIP = 0.2
"""The height of the strip, as a share of the image's."""
SHOWN = 3
"""Colours that an answer has in words."""


@dataclasses.dataclass(frozen=True)
class PaletteColours:
    """A palette that a network said, the colour that covers most first.

    Attributes:
        rgb: uint8 `[colours, 3]`; colours that are nearest to no pixel are left out.
        shares: of the image that each covers, float64 `[colours]`.
    """

    rgb: np.ndarray
    shares: np.ndarray

    @property
    def hex(self) -> list[str]:
        """Each colour as `#rrggbb`."""
        return ["#" + bytes(colour).hex() for colour in self.rgb]


def palette_of(outputs: np.ndarray) -> PaletteColours:
    """The palette of a network's outputs for one image, float32 `[colours * 4]`.

    Colours that are the same in 8 bits are one.
    """
    import jax.numpy as jnp

    from cnn_research.ops.colours import lab_to_srgb

    rows = outputs.reshape(-1, 4)
    rgb = np.rint(np.asarray(lab_to_srgb(jnp.asarray(rows[:, :3]))) * 255).astype(np.uint8)
    different, places = np.unique(rgb, axis=0, return_inverse=True)
    shares = np.bincount(places.ravel(), rows[:, 3].astype(np.float64), len(different))
    order = [place for place in np.argsort(-shares, kind="stable") if shares[place] > 0]
    return PaletteColours(different[order], shares[order])


def answer(palette: PaletteColours) -> Answer:
    """The palette in words, as JSON values and as columns."""
    names = nearest_names(palette.rgb)
    colours = [
        {"hex": code, "rgb": colour.tolist(), "share": round(float(share), 4), "name": name}
        for code, colour, share, name in zip(
            palette.hex, palette.rgb, palette.shares, names, strict=True
        )
    ]
    columns: dict[str, str | float] = {"": " ".join(palette.hex)}
    columns["shares"] = " ".join(f"{share:.4f}" for share in palette.shares)
    columns["names"] = ", ".join(names)
    largest = zip(names, palette.shares, strict=True)
    text = ", ".join(f"{name} {share:.0%}" for name, share in [*largest][:SHOWN])
    return Answer(text, {"colours": colours}, columns)


def nearest_names(rgb: np.ndarray) -> list[str]:
    """For each colour, uint8 `[colours, 3]`, that of the XKCD survey's 949 names which is nearest.

    By CIEDE2000; the names are those that Matplotlib ships.
    """
    import jax.numpy as jnp

    names, table = _named()
    return [names[index] for index in np.asarray(_nearest()(jnp.asarray(rgb), table))]


@functools.cache
def _named() -> tuple[list[str], Any]:
    import jax.numpy as jnp
    from matplotlib.colors import XKCD_COLORS, to_rgb

    from cnn_research.ops.colours import srgb_to_lab

    names = [name.removeprefix("xkcd:") for name in XKCD_COLORS]
    table = jnp.asarray([to_rgb(code) for code in XKCD_COLORS.values()], jnp.float32)
    return names, srgb_to_lab(table)


@functools.cache
def _nearest() -> Any:
    import jax
    import jax.numpy as jnp

    from cnn_research.ops.colours import ciede2000, srgb_to_lab

    @jax.jit
    def nearest(rgb, table):
        lab = srgb_to_lab(rgb.astype(jnp.float32) / 255)
        return jnp.argmin(ciede2000(lab[:, None], table[None]), axis=1)

    return nearest


def write(base: Path, file: Path, colours: Sequence[Mapping[str, Any]]) -> None:
    """Writes `BASE.png`, the image with its strip, `BASE.gpl` for GIMP and `BASE.css`.

    Args:
        base: where to.
        file: the image's, which was read before.
        colours: as in the values of an answer.

    Raises:
        BadImage: the file is gone since.
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
    """The image, uint8 `[height, width, 3]`, and below it colours side by side, as on film.

    An image that is narrower than its palette has white at its right.
    """
    missing = max(0, 4 * len(rgb) - image.shape[1])
    image = np.pad(image, [(0, 0), (0, missing), (0, 0)], constant_values=255)
    height, width, _ = image.shape
    gap, strip = max(1, height // 60), max(4, round(STRIP * height))
    columns = np.arange(width) * len(rgb) // width
    white = np.full((gap, width, 3), 255, np.uint8)
    below = np.broadcast_to(rgb[columns], (strip, width, 3))
    return np.concatenate([image, white, below])
