"""Sizes and counts of a folder or table of images, without decoding any."""

from __future__ import annotations

import dataclasses
import json
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from cnn_research.core.errors import UserError
from cnn_research.data.images import open_image, printable
from cnn_research.data.prepare import cache
from cnn_research.data.prepare.files import Plan, existing, opened
from cnn_research.data.sources.loading import ImageFiles

SAMPLE = 200
"""Largest number of images whose size is read."""
RESULT = "survey.json"
EXIF_ORIENTATION, ON_ITS_SIDE = 274, 5
"""The tag of an image's orientation; from this value on, height and width are exchanged."""


@dataclasses.dataclass(frozen=True)
class Survey:
    """Images per split, training images per class of each head, median size in pixels, and shapes.

    Where the source has no validation or test split, `classes` still includes their images. Of
    `shapes`, width by height, a tenth of the images has less than the first and a tenth more than
    the second.
    """

    splits: Mapping[str, int]
    classes: Mapping[str, Mapping[str, int]]
    height: int
    width: int
    shapes: tuple[float, float]


def survey(source: ImageFiles) -> Survey:
    """Survey a source; for an archive, which has to be unpacked, the result is cached.

    Raises:
        UsageError: the source names no path, or a column that its table lacks.
        UserError: there is nothing, or no image among it.
    """
    path = existing(source.path)
    shown = printable(path)
    if path.is_dir() or path.suffix.lower() == ".csv":
        return _survey(source.plan(path, shown), shown)
    fields = {**dataclasses.asdict(source), "path": shown}
    for field in ("image_size", "fit", "validation", "test", "split_seed", "on_bad_image"):
        del fields[field]
    facts = [field.name for field in dataclasses.fields(Survey)]
    name = cache.key_of([type(source).__name__, fields, source.state_of(path), facts])
    folder = cache.data_dir() / "surveys" / name

    def write(temporary: Path) -> None:
        with opened(path) as root:
            found = _survey(source.plan(root, shown), shown)
        (temporary / RESULT).write_text(json.dumps(dataclasses.asdict(found)))

    cache.write_once(folder, write)
    return Survey(**json.loads((folder / RESULT).read_text()))


def _survey(plan: Plan, shown: str) -> Survey:
    train = [record for record in plan.records if record.split == "train"]
    heights, widths = zip(*_sizes([record.path for record in train], shown), strict=True)
    shapes = sorted(width / height for height, width in zip(heights, widths, strict=True))
    return Survey(
        splits=dict(Counter(record.split for record in plan.records)),
        classes={
            head: {
                names[round(index)]: count
                for index, count in sorted(Counter(r.labels[head] for r in train).items())
                if index >= 0
            }
            for head, names in plan.class_names.items()
        },
        height=round(statistics.median(heights)),
        width=round(statistics.median(widths)),
        shapes=(shapes[len(shapes) // 10], shapes[-1 - len(shapes) // 10]),
    )


def _sizes(files: Sequence[str], shown: str) -> list[tuple[int, int]]:
    """Height and width of an evenly spread sample of the files, less those that are not images."""
    sizes = []
    for file in files[:: max(1, len(files) // SAMPLE)]:
        try:
            with open_image(Path(file)) as image:
                size = image.size
                on_its_side = image.getexif().get(EXIF_ORIENTATION, 1) >= ON_ITS_SIDE
        except Exception:  # Pillow's plugins raise a dozen different ones
            continue
        sizes.append(size if on_its_side else (size[1], size[0]))
    if not sizes:
        raise UserError(f"{shown}: none of the files is a readable image")
    return sizes
