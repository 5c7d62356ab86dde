"""Every experiment in a size that a test trains in seconds."""

from __future__ import annotations

import dataclasses
from typing import Any

from cnn_research.core.experiment import Experiment, registry
from cnn_research.data.sources.artworks import Artworks
from cnn_research.data.sources.clusters import Clustered
from cnn_research.data.sources.crops import Crops
from cnn_research.data.sources.folder import ImageFolder, Photos
from cnn_research.data.sources.official import Cifar10, FashionMnist
from cnn_research.data.sources.palettes import Palettes
from cnn_research.data.sources.synthetic import Synthetic
from cnn_research.data.sources.table import ImageTable, Products
from cnn_research.models.pretrained import Pretrained
from cnn_research.train.config import Training

ONCE = ("rounds", "num_seeds")
"""Fields of experiments of several trainings that say how many of them there are."""


def first_of_each_kind() -> list[str]:
    """Names of trainings of which no two have the same network, task, data and frozen layers: what
    decides which code trains them."""
    first: dict[tuple, str] = {}
    for name, entry in registry().items():
        training = entry.experiment()
        if isinstance(training, Training):
            parts = map(type, (training.model, training.task, training.data))
            first.setdefault((*parts, training.transfer), name)
    return list(first.values())


def scaled_down(config: Any) -> Any:
    """An experiment with little data and few steps, of the same networks.

    Args:
        config: an experiment, or a data source.
    """
    if isinstance(config, Training):
        return scaled_down_training(config)
    if isinstance(config, Experiment):
        fields = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
        parts = {k: scaled_down(v) for k, v in fields.items() if isinstance(v, Experiment)}
        once = {name: 1 for name in ONCE if parts and isinstance(fields.get(name), int)}
        return dataclasses.replace(config, **once, **parts)
    return scaled_down_data(config)


def scaled_down_training(training: Training) -> Training:
    """One epoch of few examples, from random weights."""
    size = tuple(min(side, 32) for side in training.augmentation.size)
    return dataclasses.replace(
        training,
        data=scaled_down_data(training.data),
        augmentation=dataclasses.replace(training.augmentation, size=size),
        pretrained=Pretrained(),
        epochs=1,
        batch_size=8,
        accumulate=1,
        evaluation=dataclasses.replace(training.evaluation, batch_size=8),
        log_every_steps=1,
    )


def scaled_down_data(source: Any) -> Any:
    """Noise of the shape and with the heads of a source's images; a small source itself."""
    few = {"train": 16, "validation": 4, "test": 4}
    no_labels = {"heads": (), "classes": ()}
    match source:
        case FashionMnist():
            return Synthetic(image_shape=(28, 28, 1), classes=(10,))
        case Cifar10():
            return Synthetic(image_shape=(32, 32, 3), classes=(10,))
        case ImageFolder() | Artworks() | Photos():
            return Synthetic(train=32, validation=8, test=8, image_shape=shape_of(source))
        case ImageTable() | Products():
            return Synthetic(
                train=32,
                validation=8,
                test=8,
                target=8 if source.target else 0,
                image_shape=shape_of(source),
                heads=source.label,
                classes=(10,) * len(source.label),
                numbers=source.number,
            )
        case Palettes():
            return Synthetic(**few, **no_labels, image_shape=(64, 64, 3), palette=6)
        case Clustered(window=(height, width)):
            noise = Synthetic(**few, **no_labels, image_shape=(2 * height + 1, width + 2, 3))
            return dataclasses.replace(source, source=noise, clusters=8)
        case Crops(window=(height, width)):
            noise = Synthetic(
                train=32,
                validation=8,
                test=8,
                image_shape=(height + 3, width + 2, 3),
                heads=source.source.label,
                classes=(3,),
            )
            return dataclasses.replace(
                source,
                source=noise,
                test_list="",
                validation_list="",
                grid=(2, 1),
                keep_mask_file="",
            )
    return source


def shape_of(source: Any) -> tuple[int, int, int]:
    """The shape of a source's images, or a smaller one that is large enough for a test."""
    height, width = source.image_size
    return (min(height, 64), min(width, 64), 3)
