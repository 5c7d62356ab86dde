"""Tables with several labels per image: in one cell, or as columns of 0 and 1.

Cells are text, empty if missing. `splits` is text `[rows]`, "" for rows that are not selected.
"""

from __future__ import annotations

import ast
import contextlib
import csv
import itertools
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from cnn_research.core.errors import UserError
from cnn_research.data.images import printable

if TYPE_CHECKING:
    from pandas import DataFrame, Series

    from cnn_research.data.sources.table import ImageTable

Columns = Literal["heads", "labels", "classes"]
"""Meaning of several label columns: `heads`, `labels` of one head, 1 if an image has the label; or
`classes` of one head, 1 for the image's class."""
HEAD = "label"
"""Head of columns that are labels or classes."""
PRESENT = {"1", "1.0", "true", "t", "yes", "y", "x"}
ABSENT = {"0", "0.0", "false", "f", "no", "n", ""}
MINUS = {"-1", "-1.0"}
"""Absent in a table without a 0 among its labels."""
SEPARATORS = {"|": 1, ";": 1, "、": 1, "，": 1, ",": 1, "/": 2, "+": 2, "&": 2, " ": 3}
"""Separator -> factor by which distinct cells must outnumber distinct labels for it to be
recognised. The last ones also occur within names."""
LIST = re.compile(r"""\[.*\]|\{.*\}|\(\)|\((['"]).*\1,?\)""", re.DOTALL)
"""A list, set or tuple of labels in the notation of Python, JSON, NumPy or a database."""
MOST_CELLS = 5000
"""Maximum number of distinct cells searched for a separator."""
FEWEST_TOGETHER = 3
"""Number of rows from which labels that always occur together may be one label with a separator."""


Labels = tuple[dict[str, tuple[str, ...]], dict[str, Any], dict[str, Any]]
"""Label names by head; by head, the labels of each row as ascending indices, tuples in object
`[rows]`; and JSON values for the provenance."""


def joint_labels(rows: DataFrame, splits: np.ndarray, shown: str, source: ImageTable) -> Labels:
    """Read the labels of a source whose rows may have several; nothing for other sources.

    Raises:
        UserError: no label distinguishes rows, or a cell is invalid; the error calls it `shown`.
    """
    if source.separator:
        cells = rows[source.label[0]]
        return _in_cells(cells, splits, shown, source.separator, source.min_examples)
    if source.columns == "labels":
        return _in_columns(rows[list(source.label)], splits, shown, source.min_examples)
    return {}, {}, {}


# Cells -------------------------------------------------------------------------------------------


def _in_cells(
    cells: Series, splits: np.ndarray, shown: str, separator: str, min_examples: int
) -> Labels:
    """Read the labels in a column's cells, divided by the separator."""
    codes, unique = cells.factorize()
    sets = [labels_in(str(cell), separator) for cell in unique]
    if max(map(len, sets)) < 2 and len({name for names in sets for name in names}) > 1:
        raise UserError(
            f"{shown}: no cell of column '{cells.name}' has several labels separated by "
            f"'{separator}': choose their separator, or leave --data.separator empty if each image "
            "has one class"
        )
    rows = np.bincount(codes[_is_source(splits)], minlength=len(unique))
    # A separator within a label results in such pairs.
    pairs = [f"{a}{separator}{b}" for a, b in _never_apart(sets, rows)]
    notes = {"labels_never_apart": pairs} if pairs else {}
    where, head = f"{shown}: column '{cells.name}'", str(cells.name)
    return _sets(head, sets, codes, splits, where, min_examples, notes)


def labels_in(cell: str, separator: str) -> tuple[str, ...]:
    """Return the distinct labels in a cell, in order.

    A label in double quotation marks may contain the separator, and the cell may be a `LIST`.
    """
    text, parts = cell.strip(), None
    if LIST.fullmatch(text):
        with contextlib.suppress(ValueError, SyntaxError, RecursionError, MemoryError):
            commas = re.sub(r"""(?<=['"])\s+(?=['"])""", ", ", text)  # NumPy writes none
            value = ast.literal_eval(commas)
            if not isinstance(value, dict):
                parts = [str(part) for part in ([value] if isinstance(value, str) else value)]
                parts = sorted(parts) if isinstance(value, set) else parts
        text = text[1:-1]
    if parts is None and '"' in text and len(separator) == 1 and separator not in '"\r\n':
        (parts,) = csv.reader([" ".join(text.splitlines())], delimiter=separator)
    names = (printable(part) for part in (text.split(separator) if parts is None else parts))
    return tuple(dict.fromkeys(name for name in names if name))


def separator_of(cells: Series) -> str:
    """Find the separator of several labels in the cells of a column; "" if that is not clear.

    It is clear if labels recombine, so that there are more distinct cells than labels. Numbers with
    a comma may be decimal, so some must have three parts; dates are not labels.
    """
    unique = [cell for cell in cells.unique() if cell][:MOST_CELLS]
    if all(map(LIST.fullmatch, unique)) and any(len(labels_in(cell, ",")) > 1 for cell in unique):
        return ","
    for separator, times in SEPARATORS.items():
        sets = [labels_in(cell, separator) for cell in unique]
        names, most = {name for each in sets for name in each}, max(map(len, sets), default=0)
        if all(name.isdigit() for name in names):
            labels = separator not in "/+&" and (separator != "," or most > 2)
        else:
            labels = any(letter.isalpha() for name in names for letter in name)
        if labels and most > 1 and times * len(names) < len(unique):
            return separator
    return ""


