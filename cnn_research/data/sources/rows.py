"""Plan tables of images: select rows, and assign splits and labels."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import operator
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cnn_research.core.errors import UsageError, UserError
from cnn_research.data.dataset import MISSING, UNKNOWN_CLASS
from cnn_research.data.images import ENDINGS, printable
from cnn_research.data.prepare.files import SPLIT_FOLDERS, Plan, Record, check_groups
from cnn_research.data.prepare.tables import FORM, columns_of
from cnn_research.data.prepare.understood import left_out
from cnn_research.data.sources.label_sets import Labels, class_cells, joint_labels

if TYPE_CHECKING:
    from pandas import DataFrame, Series

    from cnn_research.data.sources.table import ImageTable

MAX_NUMBER = float(np.finfo(np.float32).max)
"""Largest number that a label can have."""

FIRST = 20
"""Number of rows by which columns are recognised."""

EXACT = 1e-4
"""Numbers rounded by more than this fraction of their standard deviation are rejected."""

OPERATORS: dict[str, Callable[..., bool]] = {
    "<=": operator.le,
    ">=": operator.ge,
    "!=": operator.ne,
    "<": operator.lt,
    ">": operator.gt,
    "=": operator.eq,
}

Row = Mapping[str, str]


@dataclasses.dataclass(frozen=True)
class Condition:
    """Condition on a row, `COLUMN OP VALUE`, such as 'year<=2012' or 'gender=Women'.

    A numeric value is compared as a number, and a cell that is not a number meets only `!=`. Other
    values are compared as text. An empty cell meets no condition.
    """

    column: str
    operator: str
    value: str

    @classmethod
    def parse(cls, text: str, option: str) -> Condition:
        """Parse a condition; raise `UsageError`, which names `option`, if it is not one."""
        match = re.fullmatch(rf"([^<>=!]+)({'|'.join(OPERATORS)})([^<>=!]+)", text)
        if not match or not all(part.strip() for part in match.groups()):
            raise UsageError(
                f"{option} has '{text}', which is not a condition: write COLUMN OP VALUE with one "
                f"of {' '.join(OPERATORS)}, such as 'year<=2012'"
            )
        return cls(*(printable(part) for part in match.groups()))

    def meets(self, row: Row) -> bool:
        cell, compare = printable(row[self.column]), OPERATORS[self.operator]
        number, value = _finite(cell), _finite(self.value)
        if not cell or value is None:
            return bool(cell) and compare(cell, self.value)
        return self.operator == "!=" if number is None else compare(number, value)


def image_column(rows: DataFrame, folder: Path) -> str | None:
    """Find the column, or pattern of a column, that names files relative to `folder`.

    The names may lack a folder beside the table, or their extension. The first few rows decide:
    more than half of their files must exist, and the column with most of them is chosen.
    """
    best, most = None, 0.5
    folders = ["", *(f"{path.name}/" for path in sorted(folder.iterdir()) if path.is_dir())]
    for column in rows:
        cells = [cell for cell in rows[column][:FIRST] if cell]
        for before, ending in itertools.product(folders, ("", *ENDINGS)):
            share = _share_of_files([_path(folder, f"{before}{cell}{ending}") for cell in cells])
            if share > most:
                best = f"{before}{{{column}}}{ending}" if before or ending else column
                most = share
            if share == 1:
                return best
    return best


def _share_of_files(paths: Sequence[str]) -> float:
    """Fraction of the paths that are files; 0 as soon as it cannot exceed half."""
    absent = 0
    for path in paths:
        absent += not _is_file(path)
        if 2 * absent >= len(paths):
            return 0
    return 1 - absent / len(paths) if paths else 0


def _is_file(path: str) -> bool:
    try:
        return os.path.isfile(path)
    except (OSError, ValueError):  # text may be too long for a name, or contain NUL
        return False


def _path(folder: str | Path, name: str) -> str:
    """Return the path of an image named in a table.

    If there is no such file, backslashes separate folders, as on Windows, and the Unicode form of
    the file's name is used.
    """
    path = os.path.join(folder, name)
    if ("\\" not in name and name.isascii()) or _is_file(path):
        return path
    path = os.path.join(folder, name.replace("\\", "/"))
    forms = [path, unicodedata.normalize("NFC", path), unicodedata.normalize("NFD", path)]
    return next(filter(_is_file, forms), path)


def plan_rows(rows: DataFrame, shown: str, folder: Path, source: ImageTable) -> Plan:
    """Plan the rows that the fields of `source` select, in order.

    Classes are those with enough rows outside the split `target`; rarer ones are `MISSING` there,
    and all others are `UNKNOWN_CLASS` in `target`. Names of images are relative to `folder`; errors
    call the table `shown`.

    Raises:
        UsageError: a column does not exist, or a condition is invalid or met by no row.
        UserError: a head has fewer than two classes or no numbers, a split is unknown, or no row
            names an image.
    """
    if not source.label and not source.number:
        raise UsageError(f"{shown}: name a column of classes, --data.label, or --data.number")
    for column, count in Counter((*source.label, *source.number)).items():
        if count > 1:
            raise UsageError(
                f"column '{column}' is named twice in --data.label and --data.number: keep one"
            )
    names = _image_names(rows, shown, source.image)
    check_columns(rows, shown, [*source.label, *source.number])
    (splits, by), named = _splits(rows, shown, source), (names != "").to_numpy()
    selected = splits != ""
    splits[~named] = ""  # rows without an image do not count
    if not (splits != "").any():
        raise UserError(f"{shown}: no row names an image: --data.image is '{source.image}'")
    classes, labels, notes = _labels(rows, splits, shown, source)
    labelled = np.zeros(len(rows), bool)
    for head, values in labels.items():
        labelled |= values != MISSING if head in classes else ~np.isnan(values)
    chosen = np.flatnonzero(selected & named & labelled)
    together = functools.cache(lambda *values: dict(zip(labels, values, strict=True)))
    groups = _groups(rows, chosen, shown, source.group)
    home = str(folder)
    records = [
        Record(_path(home, name), printable(name), split, together(*values), group)
        for name, split, group, *values in zip(
            names.iloc[chosen].tolist(),
            splits[chosen].tolist(),
            groups,
            *(values[chosen].tolist() for values in labels.values()),
            strict=True,
        )
    ]
    return Plan(
        records,
        classes,
        notes,
        numbers=tuple(source.number),
        layout=_layout(rows, source.image, by),
        left_out=left_out(
            rows_without_any_label=_numbered(selected & named & ~labelled),
            rows_that_name_no_image=_numbered(selected & ~named),
            rows_not_asked_for=_numbered(~selected),
        ),
    )


def _layout(rows: DataFrame, image: str, splits: str) -> str:
    """Describe a table; its columns `image` and `splits` name images and splits, if any."""
    return (
        f"{len(rows):,} rows, {rows.attrs.get(FORM, '')}, with the columns {columns_of(rows)}; "
        f"images are named by {image}" + f", splits by {splits}" * bool(splits)
    )


def _numbered(rows: np.ndarray) -> list[str]:
    """Name the rows that are True in bool `[rows]`."""
    return [f"row {at + 1}" for at in np.flatnonzero(rows)]


def check_columns(rows: DataFrame, shown: str, columns: Sequence[str]) -> None:
    """Raise `UsageError` for a column that a table lacks."""
    for column in columns:
        if column not in rows:
            raise UsageError(
                f"{shown} has no column '{column}'; choose one of its columns {columns_of(rows)}"
            )


def _groups(rows: DataFrame, chosen: np.ndarray, shown: str, column: str) -> list[str]:
    """Return the group of each row in `chosen`, int64 `[n]`; "" for none."""
    if not column:
        return [""] * len(chosen)
    check_columns(rows, shown, [column])
    cells = rows[column].iloc[chosen]
    groups = cells.map({cell: printable(cell) for cell in cells.unique()}).tolist()
    check_groups(groups, f"--data.group={column}", f"rows of {shown}")
    return groups


def _image_names(rows: DataFrame, shown: str, image: str) -> Series:
    """Return each row's image name, by a column or a pattern of columns; "" if a cell is empty."""
    parts = re.split(r"\{(.*?)\}", image if "{" in image else f"{{{image}}}")
    columns = parts[1::2]
    if not columns:
        raise UsageError(f"--data.image is '{image}', which names no column: use 'x/{{COLUMN}}'")
    check_columns(rows, shown, columns)
    names: Any = parts[0]
    for column, text in zip(columns, parts[2::2], strict=True):
        names = names + rows[column] + text
    return names.where((rows[columns] != "").all(axis=1), "")


