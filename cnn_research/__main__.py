"""`python -m cnn_research`: the program, as `cnn-research`."""

from cnn_research.cli.program import program

if __name__ == "__main__":
    program()
