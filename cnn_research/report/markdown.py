"""Elements of Markdown pages."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from cnn_research.core.terminal import NUMBER


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Format a Markdown table with aligned columns, so that it is readable in a terminal, too.

    Columns of numbers are aligned to the right.
    """
    # A class or a path may contain the character that ends a cell.
    lines = [[cell.replace("|", "\\|") for cell in row] for row in (header, *rows)]
    columns = []
    for title, *cells in zip(*lines, strict=True):
        width = max(3, len(title), *map(len, cells))
        right = all(NUMBER.fullmatch(cell) for cell in cells)
        rule = "-" * (width - 1) + ":" if right else "-" * width
        columns.append([f"{c:{'>' if right else '<'}{width}}" for c in (title, rule, *cells)])
    return "\n".join(f"| {' | '.join(line)} |" for line in zip(*columns, strict=True))


def number(value: float | None) -> str:
    """Format a cell: integers unchanged, other numbers with four decimals, None as ""."""
    if value is None:
        return ""
    return str(value) if isinstance(value, int) else f"{value:.4f}"
