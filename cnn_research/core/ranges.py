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
    """The numbers that a field takes; of a tuple, each number in it."""

    minimum: float | None = None
    maximum: float | None = None
    above: float | None = None
    below: float | None = None

    def __contains__(self, value: float) -> bool:
        return (
            math.isfinite(value)
            and (self.minimum is None or value >= self.minimum)
            and (self.maximum is None or value <= self.maximum)
            and (self.above is None or value > self.above)
            and (self.below is None or value < self.below)
        )

    def __str__(self) -> str:
        if self.minimum is not None and self.maximum is not None:
            return f"from {self.minimum} to {self.maximum}"
        limits = {
            "{} or more": self.minimum,
            "above {}": self.above,
            "at most {}": self.maximum,
            "below {}": self.below,
        }
        shown = [text.format(limit) for text, limit in limits.items() if limit is not None]
        return " and ".join(shown) or "a finite number"


PositiveInt = Annotated[int, Range(above=0)]
PositiveFloat = Annotated[float, Range(above=0)]
NonNegativeInt = Annotated[int, Range(minimum=0)]
NonNegativeFloat = Annotated[float, Range(minimum=0)]
Fraction = Annotated[float, Range(minimum=0, maximum=1)]
Seed = Annotated[int, Range(minimum=0, maximum=2**32 - 1)]


def check_ranges(config: Any, path: str = "") -> None:
    """Check every number of a config, its nested dataclasses and flax modules included.

    Args:
        config: a dataclass.
        path: its own, as in `optimizer.`; empty for an experiment.

    Raises:
        UsageError: a number out of its field's range; names the flag.
    """
    ranges = _declared(type(config))
    for field in dataclasses.fields(config):
        if field.init:
            where = path + field.name.replace("_", "-")
            _check(getattr(config, field.name), where, ranges.get(field.name, Range()))


def _check(value: Any, path: str, declared: Range) -> None:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        check_ranges(value, f"{path}.")
    elif isinstance(value, tuple | list):
        for each in value:
            _check(each, path, declared)
    elif isinstance(value, int | float) and not isinstance(value, bool) and value not in declared:
        wanted = declared if math.isfinite(value) else Range()
        raise UsageError(f"--{path} is {value}: must be {wanted}")


def _declared(kind: type) -> dict[str, Range]:
    """The ranges of a class's fields, wherever in a field's type one is written."""
    hints = typing.get_type_hints(kind, include_extras=True)
    found = {name: next(_ranges_in(hint), None) for name, hint in hints.items()}
    return {name: each for name, each in found.items() if each is not None}


def _ranges_in(hint: Any) -> typing.Iterator[Range]:
    yield from (each for each in getattr(hint, "__metadata__", ()) if isinstance(each, Range))
    for part in typing.get_args(hint):
        yield from _ranges_in(part)
