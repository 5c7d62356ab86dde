"""CIFAR-10 networks with weights from PyTorch files, on the 10,000 test images.

    python -m benchmarks.pretrained_cifar --images ../data/cifar10 \
        --output results/pretrained_cifar.json

The images are CIFAR-10's own, pixel for pixel, as PNG or lossless WebP: `test/<class>/*` in a
folder or an archive. The weights' published errors are the target, to the second decimal.
"""

from __future__ import annotations

import io
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
from PIL import Image

from benchmarks.results import ROOT, flag, measurement, row
from cnn_research.models.pretrained import Pretrained, load_pretrained
from cnn_research.models.registry import architectures

SHARED = ROOT.parent / "shared" / "data"
PUBLISHED = {
    "resnet20_cifar": ("resnet20-12fca82f.th", 8.27),
    "resnet56_cifar": ("resnet56-4bfd9763.th", 6.61),
}
"""Architecture -> file of weights, and published test error in percent."""
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Normalisation of pixels, 0 to 1, with which the weights were trained."""


def test_files(source: Path) -> Iterator[tuple[str, bytes]]:
    """Yield (class, contents) of all files `test/<class>/*` of a folder or an archive."""
    if source.is_dir():
        for file in sorted(source.glob("test/*/*")):
            yield file.parent.name, file.read_bytes()
        return
    with tarfile.open(source) as archive:
        for member in archive:
            path = Path(member.name)
            if member.isfile() and path.parts[-3:-2] == ("test",):
                yield path.parent.name, archive.extractfile(member).read()  # type: ignore[union-attr]


def test_images(source: Path) -> tuple[np.ndarray, np.ndarray]:
    """Images, uint8 `[examples, 32, 32, 3]`, and their classes `[examples]`, by name in order."""
    names, contents = zip(*test_files(source), strict=True)
    images = np.stack([np.asarray(Image.open(io.BytesIO(c)).convert("RGB")) for c in contents])
    return images, np.unique(names, return_inverse=True)[1]


def wrong(name: str, weights: Path, images: np.ndarray, labels: np.ndarray) -> int:
    """Count the misclassified test images of a network."""
    model = architectures()[name].model
    blank = jax.eval_shape(model.init, jax.random.key(0), np.zeros((1, 32, 32, 3), np.float32))
    variables = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), blank)
    variables, _ = load_pretrained(model, variables, Pretrained(str(weights)))

    @jax.jit
    def classes(pixels):
        scaled = (pixels / np.float32(255) - np.array(MEAN)) / np.array(STD)
        return model.apply(variables, scaled, train=False).argmax(axis=1)

    parts = np.split(images, range(500, len(images), 500))
    return int((np.concatenate([classes(part) for part in parts]) != labels).sum())


@measurement(
    flag("--weights", type=Path, default=SHARED / "weights", help="the folder"),
    flag("--images", type=Path, default=SHARED / "cifar10_test_lossless.tar.xz"),
    what="test error of PyTorch's weights on CIFAR-10",
    target="the published error, to the second decimal",
)
def main(options):
    images, labels = test_images(options.images)
    rows, figures = [], {}
    for name, (file, published) in PUBLISHED.items():
        errors = wrong(name, options.weights / file, images, labels)
        percent = 100 * errors / len(images)
        figures[name] = {"wrong": errors, "count": len(images), "published error": published}
        rows.append(
            row(
                f"test error of {name} with the weights {file} on {len(images):,} test images",
                f"{published:.2f} %",
                f"{percent:.2f} %",
                round(percent, 2) == published,
            )
        )
    return rows, figures


if __name__ == "__main__":
    sys.exit(main())
