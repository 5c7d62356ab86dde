"""Tables in files: text with separators, in the usual encodings, and spreadsheets."""

from __future__ import annotations

import codecs
import csv
import functools
import io
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cnn_research.core.errors import UserError
from cnn_research.data.images import printable
from cnn_research.data.prepare.files import SPREADSHEETS, TABLES, files_below

if TYPE_CHECKING:
    from pandas import DataFrame

SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
FORM = "form"
"""Attribute of a table that was read: its separator and encoding, or its sheet, in words."""
WESTERN = "cp1252"
"""The encoding of a text that has no mark and is not UTF-8."""
CHUNK = 50_000
"""Rows that are in memory as Python's lists, which take ten times as much."""
SHOWN = 60
"""Letters that are shown of a row."""
SHOWN_COLUMNS = 20
"""Columns that are named."""
LONGEST = 1 << 30
"""Letters that a cell may have."""
INVISIBLE = "\ufeff\u200b"
"""Marks that programs leave at the ends of a header."""

ZIPPED = b"PK\x03\x04"
"""The first bytes of a spreadsheet, whatever its name is."""
MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",  # it begins as that of UTF-16 does
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
"""The encodings of texts that begin with a mark."""


def find_table(source: Path, shown: str) -> Path:
    """The table `source`, or the one below it; text is preferred to a spreadsheet."""
    if not source.is_dir():
        return source
    files = [file for file in files_below(source) if not file.name.startswith("~$")]
    for endings in ((".csv",), TABLES):
        tables = [path for path in files if path.suffix.lower() in endings]
        if len(tables) == 1:
            return tables[0]
        if tables:
            break
    names = ", ".join(printable(table.relative_to(source)) for table in tables[:3])
    raise UserError(
        f"{shown} has {len(tables)} tables ({' '.join(TABLES)}){': ' * bool(names)}{names}: "
        "it needs one, or name the file"
    )


def read_table(table: Path, shown: str) -> DataFrame:
    """The cells of a table as text, without blanks around them, by column; absent ones are empty.

    Its attribute `FORM` says how it was read.

    Raises:
        UserError: it is no table, has no rows, two columns of one name, or a row with more or fewer
            cells than there are columns; names `shown`.
    """
    found = table.stat()
    return _read(table, shown, (found.st_mtime_ns, found.st_size))


@functools.lru_cache(maxsize=1)  # it is planned several times before it is decoded
def _read(table: Path, shown: str, state: tuple[int, int]) -> DataFrame:
    """The table in this state."""
    with open(table, "rb") as file:
        is_sheet = file.read(len(ZIPPED)) == ZIPPED or table.suffix.lower() in SPREADSHEETS
    cells = _of_sheet(table, shown) if is_sheet else _of_text(table, shown)
    if cells.empty:
        form = cells.attrs[FORM]
        raise UserError(f"{shown} ({form}) has no rows: it needs a header and one row per image")
    return cells


def columns_of(cells: DataFrame) -> str:
    """The names of a table's first columns, and how many there are if those are not all."""
    more = f", ... ({len(cells.columns):,} in all)" * (len(cells.columns) > SHOWN_COLUMNS)
    return ", ".join(map(printable, cells.columns[:SHOWN_COLUMNS])) + more


def _of_sheet(table: Path, shown: str) -> DataFrame:
    """The first sheet of a spreadsheet; a number without digits after the point has none."""
    import pandas

    try:
        with pandas.ExcelFile(table, engine="openpyxl") as book:
            sheets = [str(name) for name in book.sheet_names]
            cells = pandas.read_excel(book, sheets[0], header=None, dtype=str, na_filter=False)
    except Exception as error:  # openpyxl raises a dozen different ones
        raise UserError(
            f"{shown} cannot be read as a spreadsheet ({error}): save it as .xlsx again, or as .csv"
        ) from error
    form = f"sheet '{printable(sheets[0])}'" + f", the first of {len(sheets)}" * (len(sheets) > 1)
    if cells.empty:
        cells.attrs[FORM] = form
        return cells
    # What a sheet shows as an error, such as #N/A, is not there.
    cells = cells.fillna("").apply(lambda column: column.str.strip())
    cells = cells[(cells != "").any(axis=1)]  # sheets have empty rows at their end
    cells.columns = _columns(cells.iloc[0], shown)
    cells = cells.iloc[1:].reset_index(drop=True)
    cells.attrs[FORM] = form
    return cells


