"""Summary of how a folder or table was interpreted, printed before anything is decoded."""

from __future__ import annotations

import contextlib
import functools
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from cnn_research.core.errors import UserError
from cnn_research.data.prepare.files import Plan, Record

NAMED = 5
"""Number of classes, and of skipped items, that are listed by name."""
MOST_COMPARED = 50_000
"""Maximum number of names compared with each other, which takes a second."""
NOTHING = frozenset(("na", "n/a", "#n/a", "nan", "null", "none", "nil", "?", "-", "--", "."))
"""Usual placeholders for empty cells, in lower case."""


def left_out(**names: Sequence[str]) -> dict[str, Any]:
    """Report skipped items as JSON values: by reason, their count and first names."""
    return {
        reason.replace("_", " "): {"count": len(items), "first": list(items[:NAMED])}
        for reason, items in names.items()
        if items
    }


def nothing_left(count: int, what: str, name: str, reason: str) -> UserError:
    """Make the error for a split or class, called `name`, without usable images."""
    return UserError(
        f"none of the {count:,} images of the {what} '{name}' can be used; the first: {reason}; "
        f"replace them, or remove the {what}"
    )


def labels_of(record: Record, head: str) -> tuple[Any, ...]:
    """Return the labels of a record: one, or several."""
    label = record.labels[head]
    return label if isinstance(label, tuple) else (label,)


def label_array(values: Sequence[Any], names: Sequence[str] | None) -> np.ndarray:
    """Convert records' labels of one head to those of `Split`; without class names to numbers."""
    if names is None:
        return np.array(values, np.float32)
    if not isinstance(values[0], tuple):
        return np.array(values, np.int32)
    sets = np.zeros((len(values), len(names)), np.int8)
    for row, labels in zip(sets, values, strict=True):
        row[list(labels)] = 1
    return sets


def understood(plan: Plan, shown: str) -> str:
    """Describe the layout, splits, classes, numbers and skipped items of the source `shown`."""
    splits = Counter(record.split for record in plan.records)
    images = ", ".join(f"{split} {count:,}" for split, count in splits.items())
    lines = [f"{shown}: {plan.layout}" if plan.layout else shown]
    lines.append(f"{len(plan.records):,} images: {images}")
    for head, names in plan.class_names.items():
        lines.append(f"{head}: {_classes(plan, head)}")
        lines += _doubts(head, names)
    lines += [f"{head}: {_numbers(plan, head)}" for head in plan.numbers]
    lines += [f"{name.replace('_', ' ')}: {_listed(note)}" for name, note in plan.notes.items()]
    if any(record.group for record in plan.records):
        lines.append(_groups(plan))
        lines += _doubts("groups", sorted({record.group for record in plan.records}))
    for reason, items in plan.left_out.items():
        lines.append(f"skipped: {items['count']:,} {reason}, the first {items['first'][0]}")
    return "\n  ".join(lines)


def _doubts(what: str, names: Sequence[str]) -> Iterator[str]:
    """Yield warnings about names that may be the same, or may mean that there is none."""
    plain = [_plain(name) for name in names] if len(names) <= MOST_COMPARED else names
    alike = Counter(plain)
    if twins := [name for name, form in zip(names, plain, strict=True) if alike[form] > 1]:
        yield f"{what} that may be the same: {_listed(twins)}"
    if nothing := [name for name in names if name.lower() in NOTHING]:
        yield f"{what} that may mean an empty cell: {_listed(nothing)}"


def _plain(name: str) -> str:
    """Normalise a name: case, full-width letters, zero-width characters, formats of numbers."""
    with contextlib.suppress(ValueError):
        return str(float(name))
    if name.isascii():
        return name.casefold()
    letters = unicodedata.normalize("NFKC", name).casefold()
    return "".join(letter for letter in letters if unicodedata.category(letter) != "Cf")


def _listed(note: Any) -> str:
    """Format a count, or the first of several names."""
    if not isinstance(note, list):
        return f"{note:,}" if isinstance(note, int) else str(note)
    return ", ".join(note[:NAMED]) + ", ..." * (len(note) > NAMED)


def _classes(plan: Plan, head: str) -> str:
    names = plan.class_names[head]
    counts = Counter(label for record in plan.records for label in labels_of(record, head))
    sizes = [counts[at] for at in range(len(names))]
    listed = ", ".join(f"{name} {n:,}" for name, n in zip(names[:NAMED], sizes, strict=False))
    rest = f", ... (from {min(sizes):,} to {max(sizes):,})" if len(names) > NAMED else ""
    unknown = sum(count for label, count in counts.items() if label < 0)
    several = any(isinstance(record.labels[head], tuple) for record in plan.records[:1])
    kind = "labels, any number per image" if several else "classes"
    return f"{len(names):,} {kind}: {listed}{rest}" + f"; {unknown:,} missing" * bool(unknown)


def _numbers(plan: Plan, head: str) -> str:
    numbers = np.array([record.labels[head] for record in plan.records], float)
    unknown = int(np.isnan(numbers).sum())
    low, high = np.nanmin(numbers), np.nanmax(numbers)
    return f"numbers from {low:.10g} to {high:.10g}" + f"; {unknown:,} missing" * bool(unknown)


def _groups(plan: Plan) -> str:
    counts = Counter(record.group for record in plan.records)
    alone = counts.pop("", 0)
    largest = max(counts, key=lambda group: counts[group])
    first = ", ".join(sorted(counts)[:NAMED])
    return (
        f"{len(counts):,} groups, {first}, ...; the largest, {largest}, has {counts[largest]:,} "
        "images" + f"; {alone:,} images are in no group" * bool(alone)
    )


@functools.cache
def say(text: str) -> None:
    """Print a text once per process."""
    print(text, flush=True)
