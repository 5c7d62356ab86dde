"""Run a registered experiment: `python launch.py --experiment=NAME [--FIELD=VALUE ...]`."""

from cnn_research.cli.program import program

if __name__ == "__main__":
    program()
