"""Leaks between splits: synthetic sets with known groups, and near duplicates of real sets.

    python -m benchmarks.plain_folders ../shared/data FOLDER
    python -m benchmarks.duplicates FOLDER --sets fashion_mnist products ../data/cifar10 \\
        --sheets SHEETS --output results/duplicates.json

Three sets are made from the photographs in FOLDER/pets: 20 patients whose labels are unrelated to
their pictures, tracks of 30 frames, and photographs with re-encoded, reduced or mirrored copies. A
LeNet-5 is trained on each (one minute) with a split that ignores groups and copies, and with one
that respects them; the difference is the overestimate of the former. In each of `--sets`, in FOLDER
or with a path, near duplicates are searched, and a contact sheet of 100 random pairs is written for
inspection: at least 95 must show the same picture.
"""

from __future__ import annotations

import csv
import dataclasses
import itertools
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from benchmarks.results import Row, flag, in_process, launch, measurement, peak_gigabytes, row
from cnn_research.core import run_folder as folders
from cnn_research.data.dataset import Examples
from cnn_research.data.images import decode
from cnn_research.data.prepare import shared
from cnn_research.data.prepare.files import names_below

SIDE, FRAMES, TRACKS, PATIENTS, COPIED = 48, 30, 20, 20, 300
"""Side of the images in pixels; frames per track, and images per patient; number of each; and
number of photographs with copies."""
WORDS = (
    *("--pretrained=none", "--model=lenet5", "--data.image-size", "32", "32", "--epochs=40"),
    *("--augmentation.no-mirror", "--augmentation.crop", "1.0", "1.0", "--batch-size=16"),
)
SHOWN, TRUE = 100, 95
"""Number of pairs on a contact sheet, and of those that must show the same picture."""


@dataclasses.dataclass(frozen=True)
class Made:
    """A synthetic set: options that select it, options that keep its groups together, and the group
    of an image by its name."""

    experiment: str
    path: Path
    words: Sequence[str]
    group_of: Callable[[str], str]


# Sets --------------------------------------------------------------------------------------------


def photographs(folder: Path) -> Iterator[Image.Image]:
    """Yield the photographs in a folder, in order, with sides of at least 120 pixels."""
    for name in names_below(folder):
        image = Image.fromarray(decode(folder / name, None))
        scale = 120 / min(image.size)
        yield image.resize((round(image.width * scale), round(image.height * scale)))


def patients(source: Path, folder: Path) -> Made:
    """Make crops of one photograph per patient with a random label: on unseen patients, accuracy is
    one half."""
    random = np.random.default_rng(0)
    ill = random.permutation(np.arange(PATIENTS) % 2)
    folder.mkdir()
    rows = [("image", "label", "patient")]
    for patient, image in zip(range(PATIENTS), photographs(source), strict=False):
        for number in range(FRAMES):
            left, top = (int(random.integers(0, side - 96)) for side in image.size)
            name = f"{patient:02}_{number:02}.png"
            part = image.crop((left, top, left + 96, top + 96)).resize((SIDE, SIDE))
            part.save(folder / name)
            rows.append((name, ("healthy", "ill")[ill[patient]], f"patient {patient}"))
    with open(folder / "patients.csv", "w", newline="") as file:
        csv.writer(file).writerows(rows)
    table = folder / "patients.csv"
    return Made("image_table", table, ("--data.group=patient",), lambda name: name[:2])


def tracks(source: Path, folder: Path) -> Made:
    """Make frames of a window that moves over a photograph pixel by pixel; classes are random."""
    random = np.random.default_rng(1)
    label = random.permutation(np.arange(TRACKS) % 2)
    for track, image in zip(range(TRACKS), photographs(source), strict=False):
        place = folder / ("day", "night")[label[track]]
        place.mkdir(parents=True, exist_ok=True)
        for frame in range(FRAMES):
            left = min(frame, image.width - 80)
            part = image.crop((left, 20, left + 80, 100)).resize((SIDE, SIDE))
            part.save(place / f"film{track:02}_{frame:02}.png")
    pattern = "--data.group=(film[0-9]+)_"
    return Made("image_folder", folder, (pattern,), lambda name: Path(name).name[:6])


