"""Survey a folder or table of images: counts, sizes, and properties of a sample."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import math
import statistics
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cnn_research.core.errors import UserError
from cnn_research.data.images import BadImage, open_image, printable, resized
from cnn_research.data.prepare import cache
from cnn_research.data.prepare.files import Plan, Record, existing, folders_state, is_table, opened
from cnn_research.data.prepare.understood import (
    label_array,
    labels_of,
    nothing_left,
    say,
    understood,
)
from cnn_research.data.sources.loading import ImageFiles

SAMPLE, DECODED = 200, 16
"""Approximate number of evenly spread images opened for their size, and decoded to measure time."""
MOST_SECONDS = 0.5
"""Time limit for decoding."""
COMPARED, COMPARED_PIXELS, THUMBNAIL = 600, 3 * 10**8, (16, 16)
"""Approximate number of images compared with each other, limit of their pixels in total, and the
height and width at which they are compared."""
RESULT = "survey.json"
NAMED = 3
"""Number of files that an error names if none can be read."""
EXIF_ORIENTATION, ON_ITS_SIDE = 274, 5
"""EXIF's orientation tag, and the value from which height and width are swapped."""


@dataclasses.dataclass(frozen=True)
class Survey:
    """Images per split, training images per class of each head, median size in pixels, and more.

    If the source has no validation or test split, `classes` still includes their images. `shapes`
    are the 10th and 90th percentile of the aspect ratio, width by height. `seconds` is the time in
    which one core decodes an image. `mirrored` has the number of images whose mirror images are
    classified worse than they are by their nearest neighbours, and of those classified better.
    """

    splits: Mapping[str, int]
    classes: Mapping[str, Mapping[str, int]]
    height: int
    width: int
    shapes: tuple[float, float]
    without_labels: int = 0
    """Training images without labels, if an image may have several."""
    seconds: float = 0.0
    understood: str = ""
    mirrored: tuple[int, int] = (0, 0)

    @property
    def images(self) -> int:
        return sum(self.splits.values())


def survey(source: ImageFiles) -> Survey:
    """Survey a source.

    The result is cached: for a folder or table in memory, until it changes; for an archive, which
    must be unpacked, on disk.

    Raises:
        UsageError: the path is empty, a column does not exist, or fields contradict each other.
        UserError: there is no such path, or there are no images.
    """
    source.check()
    path, source = existing(source.path), source.plain()
    if path.is_dir() or is_table(path):
        result = _of_files(source, path, folders_state(path))
    else:
        result = _of_archive(source, path)
    say(result.understood)  # also if the result was cached by another process
    return result


@functools.lru_cache(maxsize=4)
def _of_files(source: ImageFiles, path: Path, state: tuple[object, ...]) -> Survey:
    """Survey a folder or table in this state."""
    return _survey(source, path, printable(path))


def _of_archive(source: ImageFiles, path: Path) -> Survey:
    """Survey an archive; cache the result on disk."""
    shown = printable(path)
    fields = {**dataclasses.asdict(source), "path": shown}
    facts = [field.name for field in dataclasses.fields(Survey)]
    known = [type(source).__name__, fields, source.state_of(path), facts]
    folder = cache.data_dir() / "surveys" / cache.key_of(known)

    def write(temporary: Path) -> None:
        with opened(path) as root:
            result = _survey(source, root, shown)
        (temporary / RESULT).write_text(json.dumps(dataclasses.asdict(result)), encoding="utf-8")

    cache.write_once(folder, write)
    return Survey(**json.loads((folder / RESULT).read_text(encoding="utf-8")))


