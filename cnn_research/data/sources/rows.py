"""Tables of images: which rows of a CSV file are examples, of which split, with which labels."""

from __future__ import annotations

import csv
import dataclasses
import io
import itertools
import math
import operator
import os
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cnn_research.core.errors import UsageError, UserError
from cnn_research.data.dataset import MISSING, UNKNOWN_CLASS
from cnn_research.data.images import ENDINGS, printable
from cnn_research.data.prepare.files import SPLIT_FOLDERS, Plan, Record, files_below

if TYPE_CHECKING:
    from cnn_research.data.sources.table import ImageTable

MAX_NUMBER = float(np.finfo(np.float32).max)
"""The largest number that a label can be."""

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

    Numbers compare as numbers: for a numeric value, a cell that is not a number only meets `!=`.
    Other values compare as text. An empty cell meets nothing.
    """

    column: str
    operator: str
    value: str

    @classmethod
    def parse(cls, text: str, option: str) -> Condition:
        """Parse a condition; a `UsageError` that names `option` if it is not one."""
        found = re.fullmatch(rf"([^<>=!]+)({'|'.join(OPERATORS)})([^<>=!]+)", text)
        if not found or not all(part.strip() for part in found.groups()):
            raise UsageError(
                f"{option} has '{text}', which is not a condition: write COLUMN OP VALUE with one "
                f"of {' '.join(OPERATORS)}, such as 'year<=2012'"
            )
        return cls(*(printable(part) for part in found.groups()))

    def meets(self, row: Row) -> bool:
        cell, compare = printable(row[self.column]), OPERATORS[self.operator]
        number, value = _finite(cell), _finite(self.value)
        if not cell or value is None:
            return bool(cell) and compare(cell, self.value)
        return self.operator == "!=" if number is None else compare(number, value)


def find_table(source: Path, shown: str) -> Path:
    """The CSV file `source`, or the one below it."""
    if not source.is_dir():
        return source
    tables = [path for path in files_below(source) if path.suffix.lower() == ".csv"]
    if len(tables) != 1:
        raise UserError(f"{shown} has {len(tables)} .csv files: it needs one, or name the file")
    return tables[0]


def read_table(table: Path, shown: str) -> list[Row]:
    """The rows of a CSV file; a cell that is absent is empty. Errors name the file `shown`."""
    text = _text(table.read_bytes())
    header = text.partition("\n")[0]
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=max(",;\t", key=header.count))
    try:
        reader.fieldnames = [column.strip() for column in reader.fieldnames or ()]
        read = list(reader)
    except csv.Error as error:
        raise UserError(
            f"{shown} cannot be read as a table after line {reader.line_num} ({error}): look there "
            "and above for a quotation mark that is not closed"
        ) from error
    if not read:
        raise UserError(f"{shown} has no rows: it needs a header and one row per image")
    return [{column: row[column] or "" for column in row if column is not None} for row in read]


def _text(content: bytes) -> str:
    """UTF-8, or else what spreadsheets in western Europe and America save."""
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        return content.decode("cp1252", "backslashreplace")


def image_column(rows: Sequence[Row], folder: Path) -> str | None:
    """The column, or pattern of a column, whose cells name files from `folder` on.

    The names may lack a folder next to the table, or their ending. The first few rows decide: more
    than half of their files must be there, and the column with the most is taken.
    """
    few = rows[:20]
    best, most = None, 0.5
    folders = ["", *(f"{path.name}/" for path in sorted(folder.iterdir()) if path.is_dir())]
    for column in rows[0]:
        cells = [row[column] for row in few if row[column]]
        for before, ending in itertools.product(folders, ("", *ENDINGS)):
            share = _share_of_files([folder / f"{before}{cell}{ending}" for cell in cells])
            if share > most:
                best = f"{before}{{{column}}}{ending}" if before or ending else column
                most = share
            if share == 1:
                return best
    return best


def _share_of_files(paths: Sequence[Path]) -> float:
    """Share of the paths that are files; 0 as soon as it cannot exceed half."""
    absent = 0
    for path in paths:
        absent += not _is_file(path)
        if 2 * absent >= len(paths):
            return 0
    return 1 - absent / len(paths) if paths else 0


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a cell of text may be too long for a name, or have a NUL
        return False


def plan_rows(rows: Sequence[Row], shown: str, folder: Path, source: ImageTable) -> Plan:
    """Records of the rows that the fields of `source` select, in their order.

    Classes, and how many rows each has, are those of the rows outside of the split `target`; there
    a rarer class counts as `MISSING`, and in `target` a class that is none of them as
    `UNKNOWN_CLASS`. Names of images start from `folder`; errors call the table `shown`.

    Raises:
        UsageError: a column that the table lacks, or a condition that is none or that no row meets.
        UserError: a head with fewer than two classes or without numbers, or an unknown split.
    """
    if not source.label and not source.number:
        raise UsageError(f"{shown}: name a column of classes, --data.label, or --data.number")
    both = sorted(set(source.label) & set(source.number))
    if both:
        raise UsageError(f"column '{both[0]}' is in --data.label and in --data.number: choose one")
    names = _image_names(rows, shown, source.image)
    check_columns(rows, shown, [*source.label, *source.number])
    splits = _splits(rows, shown, source)
    classes = {
        head: _classes(rows, splits, shown, head, source.min_examples) for head in source.label
    }
    index = {head: {name: i for i, name in enumerate(names)} for head, names in classes.items()}
    numbers = {head: _numbers(rows, splits, shown, head) for head in source.number}
    records = []
    for at, split in splits.items():
        other = UNKNOWN_CLASS if split == "target" else MISSING
        cells = {head: printable(rows[at][head]) for head in source.label}
        found = {
            head: index[head].get(cell, other) if cell else MISSING for head, cell in cells.items()
        }
        measured = {head: values[at] for head, values in numbers.items()}
        if set(found.values()) - {MISSING} or not all(map(math.isnan, measured.values())):
            labels = {**found, **measured}
            path = os.path.join(folder, names[at])
            records.append(Record(path, printable(names[at]), split, labels))
    notes = {"rows_without_any_label": len(splits) - len(records)}
    if source.rows or source.target:
        notes["rows_not_asked_for"] = len(rows) - len(splits)
    return Plan(records, classes, notes, tuple(numbers))


def check_columns(rows: Sequence[Row], shown: str, columns: Sequence[str]) -> None:
    """Raise `UsageError` for a column that a table lacks."""
    for column in columns:
        if column not in rows[0]:
            raise UsageError(
                f"{shown} has no column '{column}'; its columns are {', '.join(rows[0])}"
            )


def _image_names(rows: Sequence[Row], shown: str, image: str) -> list[str]:
    """The path of each row's image, from a column or a pattern of columns."""
    pattern = image if "{" in image else f"{{{image}}}"
    check_columns(rows, shown, re.findall(r"\{(.*?)\}", pattern))

    def name(row: Row) -> str:
        return re.sub(r"\{(.*?)\}", lambda match: row[match[1]], pattern)

    return [name(row) for row in rows]


