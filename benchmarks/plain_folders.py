"""Write data sets the way users have images: one folder per class, without splits.

    python -m benchmarks.plain_folders ../shared/data FOLDER
    python -m benchmarks.plain_folders ../shared/data FOLDER --only pets artworks

The first folder has pets.tar, artworks.tar.xz, products.tar.xz and fashion_mnist/*.gz. Products are
sorted by the column `type`, without types of fewer than 45 items; the 70,000 images of
Fashion-MNIST become PNG files.
"""

from __future__ import annotations

import argparse
import csv
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from PIL import Image

from cnn_research.core.errors import UserError, run_command
from cnn_research.data.prepare import fashion_mnist as official
from cnn_research.data.prepare.files import opened

FEWEST = 45
"""Minimum number of products of a type."""


def pets(source: Path, folder: Path) -> None:
    """Cats and dogs; files named as tests are used like the others."""
    with opened(source / "pets.tar") as root:
        shutil.copytree(root / "pets", folder)


def artworks(source: Path, folder: Path) -> None:
    """Paintings by artist."""
    with opened(source / "artworks.tar.xz") as root:
        shutil.copytree(root / "artworks", folder)


def products(source: Path, folder: Path) -> None:
    """Photographs by type of product."""
    with opened(source / "products.tar.xz") as root:
        with open(root / "products" / "products.csv", encoding="utf-8", newline="") as table:
            types = {row["id"]: row["type"] for row in csv.DictReader(table) if row["type"]}
        images = {file.stem: file for file in (root / "products" / "images").iterdir()}
        types = {name: kind for name, kind in types.items() if name in images}
        counts = Counter(types.values())
        for name, kind in types.items():
            if counts[kind] >= FEWEST:
                shutil.copy(images[name], of_class(folder, kind))


def fashion_mnist(source: Path, folder: Path) -> None:
    """Clothes by kind, from the four official files."""
    found = official.read(official.check(source / "fashion_mnist"))
    for split, (images, labels) in found.items():
        for number, (pixels, label) in enumerate(zip(images, labels, strict=True)):
            file = of_class(folder, official.CLASSES[label]) / f"{split}_{number:05}.png"
            Image.fromarray(pixels[..., 0]).save(file)


def of_class(folder: Path, name: str) -> Path:
    """Return the folder of a class; create it if necessary."""
    found = folder / name.replace("/", "_")
    found.mkdir(parents=True, exist_ok=True)
    return found


SETS: dict[str, Callable[[Path, Path], None]] = {
    each.__name__: each for each in (pets, artworks, products, fashion_mnist)
}


def write(words: Sequence[str]) -> None:
    """Write the folders.

    Raises:
        UserError: a folder exists.
    """
    parser = argparse.ArgumentParser(prog="python -m benchmarks.plain_folders")
    parser.add_argument("source", type=Path, help="folder of the archives")
    parser.add_argument("folder", type=Path, help="folder to write to")
    parser.add_argument("--only", nargs="+", choices=SETS, default=list(SETS))
    chosen = parser.parse_args(words)
    for name in chosen.only:
        target = chosen.folder / name
        if target.exists():
            raise UserError(f"{target} exists: remove it to write it again")
        SETS[name](chosen.source, target)
        print(f"{target}: {sum(1 for _ in target.glob('*/*')):,} images", flush=True)


if __name__ == "__main__":
    sys.exit(run_command(write))
