"""Names that data has, as tables and pictures show them: short, different, and in any script."""

from __future__ import annotations

import functools
import itertools
import re
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence

from cnn_research.report.markdown import markdown_table

LONGEST_NAME = 40
"""Characters of a class's name on a page; the .csv and .txt files have all of it."""


def shortened(name: str, length: int) -> str:
    """The name, or its two ends around an ellipsis: at most `length` characters."""
    if len(name) <= length:
        return name
    end = (length - 1) // 2
    return f"{name[: length - 1 - end]}…{name[len(name) - end :]}"


def short_names(names: Sequence[str], length: int) -> list[str]:
    """Different names of at most `length` characters each, or of a few more for their number.

    Where one is longer, the words that all of them begin with are left out first.
    """
    if max(map(len, names), default=0) <= length:
        return list(names)
    # What the first and the last in order begin with, all begin with.
    pairs = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(min(names), max(names)))
    words = re.match(r".*[\W_]", "".join(letter for letter, _ in pairs), re.DOTALL)
    start = words.end() if words else 0
    short = [shortened(f"…{name[start:]}" if start else name, length) for name in names]
    times = Counter(short)
    return [f"{s} #{n}" if times[s] > 1 else s for n, s in enumerate(short, 1)]


def pictured(names: Sequence[str], length: int) -> list[str]:
    """`short_names` for a picture: `#7` for the seventh where the font of pictures cannot draw it.

    `legend` tells what these stand for.
    """
    short = short_names(names, length)
    return [s if can_be_drawn(s) else f"#{number}" for number, s in enumerate(short, 1)]


def legend(names: Sequence[str], shown: Sequence[str], what: str = "class") -> str:
    """A Markdown table of the names that pictures show otherwise; "" where there is none.

    They are names of a `what`.
    """
    classes = enumerate(zip(shown, names, strict=True), 1)
    rows = [(str(number), s, name) for number, (s, name) in classes if s != name]
    return markdown_table(("number", "in pictures", what), rows) if rows else ""


def numbers_of(class_names: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """`#7` for the seventh class of all heads, by its name, for names that pictures cannot show."""
    names = enumerate(itertools.chain.from_iterable(class_names.values()), 1)
    return {name: f"#{number}" for number, name in names if not can_be_drawn(name)}


def in_picture(text: str, numbers: Mapping[str, str] | None = None) -> str:
    """A text for a picture: with the `numbers_of` names, and `?` for other such characters."""
    for name, number in sorted((numbers or {}).items(), key=lambda pair: -len(pair[0])):
        text = text.replace(name, number)
    return "".join(c if c == "\n" or can_be_drawn(c) else "?" for c in text)


def can_be_drawn(text: str) -> bool:
    """Return whether the font of pictures has the characters, and needs to join or turn none.

    Matplotlib draws a character after the other from left to right, which is wrong for Arabic,
    Hebrew and the scripts of India.
    """
    return all(
        ord(character) in _characters()
        and unicodedata.bidirectional(character) not in ("R", "AL")
        and not unicodedata.combining(character)
        for character in text
    )


@functools.cache
def _characters() -> frozenset[int]:
    """The characters of the font of pictures, by their codes."""
    from matplotlib import font_manager

    font = font_manager.get_font(font_manager.findfont(font_manager.FontProperties()))
    return frozenset(font.get_charmap())
