"""Every architecture by name, for `--model=NAME` and for the table of models."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from flax import linen as nn

from cnn_research.core.config import import_modules


@dataclasses.dataclass(frozen=True)
class Architecture:
    """A model as published."""

    model: nn.Module
    """With the paper's number of classes."""
    image_shape: tuple[int, int, int]
    """Height, width and channels of the images it was published for."""
    source: str
    """Paper or document."""


_ARCHITECTURES: dict[str, Architecture] = {}


def register_model(
    name: str,
    model: nn.Module,
    small: nn.Module | None = None,
    *,
    image_shape: tuple[int, int, int] = (224, 224, 3),
    source: str,
) -> None:
    """Register a model for `--model=NAME`, and its form for images of 32x32 as `NAME_small`."""
    if name in _ARCHITECTURES:
        raise ValueError(f"two models are named {name}")
    _ARCHITECTURES[name] = Architecture(model, image_shape, source)
    if small is not None:
        register_model(f"{name}_small", small, image_shape=(32, 32, 3), source=source)


def architectures() -> Mapping[str, Architecture]:
    import_modules("cnn_research.models")
    return dict(sorted(_ARCHITECTURES.items()))