def _survey(source: ImageFiles, root: Path, shown: str) -> Survey:
    plan = source.planned(root, shown)
    text = understood(plan, shown)
    say(text)
    train = [record for record in plan.records if record.split == "train"]
    if not train:
        raise UserError(f"{shown}: no image is in the split 'train': there is nothing to train on")
    files = [record.path for record in train]
    sizes = _sizes(_spread(files, SAMPLE))
    if not sizes:
        raise UserError(
            f"{shown}: none of the sampled images can be read: "
            f"{'; '.join(_reasons(files[:NAMED], source.pixels))}; ..."
        )
    _check_classes(plan, train, source.pixels)
    heights, widths = zip(*sizes, strict=True)
    height, width = round(statistics.median(heights)), round(statistics.median(widths))
    compared = _spread(train, min(COMPARED, COMPARED_PIXELS // (height * width)))
    shapes = sorted(width / height for height, width in zip(heights, widths, strict=True))
    return Survey(
        splits=dict(Counter(record.split for record in plan.records)),
        classes={
            head: {
                names[round(index)]: count
                for index, count in sorted(_counts(train, head).items())
                if index >= 0
            }
            for head, names in plan.class_names.items()
        },
        height=height,
        width=width,
        shapes=(shapes[len(shapes) // 10], shapes[-1 - len(shapes) // 10]),
        without_labels=sum(() in record.labels.values() for record in train),
        seconds=_seconds(_spread(files, DECODED), source.pixels),
        understood=text,
        mirrored=_mirrored(compared, plan.class_names, source.pixels),
    )


def _counts(records: Sequence[Record], head: str) -> Counter[Any]:
    """Count the records with each label; a record may have several."""
    return Counter(label for record in records for label in labels_of(record, head))


def _sizes(files: Sequence[str]) -> list[tuple[int, int]]:
    """Read the height and width of each file that is an image."""
    sizes = []
    for file in files:
        try:
            with open_image(Path(file)) as image:
                size = image.size
                on_its_side = image.getexif().get(EXIF_ORIENTATION, 1) >= ON_ITS_SIDE
        except Exception:  # Pillow's plugins raise a dozen kinds
            continue
        sizes.append(size if on_its_side else (size[1], size[0]))
    return sizes


def _reasons(files: Sequence[str], pixels: Callable[[Path], np.ndarray]) -> Iterator[str]:
    """Yield the reasons why files cannot be read."""
    for file in files:
        try:
            pixels(Path(file))
        except BadImage as error:
            yield str(error)


def _check_classes(
    plan: Plan, records: Sequence[Record], pixels: Callable[[Path], np.ndarray]
) -> None:
    """Raise `UserError` for a class without a single image that can be opened."""
    classes = {
        (head, label)
        for record in records
        for head in plan.class_names
        for label in labels_of(record, head)
        if label >= 0
    }
    closed: dict[tuple[str, int], list[str]] = {}
    for record in records:
        if not classes:
            return
        own = {(head, at) for head in plan.class_names for at in labels_of(record, head)} & classes
        if own and _sizes([record.path]):
            classes -= own
        for each in own & classes:
            closed.setdefault(each, []).append(record.path)
    for head, label in sorted(classes):
        files = closed[head, label]
        reason = next(_reasons(files, pixels), "it cannot be opened")
        raise nothing_left(len(files), "class", plan.class_names[head][label], reason)


def _seconds(files: Sequence[str], pixels: Callable[[Path], np.ndarray]) -> float:
    """Measure the seconds in which one core decodes a file, on a few of them."""
    began, done = time.monotonic(), 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, about unusual but readable files
        for file in files:
            if time.monotonic() - began > MOST_SECONDS:
                break
            with contextlib.suppress(BadImage):
                pixels(Path(file))
            done += 1
    return (time.monotonic() - began) / max(1, done)


def _mirrored(
    records: Sequence[Record],
    class_names: Mapping[str, Sequence[str]],
    pixels: Callable[[Path], np.ndarray],
) -> tuple[int, int]:
    """Count the images whose mirror images are predicted worse, and better, than they are.

    Predictions are nearest neighbours' classes, labels or numbers; a third of the images are
    queries, the rest the neighbours. If mirror images were as likely as the images themselves, the
    two counts would be equal up to chance.
    """
    names = next(iter(class_names.values()), None)
    labels, images = [], []
    pairs = [(next(iter(record.labels.values()), math.nan), record.path) for record in records]
    least = -math.inf if names is None else 0
    known = [pair for pair in pairs if isinstance(pair[0], tuple) or pair[0] >= least]
    for label, path in sorted(known):
        with contextlib.suppress(BadImage), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's, about unusual but readable files
            images.append(resized(pixels(Path(path)), THUMBNAIL))
            labels.append(label)
    # In runs, so that consecutive images of a series are mostly on the same side.
    query = np.arange(len(labels)) % 6 >= 4
    if not query.any():
        return 0, 0
    thumbnails = np.stack(images)
    truth = label_array(labels, names).reshape(len(labels), -1)
    others = _directions(thumbnails[~query])

    def errors(views: np.ndarray) -> np.ndarray:
        nearest = np.argmax(_directions(views) @ others.T, axis=1)
        wrong = np.abs(truth[~query][nearest] - truth[query])
        return (wrong if names is None else np.minimum(wrong, 1)).sum(axis=1)

    image, mirror = errors(thumbnails[query]), errors(thumbnails[query][:, :, ::-1])
    return int((mirror > image).sum()), int((mirror < image).sum())


def _directions(images: np.ndarray) -> np.ndarray:
    """Convert images to vectors of unit length and mean 0, float32 `[images, numbers]`."""
    vectors = images.reshape(len(images), -1).astype(np.float32)
    vectors -= vectors.mean(axis=1, keepdims=True)
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-6)


def _spread(items: Sequence[Any], count: int) -> Sequence[Any]:
    """Select at least `count` items, evenly spread, or all if there are fewer."""
    return items[:: max(1, len(items) // max(1, count))]
