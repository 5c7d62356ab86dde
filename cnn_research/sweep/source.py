"""A copy of the source for the runs of a sweep, so that edits do not affect queued runs."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

from cnn_research.core.files import EXPERIMENTS, ROOT
from cnn_research.core.run_folder import SOURCE_RECORD, atomic_directory, source_facts, write_json


def copy_source(folder: Path) -> Path:
    """Copy the packages' files to a folder named by their hash, unless it exists; return it."""
    files = sorted(
        {
            file
            for package in (ROOT / "cnn_research", EXPERIMENTS)
            for file in package.rglob("*")
            if file.is_file() and "__pycache__" not in file.parts
        }
    )
    total = hashlib.sha256()
    for file in files:
        contents = file.read_bytes()
        total.update(f"{file.relative_to(ROOT).as_posix()} {len(contents)}\n".encode() + contents)
    copy = folder.absolute() / "source" / total.hexdigest()[:8]
    if not copy.exists():
        with atomic_directory(copy) as partial:
            for file in files:
                target = partial / file.relative_to(ROOT)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, target)
            # The copy is not a git checkout, but its runs must record the commit.
            commit, difference = source_facts()
            write_json(partial / SOURCE_RECORD, {"commit": commit, "difference": difference})
    return copy


def search_path(copy: Path) -> str:
    """Return the `PYTHONPATH` with which a process imports the copy."""
    rest = os.environ.get("PYTHONPATH")
    return f"{copy}{os.pathsep}{rest}" if rest else str(copy)