def _never_apart(sets: Sequence[tuple[str, ...]], rows: np.ndarray) -> list[tuple[str, str]]:
    """Find labels of which one always follows the other; `rows` counts the rows of each set."""
    single: Counter[str] = Counter()
    pairs: Counter[tuple[str, str]] = Counter()
    for names, count in zip(sets, rows.tolist(), strict=True):
        single.update(dict.fromkeys(names, count))
        pairs.update(dict.fromkeys(itertools.pairwise(names), count))
    return [
        (a, b)
        for (a, b), count in pairs.items()
        if count == single[a] == single[b] and FEWEST_TOGETHER <= count < rows.sum()
    ]


# Columns -----------------------------------------------------------------------------------------


def _in_columns(cells: DataFrame, splits: np.ndarray, shown: str, min_examples: int) -> Labels:
    """Read the columns with a 1 as labels; an empty cell counts as 0."""
    present = _present(cells, splits, shown)
    unique, codes = np.unique(present, axis=0, return_inverse=True)
    names = [printable(column) for column in cells]
    sets = [tuple(names[at] for at in np.flatnonzero(row)) for row in unique]
    empty = (cells.to_numpy() == "")[splits != ""]
    notes = {"empty_cells_taken_for_0": int(empty.sum())} if empty.any() else {}
    where = f"{shown}: columns {', '.join(names)}"
    return _sets(HEAD, sets, codes.ravel(), splits, where, min_examples, notes)


def class_cells(cells: DataFrame, splits: np.ndarray, shown: str) -> Series:
    """Return the class of each row, the name of the column with the 1, or ""."""
    import pandas

    present = _present(cells, splits, shown)
    several = np.flatnonzero(present.sum(axis=1) > 1)
    if several.size:
        raise UserError(
            f"{shown}, row {several[0] + 1} has a 1 in {present[several[0]].sum()} of the columns "
            f"{', '.join(cells)}, and {len(several):,} rows have more than one: assign one class "
            "to each row, or use --data.columns=labels"
        )
    names = np.array([*cells, ""], object)
    where = np.where(present.any(axis=1), present.argmax(axis=1), len(names) - 1)
    return pandas.Series(names[where], name=HEAD)


def meaning_of(cells: DataFrame) -> Columns:
    """Guess the meaning of several label columns: `heads` unless all cells are 0 or 1, and
    `classes` if each row has one 1."""
    if cells.shape[1] < 2:
        return "heads"
    lower = cells.apply(lambda column: column.str.lower())
    values = {value for column in lower for value in lower[column].unique()}
    absent = MINUS if values & MINUS and not values & (ABSENT - {""}) else ABSENT
    if not values <= PRESENT | absent | {""} or not values & PRESENT or values <= PRESENT:
        return "heads"
    ones = lower.isin(PRESENT).sum(axis=1)
    return "classes" if (ones == 1).all() else "labels"


def _present(cells: DataFrame, splits: np.ndarray, shown: str) -> np.ndarray:
    """Whether cells are 1, bool `[rows, columns]`; False in rows that are not selected."""
    lower = cells.apply(lambda column: column.str.lower()).to_numpy(object, copy=True)
    lower[splits == ""] = ""
    present, zero = np.isin(lower, list(PRESENT)), np.isin(lower, list(ABSENT))
    minus = np.isin(lower, list(MINUS))
    if minus.any() and not (zero & (lower != "")).any():
        zero |= minus
    wrong = np.argwhere(~(present | zero))
    if wrong.size:
        row, column = wrong[0]
        raise UserError(
            f"{shown}, row {row + 1}: {cells.columns[column]} is "
            f"'{printable(str(cells.iloc[row, column]))}', but a label column must be 0 or 1: "
            "correct it, or remove the column from --data.label"
        )
    return present


# Both --------------------------------------------------------------------------------------------


def _is_source(splits: np.ndarray) -> np.ndarray:
    return (splits != "") & (splits != "target")


def _sets(
    head: str,
    unique: Sequence[tuple[str, ...]],
    codes: np.ndarray,
    splits: np.ndarray,
    where: str,
    min_examples: int,
    notes: Mapping[str, Any],
) -> Labels:
    """Keep the labels that some rows have and others lack; a row's names are `unique[code]`.

    Rows of `target` do not count. Notes list the dropped labels and the rows without labels.
    """
    source, selected = _is_source(splits), splits != ""
    rows = np.bincount(codes[source], minlength=len(unique)).tolist()
    counts: Counter[str] = Counter()
    for code in np.unique(codes[selected]).tolist():
        counts.update(dict.fromkeys(unique[code], rows[code]))
    total = int(source.sum())
    kept = sorted(name for name, count in counts.items() if min_examples <= count < total)
    of_all = sorted(name for name, count in counts.items() if count == total)
    if not kept:
        why = f"every row has {', '.join(of_all)}" if of_all else "there is none"
        raise UserError(
            f"{where} has no label that {min_examples} or more rows have and others lack ({why}): "
            "there is nothing to learn"
        )
    index = {name: at for at, name in enumerate(kept)}
    sets = np.empty(len(unique), object)
    for code, names in enumerate(unique):  # np.array would make equally long tuples columns
        sets[code] = tuple(sorted(index[name] for name in names if name in index))
    by_row = sets[codes]
    lists: dict[str, Iterable[str]] = {
        "labels_of_every_row": of_all,
        "labels_of_too_few_rows": sorted(n for n, count in counts.items() if count < min_examples),
    }
    without = int(sum(not names for names in by_row[selected]))
    noted = {name: list(values) for name, values in lists.items() if values}
    notes = {**notes, **noted, "rows_without_labels": without}
    return {head: tuple(kept)}, {head: by_row}, notes
