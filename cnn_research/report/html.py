"""A report's page: report.md, and report.html with embedded pictures."""

from __future__ import annotations

import base64
import io
import itertools
import json
import string
from collections.abc import Iterable, Mapping
from html import escape
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from markdown_it.token import Token

MARKDOWN, HTML = "report.md", "report.html"
LARGE = 200_000
"""Picture files of more bytes contain photographs, which the page compresses with losses."""
LONGEST_SIDE = 16_383
"""Limit of WebP pictures, in pixels."""
DOTS_PER_PIXEL = 1.5
"""Figures have 144 dots per inch, pages 96."""


def write_page(folder: Path, parts: Iterable[str], config: Mapping[str, Any]) -> Path:
    """Write `report.md` and the self-contained `report.html`; return the latter's path.

    Parts are headings, paragraphs, tables and pictures in Markdown, the first one `# Title`; the
    picture files must be in `folder`. The page ends with the config (JSON values) unless it is
    empty.
    """
    fields = ["## Config", f"```json\n{json.dumps(config, indent=2)}\n```"] if config else []
    text = "\n\n".join([*parts, *fields]) + "\n"
    (folder / MARKDOWN).write_text(text, encoding="utf-8")
    (folder / HTML).write_text(as_html(text, folder), encoding="utf-8")
    return folder / HTML


def as_html(text: str, folder: Path) -> str:
    """Convert Markdown to one HTML file with its pictures, whose paths are relative to `folder`.

    Only the Markdown that pages need is enabled, as a class may be called `*` or `<b>`. JSON is
    folded, and wide elements scroll in a box.
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
    links = (
        f'<a class="{tag}" href="#part-{place}">{name}</a>'
        for place, (tag, name) in enumerate(headings)
        if place
    )
    template = resources.files(__package__).joinpath("page.html").read_text(encoding="utf-8")
    body = reader.renderer.render(tokens, reader.options, {})
    return string.Template(template).substitute(
        title=headings[0][1], contents="\n".join(links), body=body
    )


def _code(token: Token) -> str:
    """Preformatted text; JSON is folded."""
    box = f"{_BOX}<pre>{escape(token.content)}</pre></div>\n"
    if token.info != "json":
        return box
    return f"<details><summary>All fields</summary>\n{box}</details>\n"


def _picture(token: Token, folder: Path) -> str:
    """Embed a picture; only its text if the file does not exist.

    A click fills the window with it. A thumbnail, which is a WebP file, links to the file in its
    title.
    """
    from PIL import Image

    words, file = escape(token.content), folder / str(token.attrGet("src"))
    if not file.is_file():
        return words
    kind, data = file.suffix[1:], file.read_bytes()
    with Image.open(file) as picture:
        width, height = picture.size
        if kind != "webp" and max(picture.size) <= LONGEST_SIDE:
            how = {"quality": 85} if len(data) > LARGE else {"lossless": True}
            smaller = io.BytesIO()
            picture.convert("RGB").save(smaller, "WEBP", **how)
            kind, data = "webp", smaller.getvalue()
    size = f'width="{width / DOTS_PER_PIXEL:.0f}" height="{height / DOTS_PER_PIXEL:.0f}"'
    source = f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
    image = f'<img alt="{words}" {size} src="{source}">'
    if file.suffix != ".webp":
        return f'<label class="box"><input type="checkbox" aria-label="Enlarge">{image}</label>'
    address = str(token.attrGet("title") or "")
    return f'<a href="{escape(address)}">{image}</a>' if address.startswith("file:") else image


_BOX = '<div class="box" tabindex="0">'  # focusable, to be scrolled by keyboard
