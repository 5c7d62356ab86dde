"""Names from data in tables and figures: short, distinct, and in any script."""

from __future__ import annotations

import functools
import itertools
import re
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence

from cnn_research.report.markdown import markdown_table

LONGEST_NAME = 40
"""Maximum length of a class's name on a page; the .csv and .txt files have the full name."""


def shortened(name: str, length: int) -> str:
    """Shorten a name to `length` characters, with an ellipsis in the middle."""
    if len(name) <= length:
        return name
    end = (length - 1) // 2
    return f"{name[: length - 1 - end]}…{name[len(name) - end :]}"


def short_names(names: Sequence[str], length: int) -> list[str]:
    """Shorten names to `length` characters; number those that become equal.

    If any is longer, the words with which all names start are removed first.
    """
    if max(map(len, names), default=0) <= length:
        return list(names)
    # A common prefix of the first and the last in sort order is common to all.
    pairs = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(min(names), max(names)))
    words = re.match(r".*[\W_]", "".join(letter for letter, _ in pairs), re.DOTALL)
    start = words.end() if words else 0
    short = [shortened(f"…{name[start:]}" if start else name, length) for name in names]
    times = Counter(short)
    return [f"{s} #{n}" if times[s] > 1 else s for n, s in enumerate(short, 1)]


def pictured(names: Sequence[str], length: int) -> list[str]:
    """Make `short_names` for a figure: `#7` if its font cannot draw the seventh name.

    `legend` explains these numbers.
    """
    short = short_names(names, length)
    return [s if can_be_drawn(s) else f"#{number}" for number, s in enumerate(short, 1)]


def legend(names: Sequence[str], shown: Sequence[str], what: str = "class") -> str:
    """Make a Markdown table of the names that figures abbreviate; "" if there are none.

    `what` is the kind of names.
    """
    classes = enumerate(zip(shown, names, strict=True), 1)
    rows = [(str(number), s, name) for number, (s, name) in classes if s != name]
    return markdown_table(("number", "in pictures", what), rows) if rows else ""


def numbers_of(class_names: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """Map class names that figures cannot show to numbers: `#7` for the seventh of all heads."""
    names = enumerate(itertools.chain.from_iterable(class_names.values()), 1)
    return {name: f"#{number}" for number, name in names if not can_be_drawn(name)}


def in_picture(text: str, numbers: Mapping[str, str] | None = None) -> str:
    """Prepare a text for a figure: replace names by `numbers_of`, and other characters by `?`."""
    for name, number in sorted((numbers or {}).items(), key=lambda pair: -len(pair[0])):
        text = text.replace(name, number)
    return "".join(c if c == "\n" or can_be_drawn(c) else "?" for c in text)


def can_be_drawn(text: str) -> bool:
    """Return whether Matplotlib can draw a text with the font of figures.

    It draws characters one by one from left to right, which is wrong for Arabic, Hebrew and the
    scripts of India.
    """
    return all(
        ord(character) in _characters()
        and unicodedata.bidirectional(character) not in ("R", "AL")
        and not unicodedata.combining(character)
        for character in text
    )


@functools.cache
def _characters() -> frozenset[int]:
    """Character codes of the font of figures."""
    from matplotlib import font_manager

    font = font_manager.get_font(font_manager.findfont(font_manager.FontProperties()))
    return frozenset(font.get_charmap())
