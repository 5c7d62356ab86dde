"""The pictures of README.md and of these pages, from data that ship with scikit-learn.

python docs/make_pictures.py

Trains `digits_cnn`, draws the galleries `filters`, `pooling_pyramid` and `features`, and writes
what their reports show to docs/pictures/, small enough for a repository. A minute on two cores.
"""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path

from PIL import Image

from cnn_research.cli.run import run
from cnn_research.core.experiment import lookup

PICTURES = Path(__file__).resolve().parent / "pictures"
COLOURS = 48
"""Of each picture: PNG files of few colours are small."""
GAP = 24


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        runs = Path(folder)
        run(lookup("digits_cnn").experiment(), runs / "digits")
        for name in ("filters", "pooling_pyramid"):
            run(lookup(name).experiment(), runs / name)
        features = dataclasses.replace(
            lookup("features").experiment(), run=str(runs / "digits"), units=4, search=500
        )
        run(features, runs / "features")

        def report(name: str, picture: str) -> Image.Image:
            return Image.open(runs / name / "report" / f"{picture}.png").convert("RGB")

        curves, mistakes = report("digits", "curves"), report("digits", "mistakes")
        learned = stacked([of_width(curves, 600), of_width(mistakes, 460)])
        save("overview", beside([learned, of_width(report("filters", "detail_flower"), 640)]))
        save("curves", of_width(curves, 900))
        save("mistakes", mistakes)
        save("filters", of_width(report("filters", "detail_flower"), 800))
        save("pyramid", of_width(report("pooling_pyramid", "pyramid_flower"), 600))
        save("layer", of_width(report("features", "layer_1"), 800))
        save("grad_cam", of_width(report("features", "grad_cam"), 900))


def of_width(picture: Image.Image, width: int) -> Image.Image:
    """The picture made smaller, in its proportions."""
    height = round(picture.height * width / picture.width)
    return picture.resize((width, height), Image.Resampling.LANCZOS)


def stacked(pictures: list[Image.Image]) -> Image.Image:
    """Pictures below each other, on white."""
    height = sum(picture.height for picture in pictures) + GAP * (len(pictures) - 1)
    page = Image.new("RGB", (max(picture.width for picture in pictures), height), "white")
    top = 0
    for picture in pictures:
        page.paste(picture, (0, top))
        top += picture.height + GAP
    return page


def beside(pictures: list[Image.Image]) -> Image.Image:
    """Pictures beside each other, on white."""
    turned = [picture.transpose(Image.Transpose.TRANSPOSE) for picture in pictures]
    return stacked(turned).transpose(Image.Transpose.TRANSPOSE)


def save(name: str, picture: Image.Image) -> None:
    """Writes docs/pictures/NAME.png in few colours."""
    file = PICTURES / f"{name}.png"
    # The default, median cut, would give rare colours up: those of the lines.
    few = picture.quantize(COLOURS, Image.Quantize.MAXCOVERAGE, kmeans=2, dither=Image.Dither.NONE)
    few.save(file, optimize=True)
    print(f"{file.name}: {picture.width}x{picture.height}, {file.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
