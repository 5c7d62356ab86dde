"""What a folder or table was read as, in a few lines, printed before anything is decoded."""

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
"""Classes, and names of what is left out, that are named."""
MOST_COMPARED = 50_000
"""Names that are compared with each other, which takes a second."""
NOTHING = frozenset(("na", "n/a", "#n/a", "nan", "null", "none", "nil", "?", "-", "--", "."))
"""What programs and people write, in small letters, where there is nothing to write."""


def left_out(**names: Sequence[str]) -> dict[str, Any]:
    """What is left out as JSON: by the reason how many, and the first; without empty ones."""
    return {
        reason.replace("_", " "): {"count": len(found), "first": list(found[:NAMED])}
        for reason, found in names.items()
        if found
    }


def nothing_left(count: int, what: str, name: str, reason: str) -> UserError:
    """The error of a split or class, called `name`, none of whose images can be used."""
    return UserError(
        f"none of the {count:,} images of the {what} '{name}' can be used; the first: {reason}; "
        f"replace them, or leave the {what} out"
    )


def labels_of(record: Record, head: str) -> tuple[Any, ...]:
    """The labels of a record: one, or several."""
    label = record.labels[head]
    return label if isinstance(label, tuple) else (label,)


def label_array(values: Sequence[Any], names: Sequence[str] | None) -> np.ndarray:
    """The labels of one head as in `Split`, of records; without class names they are numbers."""
    if names is None:
        return np.array(values, np.float32)
    if not isinstance(values[0], tuple):
        return np.array(values, np.int32)
    sets = np.zeros((len(values), len(names)), np.int8)
    for row, found in zip(sets, values, strict=True):
        row[list(found)] = 1
    return sets


def understood(plan: Plan, shown: str) -> str:
    """The layout of what is `shown`, its splits, classes and numbers, and what is left out."""
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
    for reason, found in plan.left_out.items():
        lines.append(f"left out: {found['count']:,} {reason}, the first {found['first'][0]}")
    return "\n  ".join(lines)


def _doubts(what: str, names: Sequence[str]) -> Iterator[str]:
    """What is odd about names that may be of one class or group, or of none."""
    plain = [_plain(name) for name in names] if len(names) <= MOST_COMPARED else names
    alike = Counter(plain)
    if twins := [name for name, form in zip(names, plain, strict=True) if alike[form] > 1]:
        yield f"{what} that may be the same: {_listed(twins)}"
    if nothing := [name for name in names if name.lower() in NOTHING]:
        yield f"{what} that may stand for an empty cell: {_listed(nothing)}"


def _plain(name: str) -> str:
    """A name without what is hardly seen: capitals, wide letters, marks of no width, and how a
    number is written."""
    with contextlib.suppress(ValueError):
        return str(float(name))
    if name.isascii():
        return name.casefold()
    letters = unicodedata.normalize("NFKC", name).casefold()
    return "".join(letter for letter in letters if unicodedata.category(letter) != "Cf")


def _listed(note: Any) -> str:
    """A count, or the first of names."""
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
    return f"{len(names):,} {kind}: {listed}{rest}" + f"; {unknown:,} not known" * bool(unknown)


def _numbers(plan: Plan, head: str) -> str:
    numbers = np.array([record.labels[head] for record in plan.records], float)
    unknown = int(np.isnan(numbers).sum())
    low, high = np.nanmin(numbers), np.nanmax(numbers)
    return f"numbers from {low:.10g} to {high:.10g}" + f"; {unknown:,} not known" * bool(unknown)


def _groups(plan: Plan) -> str:
    counts = Counter(record.group for record in plan.records)
    alone = counts.pop("", 0)
    largest = max(counts, key=lambda group: counts[group])
    first = ", ".join(sorted(counts)[:NAMED])
    return (
        f"{len(counts):,} groups, {first}, ...; the largest, {largest}, has {counts[largest]:,} "
        "images" + f"; {alone:,} images are in none" * bool(alone)
    )


@functools.cache
def say(text: str) -> None:
    """Print a text, once in a process."""
    print(text, flush=True)
