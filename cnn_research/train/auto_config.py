"""Suggestions for a user's images: sizes, network and length of training, chosen from the data.

Every choice is printed with its reason, and fields on the command line override it. Only names,
counts and sizes of the images are read, no pixels.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from cnn_research.core.config import with_fields
from cnn_research.core.errors import UsageError
from cnn_research.core.experiment import Suggestion
from cnn_research.data.images import printable
from cnn_research.data.prepare.files import existing, opened
from cnn_research.data.sources import rows as tables
from cnn_research.data.sources.survey import Survey, survey
from cnn_research.data.sources.table import ImageTable
from cnn_research.models.resnet9 import ResNet9
from cnn_research.tasks.classification import Classification
from cnn_research.tasks.multi_head import MultiHead
from cnn_research.tasks.regression import Regression
from cnn_research.train.config import Training

BUDGET = 6.5e13
"""Floating-point operations of a training: about ten minutes on two cores."""
FEWEST_EPOCHS, ENOUGH_EPOCHS, MOST_EPOCHS = 4, 15, 60
SMALL = 48
"""Images whose sides are no longer are trained on at their own size."""
SHORTEST = 8
LONGER_SIDES = (128, 112, 96, 80, 64)
"""Candidates for the longer side of larger images: the first that leaves enough epochs."""
FIRST_FEATURES, MOST_FEATURES = 32, 256
UNEVEN = (5, 50)
"""Classes are weighted if the largest has between these many times the images of the smallest:
above, a few images would weigh as much as thousands."""


def suggest_fields(experiment: Training) -> dict[str, Suggestion]:
    """Suggest fields for an experiment on a folder or a table of images, by path.

    A network other than `ResNet9` is not changed.

    Raises:
        UsageError: a column that the table lacks, or a network that takes no such images.
        UserError: there are no images.
    """
    data, found = experiment.data, {}
    if isinstance(data, ImageTable):
        found = dict(_of_table(data))
        data = with_fields(data, {path.removeprefix("data."): c.value for path, c in found.items()})
    seen = survey(data)
    train = seen.splits["train"]
    drawn = {name: round(getattr(data, name) * train) for name in ("validation", "test")}
    train -= sum(count for name, count in drawn.items() if name not in seen.splits)
    # One image says little, and it may turn out to be damaged.
    validation = seen.splits.get("validation", drawn["validation"]) >= 2
    return {
        **found,
        **dict(_of_task(data, seen)),
        **dict(_of_size(experiment, seen, train, validation)),
        **dict(_of_images(seen)),
    }


def _of_table(data: ImageTable) -> Iterator[tuple[str, Suggestion]]:
    """Columns, where the usual ones are not there."""
    path = existing(data.path)
    with opened(path) as root:
        shown = printable(path)
        table = tables.find_table(root, shown)
        rows = tables.read_table(table, shown)
        if data.number and data.label == ("label",) and "label" not in rows[0]:
            yield "data.label", Suggestion((), "numbers are asked for, and no classes")
        if data.image == "image" and "image" not in rows[0]:
            column = tables.image_column(rows, table.parent)
            if column is None:
                raise UsageError(
                    f"{shown} has no column 'image', and no column names files beside it: say "
                    "which, as --data.image=COLUMN or --data.image='images/{COLUMN}.jpg'"
                )
            yield "data.image", Suggestion(column, "names files that are there")


def _of_task(data: object, seen: Survey) -> Iterator[tuple[str, Suggestion]]:
    numbers = data.number if isinstance(data, ImageTable) else ()
    heads = tuple(seen.classes)
    if len(numbers) > 1 or (numbers and heads):
        named = [f"--data.label={head}" for head in heads]
        named += [f"--data.number={head}" for head in numbers]
        raise UsageError(
            f"{' and '.join(named)}: one run learns one column of numbers or columns of classes; "
            "take one of them (a bare --data.label for no classes)"
        )
    if numbers and not heads:
        yield "task", Suggestion(Regression(head=numbers[0]), "a column of numbers")
        yield "selection.metric", Suggestion("MAE", "numbers have no accuracy")
        return
    if len(heads) > 1:
        yield "task", Suggestion(MultiHead(label=heads), f"{len(heads)} columns of classes")
    elif heads != ("label",):
        yield "task", Suggestion(Classification(head=heads[0]), "the column of classes")
    yield "task.label_smoothing", Suggestion(0.1, "so that a few wrong labels do less harm")
    sizes = [count for counts in seen.classes.values() for count in counts.values()]
    if UNEVEN[0] < max(sizes) / min(sizes) <= UNEVEN[1]:
        reason = f"classes have from {min(sizes):,} to {max(sizes):,} images"
        yield "task.class_weights", Suggestion("balanced", reason)


def _of_size(
    experiment: Training, seen: Survey, train: int, validation: bool
) -> Iterator[tuple[str, Suggestion]]:
    """Image size and network, and from what they cost the length of training."""
    from cnn_research.models.flops import cost

    own = max(seen.height, seen.width)
    shorter = () if own <= SMALL else (side for side in LONGER_SIDES if side < own)
    for longer in (min(own, LONGER_SIDES[0]), *shorter):
        size = image_size(seen, longer)
        fields = network(size) if isinstance(experiment.model, ResNet9) else {}
        model = experiment.model.clone(**fields)
        # The backward pass costs about twice the forward pass.
        epochs = round(BUDGET / (3 * cost(model, (*size, 3)).flops * train))
        if epochs >= ENOUGH_EPOCHS:
            break
    length = f"about ten minutes on two cores, or {MOST_EPOCHS} epochs"
    if epochs < FEWEST_EPOCHS:
        length = f"{FEWEST_EPOCHS} epochs at least, though more than ten minutes on two cores"
    epochs = min(max(epochs, FEWEST_EPOCHS), MOST_EPOCHS)
    reason = f"the images have {seen.height}x{seen.width} pixels, by the median"
    yield "data.image_size", Suggestion(size, reason)
    for field, value in fields.items():
        yield f"model.{field}", Suggestion(value, f"for {size[0]}x{size[1]} pixels")
    yield "epochs", Suggestion(float(epochs), f"{train:,} training images: {length}")
    batch_size = next((b for b in (128, 64, 32, 16) if train * epochs >= 1500 * b), 8)
    # Of a few images some may turn out to be damaged: half of them still fill a batch.
    batch_size = min(batch_size, max(1, train // 2))
    yield "batch_size", Suggestion(batch_size, "1,500 steps or more, where it can be")
    if validation:
        yield "selection.report", Suggestion("best", "there are validation images to choose by")
        reason = "epochs without a better one, then it stops"
        yield "selection.patience", Suggestion(max(5, epochs // 3), reason)
    else:
        yield "selection.report", Suggestion("last", "fewer than 2 validation images to choose by")


def _of_images(seen: Survey) -> Iterator[tuple[str, Suggestion]]:
    names = {name for counts in seen.classes.values() for name in counts}
    mirror = not names or any(len(name) > 1 for name in names)
    reason = "as photographs may be" if mirror else "classes are single characters: no mirror"
    yield "augmentation.mirror", Suggestion(mirror, reason)
    reason = "answers are averaged over both" if mirror else reason
    yield "evaluation.mirror", Suggestion(mirror, reason)
    shorter = min(seen.height, seen.width)
    if max(seen.height, seen.width) <= SMALL:
        yield "augmentation.shift", Suggestion(max(1, shorter // 10), "pixels: small images")
    else:
        yield "augmentation.crop", Suggestion((0.4, 1.0), "large images")
    yield "data.on_bad_image", Suggestion("skip", "damaged files are counted and left out")


def image_size(seen: Survey, longer: int) -> tuple[int, int]:
    """Height and width with that longer side, nearly in proportion; multiples of 8 if large
    enough."""
    scale = longer / max(seen.height, seen.width)
    if scale == 1:
        return max(SHORTEST, seen.height), max(SHORTEST, seen.width)
    sides = [max(16, 8 * round(side * scale / 8)) for side in (seen.height, seen.width)]
    return sides[0], sides[1]


def network(size: tuple[int, int]) -> dict[str, Any]:
    """Fields of a `ResNet9` whose last maps have 4 to 8 pixels a side."""
    halvings = max(1, round(math.log2(min(size) / 6)))
    # On small images the first stage keeps all pixels.
    pool = (*(False,) * (max(size) <= SMALL), *(True,) * halvings)
    return {
        "features": tuple(min(FIRST_FEATURES << i, MOST_FEATURES) for i in range(len(pool))),
        "pool": pool,
        "residual": (*(False,) * (len(pool) - 1), True),
    }
