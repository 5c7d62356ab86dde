"""What came of saying palettes: colour differences, and the images with their palettes."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from cnn_research.tasks.palette_files import PaletteColours


@dataclasses.dataclass(frozen=True, eq=False)
class PalettePredictions:
    """The palette of every image of a split.

    Attributes:
        split: `test`, or `validation` where there is no test split.
        palettes: of each image.
        people: those that people made, sRGB 0 to 1, float32 `[examples, most, 3]`, NaN where one
            has fewer colours; None where pixels are the target.
        loss: the mean difference, CIEDE2000, to the pixels or to these.
    """

    split: str
    palettes: Sequence[PaletteColours]
    people: np.ndarray | None
    loss: float

    def __len__(self) -> int:
        return len(self.palettes)

    def figures(self) -> dict[str, float | int]:
        """The mean colour difference, and how many colours a palette has that cover a pixel."""
        colours = float(np.mean([len(palette.rgb) for palette in self.palettes]))
        return {"loss": self.loss, "colours": colours, "count": len(self)}

    def text(self) -> str:
        """The figures, one per line."""
        to = "the nearest colour" if self.people is None else "people's palettes, both directions"
        return (
            f"{self.loss:>12.4f} CIEDE2000 to {to}\n"
            f"{self.figures()['colours']:>12.4f} colours in a palette\n{len(self):>12,} images\n"
        )

    def page(self, folder: Path, suffix: str, images: np.ndarray | None) -> Iterator[str]:
        """Images with their palettes."""
        from cnn_research.report import plots as figures

        if self.people is None:
            yield (
                "The loss is the mean CIEDE2000 from about 1,000 pixels of each image, on a grid, "
                "to their nearest colour."
            )
            rows = {"": [palette.rgb for palette in self.palettes]}
        else:
            yield (
                "The loss is the mean CIEDE2000 from a colour of either palette to the nearest of "
                "the other: the network's above, below the one that a person made."
            )
            made = [
                np.rint(colours[~np.isnan(colours[:, 0])] * 255).astype(np.uint8)
                for colours in self.people
            ]
            rows = {"network": [palette.rgb for palette in self.palettes], "person": made}
        if images is not None:
            name = f"palettes{suffix}.png"
            figures.palettes(images, rows).savefig(folder / name)
            yield f"![Images with their palettes]({name})"