def _splits(rows: DataFrame, shown: str, source: ImageTable) -> tuple[np.ndarray, str]:
    """Return the split of each row, text `[rows]`, "" if not selected, and the column used, if any.

    The column is called `split`, or contains nothing but the names of several splits.
    """
    selected = _meeting(rows, shown, source.rows, "--data.rows")
    named, by = np.full(len(rows), "train", object), ""
    called = sorted((c for c in rows if c.lower() == "split"), reverse=True)
    taken = {*called, *source.label, *source.number, source.group}
    known = {"": "train", **SPLIT_FOLDERS}
    others = [c for c in rows if c not in taken and {*rows[c][:FIRST].str.lower()} <= {*known}]
    for column in (*called, *others):
        cells = rows[column].str.lower()
        given = cells.map(known)
        if column in others and (given.isna().any() or not {"train"} < {*given}):
            continue
        if column != "split" and not cells.isin(SPLIT_FOLDERS).any():
            continue  # it has another meaning
        if given.isna().any():
            at = int(given.isna().argmax())
            raise UserError(
                f"{shown}, row {at + 1}: {column} is '{printable(rows[column][at])}'; it must be "
                "train, validation, test or target"
            )
        named, by = given.to_numpy(object), column
        break
    splits = np.where(selected, named, "")
    if source.target:
        splits[_meeting(rows, shown, source.target, "--data.target")] = "target"
    return splits, by


