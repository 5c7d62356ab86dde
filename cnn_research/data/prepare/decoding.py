"""Decoding of a plan's images into one array."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging

from cnn_research.core.errors import UserError
from cnn_research.core.preemption import raise_if_interrupted
from cnn_research.core.progress import Tally
from cnn_research.data.dataset import Examples
from cnn_research.data.images import BadImage
from cnn_research.data.prepare.files import Plan, Record

CHUNK = 256


def decode_plan(
    plan: Plan, pixels: Callable[[Path], np.ndarray], on_bad_image: str, scratch: Path
) -> tuple[Examples, dict[str, Any]]:
    """Decode the images of a plan in its order; also return provenance.

    `pixels` decodes a file to uint8 `[height, width, 3]`, all of one size. The images are a memory
    map of a file in `scratch`, so memory holds only what is in use.

    Raises:
        BadImage: an image cannot be used, and `on_bad_image` is `stop`.
        UserError: no image of a split can be used.
    """
    usable: list[Record] = []
    bad: list[tuple[str, str]] = []
    with open(scratch / "images", "wb") as file:  # a full disk is an error here, and not in a map
        for record, image in _decoded(plan.records, pixels):
            if not isinstance(image, BadImage):
                file.write(image.data)
                usable.append(record)
                shape = image.shape
            elif on_bad_image == "stop":
                raise BadImage(
                    f"{image}; with --on-bad-image=skip (in a training "
                    "--data.on-bad-image=skip) such images are counted and left out"
                )
            else:
                bad.append((record.split, str(image)))
    _report(plan, usable, bad)
    examples = Examples(
        images=np.memmap(file.name, np.uint8, "r", shape=(len(usable), *shape)),
        labels={
            head: np.array(
                [record.labels[head] for record in usable],
                np.int32 if head in plan.class_names else np.float32,
            )
            for head in (*plan.class_names, *plan.numbers)
        },
        class_names=plan.class_names,
        names=np.array([record.name for record in usable]),
        given=np.array([record.split for record in usable]),
    )
    folders = {record.path.removesuffix(record.name) for record in usable}
    # Where the names begin, for links to the files.
    home = {"folder": folders.pop()} if len(folders) == 1 else {}
    return examples, {"skipped": [error for _, error in bad], **plan.notes, **home}


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


def _report(plan: Plan, usable: Sequence[Record], bad: Sequence[tuple[str, str]]) -> None:
    """Log what was left out, (split, error) each; an error if nothing is left of a split."""
    for split in {split for split, _ in bad} - {record.split for record in usable}:
        errors = [error for of, error in bad if of == split]
        raise UserError(
            f"none of the {len(errors):,} images of the split '{split}' can be used; the first: "
            f"{errors[0]}: replace them, or leave the split out"
        )
    if left_out := plan.notes.get("folders_without_images"):
        logging.warning("left out %d folders in which no file is named as an image", left_out)
    if bad:
        logging.warning("left out %d bad images: %s, ...", len(bad), bad[0][1])
