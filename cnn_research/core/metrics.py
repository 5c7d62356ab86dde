"""Directions of metrics, maximize or minimize: tasks declare them, runs record them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal

Direction = Literal["maximize", "minimize"]


def direction_of(name: str, directions: Mapping[str, Direction]) -> Direction | None:
    """The declared direction of a metric; None where neither end is better, as for a count.

    Split and head may stand before its name: `validation material accuracy`.
    """
    while name and name not in directions:
        _, _, name = name.partition(" ")
    return directions.get(name)


def best(values: Iterable[float], direction: Direction) -> float:
    return max(values) if direction == "maximize" else min(values)


def is_better(value: float, than: float | None, direction: Direction) -> bool:
    """True if a value beats the best so far; None is beaten by any."""
    if than is None:
        return True
    return value > than if direction == "maximize" else value < than
