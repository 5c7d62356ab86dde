"""Ranges of config fields, declared where the field is declared, and checked before anything runs.

`dropout: Annotated[float, Range(minimum=0, below=1)] = 0.0`, or one of the names below:
`batch_size: PositiveInt = 128`. Every other number of a config only has to be finite.
"""

from __future__ import annotations

import dataclasses
import math
import typing
from typing import Annotated, Any

from cnn_research.core.errors import UsageError


@dataclasses.dataclass(frozen=True)
class Range:
    """The numbers allowed in a field; for a tuple, in each of its entries."""

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


def check_ranges(config: Any, path: str = "") -> None:
    """Raise `UsageError` for a number out of its field's range, in a part (`optimizer.`) too."""
    hints = typing.get_type_hints(type(config), include_extras=True)
    for field in dataclasses.fields(config):
        if field.init:
            declared = next(_ranges_in(hints[field.name]), Range())
            _check(getattr(config, field.name), path + field.name.replace("_", "-"), declared)


def _check(value: Any, path: str, declared: Range) -> None:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        check_ranges(value, f"{path}.")
    elif isinstance(value, tuple | list):
        for each in value:
            _check(each, path, declared)
    elif isinstance(value, int | float) and not isinstance(value, bool) and value not in declared:
        wanted = declared if math.isfinite(value) else Range()
        raise UsageError(f"--{path} is {value}: must be {wanted}")


def _ranges_in(hint: Any) -> typing.Iterator[Range]:
    """The ranges of a field, wherever in its type they are written."""
    yield from (each for each in getattr(hint, "__metadata__", ()) if isinstance(each, Range))
    for part in typing.get_args(hint):
        yield from _ranges_in(part)
