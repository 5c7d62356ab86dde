"""A report's page: report.md, and report.html, which is the same with its pictures inside."""

from __future__ import annotations

import base64
import io
import itertools
import json
import re
import string
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from markdown_it.token import Token

MARKDOWN, HTML = "report.md", "report.html"
LARGE = 200_000
"""A picture file of more bytes holds photographs: the page has it with losses, as in a JPEG."""
LONGEST_SIDE = 16_383
"""Of a WebP picture, in pixels."""
DOTS_PER_PIXEL = 1.5
"""Figures have 144 dots an inch, pages 96."""
NUMBER = re.compile(r"([+-]?[\d,]+(\.\d+)?%?( ± [\d.]+)?|nan)?")


def write_page(folder: Path, parts: Iterable[str], config: Mapping[str, Any]) -> Path:
    """Writes `report.md` and `report.html`; the second needs no other file and no network.

    Args:
        folder: where to; the pictures that the parts name are there already.
        parts: headings, paragraphs, tables and pictures in Markdown; the first is `# Title`.
        config: what was run, as JSON values; the page ends with it, unless it is empty.

    Returns:
        The path of report.html.
    """
    fields = ["## Config", f"```json\n{json.dumps(config, indent=2)}\n```"] if config else []
    text = "\n\n".join([*parts, *fields]) + "\n"
    (folder / MARKDOWN).write_text(text, encoding="utf-8")
    (folder / HTML).write_text(as_html(text, folder), encoding="utf-8")
    return folder / HTML


def as_html(text: str, folder: Path) -> str:
    """Markdown as one HTML file with its pictures, which are at paths relative to `folder`.

    Of Markdown it knows what pages use, and no more: a class may be named `*` or `<b>`. JSON is
    folded, and what is too wide for a screen scrolls in a box of its own.
    """
    from markdown_it import MarkdownIt

    reader = MarkdownIt("zero").enable(
        ["heading", "list", "fence", "table", "backticks", "image", "newline"]
    )
    reader.add_render_rule("image", lambda _, tokens, at, *rest: _picture(tokens[at], folder))
    reader.add_render_rule("fence", lambda _, tokens, at, *rest: _code(tokens[at]))
    reader.add_render_rule("table_open", lambda *_: f"{_BOX}<table>\n")
    reader.add_render_rule("table_close", lambda *_: "</table></div>\n")
    tokens = reader.parse(text)
    headings: list[tuple[str, str]] = []
    for token, inline in itertools.pairwise(tokens):
        if token.type == "heading_open":
            token.attrSet("id", f"part-{len(headings)}")
            headings.append((token.tag, escape(inline.content)))
    _align_numbers(tokens)
    links = (
        f'<a class="{tag}" href="#part-{place}">{name}</a>'
        for place, (tag, name) in enumerate(headings)
        if place
    )
    return _PAGE.substitute(
        title=headings[0][1],
        style=_STYLE,
        contents="\n".join(links),
        body=reader.renderer.render(tokens, reader.options, {}),
    )


def _align_numbers(tokens: Sequence[Token]) -> None:
    """Marks the cells of columns in which all cells but the header are numbers."""
    rows: list[list[tuple[Token, str]]] = []
    for token, inline in itertools.pairwise(tokens):
        if token.type == "table_open":
            rows = []
        elif token.type == "tr_open":
            rows.append([])
        elif token.type in ("th_open", "td_open"):
            rows[-1].append((token, inline.content))
        elif token.type == "table_close":
            for column in zip(*rows, strict=True):
                if all(NUMBER.fullmatch(content) for _, content in column[1:]):
                    for cell, _ in column:
                        cell.attrSet("class", "number")


def _code(token: Token) -> str:
    """Text of one width; JSON is folded."""
    box = f"{_BOX}<pre>{escape(token.content)}</pre></div>\n"
    if token.info != "json":
        return box
    return f"<details><summary>All fields</summary>\n{box}</details>\n"


def _picture(token: Token, folder: Path) -> str:
    """A picture with its pixels; its words alone where there is no such file."""
    from PIL import Image

    words, file = escape(token.content), folder / str(token.attrGet("src"))
    if not file.is_file():
        return words
    kind, data = "png", file.read_bytes()
    with Image.open(file) as picture:
        width, height = picture.size
        if max(picture.size) <= LONGEST_SIDE:
            how = {"quality": 85} if len(data) > LARGE else {"lossless": True}
            smaller = io.BytesIO()
            picture.convert("RGB").save(smaller, "WEBP", **how)
            kind, data = "webp", smaller.getvalue()
    size = f'width="{width / DOTS_PER_PIXEL:.0f}" height="{height / DOTS_PER_PIXEL:.0f}"'
    source = f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
    return f'<span class="box" tabindex="0"><img alt="{words}" {size} src="{source}"></span>'


_BOX = '<div class="box" tabindex="0">'  # reached by keyboard, too, to be scrolled

_STYLE = """\
:root { color-scheme: light dark; --text: #1c2024; --soft: #5b646e; --back: #fff; --line: #d9dee3;
  --box: #f5f7f9; --link: #0060a8 }
@media (prefers-color-scheme: dark) { :root { --text: #e4e8ec; --soft: #a1abb5; --back: #14171a;
  --line: #343b42; --box: #1d2226; --link: #6cb8f5 } }
* { box-sizing: border-box }
body { margin: 0 auto; max-width: 66rem; padding: 1.5rem 1rem 4rem; background: var(--back);
  color: var(--text); font: 1rem/1.55 system-ui, sans-serif; overflow-wrap: break-word }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 1rem }
h2 { font-size: 1.35rem; margin: 2.8rem 0 0.8rem; padding-top: 0.8rem;
  border-top: 1px solid var(--line) }
h3 { font-size: 1.1rem; margin: 2rem 0 0.6rem }
a { color: var(--link) }
nav { display: flex; flex-wrap: wrap; gap: 0.2rem 1.2rem; margin-bottom: 1.5rem }
nav .h3 { font-size: 0.9rem }
h1 + ul { list-style: none; padding: 0; color: var(--soft); font-size: 0.9rem }
code, pre { font-family: ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace;
  font-size: 0.85rem }
.box { display: block; overflow: auto; max-width: 100%; margin: 1rem 0 }
.box:has(table) { width: fit-content; max-height: 36rem; border: 1px solid var(--line);
  border-radius: 6px }
.box:has(pre) { background: var(--box); border-radius: 6px }
pre { margin: 0; padding: 0.8rem 1rem; line-height: 1.4 }
table { border-collapse: separate; border-spacing: 0; font-size: 0.9rem;
  font-variant-numeric: tabular-nums }
th { position: sticky; top: 0; background: var(--box); font-weight: 600; text-align: left }
th, td { padding: 0.3rem 0.8rem; white-space: nowrap; vertical-align: top }
td { border-top: 1px solid var(--line) }
.number { text-align: right }
img { display: block; height: auto; max-width: 100%; background: #fff; border-radius: 6px }
@media (prefers-color-scheme: dark) { img { padding: 0.5rem } }
summary { cursor: pointer; color: var(--link) }
@media (max-width: 45rem) { img { max-width: max(100%, 36rem) } }
@media print { body { max-width: none; padding: 0 } nav { display: none }
  .box { overflow: visible; max-height: none } th { position: static }
  h2, h3 { break-after: avoid } img, tr { break-inside: avoid } img { max-width: 100% } }
"""

_PAGE = string.Template("""\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
  content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>$title</title>
<style>
$style</style>
</head>
<body>
<nav>
$contents
</nav>
<main>
$body</main>
</body>
</html>
""")
