"""Several labels an image in a table: cells of several labels, or columns of 0 and 1.

Cells are text, and empty where there is none. `splits` is text `[rows]`, "" for rows that are not
asked for.
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
"""What several columns of labels are: a head each; the labels of one head, 1 where an image has
them; or its classes, of which each image has one, where the 1 is."""
HEAD = "label"
"""The head of columns that are labels or classes."""
PRESENT = {"1", "1.0", "true", "t", "yes", "y", "x"}
ABSENT = {"0", "0.0", "false", "f", "no", "n", ""}
MINUS = {"-1", "-1.0"}
"""Absent in a table that has no 0 among its labels."""
SEPARATORS = {"|": 1, ";": 1, "、": 1, "，": 1, ",": 1, "/": 2, "+": 2, "&": 2, " ": 3}
"""Those that are recognised, where there are more different cells than this many times the
different labels. The last ones also stand within names."""
LIST = re.compile(r"""\[.*\]|\{.*\}|\(\)|\((['"]).*\1,?\)""", re.DOTALL)
"""A list, set or tuple of labels as Python, JSON, NumPy and databases write it."""
MOST_CELLS = 5000
"""Different cells that are looked at for a separator."""
FEWEST_TOGETHER = 3
"""Rows from which on labels that are never seen apart may be one label with a separator in it."""


Labels = tuple[dict[str, tuple[str, ...]], dict[str, Any], dict[str, Any]]
"""The labels of one head, by its name; likewise the indices of those of each row, ascending, tuples
in object `[rows]`; and JSON values for the provenance."""


def joint_labels(rows: DataFrame, splits: np.ndarray, shown: str, source: ImageTable) -> Labels:
    """The labels of a source where a row may have several, else nothing.

    Raises:
        UserError: no label tells rows apart, or a cell is not what it has to be; names `shown`.
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
    """The labels in the cells of a column, which the separator divides."""
    codes, unique = cells.factorize()
    found = [labels_in(str(cell), separator) for cell in unique]
    if max(map(len, found)) < 2 and len({name for names in found for name in names}) > 1:
        raise UserError(
            f"{shown}: no cell of column '{cells.name}' has several labels separated by "
            f"'{separator}': give their separator, or leave --data.separator empty if each image "
            "has one class"
        )
    rows = np.bincount(codes[_is_source(splits)], minlength=len(unique))
    # A separator within a label makes such pairs.
    pairs = [f"{a}{separator}{b}" for a, b in _never_apart(found, rows)]
    notes = {"labels_never_apart": pairs} if pairs else {}
    where, head = f"{shown}: column '{cells.name}'", str(cells.name)
    return _sets(head, found, codes, splits, where, min_examples, notes)


def labels_in(cell: str, separator: str) -> tuple[str, ...]:
    """The different labels in a cell, in its order.

    A label in double quotation marks may have the separator in it, and the cell may be a `LIST`.
    """
    text, parts = cell.strip(), None
    if LIST.fullmatch(text):
        with contextlib.suppress(ValueError, SyntaxError, RecursionError, MemoryError):
            commas = re.sub(r"""(?<=['"])\s+(?=['"])""", ", ", text)  # NumPy writes none
            found = ast.literal_eval(commas)
            if not isinstance(found, dict):
                parts = [str(part) for part in ([found] if isinstance(found, str) else found)]
                parts = sorted(parts) if isinstance(found, set) else parts
        text = text[1:-1]
    if parts is None and '"' in text and len(separator) == 1 and separator not in '"\r\n':
        (parts,) = csv.reader([" ".join(text.splitlines())], delimiter=separator)
    names = (printable(part) for part in (text.split(separator) if parts is None else parts))
    return tuple(dict.fromkeys(name for name in names if name))


def separator_of(cells: Series) -> str:
    """The separator of several labels in the cells of a column, where that is clear; else "".

    It is clear where labels recombine: there are more different cells than different labels. Of
    numbers with a comma, which may be decimal, some have to have three parts; dates are no labels.
    """
    unique = [cell for cell in cells.unique() if cell][:MOST_CELLS]
    if all(map(LIST.fullmatch, unique)) and any(len(labels_in(cell, ",")) > 1 for cell in unique):
        return ","
    for separator, times in SEPARATORS.items():
        found = [labels_in(cell, separator) for cell in unique]
        names, most = {name for each in found for name in each}, max(map(len, found), default=0)
        if all(name.isdigit() for name in names):
            labels = separator not in "/+&" and (separator != "," or most > 2)
        else:
            labels = any(letter.isalpha() for name in names for letter in name)
        if labels and most > 1 and times * len(names) < len(unique):
            return separator
    return ""


def _never_apart(found: Sequence[tuple[str, ...]], rows: np.ndarray) -> list[tuple[str, str]]:
    """Pairs of labels of which one always follows the other; `rows` have each of the `found`."""
    single: Counter[str] = Counter()
    pairs: Counter[tuple[str, str]] = Counter()
    for names, count in zip(found, rows.tolist(), strict=True):
        single.update(dict.fromkeys(names, count))
        pairs.update(dict.fromkeys(itertools.pairwise(names), count))
    return [
        (a, b)
        for (a, b), count in pairs.items()
        if count == single[a] == single[b] and FEWEST_TOGETHER <= count < rows.sum()
    ]


# Columns -----------------------------------------------------------------------------------------


def _in_columns(cells: DataFrame, splits: np.ndarray, shown: str, min_examples: int) -> Labels:
    """The columns that hold a 1, as labels; an empty cell is a 0."""
    present = _present(cells, splits, shown)
    unique, codes = np.unique(present, axis=0, return_inverse=True)
    names = [printable(column) for column in cells]
    found = [tuple(names[at] for at in np.flatnonzero(row)) for row in unique]
    asked = (cells.to_numpy() == "")[splits != ""]
    notes = {"empty_cells_taken_for_0": int(asked.sum())} if asked.any() else {}
    where = f"{shown}: columns {', '.join(names)}"
    return _sets(HEAD, found, codes.ravel(), splits, where, min_examples, notes)


def class_cells(cells: DataFrame, splits: np.ndarray, shown: str) -> Series:
    """The class of each row, of columns that are classes: the name of the one with the 1, or ""."""
    import pandas

    present = _present(cells, splits, shown)
    several = np.flatnonzero(present.sum(axis=1) > 1)
    if several.size:
        raise UserError(
            f"{shown}, row {several[0] + 1} has a 1 in {present[several[0]].sum()} of the columns "
            f"{', '.join(cells)}, and {len(several):,} rows have more than one: give each row one "
            "class, or use --data.columns=labels"
        )
    names = np.array([*cells, ""], object)
    where = np.where(present.any(axis=1), present.argmax(axis=1), len(names) - 1)
    return pandas.Series(names[where], name=HEAD)


def meaning_of(cells: DataFrame) -> Columns:
    """What several columns of labels are, where that is clear: other than `heads` if all cells are
    0 or 1; and `classes` if each row has one 1."""
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
    """Whether cells hold a 1, bool `[rows, columns]`; False in rows that are not asked for."""
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
            f"'{printable(str(cells.iloc[row, column]))}', but a column of labels has only 0 or 1: "
            "correct it, or leave the column out of --data.label"
        )
    return present


# Both --------------------------------------------------------------------------------------------


def _is_source(splits: np.ndarray) -> np.ndarray:
    return (splits != "") & (splits != "target")


def _sets(
    head: str,
    found: Sequence[tuple[str, ...]],
    codes: np.ndarray,
    splits: np.ndarray,
    where: str,
    min_examples: int,
    notes: Mapping[str, Any],
) -> Labels:
    """Labels that some rows have and others lack, of rows whose names are `found[code]`.

    Rows of `target` do not count. What is left out, and rows without labels, are noted.
    """
    source, asked = _is_source(splits), splits != ""
    rows = np.bincount(codes[source], minlength=len(found)).tolist()
    counts: Counter[str] = Counter()
    for code in np.unique(codes[asked]).tolist():
        counts.update(dict.fromkeys(found[code], rows[code]))
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
    sets = np.empty(len(found), object)
    for code, names in enumerate(found):  # as a whole, tuples of one length would become columns
        sets[code] = tuple(sorted(index[name] for name in names if name in index))
    by_row = sets[codes]
    lists: dict[str, Iterable[str]] = {
        "labels_of_every_row": of_all,
        "labels_of_too_few_rows": sorted(n for n, count in counts.items() if count < min_examples),
    }
    without = int(sum(not names for names in by_row[asked]))
    noted = {name: list(values) for name, values in lists.items() if values}
    notes = {**notes, **noted, "rows_without_labels": without}
    return {head: tuple(kept)}, {head: by_row}, notes
