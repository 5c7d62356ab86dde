"""Every architecture by name, for `--model=NAME` and for the table of models."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from flax import linen as nn

from cnn_research.core.config import same_definition
from cnn_research.core.definitions import import_modules, import_plugins, is_own
from cnn_research.core.errors import UsageError


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
    """Register a model for `--model=NAME`, and its variant for images of 32x32 as `NAME_small`.

    If a model of the same class is registered again, as in a notebook cell, it replaces the earlier
    one. Raises `UsageError` if another model has that name.
    """
    known = _ARCHITECTURES[name].model if name in _ARCHITECTURES else model
    again = same_definition(type(known), type(model)) and not is_own(type(model).__module__)
    if known != model and not again:
        raise UsageError(f"a network is already named {name}: give another name")
    _ARCHITECTURES[name] = Architecture(model, image_shape, source)
    if small is not None:
        register_model(f"{name}_small", small, image_shape=(32, 32, 3), source=source)


def architectures() -> Mapping[str, Architecture]:
    import_modules("cnn_research.models")
    import_plugins()
    return dict(sorted(_ARCHITECTURES.items()))
