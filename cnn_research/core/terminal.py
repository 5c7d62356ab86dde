"""Output that fits the terminal: coloured tables and wrapped text; in a pipe, plain text."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import sys
import textwrap
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Literal, TextIO

if TYPE_CHECKING:  # imported on demand, as errors in a pipe do not need it
    from rich.console import Console

UNLIMITED = 10_000
"""Width of a pipe or file, in which each row of a table is one line."""
NUMBER = re.compile(r"([+-]?[\d,]+(\.\d+)?%?( ± [\d.]+)?|nan)?")
"""Cells that are aligned to the right."""
NARROWEST = 16
"""Minimum width of a column of folded text; tables that need less become lists."""
CLEAR = "\r\x1b[K"
"""Clears the terminal's current line."""
COLOURS = {
    **dict.fromkeys(("complete", "ok"), "green"),
    **dict.fromkeys(("failed", "FAULT", "error:"), "bold red"),
    **dict.fromkeys(("running", "queued"), "cyan"),
    **dict.fromkeys(("stopped", "pruned", "note"), "yellow"),
}
"""Colours of cells with exactly these words."""


def columns(stream: TextIO) -> int:
    """Return the width of a stream's terminal; `UNLIMITED` if it is not a terminal."""
    if not stream.isatty():
        return UNLIMITED
    with contextlib.suppress(OSError, ValueError):
        width = os.environ.get("COLUMNS")
        return int(width or os.get_terminal_size(stream.fileno()).columns) or 80
    return 80


def console(stream: TextIO | None = None) -> Console:
    """Create a rich console on a stream, by default standard output."""
    from rich.console import Console

    stream = stream or sys.stdout
    width = columns(stream)
    return Console(file=stream, width=width, markup=False, highlight=False, emoji=False)


def styled(text: str, style: str, stream: TextIO | None = None) -> str:
    """Format text in a style such as `bold red`; unchanged if the stream is not a terminal."""
    terminal = console(stream)
    with terminal.capture() as captured:
        terminal.print(text, style=style, end="", soft_wrap=True)
    return captured.get()


def show(text: str) -> None:
    """Print results; in a terminal, Markdown tables and long lines are fitted to its width."""
    if not sys.stdout.isatty():
        print(text, flush=True)
        return
    for is_table, lines in itertools.groupby(text.splitlines(), lambda line: line[:2] == "| "):
        if is_table:
            cells = (re.split(r"(?<!\\)\|", line.strip()[1:-1]) for line in lines)
            table = [[cell.strip().replace("\\|", "|") for cell in row] for row in cells]
            print_table(table[0], table[2:])  # skip the row of rules
        else:
            print(*(wrapped(line, columns(sys.stdout)) for line in lines), sep="\n")
    sys.stdout.flush()


def wrapped(line: str, width: int) -> str:
    """Break a line between words, and indent further lines to its last column."""
    if len(line) <= width:
        return line
    gaps = [gap.end() for gap in re.finditer(r"^ +|  +", line) if gap.end() < width / 2]
    indent = " " * (gaps[-1] if gaps else 0)
    return textwrap.fill(
        line, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )


def print_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print rows with aligned columns, at most as wide as the terminal.

    Text is folded within its column. If the table still does not fit, each row becomes a list.
    """
    from rich.table import Table
    from rich.text import Text

    rows = list(rows)
    terminal = console()
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    needed = 0
    for title, *cells in zip(header, *rows, strict=True):
        numbers = all(NUMBER.fullmatch(cell) for cell in cells)
        side: Literal["left", "right"] = "right" if numbers else "left"
        table.add_column(title, justify=side, no_wrap=numbers, overflow="fold")
        width = max(map(len, (title, *cells)))
        needed += 2 + (width if numbers else min(width, NARROWEST))
    if needed - 2 > terminal.width:
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=False)
        table.add_column(no_wrap=True, style="bold")
        table.add_column(overflow="fold")
        rows = [pair for row in rows for pair in (*zip(header, row, strict=True), ("", ""))]
    for row in rows:
        table.add_row(*(Text(cell, style=COLOURS.get(cell, "")) for cell in row))
    with terminal.capture() as captured:
        terminal.print(table)
    print("\n".join(line.rstrip() for line in captured.get().splitlines()), flush=True)
