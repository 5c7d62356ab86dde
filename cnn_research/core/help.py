"""`--help`: an experiment's fields with their types, defaults and docstrings."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import re
import shlex
import shutil
import typing
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import tyro
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from cnn_research.core.config import config_fields, did_you_mean
from cnn_research.core.errors import UsageError

ALL = "all"
"""`--help=all` shows every group of fields."""
WIDEST = 100
"""Maximum width of the text in columns."""


@dataclasses.dataclass(frozen=True)
class _Group:
    """The fields of a part of a config, such as `optimizer`; the path of the top level is ""."""

    path: str
    text: str
    rows: Sequence[tuple[str, str]]
    """Each field as typed, and its description with the default."""
    changed: bool
    """Whether any field differs from its class's default."""


def help_text(config: Any, command: str, description: str, asked: str = "") -> str:
    """Describe a config's fields: the top level, then parts that differ from their defaults.

    Other parts, and parts of parts, are listed with the command that shows their fields. `asked` is
    the name of a part to show with its own parts, or `all`. Raises `UsageError` for other names.
    """
    own, *parts = (group for group in _groups(config) if group.rows or not group.path)
    names = [part.path for part in parts]
    if asked not in ("", ALL, *names):
        near = did_you_mean(asked, [*names, ALL]) or f": give {', '.join([*names, ALL])}"
        raise UsageError(f"--help has no part '{asked}'{near}")
    width = min(shutil.get_terminal_size().columns, WIDEST)
    screen = Console(width=width, markup=False, highlight=False, emoji=False)
    with screen.capture() as captured:
        if asked in names:
            parts = [part for part in parts if f"{part.path}.".startswith(f"{asked}.")]
        else:
            screen.print(f"usage: {command} [--FIELD=VALUE ...]\n", soft_wrap=True)
            screen.print(f"{_paragraphs(description)}\n")
            _print_group(screen, own)
        in_full = [part for part in parts if asked or (part.changed and "." not in part.path)]
        for part in in_full:
            _print_group(screen, part)
        if brief := [part for part in parts if part not in in_full]:
            rows = [(f"--help={part.path}", part.text) for part in brief]
            rows.append((f"--help={ALL}", "All fields."))
            screen.print(Text("More fields", style="bold"), _grid(rows))
    return "\n".join(line.rstrip() for line in captured.get().splitlines())


def _print_group(screen: Console, group: _Group) -> None:
    heading = Text(group.path or "Fields [default]", style="bold")
    if group.path:
        heading.append(f": {group.text}", style="not bold")
    if group.rows:
        screen.print(heading, _grid(group.rows), "", sep="\n")


def _grid(rows: Sequence[tuple[str, str]]) -> Padding:
    grid = Table.grid(padding=(0, 2, 0, 0))
    longest = max(len(word) for name, _ in rows for word in name.split())
    grid.add_column(style="cyan", max_width=max(32, min(longest, 46)), overflow="fold")
    grid.add_column(overflow="fold")
    for name, text in rows:
        grid.add_row(name, text)
    return Padding(grid, (0, 0, 0, 2))


def _groups(config: Any, path: str = "", text: str = "", default: Any = None) -> list[_Group]:
    """Return the group of a config's top-level fields and those of its parts, in order."""
    kind, rows, parts = type(config), [], []
    hints = typing.get_type_hints(kind, include_extras=True)
    texts = _docstrings(kind)
    for field in config_fields(config):
        value, hint = getattr(config, field.name), hints[field.name]
        name = f"{path}.{field.name}".removeprefix(".").replace("_", "-")
        if tyro.conf.Suppress in getattr(hint, "__metadata__", ()):
            continue
        about = texts.get(field.name, "")
        if dataclasses.is_dataclass(value):
            parts += _groups(value, name, about, field.default)
        else:
            rows.append((_typed(name, hint, value), f"{about} [{_shown(value)}]".lstrip()))
    return [_Group(path, text, rows, config != default), *parts]


def _typed(name: str, hint: Any, value: Any) -> str:
    """Format a field as it is typed: `--epochs FLOAT`, `--model.[no-]batch-norm`."""
    if isinstance(value, bool):
        before, dot, last = name.rpartition(".")
        return f"--{before}{dot}[no-]{last}"
    return f"--{name} {_values(hint)}"


def _values(hint: Any) -> str:
    """Format the values of a type: INT, {sgd,adam}, `INT ...` for any number."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return _values(arguments[0])
    if origin is Literal:
        return f"{{{','.join(map(str, arguments))}}}"
    if origin is tuple:
        each = [_values(argument) if argument is not ... else "..." for argument in arguments]
        return " ".join(each)
    if arguments:
        return "|".join(map(_values, arguments))
    return getattr(hint, "__name__", str(hint)).upper()


def _shown(value: Any) -> str:
    """Format a default as it is typed; `none` if it is empty."""
    if isinstance(value, tuple | list):
        return " ".join(map(_shown, value)) or "none"
    if isinstance(value, float):
        return f"{value:g}"
    return shlex.quote(value) if isinstance(value, str) and value else str(value) or "none"


def _docstrings(kind: type) -> dict[str, str]:
    """Return the docstrings of a class's fields, one line each; empty if it has no source file."""
    import docstring_parser

    texts: dict[str, str] = {}
    for each in reversed(kind.__mro__[:-1]):
        with contextlib.suppress(TypeError, OSError):
            params = docstring_parser.parse_from_object(each).params
            texts |= {one.arg_name: " ".join((one.description or "").split()) for one in params}
    return texts


def _paragraphs(text: str) -> str:
    """Join the lines of each paragraph of a docstring; keep commands and indented lines."""
    return re.sub(r"\n(?=\S)(?!python )(?<!\n\n)", " ", inspect.cleandoc(text))
