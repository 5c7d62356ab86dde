"""Compare two commits: work trees of both, and programs that run in them."""

from __future__ import annotations

import contextlib
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks.results import ROOT

FIND = """
import sys

# An editable installation of the package would supply modules that this commit lacks.
sys.meta_path = [
    finder for finder in sys.meta_path
    if not getattr(finder, "__module__", "").startswith("__editable__")
]

import importlib

def first_of(*paths):
    "The first of some `module:name`s that this commit has."
    for path in paths:
        module, name = path.split(":")
        try:
            return getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError):
            pass
    raise ImportError(f"this commit has none of {paths}")

registry = first_of("cnn_research.core.experiment:registry", "cnn_research.experiment:registry")
run = first_of(
    "cnn_research.cli.run:run", "cnn_research.core.experiment:run", "cnn_research.experiment:run"
)

# What is estimated before a run costs more than its steps.
for name in ("cnn_research.train.loop", "cnn_research.runner"):
    try:
        loop = importlib.import_module(name)
    except ImportError:
        continue
    for name in ("say_estimate", "estimate"):  # by commit
        if hasattr(loop, name):
            setattr(loop, name, lambda *unused, **options: "")

def has_states(arguments):
    "Whether these are a train step's arguments."
    states = arguments and arguments[0]
    return isinstance(states, tuple) and states and type(states[0]).__name__ == "TrainState"

def sized(experiment):
    "An experiment at test size."
    if hasattr(experiment, "test_sized"):
        return experiment.test_sized()
    return first_of("tests.sizes:scaled_down")(experiment)
"""
"""Finds names that have moved between the commits, in whichever of them runs this."""


@contextlib.contextmanager
def work_trees(*commits: str) -> Iterator[dict[str, Path]]:
    """Yield temporary work trees of commits, by full hash, in order."""
    with tempfile.TemporaryDirectory() as folder:
        trees: dict[str, Path] = {}
        try:
            for number, commit in enumerate(commits):
                tree = Path(folder) / str(number)
                git("worktree", "add", "--quiet", "--detach", str(tree), commit)
                trees[git("rev-parse", f"{commit}^{{commit}}")] = tree
            yield trees
        finally:
            for tree in trees.values():
                git("worktree", "remove", "--force", str(tree))


def git(*arguments: str) -> str:
    """Run a git command, and return its output."""
    command = ["git", "-C", str(ROOT), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
