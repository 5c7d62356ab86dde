"""metrics.jsonl: writing and reading rows, and summaries by epoch."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cnn_research.core.errors import UserError

METRICS_FILE = "metrics.jsonl"

NOT_FINITE = {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}
"""Strings for numbers that JSON does not have; `float(...)` converts them back."""


def metrics_line(row: Mapping[str, Any]) -> str:
    """Format a row of metrics.jsonl; values may be Python, NumPy or JAX scalars."""
    return json.dumps({name: _storable(value) for name, value in row.items()}) + "\n"


def read_metrics(workdir: Path) -> list[dict[str, Any]]:
    """Read the rows of a run's metrics.jsonl, oldest first; empty if it does not exist.

    An incomplete last line (the run was killed, or is writing it) is ignored. Raises `UserError`
    for any other invalid line.
    """
    path = workdir / METRICS_FILE
    if not path.exists():
        return []
    lines = path.read_bytes().splitlines()
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            int(row["step"])
        except (ValueError, TypeError, KeyError):
            if number == len(lines):
                break
            raise UserError(
                f"{path}, line {number}: not a row of {path.stem} ({line[:40]!r}); "
                "delete the line to continue without it"
            ) from None
        texts = NOT_FINITE.values()
        rows.append({name: float(v) if v in texts else v for name, v in row.items()})
    return rows


def by_epoch(history: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Compute training and validation metrics of each epoch from the rows of metrics.jsonl.

    A training metric is the mean over the epoch's examples: rows are weighted by their `count`, and
    belong to the epoch in which their last step began (if the batch size does not divide the number
    of examples, the last step of an epoch ends in the next). Validation metrics are those of the
    epoch's last evaluation.

    Returns:
        Sorted by epoch, `{"epoch": int, "train": {name: float}, "validation": {name: float}}`, with
        an empty dict if there is no row. Epoch 1 is the first; 0 is an evaluation before it.
    """
    train: dict[int, list[Mapping[str, Any]]] = {}
    validation: dict[int, Mapping[str, Any]] = {}
    for row in history:
        epoch = _epoch_of(row)
        if row["split"] == "train":
            train.setdefault(epoch, []).append(row)
        elif row["split"] == "validation":
            validation[epoch] = row
    return [
        {
            "epoch": epoch,
            "train": _weighted_means(train.get(epoch, [])),
            "validation": numbers_of(validation.get(epoch, {})),
        }
        for epoch in sorted({*train, *validation})
    ]


def _epoch_of(row: Mapping[str, Any]) -> int:
    if row["step"] == 0:
        return 0
    one_step = row["epoch"] / row["step"]
    # A step that begins an epoch must not be assigned to the previous one by rounding errors.
    return math.floor(row["epoch"] - one_step * 0.999) + 1


def _weighted_means(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    weights = [row["count"] for row in rows]
    return {
        name: float(np.average([row[name] for row in rows], weights=weights))
        for name in numbers_of(rows[-1] if rows else {})
        if all(name in row for row in rows)
    }


def numbers_of(row: Mapping[str, Any]) -> dict[str, float]:
    """Return the numbers of a row that are shown in charts."""
    return {
        name: value
        for name, value in row.items()
        if name not in ("step", "epoch", "count", "split") and isinstance(value, int | float)
    }


def _storable(value: Any) -> Any:
    if isinstance(value, np.generic) or getattr(value, "ndim", None) == 0:
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return NOT_FINITE[str(value)]
    return value
