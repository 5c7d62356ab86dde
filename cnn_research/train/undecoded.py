"""Disk, time and memory of a training, estimated before its images are decoded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from cnn_research.core.files import free_bytes, size_text
from cnn_research.core.progress import duration
from cnn_research.core.run_folder import cores
from cnn_research.data.prepare.cache import data_dir
from cnn_research.data.sources.footprint import Footprint, footprint
from cnn_research.models.flops import cost
from cnn_research.train.config import Training
from cnn_research.train.feature_cache import BATCH, feature_bytes
from cnn_research.train.speed import PRETRAINED, TRAINING, step_flops

KEPT = 3
"""Number of copies of a layer's output in memory during a step: before and after normalisation, and
its gradient."""


def check_disk(experiment: Training, data: Any) -> None:
    """Raise `UserError` if the disk is too small for both decoded images and their features."""
    if _cached_layer(experiment) and (decoded := footprint(data)):
        data.check_space(decoded.images, _features(experiment, data, decoded))


def say_needs(
    experiment: Training, data: Any, decoded: Footprint, say: Callable[[str], None]
) -> None:
    """Print estimates of a training's disk, time and memory; then raise like `check_disk`.

    Time and memory are computed from the network's operations, not measured.
    """
    counted = cost(experiment.model, (*data.image_size, 3))
    features, freeze = _features(experiment, data, decoded), experiment.transfer.freeze
    step, speed = 3 * counted.flops, TRAINING
    if freeze:
        step, speed = step_flops(experiment.model, (*data.image_size, 3), freeze), PRETRAINED
    seconds = step * decoded.images * experiment.epochs / (speed * cores())
    training = f"{duration(seconds)} of training on {cores()} processor cores"
    values = KEPT * counted.outputs * experiment.batch_size / experiment.accumulate
    say(
        f"Not decoded yet: {decoded.images:,} images, about {duration(decoded.seconds)}; "
        f"{size_text(2 * decoded.bytes)} of disk in {data_dir()} while decoding, "
        f"{size_text(decoded.bytes)} afterwards; {size_text(free_bytes(data_dir()))} are free."
    )
    if features:
        operations = _views(experiment) * counted.flops * decoded.images
        each = duration(operations / (PRETRAINED * cores()))
        say(f"Features: {size_text(features)} of disk, about {each}.")
        if experiment.transfer.cache_after or not experiment.epochs:
            training, values = "little time for training on features", counted.outputs * BATCH
    memory = 4 * (values + 4 * counted.parameters)
    place = "read from the disk on demand"
    if jax.default_backend() != "cpu":
        place = f"{size_text(features or decoded.bytes)} on the device"
    say(
        f"Roughly expected: {training}; "
        f"{size_text(memory)} of memory per step; images {place}. When the images are decoded, "
        "by training or `python -m cnn_research.data prepare`, a dry run measures time and memory."
    )
    data.check_space(decoded.images, features)


def _features(experiment: Training, data: Any, decoded: Footprint) -> int:
    """Return the bytes of cached features of all images; 0 if none are cached."""
    layer = _cached_layer(experiment)
    if not layer:
        return 0
    each = feature_bytes(experiment.model, (*data.image_size, 3), layer)
    return decoded.images * _views(experiment) * each


def _cached_layer(experiment: Training) -> str:
    return experiment.transfer.cache_after or experiment.transfer.fit_after


def _views(experiment: Training) -> int:
    return 2 if experiment.augmentation.mirror else 1