def _splits(rows: Sequence[Row], shown: str, source: ImageTable) -> dict[int, str]:
    """The split of each row that `source` selects, by the row's index."""
    selected = _meeting(rows, shown, source.rows, "--data.rows")
    target = _meeting(rows, shown, source.target, "--data.target") if source.target else set()
    splits = {}
    for at, row in enumerate(rows):
        given = (row.get("split") or "train").strip().lower()
        if given not in SPLIT_FOLDERS:
            raise UserError(
                f"{shown}, row {at + 1}: split is '{row['split']}'; it must be train, "
                "validation, test or target"
            )
        if at in target:
            splits[at] = "target"
        elif at in selected:
            splits[at] = SPLIT_FOLDERS[given]
    return splits


def _meeting(rows: Sequence[Row], shown: str, conditions: Sequence[str], option: str) -> set[int]:
    """The indices of the rows that meet all `conditions`, which `option` has given."""
    met = set(range(len(rows)))
    for text in conditions:
        condition = Condition.parse(text, option)
        check_columns(rows, f"{option} '{text}': {shown}", [condition.column])
        alone = {at for at, row in enumerate(rows) if condition.meets(row)}
        met &= alone
        if not met:
            known = sorted({printable(row[condition.column]) for row in rows} - {""})
            values = f"'{known[0]}' to '{known[-1]}'" if known else "nothing"
            beside = " together with the conditions before it" if alone else ""
            raise UsageError(
                f"{option} '{text}': no row of {shown} meets it{beside}; the column has {values}"
            )
    return met


def _finite(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _classes(
    rows: Sequence[Row], splits: Mapping[int, str], shown: str, column: str, min_examples: int
) -> tuple[str, ...]:
    """The classes of a column that `min_examples` rows outside of `target` have, sorted."""
    counts = Counter(
        printable(rows[at][column]) for at, split in splits.items() if split != "target"
    )
    names = sorted(name for name, count in counts.items() if name and count >= min_examples)
    if len(names) < 2:
        raise UserError(
            f"{shown}: column '{column}' has {len(names)} classes with "
            f"{min_examples} or more rows: it needs two or more"
        )
    return tuple(names)


def _numbers(
    rows: Sequence[Row], splits: Mapping[int, str], shown: str, column: str
) -> dict[int, float]:
    """The cells of a column as numbers, NaN where they are empty, by the row's index."""
    numbers = {}
    for at in splits:
        text = rows[at][column].strip()
        try:
            value = float(text) if text else math.nan
        except ValueError:
            value = math.inf
        # Of 32 bits, as the labels will be; and a written `nan` is more often an accident.
        if text and not abs(value) <= MAX_NUMBER:
            raise UserError(
                f"{shown}, row {at + 1}: {column} is '{printable(text)}', which is not a finite "
                "number: correct it, or leave it empty where it is not known"
            )
        numbers[at] = value
    if all(map(math.isnan, numbers.values())):
        raise UserError(f"{shown}: column '{column}' is empty: it needs numbers")
    return numbers
