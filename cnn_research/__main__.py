"""`python -m cnn_research COMMAND`: the commands beside launch.py.

data      prepare a data set, or list the prepared ones
models    list the networks
report    compare runs in tables and pages
sweep     run many variants, on this machine or on SLURM
serve     serve predictions of an exported network over HTTP
doctor    check this machine
"""

import importlib
import sys

from cnn_research.core.config import did_you_mean
from cnn_research.core.errors import UsageError, run_command

COMMANDS = {
    "data": "cnn_research.data.__main__",
    "models": "cnn_research.models.__main__",
    "report": "cnn_research.report.__main__",
    "sweep": "cnn_research.sweep.__main__",
    "serve": "cnn_research.inference.serve.__main__",
    "doctor": "cnn_research.cli.doctor",
}


def main(words: list[str]) -> int | None:
    """Run the command that the first word names, with the others as its arguments."""
    if words[:1] in ([], ["--help"], ["-h"]):
        print(__doc__, end="")
        return 0
    if words[0] not in COMMANDS:
        near = did_you_mean(words[0], list(COMMANDS))
        raise UsageError(f"no command is named '{words[0]}'{near}: take {', '.join(COMMANDS)}")
    return importlib.import_module(COMMANDS[words[0]]).main(words[1:])


if __name__ == "__main__":
    sys.exit(run_command(main))
