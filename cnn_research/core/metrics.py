"""Metrics of a run: their directions, declared by the task, and their names in tables."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal

Direction = Literal["maximize", "minimize"]


def direction_of(name: str, directions: Mapping[str, Direction]) -> Direction | None:
    """Return the declared direction of a metric; None if it has none, such as a count.

    The name may be preceded by split and head: `validation material accuracy`.
    """
    while name and name not in directions:
        _, _, name = name.partition(" ")
    return directions.get(name)


def best(values: Iterable[float], direction: Direction) -> float:
    return max(values) if direction == "maximize" else min(values)


def is_better(value: float, than: float | None, direction: Direction) -> bool:
    """Return whether a value is better than the best so far; any value is better than None."""
    if than is None:
        return True
    return value > than if direction == "maximize" else value < than


def by_name(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Flatten nested metrics to names like `material accuracy`, without `test`."""
    return {
        path.removeprefix("test "): value
        for path, value in flat(metrics, " ")
        if isinstance(value, int | float) and not isinstance(value, bool)
    }


def flat(tree: Mapping[str, Any], separator: str = ".") -> Iterator[tuple[str, Any]]:
    """Yield leaves with their paths, such as `optimizer.learning_rate`."""
    for name, value in tree.items():
        if isinstance(value, Mapping):
            for path, leaf in flat(value, separator):
                yield f"{name}{separator}{path}", leaf
        else:
            yield name, value
