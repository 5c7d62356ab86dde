"""Images of a plan decoded, into one array or, each at a size of its own, into files."""

from __future__ import annotations

import io
import json
import os
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging
from tqdm import tqdm

from cnn_research.core.errors import UserError
from cnn_research.core.preemption import raise_if_interrupted
from cnn_research.data.dataset import Examples
from cnn_research.data.images import BadImage, decode
from cnn_research.data.prepare import cache
from cnn_research.data.prepare.files import Plan, Record

CHUNK = 256
PLAN = "plan.json"

Pixels = Callable[[Path], np.ndarray]
"""Decodes a file into uint8 `[height, width, 3]`."""


def decode_plan(
    plan: Plan, pixels: Pixels, on_bad_image: str, scratch: Path
) -> tuple[Examples, dict[str, Any]]:
    """Decode the images of a plan in its order, made one size by `pixels`; also return provenance.

    They are a memory map of a file in `scratch`, so memory holds only what is in use.

    Raises:
        BadImage: an image cannot be used, and `on_bad_image` is `stop`.
        UserError: no image of a split can be used.
    """
    kept: list[Record] = []
    skipped: list[str] = []
    with open(scratch / "images", "wb") as file:  # a full disk is an error here, and not in a map
        for record, image in _decoded(plan, pixels, on_bad_image, skipped):
            file.write(image)
            kept.append(record)
    examples = Examples(
        images=np.memmap(file.name, np.uint8, "r", shape=(len(kept), *image.shape)),
        labels={
            head: np.array(
                [record.labels[head] for record in kept],
                np.int32 if head in plan.class_names else np.float32,
            )
            for head in (*plan.class_names, *plan.numbers)
        },
        class_names=plan.class_names,
        names=np.array([record.name for record in kept]),
        given=np.array([record.split for record in kept]),
    )
    return examples, {"skipped": skipped, **plan.notes}


def write_plan(
    folder: Path, plan: Plan, pixels: Pixels, on_bad_image: str, facts: Mapping[str, Any]
) -> None:
    """Write every image of a plan as PNG into `folder`, which appears only when it is complete.

    Beside them is the plan itself, with `facts` for the provenance. Errors are as in `decode_plan`.
    """
    skipped: list[str] = []
    records: list[Any] = []
    with cache.scratch(folder) as temporary:
        for record, image in _decoded(plan, lambda file: _png(pixels(file)), on_bad_image, skipped):
            (temporary / f"{len(records)}.png").write_bytes(image)
            records.append([record.name, record.split, record.labels, record.cells])
        content = {
            "records": records,
            "class_names": plan.class_names,
            "notes": {**facts, "skipped": skipped, **plan.notes},
        }
        (temporary / PLAN).write_text(json.dumps(content))
        os.sync()  # once, for what may be 20,000 files
        temporary.rename(folder)


def read_plan(folder: Path) -> Plan:
    """The plan that `write_plan` left in `folder`, of the images there."""
    content = json.loads((folder / PLAN).read_text())
    return Plan(
        records=[
            Record(folder / f"{number}.png", *record)
            for number, record in enumerate(content["records"])
        ],
        class_names={head: tuple(names) for head, names in content["class_names"].items()},
        notes=content["notes"],
    )


def decode_prepared(
    folder: Path, plan: Plan, image_size: tuple[int, int], scratch: Path
) -> tuple[Examples, dict[str, Any]]:
    """As `decode_plan`, of images that `write_plan` left in `folder`."""

    def pixels(file: Path) -> np.ndarray:
        try:
            return decode(file, image_size)
        except BadImage as error:
            raise UserError(f"{error}: delete {folder} and prepare again") from error

    return decode_plan(plan, pixels, "stop", scratch)


def _decoded(
    plan: Plan, work: Callable[[Path], Any], on_bad_image: str, skipped: list[str]
) -> Iterator[tuple[Record, Any]]:
    """Results of `work` for each file of a plan, in its order; bad images go to `skipped`."""

    def attempt(record: Record) -> Any:
        try:
            return work(record.path)
        except BadImage as error:
            return error

    usable = Counter({record.split: 0 for record in plan.records})
    first: dict[str, BadImage] = {}
    with (
        warnings.catch_warnings(),
        ThreadPoolExecutor() as pool,  # Pillow decodes and resizes outside of the lock
        tqdm(total=len(plan.records), desc="decoding images", disable=None) as progress,
    ):
        warnings.simplefilter("ignore")  # Pillow's, on odd but readable files
        for start in range(0, len(plan.records), CHUNK):
            raise_if_interrupted()
            chunk = plan.records[start : start + CHUNK]
            for record, found in zip(chunk, pool.map(attempt, chunk), strict=True):
                if not isinstance(found, BadImage):
                    usable[record.split] += 1
                    yield record, found
                elif on_bad_image == "stop":
                    raise BadImage(
                        f"{found}; with --on-bad-image=skip (in a training "
                        "--data.on-bad-image=skip) such images are counted and left out"
                    )
                else:
                    skipped.append(str(found))
                    first.setdefault(record.split, found)
            progress.update(len(chunk))
    _report(plan, usable, first, skipped)


def _report(
    plan: Plan, usable: Mapping[str, int], first: Mapping[str, BadImage], skipped: Sequence[str]
) -> None:
    """Log what was left out; an error if nothing is left of a split."""
    for split, count in usable.items():
        if not count:
            bad = sum(record.split == split for record in plan.records)
            raise UserError(
                f"none of the {bad:,} images of the split '{split}' can be used; the first: "
                f"{first[split]}: replace them, or leave the split out"
            )
    if left_out := plan.notes.get("folders_without_images"):
        logging.warning("left out %d folders in which no file is named as an image", left_out)
    if skipped:
        logging.warning("left out %d bad images: %s, ...", len(skipped), skipped[0])


def _png(pixels: np.ndarray) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "png", compress_level=1)
    return buffer.getvalue()
