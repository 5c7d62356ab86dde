"""Fashion-MNIST's four official files: find, download and read them."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np

from cnn_research.core.errors import UserError
from cnn_research.core.files import sha256_of
from cnn_research.data.prepare.downloads import fetch, not_official

CLASSES = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)

SHA256 = {
    "train-images-idx3-ubyte.gz": (
        "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84"
    ),
    "train-labels-idx1-ubyte.gz": (
        "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845"
    ),
    "t10k-images-idx3-ubyte.gz": (
        "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073"
    ),
    "t10k-labels-idx1-ubyte.gz": (
        "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5"
    ),
}
ADDRESS = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"
HOMEPAGE = "https://github.com/zalandoresearch/fashion-mnist"


def check(folder: Path) -> Path:
    """Return the folder, at or below `folder`, with the official files.

    Raises `UserError` if one is missing or not official.
    """
    folder = next(folder.rglob(next(iter(SHA256))), folder / "-").parent
    for name, digest in SHA256.items():
        if not (folder / name).is_file():
            raise UserError(f"{folder} has no {name}: all four official .gz files are needed")
        if sha256_of(folder / name) != digest:
            raise not_official(str(folder / name), "Fashion-MNIST")
    return folder


def gather(folder: Path, source: Path | None) -> None:
    """Copy the official files into `folder` from the folder `source`, or download them."""
    advice = (
        f"download {', '.join(SHA256)} as described at {HOMEPAGE} and pass their folder with "
        "--source=FOLDER"
    )
    start = ADDRESS if source is None else f"{check(source).as_uri()}/"
    for name, digest in SHA256.items():
        fetch(f"{start}{name}", folder, {name: digest}, "Fashion-MNIST", advice)


def read(folder: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Read each split's images, uint8 `[examples, 28, 28, 1]`, and labels, uint8 `[examples]`."""
    # Headers have 16 and 8 bytes; the checksums have been verified.
    content = [gzip.decompress((folder / name).read_bytes()) for name in SHA256]
    train, train_labels, test, test_labels = (np.frombuffer(part, np.uint8) for part in content)
    return {
        "train": (train[16:].reshape(-1, 28, 28, 1), train_labels[8:]),
        "test": (test[16:].reshape(-1, 28, 28, 1), test_labels[8:]),
    }
