"""`python -m cnn_research COMMAND`: what is done beside running an experiment.

data      prepare data sets, look at one's own images
models    the table of networks
report    tables and pages over many runs
sweep     many runs, here or on SLURM
serve     answers over HTTP from an exported network
doctor    what works on this machine
"""

import runpy
import sys

COMMANDS = {
    "data": "cnn_research.data",
    "models": "cnn_research.models",
    "report": "cnn_research.report",
    "sweep": "cnn_research.sweep",
    "serve": "cnn_research.inference.serve",
    "doctor": "cnn_research.cli.doctor",
}


def main() -> None:
    """Runs the command that the first argument names, with the others as its own."""
    command = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if command in ("--help", "-h"):
        print(__doc__, end="")
        return
    if command not in COMMANDS:
        print(f"error: no command is named '{command}': take {', '.join(COMMANDS)}")
        sys.exit(2)
    sys.argv = [f"python -m cnn_research {command}", *sys.argv[2:]]
    runpy.run_module(COMMANDS[command], run_name="__main__", alter_sys=False)


if __name__ == "__main__":
    main()
