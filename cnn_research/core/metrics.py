"""Metrics of a run: the direction of each, which its task declares, and their names in tables."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal

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


def by_name(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Flatten nested metrics to names like `material accuracy`; `test` is left out of them."""
    return {
        path.removeprefix("test "): value
        for path, value in flat(metrics, " ")
        if isinstance(value, int | float) and not isinstance(value, bool)
    }


def flat(tree: Mapping[str, Any], separator: str = ".") -> Iterator[tuple[str, Any]]:
    """Leaves with their paths, `optimizer.learning_rate`."""
    for name, value in tree.items():
        if isinstance(value, Mapping):
            for path, leaf in flat(value, separator):
                yield f"{name}{separator}{path}", leaf
        else:
            yield name, value
