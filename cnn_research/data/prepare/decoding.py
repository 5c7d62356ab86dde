"""Decoding of a plan's images into one array."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging

from cnn_research.core.preemption import raise_if_interrupted
from cnn_research.core.progress import Tally
from cnn_research.data.dataset import Examples
from cnn_research.data.images import BadImage
from cnn_research.data.prepare.files import Plan, Record
from cnn_research.data.prepare.understood import label_array, labels_of, nothing_left

CHUNK = 256
DARK, FEW = 64, 0.1
"""An image is dark in which no pixel is brighter, as are 14 bits in files of 16; and the share of
dark images that may well be of the night."""


def decode_plan(
    plan: Plan, pixels: Callable[[Path], np.ndarray], on_bad_image: str, scratch: Path
) -> tuple[Examples, dict[str, Any]]:
    """Decode the images of a plan in its order; also return provenance.

    `pixels` decodes a file to uint8 `[height, width, 3]`, all of one size. The images are a memory
    map of a file in `scratch`, so memory holds only what is in use.

    Raises:
        BadImage: an image cannot be used, and `on_bad_image` is `stop`.
        UserError: no image of a split or of a class can be used.
    """
    usable: list[Record] = []
    bad: list[tuple[Record, str]] = []
    brightest: list[int] = []
    with open(scratch / "images", "wb") as file:  # a full disk is an error here, and not in a map
        for record, image in _decoded(plan.records, pixels):
            if not isinstance(image, BadImage):
                file.write(image.data)
                usable.append(record)
                shape = image.shape
                brightest.append(int(image.max()))
            elif on_bad_image == "stop":
                raise BadImage(
                    f"{image}; with --on-bad-image=skip (in a training "
                    "--data.on-bad-image=skip) such images are counted and left out"
                )
            else:
                bad.append((record, str(image)))
    _report(plan, usable, bad)
    groups = np.array([record.group for record in usable])
    examples = Examples(
        images=np.memmap(file.name, np.uint8, "r", shape=(len(usable), *shape)),
        labels={
            head: label_array(
                [record.labels[head] for record in usable], plan.class_names.get(head)
            )
            for head in (*plan.class_names, *plan.numbers)
        },
        class_names=plan.class_names,
        names=np.array([record.name for record in usable]),
        given=np.array([record.split for record in usable]),
        groups=groups if groups.any() else None,
    )
    folders = {record.path.removesuffix(record.name) for record in usable}
    # Where the names begin, for links to the files.
    home = {"folder": folders.pop()} if len(folders) == 1 else {}
    facts = {"skipped": [error for _, error in bad], "left_out": plan.left_out, **plan.notes}
    return examples, {**facts, **home, **_dark(usable, brightest)}


def _decoded(
    records: Sequence[Record], pixels: Callable[[Path], np.ndarray]
) -> Iterator[tuple[Record, np.ndarray | BadImage]]:
    """Each record in order, with its image or why it cannot be used."""

    def attempt(record: Record) -> np.ndarray | BadImage:
        try:
            return pixels(Path(record.path))
        except BadImage as error:
            return error

    with (
        warnings.catch_warnings(),
        ThreadPoolExecutor() as pool,  # Pillow decodes and resizes outside of the lock
        Tally("decoding images", len(records)) as tally,
    ):
        warnings.simplefilter("ignore")  # Pillow's, on odd but readable files
        for start in range(0, len(records), CHUNK):
            raise_if_interrupted()
            chunk = records[start : start + CHUNK]
            yield from zip(chunk, pool.map(attempt, chunk), strict=True)
            tally.advance(len(chunk))


def _report(plan: Plan, usable: Sequence[Record], bad: Sequence[tuple[Record, str]]) -> None:
    """Log what was left out, with the reasons; an error if nothing is left of a split or class."""
    for what, key in _parts(plan):
        left = {part for record in usable for part in key(record)}
        lost = [(part, error) for record, error in bad for part in key(record) if part not in left]
        for first, error in lost[:1]:
            count = sum(part == first for part, _ in lost)
            raise nothing_left(count, what, first, error)
    if bad:
        logging.warning("left out %d bad images: %s, ...", len(bad), bad[0][1])


def _parts(plan: Plan) -> Iterator[tuple[str, Callable[[Record], Sequence[str]]]]:
    """The kinds of parts of a plan that must not be empty, and the names of those that an image is
    of."""
    yield "split", lambda record: [record.split]
    for head, names in plan.class_names.items():

        def classes(record: Record, head: str = head, names: Sequence[str] = names) -> list[str]:
            return [names[label] for label in labels_of(record, head) if label >= 0]

        yield "class", classes


def _dark(records: Sequence[Record], brightest: Sequence[int]) -> dict[str, Any]:
    """Warn of images that are nearly black, as are those of fewer bits than their files have room
    for, by the brightest pixel of each; also return it for the provenance."""
    dark = [(pixel, record.name) for pixel, record in zip(brightest, records) if pixel <= DARK]
    if len(dark) <= FEW * len(records):
        return {}
    most, first = max(dark)[0], dark[0][1]
    bits = max(most - 1, 0).bit_length()
    logging.warning(
        "%d of %d images, the first %s, have no pixel above %d of 255: if they have %d bits, "
        "stored in 16-bit files that do not say so, multiply their values by %d",
        *(len(dark), len(records), first, most, 8 + bits, 2 ** (8 - bits)),
    )
    return {"dark_images": {"count": len(dark), "first": first, "brightest_pixel_of_255": most}}
