"""Types and ranges of config fields, declared with the field, and checked before a run.

`dropout: Annotated[float, Range(minimum=0, below=1)] = 0.0`, or one of the names below:
`batch_size: PositiveInt = 128`. Numbers without a range must be finite.
"""

from __future__ import annotations

import dataclasses
import math
import typing
from typing import Annotated, Any, Literal

import typeguard

from cnn_research.core.config import config_fields
from cnn_research.core.errors import UsageError


@dataclasses.dataclass(frozen=True)
class Range:
    """Range of numbers allowed in a field, or in each entry of a tuple."""

    minimum: float = -math.inf
    maximum: float = math.inf
    above: float = -math.inf
    below: float = math.inf

    def __contains__(self, value: float) -> bool:
        return self.minimum <= value <= self.maximum and self.above < value < self.below

    def __str__(self) -> str:
        if math.isfinite(self.minimum) and math.isfinite(self.maximum):
            return f"from {self.minimum} to {self.maximum}"
        limits = {
            "{} or more": self.minimum,
            "above {}": self.above,
            "at most {}": self.maximum,
            "below {}": self.below,
        }
        shown = [text.format(limit) for text, limit in limits.items() if math.isfinite(limit)]
        return " and ".join(shown) or "a finite number"


PositiveInt = Annotated[int, Range(above=0)]
PositiveFloat = Annotated[float, Range(above=0)]
NonNegativeInt = Annotated[int, Range(minimum=0)]
NonNegativeFloat = Annotated[float, Range(minimum=0)]
Fraction = Annotated[float, Range(minimum=0, maximum=1)]
ProperFraction = Annotated[float, Range(minimum=0, below=1)]
Seed = Annotated[int, Range(minimum=0, maximum=2**32 - 1)]


_ALL = typeguard.CollectionCheckStrategy.ALL_ITEMS


def check_ranges(config: Any, path: str = "") -> None:
    """Raise `UsageError` if a value does not have its field's type, or a number is out of range,
    including in parts (`optimizer.`)."""
    hints = typing.get_type_hints(type(config), include_extras=True)
    for field in config_fields(config):
        value, hint = getattr(config, field.name), hints[field.name]
        name = path + field.name.replace("_", "-")
        try:
            typeguard.check_type(value, hint, collection_check_strategy=_ALL)
        except typeguard.TypeCheckError:
            raise UsageError(f"--{name} is {value!r}: must be {_in_words(hint)}") from None
        _check(value, name, next(_ranges_in(hint), Range()))


def _in_words(hint: Any) -> str:
    """Describe a field's type for an error: `sgd or adam`, `a number`, `tuple[int, ...]`."""
    if typing.get_origin(hint) is Annotated:
        return _in_words(hint.__origin__)
    if typing.get_origin(hint) is Literal:
        return " or ".join(map(str, typing.get_args(hint)))
    words = {int: "a whole number", float: "a number", str: "text", bool: "True or False"}
    is_class = isinstance(hint, type) and not typing.get_args(hint)
    return words.get(hint) or (hint.__name__ if is_class else str(hint))


def _check(value: Any, path: str, declared: Range) -> None:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        check_ranges(value, f"{path}.")
    elif isinstance(value, tuple):
        for each in value:
            _check(each, path, declared)
    elif isinstance(value, int | float) and not isinstance(value, bool) and value not in declared:
        wanted = declared if math.isfinite(value) else Range()
        raise UsageError(f"--{path} is {value}: must be {wanted}")


def _ranges_in(hint: Any) -> typing.Iterator[Range]:
    """Yield all ranges in a field's type."""
    yield from (each for each in getattr(hint, "__metadata__", ()) if isinstance(each, Range))
    for part in typing.get_args(hint):
        yield from _ranges_in(part)
