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
    name: str,
    model: nn.Module,
    small: nn.Module | None = None,
    *,
    image_shape: tuple[int, int, int] = (224, 224, 3),
    source: str,
) -> None:
    """Give a model a name that `--model` takes; `small`, its form for images of 32x32, has the same
    with `_small`."""
    if name in _ARCHITECTURES:
        raise ValueError(f"two models are named {name}")
    _ARCHITECTURES[name] = Architecture(model, image_shape, source)
    if small is not None:
        register_model(f"{name}_small", small, image_shape=(32, 32, 3), source=source)


def architectures() -> Mapping[str, Architecture]:
    import_modules("cnn_research.models")
    return dict(sorted(_ARCHITECTURES.items()))
