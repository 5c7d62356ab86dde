"""Decode a plan's images into one array."""

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
"""An image is dark if no pixel is brighter, as in 16-bit files of 14-bit images; and the share of
dark images above which a warning is logged, as a few may show the night."""


def decode_plan(
    plan: Plan, pixels: Callable[[Path], np.ndarray], on_bad_image: str, scratch: Path
) -> tuple[Examples, dict[str, Any]]:
    """Decode the images of a plan in its order; also return provenance.

    `pixels` decodes a file to uint8 `[height, width, 3]`, all of one size. The images are a memory
    map of a file in `scratch`, so they need little memory.

    Raises:
        BadImage: an image cannot be used and `on_bad_image` is `stop`.
        UserError: no image of a split or of a class can be used.
    """
    usable: list[Record] = []
    bad: list[tuple[Record, str]] = []
    brightest: list[int] = []
    with open(scratch / "images", "wb") as file:  # unlike a memory map, it detects a full disk
        for record, image in _decoded(plan.records, pixels):
            if not isinstance(image, BadImage):
                file.write(image.data)
                usable.append(record)
                shape = image.shape
                brightest.append(int(image.max()))
            elif on_bad_image == "stop":
                raise BadImage(
                    f"{image}; use --on-bad-image=skip (for training, "
                    "--data.on-bad-image=skip) to skip and count such images"
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
    # For links to the files, whose names are relative to it.
    home = {"folder": folders.pop()} if len(folders) == 1 else {}
    facts = {"skipped": [error for _, error in bad], "left_out": plan.left_out, **plan.notes}
    return examples, {**facts, **home, **_dark(usable, brightest)}


def _decoded(
    records: Sequence[Record], pixels: Callable[[Path], np.ndarray]
) -> Iterator[tuple[Record, np.ndarray | BadImage]]:
    """Yield each record in order, with its image or the reason why it cannot be used."""

    def attempt(record: Record) -> np.ndarray | BadImage:
        try:
            return pixels(Path(record.path))
        except BadImage as error:
            return error

    with (
        warnings.catch_warnings(),
        ThreadPoolExecutor() as pool,  # Pillow releases the GIL to decode and resize
        Tally("decoding images", len(records)) as tally,
    ):
        warnings.simplefilter("ignore")  # Pillow's, about unusual but readable files
        for start in range(0, len(records), CHUNK):
            raise_if_interrupted()
            chunk = records[start : start + CHUNK]
            yield from zip(chunk, pool.map(attempt, chunk), strict=True)
            tally.advance(len(chunk))


def _report(plan: Plan, usable: Sequence[Record], bad: Sequence[tuple[Record, str]]) -> None:
    """Log the skipped images; raise `UserError` if no image of a split or class is left."""
    for what, key in _parts(plan):
        left = {part for record in usable for part in key(record)}
        lost = [(part, error) for record, error in bad for part in key(record) if part not in left]
        for first, error in lost[:1]:
            count = sum(part == first for part, _ in lost)
            raise nothing_left(count, what, first, error)
    if bad:
        logging.warning("skipped %d unusable images: %s, ...", len(bad), bad[0][1])


def _parts(plan: Plan) -> Iterator[tuple[str, Callable[[Record], Sequence[str]]]]:
    """Yield the kinds of parts that must not be empty, and a function that names an image's."""
    yield "split", lambda record: [record.split]
    for head, names in plan.class_names.items():

        def classes(record: Record, head: str = head, names: Sequence[str] = names) -> list[str]:
            return [names[label] for label in labels_of(record, head) if label >= 0]

        yield "class", classes


def _dark(records: Sequence[Record], brightest: Sequence[int]) -> dict[str, Any]:
    """Warn if many images are nearly black, as if they used fewer bits than their files have.

    `brightest` has the brightest pixel of each. Returns the facts for the provenance.
    """
    dark = [(pixel, record.name) for pixel, record in zip(brightest, records) if pixel <= DARK]
    if len(dark) <= FEW * len(records):
        return {}
    most, first = max(dark)[0], dark[0][1]
    bits = max(most - 1, 0).bit_length()
    logging.warning(
        "%d of %d images, the first %s, have no pixel above %d of 255: if these are %d-bit images "
        "in 16-bit files that do not declare it, multiply their pixels by %d",
        *(len(dark), len(records), first, most, 8 + bits, 2 ** (8 - bits)),
    )
    return {"dark_images": {"count": len(dark), "first": first, "brightest_pixel_of_255": most}}