def copies(source: Path, folder: Path) -> Made:
    """Make photographs with random classes and copies of some: re-encoded as JPEG of quality 40 to
    90, at half the size, or mirrored and re-encoded."""
    random = np.random.default_rng(2)
    images = list(itertools.islice(photographs(source), 4 * COPIED // 3))
    label = random.permutation(np.arange(len(images)) % 2)
    for number, image in enumerate(images):
        place = folder / ("left", "right")[label[number]]
        place.mkdir(parents=True, exist_ok=True)
        image.save(place / f"{number:04}_0.png")
        if number < COPIED:
            quality = int(random.integers(40, 91))
            smaller = image.resize((image.width // 2, image.height // 2))
            mirrored = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            copy = (image, smaller, mirrored)[number % 3]
            copy.save(place / f"{number:04}_1.jpg", quality=quality)
    return Made("image_folder", folder, (), lambda name: Path(name).name[:4])


# Leaks -------------------------------------------------------------------------------------------


def trained(made: Made, workdir: Path, words: Sequence[str]) -> dict[str, Any]:
    """Train; return the accuracy, the groups in two splits, and the report on near duplicates."""
    launch(made.experiment, workdir, f"--data.path={made.path}", *WORDS, *words)
    experiment = folders.saved_config(workdir)
    sides: dict[str, set[str]] = {}
    for split, part in experiment.data.load().splits.items():  # type: ignore[union-attr]
        for name in part.names:
            sides.setdefault(made.group_of(str(name)), set()).add(split)
    data = folders.read_json(workdir / folders.RUN)["data"]
    return {
        "accuracy": folders.read_json(workdir / folders.EVALUATION)["test"]["accuracy"],
        "groups": len(sides),
        "divided": sum(len(found) > 1 for found in sides.values()),
        "near_duplicates": data["near_duplicates"],
    }


def leak(name: str, made: Made, scratch: Path) -> tuple[list[Row], dict[str, Any]]:
    """Measure the leaks of a naive split of a set, and check that the default has none."""
    naive = trained(made, scratch / f"{name}_naive", ["--data.near-duplicates=list"])
    apart = trained(made, scratch / f"{name}_apart", made.words)
    across = sum(apart["near_duplicates"]["across_splits"].values())
    largest = apart["near_duplicates"]["largest_group"]
    rows = [
        row(
            f"{name}: groups, and pairs of near duplicates, that are on two sides",
            "none",
            f"{apart['divided']} of {apart['groups']} groups, {across} pairs "
            f"({naive['divided']} groups in a naive split); the largest group has {largest} images",
            apart["divided"] == 0 and across == 0,
        ),
        row(
            f"{name}: test accuracy of labels that images say nothing of",
            "a naive split's is higher",
            f"{naive['accuracy']:.3f} by a naive split, {apart['accuracy']:.3f} by one that keeps "
            "together what belongs together",
            naive["accuracy"] > apart["accuracy"],
        ),
    ]
    return rows, {"naive": naive, "apart": apart}


# Real sets ---------------------------------------------------------------------------------------


def searched(path: str, sheet: str) -> dict[str, Any]:
    """Search a folder's images for near duplicates; measure time and memory, and write a contact
    sheet of random pairs."""
    from cnn_research.data.prepare.drawing import units_of
    from cnn_research.data.sources.folder import ImageFolder

    folder = Path(path)
    side = (80, 60) if folder.name == "products" else (32, 32)
    dataset = ImageFolder(path, side, validation=0.0, test=0.0, on_bad_image="skip").load()
    parts = dataset.splits.values()
    examples = Examples(
        images=np.concatenate([part.images for part in parts]),
        labels={},
        class_names={},
        names=np.concatenate([part.names for part in parts]),  # type: ignore[arg-type]
        given=np.repeat("train", sum(map(len, parts))),
    )
    started = time.monotonic()
    alike = shared.likenesses(examples)
    seconds = time.monotonic() - started
    units = units_of(examples, np.arange(len(examples.images)), alike.pairs)
    chosen = np.random.default_rng(0).permutation(len(alike.pairs))[:SHOWN]
    draw(examples.images, alike.pairs[chosen], alike.mirrored[chosen], Path(sheet))
    return {
        "images": len(examples.images),
        "pairs": len(alike.pairs),
        "largest_group": int(np.bincount(units).max()),
        "seconds": seconds,
        "gigabytes": peak_gigabytes(resource.getrusage(resource.RUSAGE_SELF)),
    }


def draw(images: np.ndarray, pairs: np.ndarray, mirrored: np.ndarray, sheet: Path) -> None:
    """Draw pairs, ten per row, with an m above mirror images."""
    width, height, columns = 60, 80, 10
    size = (columns * (2 * width + 12), max(1, -(-len(pairs) // columns)) * (height + 14))
    page = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(page)
    for number, (pair, mirror) in enumerate(zip(pairs, mirrored, strict=True)):
        left, top = (number % columns) * (2 * width + 12), (number // columns) * (height + 14)
        pen.text((left, top), f"{number + 1}{' m' * bool(mirror)}", fill="black")
        for place, index in enumerate(pair):
            image = Image.fromarray(np.broadcast_to(images[index], (*images.shape[1:3], 3)).copy())
            page.paste(image.resize((width, height)), (left + place * width, top + 12))
    sheet.parent.mkdir(parents=True, exist_ok=True)
    page.save(sheet)


@measurement(
    flag("folder", type=Path, help="the folders that benchmarks.plain_folders writes"),
    flag("--sets", nargs="*", default=[], help="folders to search, in FOLDER or with a path"),
    flag("--sheets", type=Path, default=Path("sheets"), help="folder of the contact sheets"),
    what="groups and near duplicates in made and real sets, and what a naive split pretends",
    target="no group and no near duplicate on two sides; "
    f"{TRUE} of {SHOWN} random pairs show one picture, to be looked at",
    seeds=[0],
)
def main(options):
    rows: list[Row] = []
    figures: dict[str, Mapping[str, Any]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for make in (patients, tracks, copies):
            made = make(options.folder / "pets", Path(scratch, make.__name__))
            found, figures[make.__name__] = leak(make.__name__, made, Path(scratch))
            rows += found
    for name in options.sets:
        path = Path(options.folder, name).absolute()
        sheet = options.sheets.absolute() / f"{path.name}.png"
        found = figures[path.name] = in_process(searched, str(path), str(sheet))
        rows.append(
            row(
                f"{path.name}: pairs of near duplicates, and the largest group",
                f"{TRUE} of {SHOWN} random ones show one picture",
                f"{found['pairs']:,} pairs among {found['images']:,} images in "
                f"{found['seconds']:.0f} s, at most {found['largest_group']} in a group; {sheet} "
                "is to be looked at",
                True,
            )
        )
    return rows, figures


if __name__ == "__main__":
    sys.exit(main())