def _of_text(table: Path, shown: str) -> DataFrame:
    """A table of text: UTF-8 or -16, or else what spreadsheets in western Europe and America save;
    a line `sep=;` on top names the separator, or the header shows it."""
    import pandas

    content = table.read_bytes()
    encoding = _encoding(content)
    if b"\0" in content and encoding in ("utf-8", "utf-8-sig", WESTERN):
        raise UserError(
            f"{shown} is not text (it contains NUL bytes): save the table as .csv again"
        )
    csv.field_size_limit(LONGEST)
    text = io.TextIOWrapper(io.BytesIO(content), encoding, "backslashreplace", newline="")
    first = next((line for line in text if line.strip()), "")
    if named := re.fullmatch(r'"?sep=(.)"?\s*', first, re.IGNORECASE):
        separator = named[1]
    else:
        text.seek(0)
        separator = max(SEPARATORS, key=lambda each: len(next(csv.reader([first], delimiter=each))))
    # A blank between a quotation mark and a separator is no fault.
    blanks = re.compile(rf'" +(?={re.escape(separator)}|\s*$)')
    lines = (blanks.sub('"', line) if '" ' in line else line for line in text)
    reader = csv.reader(lines, delimiter=separator, skipinitialspace=True, strict=True)
    try:
        columns = _columns(next(filter(_is_filled, reader), []), shown)
        chunks = [
            pandas.DataFrame(rows, columns=columns, dtype="str").apply(lambda c: c.str.strip())
            for rows in _chunks(reader, columns, shown)
        ]
    except csv.Error as error:
        raise UserError(
            f"{shown} cannot be read as a table at line {reader.line_num} ({error}): look there "
            "and above for a quotation mark that is not closed; one inside a cell must be doubled"
        ) from error
    cells = pandas.concat(chunks, ignore_index=True) if chunks else pandas.DataFrame()
    words = SEPARATORS.get(separator, f"'{separator}'")
    guess = " because it is not UTF-8" * (encoding == WESTERN)
    cells.attrs[FORM] = f"separated by {words}, read as {encoding.removesuffix('-sig')}{guess}"
    return cells


def _encoding(content: bytes) -> str:
    """The encoding of a text, by its mark, or by what it can be."""
    for mark, encoding in MARKS.items():
        if content.startswith(mark):
            return encoding
    first = content[:1000]
    zeros = [first[at::2].count(0) for at in (0, 1)]
    if max(zeros) > len(first) / 8 and max(zeros) > 4 * min(zeros):  # each second one
        return "utf-16-be" if zeros[0] > zeros[1] else "utf-16-le"
    try:
        content.decode("utf-8")
    except UnicodeDecodeError:
        return WESTERN
    return "utf-8"


def _columns(header: Sequence[str], shown: str) -> list[str]:
    """The names of columns; one without a name is called by its place."""
    stripped = (name.strip(INVISIBLE).strip() for name in header)
    names = [name or f"column {at}" for at, name in enumerate(stripped, 1)]
    for name, count in Counter(names).items():
        if count > 1:
            raise UserError(f"{shown} has {count} columns '{printable(name)}': rename all but one")
    return names


def _is_filled(row: Sequence[str]) -> bool:
    return len(row) > 1 or any(cell.strip() for cell in row)


def _chunks(
    rows: Iterable[list[str]], columns: Sequence[str], shown: str
) -> Iterator[list[list[str]]]:
    """Some rows at a time, all as long as the header; a `UserError` that names one that is not."""
    chunk: list[list[str]] = []
    for number, row in enumerate(filter(_is_filled, rows), 1):
        if len(row) != len(columns):
            few = printable(" | ".join(row))
            advice = (
                "put quotation marks around cells that contain separators, and leave out no cell"
            )
            if len(columns) == 1:
                advice = f"the first line must be the header, not '{printable(columns[0])[:SHOWN]}'"
            raise UserError(
                f"{shown}, row {number} has {len(row)} cells but the header {len(columns)} "
                f"({few[:SHOWN]}{'...' * (len(few) > SHOWN)}): {advice}"
            )
        chunk.append(row)
        if len(chunk) == CHUNK:
            yield chunk
            chunk = []
    if chunk:
        yield chunk
