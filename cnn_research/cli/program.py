"""The program: `cnn-research`, which is `python -m cnn_research` and a checkout's `launch.py`, too.

It imports little, because `doctor` has to work where nothing is installed.
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
"""The modules of the commands that run no experiment; `main(words)` of each is called."""


def program() -> None:
    """Run the command that the first word names, or else an experiment; end the program."""
    words = sys.argv[1:]
    if words and words[0] in COMMANDS:
        command = importlib.import_module(COMMANDS[words[0]]).main
        sys.exit(run_command(command, words[1:]))
    from absl import app

    from cnn_research.cli.main import main, parse_flags

    app.run(main, flags_parser=parse_flags)
