"""Suggestions for a user's images: sizes, network and length of training, chosen from the data.

Every choice is printed with its reason. Fields on the command line override choices, and dependent
choices follow them. The choices depend on names, counts and sizes of all images and the pixels of a
few. Photographs get a pretrained network if one is available (`auto_pretrained`); this module has
the choices for other images and for all.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cnn_research.core.config import with_fields
from cnn_research.core.errors import UsageError
from cnn_research.core.experiment import Choices, Suggestion
from cnn_research.core.ranges import check_ranges
from cnn_research.data.images import printable
from cnn_research.data.prepare.files import existing, opened
from cnn_research.data.prepare.tables import columns_of, find_table, read_table
from cnn_research.data.sources.label_sets import meaning_of, separator_of
from cnn_research.data.sources.rows import image_column
from cnn_research.data.sources.survey import Survey, survey
from cnn_research.data.sources.table import ImageTable
from cnn_research.models.airbench import Airbench
from cnn_research.models.flops import cost, least_size
from cnn_research.models.resnet9 import ResNet9
from cnn_research.tasks.classification import Classification, ClassTask
from cnn_research.tasks.multi_head import MultiHead
from cnn_research.tasks.regression import Regression
from cnn_research.tasks.several_labels import SeveralLabels
from cnn_research.train.auto_case import Case
from cnn_research.train.auto_mirror import choose_mirror
from cnn_research.train.auto_pretrained import choose_pretrained
from cnn_research.train.config import Training
from cnn_research.train.speed import TRAINING, planned_operations

if TYPE_CHECKING:
    from pandas import DataFrame

FEWEST_EPOCHS, ENOUGH_EPOCHS, MOST_EPOCHS = 4, 15, 60
SMALL = 48
"""Images with sides up to this number of pixels keep their size."""
SHORTEST = 8
LONGER_SIDES = (128, 112, 96, 80, 64)
"""Candidates for the longer side of larger images; the first that allows enough epochs is used."""
MANY_SHAPES = 1.2
"""Ratio of the widest to the tallest aspect ratio above which proportions are preserved; with
nearly equal shapes, images are stretched slightly and lose nothing."""
KEEPS_PROPORTIONS = "crop"
"""How images of many shapes are resized: `crop` or `pad`."""
FIRST_FEATURES, MOST_FEATURES = 32, 256
QUICK = Airbench(features=(32, 128, 128))
"""Learns small images in fewer epochs than a `ResNet9`: its accuracy on CIFAR-10's test split is
0.88 after four epochs; that of a `ResNet9` of nearly the same cost is 0.82 after six."""
QUICK_SIDE = 32
"""Longer side to which small images are reduced if the budget would be exceeded."""
QUICK_OPTIMIZER = {
    "name": "sgd",
    "warmup": 0.23,
    "momentum": 0.85,
    "nesterov": True,
    "weight_decay": 1.33e-3,
}
QUICK_RATE = 0.75 / 512
"""Learning rate of `QUICK` per image of a batch."""
UNEVEN = (5, 50)
"""Range of the size ratio of the largest to the smallest class in which classes are weighted; above
it, a few images would weigh as much as thousands."""


def suggest_fields(
    experiment: Training, named: Collection[str], minutes: float
) -> Mapping[str, Suggestion]:
    """Suggest fields that are not given for an experiment on a folder or a table of images, by
    path, so that it takes about `minutes` on two cores.

    A network other than `ResNet9` is not changed.

    Raises:
        UsageError: if the table lacks a column, a field is out of range, or the network does not
            accept the images.
        UserError: if there are no images.
    """
    check_ranges(experiment)
    choices = Choices(experiment, named)
    data = experiment.data
    with contextlib.ExitStack() as stack:
        if isinstance(data, ImageTable):
            path = existing(data.path)
            _choose_columns(choices, data, stack.enter_context(opened(path)), printable(path))
            known = {name.removeprefix("data."): s.value for name, s in choices.suggestions.items()}
            data = with_fields(data, known)
        seen = survey(data)
    case = Case.of(choices, seen, data, minutes)
    _choose_task(choices, data, seen)
    if not choose_pretrained(case):
        _choose_from_scratch(case)
    reason = "copies and near duplicates of training images would make the test too easy"
    choices.choose("data.near_duplicates", "together", reason)
    choices.choose("data.on_bad_image", "skip", "damaged files are skipped and counted")
    return choices.suggestions


def _choose_columns(choices: Choices, data: ImageTable, root: Path, shown: str) -> None:
    """Choose columns of the table in `root` if it does not have the default ones."""
    table = find_table(root, shown)
    rows = read_table(table, shown)
    if data.number and data.label == ("label",) and "label" not in rows:
        choices.choose("data.label", (), "numbers are requested, not classes")
    if data.image == "image":
        exists = "image" in rows
        column = image_column(rows[["image"]] if exists else rows, table.parent)
        if column is None and not exists:
            raise UsageError(
                f"{shown} has no column 'image', and none of {columns_of(rows)} contains names of "
                "files next to it: give --data.image=COLUMN or --data.image='images/{COLUMN}.jpg'"
            )
        if column not in (None, "image"):
            choices.choose("data.image", column, "contains names of existing files")
    _choose_labels(choices, rows)


def _choose_labels(choices: Choices, rows: DataFrame) -> None:
    """Choose columns of 0 and 1 if there are no others, and several labels per image if the table
    clearly has them."""
    if choices.value("data.label") == ("label",) and "label" not in rows:
        image = choices.value("data.image")
        known = {"split", choices.value("data.group"), image}
        others = [
            column
            for column in rows
            if not {column, column.lower()} & known and f"{{{column}}}" not in image
        ]
        if meaning_of(rows[others]) != "heads":
            choices.choose("data.label", tuple(others), "all other columns contain only 0 and 1")
    label = list(dict.fromkeys(choices.value("data.label")))
    if not label or not set(label) <= {*rows}:
        return
    if len(label) > 1:
        meaning = meaning_of(rows[label])
        reasons = {"labels": "columns of 0 and 1", "classes": "columns with one 1 in each row"}
        if meaning != "heads":
            choices.choose("data.columns", meaning, reasons[meaning])
    elif separator := separator_of(rows[label[0]]):
        reason = f"separates labels in cells of '{label[0]}'; for one class each: --data.separator="
        choices.choose("data.separator", separator, reason)


def _choose_task(choices: Choices, data: object, seen: Survey) -> None:
    numbers = data.number if isinstance(data, ImageTable) else ()
    heads = tuple(seen.classes)
    if len(numbers) > 1 or (numbers and heads):
        named = [f"--data.label={head}" for head in heads]
        named += [f"--data.number={head}" for head in numbers]
        raise UsageError(
            f"{' and '.join(named)}: a run learns either one column of numbers or columns of "
            "classes; give one of them (a bare --data.label for no classes)"
        )
    if numbers and not heads:
        choices.choose("task", Regression(head=numbers[0]), "a column of numbers")
        choices.choose("selection.metric", "MAE", "numbers have no accuracy")
        return
    if isinstance(data, ImageTable) and data.several_labels:
        (labels,) = seen.classes.values()
        each = sum(labels.values()) / seen.splits["train"]
        reason = (
            f"{len(labels)} labels, {each:.1f} per image, {seen.without_labels:,} images without"
        )
        choices.choose("task", SeveralLabels(head=heads[0]), reason)
        choices.choose("selection.metric", "loss", "sets of labels have no accuracy")
        return
    if len(heads) > 1:
        choices.choose("task", MultiHead(label=heads), f"{len(heads)} columns of classes")
    elif heads != ("label",):
        choices.choose("task", Classification(head=heads[0]), "the column of classes")
    sizes = [count for counts in seen.classes.values() for count in counts.values()]
    uniform = choices.experiment.sampling == "uniform"
    if uniform and UNEVEN[0] < max(sizes) / min(sizes) <= UNEVEN[1]:
        reason = f"classes have {min(sizes):,} to {max(sizes):,} images"
        choices.choose("task.class_weights", "balanced", reason)


# From scratch -------------------------------------------------------------------------------------


def _choose_from_scratch(case: Case) -> None:
    choices, seen = case.choices, case.seen
    if isinstance(choices.value("task"), ClassTask):
        reason = "reduces the effect of wrong labels"
        choices.choose("task.label_smoothing", 0.1, reason)
    _choose_fit(choices, seen)
    views = 1 + choose_mirror(choices, *case.mirror)
    size, epochs = _choose_size(case, views)
    _choose_steps(case, epochs)
    if max(size) > SMALL:
        choices.choose("evaluation.batch_size", 100, "limits the memory for large images")
    if choices.experiment.transfer.cache_after:
        return  # cached features allow only mirror images
    if max(size) > SMALL:
        choices.choose("augmentation.crop", (0.4, 1.0), "large images")
    else:
        choices.choose("augmentation.shift", max(1, min(size) // 10), "pixels, for small images")


def _choose_fit(choices: Choices, seen: Survey) -> None:
    tallest, widest = seen.shapes
    if widest > MANY_SHAPES * tallest:
        reason = f"many shapes: most have an aspect ratio of {tallest:.2f} to {widest:.2f}"
        choices.choose("data.fit", KEEPS_PROPORTIONS, reason)


def _choose_size(case: Case, views: int) -> tuple[tuple[int, int], float]:
    """Choose image size and network, and the epochs from their cost; return size and epochs."""
    choices, seen, minutes = case.choices, case.seen, case.minutes
    experiment, own = choices.experiment, max(seen.height, seen.width)
    shorter = () if own <= SMALL else (side for side in LONGER_SIDES if side < own)
    sizes = [image_size(seen, longer) for longer in (min(own, LONGER_SIDES[0]), *shorter)]
    if not isinstance(experiment.model, ResNet9):  # a ResNet9 is adapted to the size
        least = -8 * (-least_size(experiment.model) // 8)
        smallest = image_size(seen, least * own / min(seen.height, seen.width))
        sizes = [size for size in sizes if min(size) >= least] or [smallest]
    enough = min(ENOUGH_EPOCHS, experiment.epochs if "epochs" in choices.named else math.inf)
    for size in [case.image_size] if case.image_size else sizes:
        fields = _network_fields(choices, size)
        model = experiment.model.clone(**fields)
        if hasattr(model, "check"):
            model.check()
        epochs = _affordable_epochs(case, model, size, views)
        if epochs >= enough:
            break
    if epochs < enough and _may_be_quick(case, size):
        fields = {"features": QUICK.features}
        choices.choose("model", QUICK, "learns small images in few epochs")
        epochs = _affordable_epochs(case, QUICK, size, views)
        if epochs < FEWEST_EPOCHS:
            size = _quick_size(case, size)
            epochs = _affordable_epochs(case, QUICK, size, views)
    length = f"about {minutes:g} minutes on two cores, at most {MOST_EPOCHS} epochs"
    if epochs < FEWEST_EPOCHS:
        longer = f"although they exceed {minutes:g} minutes on two cores"
        length = f"at least {FEWEST_EPOCHS} epochs, {longer}"
    epochs = min(max(epochs, FEWEST_EPOCHS), MOST_EPOCHS)
    reason = f"the median size of the images is {seen.height}x{seen.width} pixels"
    choices.choose("data.image_size", size, reason)
    for field, value in fields.items():
        choices.choose(f"model.{field}", value, f"for {size[0]}x{size[1]} pixels")
    reason = f"{case.train:,} training images: {length}"
    return size, choices.choose("epochs", float(epochs), reason)


def _affordable_epochs(case: Case, model: Any, size: tuple[int, int], views: int) -> int:
    # The backward pass costs about twice the forward pass.
    epoch = (3 * case.train + views * case.validation) * cost(model, (*size, 3)).flops
    return round(planned_operations(case.minutes, TRAINING) / epoch)


def _may_be_quick(case: Case, size: tuple[int, int]) -> bool:
    """Return whether `QUICK` accepts the images and none of its fields is given."""
    if not isinstance(case.choices.experiment.model, ResNet9) or not case.seen.classes:
        return False
    if any(path.startswith(("model", "optimizer", "transfer")) for path in case.choices.named):
        return False
    return least_size(QUICK) <= min(size) and max(size) <= SMALL


def _quick_size(case: Case, size: tuple[int, int]) -> tuple[int, int]:
    """Return a smaller size for `QUICK`, or `size` if it is given or would be too small."""
    smaller = image_size(case.seen, min(QUICK_SIDE, max(size)))
    return size if case.image_size or min(smaller) < least_size(QUICK) else smaller


def _network_fields(choices: Choices, size: tuple[int, int]) -> dict[str, Any]:
    """Return the fields of a `ResNet9` for images of a size; given fields determine the number of
    stages."""
    model = choices.experiment.model
    if not isinstance(model, ResNet9):
        return {}
    named = {
        name: getattr(model, name) for name in network(size) if f"model.{name}" in choices.named
    }
    stages = next((len(value) for value in named.values()), None)
    return {**network(size, stages), **named}


def _choose_steps(case: Case, epochs: float) -> None:
    """Choose batch size and selection by the number of images and epochs.

    There is no patience: the schedule must reach its end, since metrics may stagnate while the
    learning rate is still high.
    """
    choices, train = case.choices, case.train
    quick = isinstance(choices.value("model"), Airbench)
    sizes, steps = ((256, 128, 64, 32, 16), 500) if quick else ((128, 64, 32, 16), 1500)
    batch_size = next((b for b in sizes if train * epochs >= steps * b), 8)
    reason = f"for at least {steps:,} steps if possible"
    batch_size = choices.choose("batch_size", case.batch_of(batch_size), reason)
    if quick:
        recipe = {**QUICK_OPTIMIZER, "learning_rate": QUICK_RATE * batch_size}
        for field, value in recipe.items():
            choices.choose(f"optimizer.{field}", value, "belongs to the network")
        choices.choose("transfer.freeze", ("whiten/kernel",), "belongs to the network")
    # A single image is not significant, and may turn out to be damaged.
    if case.validation >= 2:
        choices.choose("selection.report", "best", "by the metric on the validation images")
    else:
        reason = "fewer than 2 validation images to select by"
        choices.choose("selection.report", "last", reason)


def image_size(seen: Survey, longer: float) -> tuple[int, int]:
    """Return height and width with that longer side, nearly in proportion; multiples of 8 if large
    enough."""
    scale = longer / max(seen.height, seen.width)
    if scale == 1:
        return max(SHORTEST, seen.height), max(SHORTEST, seen.width)
    sides = [max(16, 8 * round(side * scale / 8)) for side in (seen.height, seen.width)]
    return sides[0], sides[1]


def network(size: tuple[int, int], stages: int | None = None) -> dict[str, Any]:
    """Return the fields of a `ResNet9` whose last maps have sides of 4 to 8 pixels, with the given
    or the required number of stages."""
    halvings = max(1, round(math.log2(min(size) / 6)))
    if stages is None:
        stages = halvings + (max(size) <= SMALL)  # on small images the first keeps all pixels
    pool = (*(False,) * (stages - halvings), *(True,) * min(stages, halvings))
    return {
        "features": tuple(min(FIRST_FEATURES << i, MOST_FEATURES) for i in range(len(pool))),
        "pool": pool,
        "residual": (*(False,) * (len(pool) - 1), True),
    }
