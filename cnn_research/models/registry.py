"""Every architecture by name, for `--model=NAME` and for the table of them all."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from flax import linen as nn

from cnn_research.core.config import import_modules


@dataclasses.dataclass(frozen=True)
class Architecture:
    """A model with the paper's number of classes, the `(height, width, channels)` of the images
    that it was published for, and the paper or document that it is of.
    """

    model: nn.Module
    image_shape: tuple[int, int, int]
    source: str


_ARCHITECTURES: dict[str, Architecture] = {}


def register_model(
    name: str, model: nn.Module, *, image_shape: tuple[int, int, int] = (224, 224, 3), source: str
) -> None:
    """Give a model a name that `--model` takes."""
    if name in _ARCHITECTURES:
        raise ValueError(f"two models are named {name}")
    _ARCHITECTURES[name] = Architecture(model, image_shape, source)


def architectures() -> Mapping[str, Architecture]:
    import_modules("cnn_research.models")
    return dict(sorted(_ARCHITECTURES.items()))
