"""Read tables: delimited text in the usual encodings, and spreadsheets."""

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
"""Attribute of a table: its separator and encoding, or its sheet, in words."""
WESTERN = "cp1252"
"""Encoding assumed for text without a byte order mark that is not UTF-8."""
CHUNK = 50_000
"""Rows in memory as Python lists, which need ten times as much."""
SHOWN = 60
"""Characters of a row that an error shows."""
SHOWN_COLUMNS = 20
"""Number of columns that a message lists."""
LONGEST = 1 << 30
"""Maximum number of characters in a cell."""
INVISIBLE = "\ufeff\u200b"
"""Invisible characters that programs leave at the ends of a header."""

ZIPPED = b"PK\x03\x04"
"""First bytes of a spreadsheet, whatever its name."""
MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",  # before UTF-16, whose mark is a prefix of it
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
"""Byte order mark -> encoding."""


def find_table(source: Path, shown: str) -> Path:
    """Return the table `source`, or the only one below it; .csv is preferred."""
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
        "provide one, or name the file"
    )


def read_table(table: Path, shown: str) -> DataFrame:
    """Read the cells of a table as stripped text; missing ones are empty.

    The attribute `FORM` describes how it was read.

    Raises:
        UserError: it is not a table, has no rows, two columns of the same name, or a row with more
            or fewer cells than columns; errors call it `shown`.
    """
    stat = table.stat()
    return _read(table, shown, (stat.st_mtime_ns, stat.st_size))


@functools.lru_cache(maxsize=1)  # a table is planned several times before it is decoded
def _read(table: Path, shown: str, state: tuple[int, int]) -> DataFrame:
    """Read the table in this state."""
    with open(table, "rb") as file:
        is_sheet = file.read(len(ZIPPED)) == ZIPPED or table.suffix.lower() in SPREADSHEETS
    cells = _of_sheet(table, shown) if is_sheet else _of_text(table, shown)
    if cells.empty:
        form = cells.attrs[FORM]
        raise UserError(f"{shown} ({form}) has no rows: it needs a header and one row per image")
    return cells


def columns_of(cells: DataFrame) -> str:
    """List a table's first columns, and their number if there are more."""
    more = f", ... ({len(cells.columns):,} in all)" * (len(cells.columns) > SHOWN_COLUMNS)
    return ", ".join(map(printable, cells.columns[:SHOWN_COLUMNS])) + more


def _of_sheet(table: Path, shown: str) -> DataFrame:
    """Read the first sheet of a spreadsheet; integers have no decimal point."""
    import pandas

    try:
        with pandas.ExcelFile(table, engine="openpyxl") as book:
            sheets = [str(name) for name in book.sheet_names]
            cells = pandas.read_excel(book, sheets[0], header=None, dtype=str, na_filter=False)
    except Exception as error:  # openpyxl raises a dozen kinds
        raise UserError(
            f"{shown} cannot be read as a spreadsheet ({error}): save it as .xlsx again, or as .csv"
        ) from error
    form = f"sheet '{printable(sheets[0])}'" + f", the first of {len(sheets)}" * (len(sheets) > 1)
    if cells.empty:
        cells.attrs[FORM] = form
        return cells
    # Errors in a sheet, such as #N/A, are read as NaN.
    cells = cells.fillna("").apply(lambda column: column.str.strip())
    cells = cells[(cells != "").any(axis=1)]  # sheets end with empty rows
    cells.columns = _columns(cells.iloc[0], shown)
    cells = cells.iloc[1:].reset_index(drop=True)
    cells.attrs[FORM] = form
    return cells


def _of_text(table: Path, shown: str) -> DataFrame:
    """Read delimited text in UTF-8, UTF-16 or cp1252 (the default of western spreadsheets).

    The separator is given by a first line `sep=;`, or found in the header.
    """
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
    # Spaces between a quotation mark and a separator are allowed.
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
            "and above for an unclosed quotation mark; one inside a cell must be doubled"
        ) from error
    cells = pandas.concat(chunks, ignore_index=True) if chunks else pandas.DataFrame()
    words = SEPARATORS.get(separator, f"'{separator}'")
    guess = " because it is not UTF-8" * (encoding == WESTERN)
    cells.attrs[FORM] = f"separated by {words}, read as {encoding.removesuffix('-sig')}{guess}"
    return cells


def _encoding(content: bytes) -> str:
    """Find the encoding of a text by its byte order mark, or else by its bytes."""
    for mark, encoding in MARKS.items():
        if content.startswith(mark):
            return encoding
    first = content[:1000]
    zeros = [first[at::2].count(0) for at in (0, 1)]
    if max(zeros) > len(first) / 8 and max(zeros) > 4 * min(zeros):  # every other byte
        return "utf-16-be" if zeros[0] > zeros[1] else "utf-16-le"
    try:
        content.decode("utf-8")
    except UnicodeDecodeError:
        return WESTERN
    return "utf-8"


def _columns(header: Sequence[str], shown: str) -> list[str]:
    """Clean the names of columns; unnamed ones are called `column N`."""
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
    """Yield rows in chunks; raise `UserError` for a row that is not as long as the header."""
    chunk: list[list[str]] = []
    for number, row in enumerate(filter(_is_filled, rows), 1):
        if len(row) != len(columns):
            few = printable(" | ".join(row))
            advice = "put quotation marks around cells that contain separators, and omit no cells"
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
