"""Small parts of Markdown pages."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table with its columns aligned, so that it also reads well in a terminal."""
    # A class or a path may hold the character that ends a cell.
    lines = [[cell.replace("|", "\\|") for cell in row] for row in (header, *rows)]
    widths = [max(3, *map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join(
        "| " + " | ".join(f"{c:<{w}}" for c, w in zip(line, widths, strict=True)) + " |"
        for line in lines
    )


def number(value: float | None) -> str:
    """A cell: whole numbers as they are, others with four digits, None as ""."""
    if value is None:
        return ""
    return str(value) if isinstance(value, int) else f"{value:.4f}"
