"""The pages are in plain English: habits that crept in before are found by their patterns."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from cnn_research.core.experiment import registry

ROOT = Path(__file__).resolve().parent.parent
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "docs" / "notebooks").glob("*.ipynb")),
]
HABITS = {
    r"\bsaid\b": "printed, reported, stated",
    r"\bso (many|much|few)\b(?! that)": "a number of, N",
    r"\b(go|goes|going|went) on\b": "continue, resume",
    r"\b(has|have|had)? ?(come|comes|came) to(?= [a-z]+ |[.,])": "reach, be",
    r"\bfigures?\b(?! \d)(?<!lectures' figures)": "metric, result, number; a picture is a plot",
    r"\banswers?\b(?! (over|within|only))": "prediction, response",
    r"\banswer(ed|ing)\b": "predict, respond",
    r"\btake(s|n)? (for|the place of)\b": "confused with, replaces",
    r"\bpassed over\b": "skipped",
    r"\bas it (is|stands)\b": "by default, unchanged",
    r"\bsaved again\b": "re-encoded",
    r"\bfor who\b|\bwho is taken\b|\bwhoever\b": "for those who, which classes",
    r"\bwhere (there|it) (is|has|names?) none\b": "otherwise, by default",
    r"\bwhere there (is|are) (one|any|some)\b": "if there is",
    r"\b(is|are) there already\b": "exists",
    r"\bwhat (it|they|this|a \w+|the \w+) (has|have|is|are) (come|become|left)\b": "result",
    r"\bbeside (other|much) work\b": "on a busy machine",
    r"\bin the mean\b": "on average",
    r"\btakes? much\b|\bmuch else\b": "takes a lot of",
    r"\b(a|one) (line|row|change|run) an? \w+": "one line per epoch",
    r"(?:^|\. )Of (a|an|the)\b": "In the, for a",
    r"\b(from|of) such an?\b": "of this kind",
    r"\bthat there is not\b|\bis there not\b": "does not exist",
    r"\banother'?s? of\b|\bof another than\b": "different from",
    r"\bin a word\b|\bto the letter of\b": "briefly",
    r"\bwithout a word\b": "silently",
    r"\blet alone\b": "left undisturbed",
    r"\bdoc[a-z]* 00\d\b|\b00[0-4]'s\b": "author, title and subject",
}
"""Patterns, and what to write instead."""


def prose(page: Path) -> str:
    """A page without code, addresses and the tables that are generated; one space between words."""
    text = page.read_text(encoding="utf-8")
    if page.suffix == ".ipynb":
        cells = json.loads(text)["cells"]
        text = "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")
    text = re.sub(r"<!-- table: .*?<!-- end -->", "", text, flags=re.DOTALL)
    text = re.sub(r"^ *```.*?^ *```", "", text, flags=re.DOTALL | re.MULTILINE)
    text = re.sub(r"`[^`\n]*`|\]\([^)\s]*\)", "", text)
    return re.sub(r"\s+", " ", text)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pages_have_no_habits(page):
    text = prose(page)
    found = [
        f"...{text[max(0, match.start() - 40) : match.end() + 30]}... ({instead})"
        for pattern, instead in HABITS.items()
        for match in re.finditer(pattern, text, re.IGNORECASE)
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize("folder", ["cnn_research", "experiments", "benchmarks", "tests"])
def test_code_calls_documents_by_their_subjects(folder):
    found = [
        f"{file.relative_to(ROOT)}: {line.strip()}"
        for file in sorted((ROOT / folder).rglob("*.py"))
        for line in file.read_text(encoding="utf-8").splitlines()
        if re.search(r"\bdocuments? 00\d", line, re.IGNORECASE)
    ]
    assert not found


@pytest.mark.parametrize("page", ["README.md", "README.es.md", "docs/documents.md"])
def test_pages_cite_every_document(page):
    text = re.sub(r"\s+", " ", (ROOT / page).read_text(encoding="utf-8"))
    documents = {entry.document for entry in registry().values() if entry.document}
    assert len(documents) == 5
    for document in documents:
        *author, title = document.citation.split(": ", 1)
        names = [re.split(r" \(|, ", title)[0], *(name.split(" and ")[0] for name in author)]
        assert all(name in text for name in names), document.citation