def _meeting(rows: DataFrame, shown: str, conditions: Sequence[str], option: str) -> np.ndarray:
    """Whether each row meets all `conditions`, the values of `option`: bool `[rows]`."""
    met = np.ones(len(rows), bool)
    for text in conditions:
        condition = Condition.parse(text, option)
        check_columns(rows, f"{option} '{text}': {shown}", [condition.column])
        codes, cells = rows[condition.column].factorize()
        alone = np.array([condition.meets({condition.column: cell}) for cell in cells])[codes]
        met &= alone
        if not met.any():
            known = sorted(set(map(printable, cells)) - {""})
            values = f"'{known[0]}' to '{known[-1]}'" if known else "nothing"
            beside = " together with the previous conditions" if alone.any() else ""
            raise UsageError(
                f"{option} '{text}': no row of {shown} meets it{beside}; the column has {values}"
            )
    return met


def _labels(rows: DataFrame, splits: np.ndarray, shown: str, source: ImageTable) -> Labels:
    """Return each head's classes, each row's label (or labels, or number), and notes."""
    classes, labels, notes = joint_labels(rows, splits, shown, source)
    columns = [] if classes else [rows[head] for head in source.label]
    if source.columns == "classes":
        columns = [class_cells(rows[list(source.label)], splits, shown)]
    for cells in columns:
        found = _classes(cells, splits, shown, source.min_examples)
        classes[str(cells.name)], labels[str(cells.name)] = found
    for head in source.number:
        labels[head] = _numbers(rows[head], splits, shown)
    return classes, labels, notes


def _finite(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _classes(
    cells: Series, splits: np.ndarray, shown: str, min_examples: int
) -> tuple[tuple[str, ...], np.ndarray]:
    """Return the sorted classes with `min_examples` rows outside `target`, and each row's label,
    int64 `[rows]`."""
    texts = cells.map({cell: printable(cell) for cell in cells.unique()})
    counts = texts[(splits != "target") & (splits != "")].value_counts()
    names = sorted(name for name, count in counts.items() if name and count >= min_examples)
    if len(names) < 2:
        raise UserError(
            f"{shown}: column '{cells.name}' has {len(names)} classes with {min_examples} or more "
            "rows (with an image, and in a split other than 'target'): at least two are needed"
        )
    index = {name: at for at, name in enumerate(names)}
    other = np.where((texts != "") & (splits == "target"), UNKNOWN_CLASS, MISSING)
    labels = texts.map(index).to_numpy(float)
    return tuple(names), np.where(np.isnan(labels), other, labels).astype(int)


def _numbers(cells: Series, splits: np.ndarray, shown: str) -> np.ndarray:
    """Convert the cells of a column to numbers, float64 `[rows]`, NaN if empty."""
    texts = cells.where(splits != "", "").tolist()
    numbers = np.array([_finite(text) if text else math.nan for text in texts], float)
    # Labels have 32 bits; and a cell `nan` is usually an accident.
    wrong = [at for at, text in enumerate(texts) if text and not abs(numbers[at]) <= MAX_NUMBER]
    if wrong:
        raise UserError(
            f"{shown}, row {wrong[0] + 1}: {cells.name} is '{printable(texts[wrong[0]])}', which "
            "is not a finite number: correct it, or leave the cell empty if it is unknown"
        )
    known = numbers[~np.isnan(numbers)]
    if not known.size:
        raise UserError(f"{shown}: column '{cells.name}' is empty: it needs numbers")
    if not np.ptp(known):
        raise UserError(
            f"{shown}: column '{cells.name}' has only the number {known[0]:.10g}: there is "
            "nothing to learn"
        )
    lost = np.abs(known - known.astype(np.float32)).max()
    if lost > EXACT * known.std():
        raise UserError(
            f"{shown}: the numbers of '{cells.name}' are close together and far from 0, so float32 "
            f"rounds them by up to {lost:.3g}: subtract "
            f"{np.format_float_positional(known.min(), trim='-')} from all"
        )
    return numbers
