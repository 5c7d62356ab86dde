"""The program `cnn-research`, also `python -m cnn_research` and `launch.py` in a checkout.

It imports little, as `doctor` must work without any installed package.
"""

from __future__ import annotations

import importlib
import sys

from cnn_research.core.errors import run_command

COMMANDS = {
    "data": "cnn_research.data.__main__",
    "models": "cnn_research.models.__main__",
    "report": "cnn_research.report.__main__",
    "sweep": "cnn_research.sweep.__main__",
    "serve": "cnn_research.inference.serve.__main__",
    "doctor": "cnn_research.cli.doctor",
}
"""Modules of commands that do not run an experiment, by name; their `main(words)` is called."""


def program() -> None:
    """Run the command named by the first word, or else an experiment; exit."""
    words = sys.argv[1:]
    if words and words[0] in COMMANDS:
        command = importlib.import_module(COMMANDS[words[0]]).main
        sys.exit(run_command(command, words[1:]))
    from absl import app

    from cnn_research.cli.main import main, parse_flags

    app.run(main, flags_parser=parse_flags)
