"""Errors that are meant for the person at the terminal."""

import os
import sys


class UserError(Exception):
    """What is wrong, where, and what to do, in one line; the launcher prints it without traceback.

    The exit code is 1 (a run failed); `UsageError` is for what was typed wrong (2).
    """

    exit_code = 1


class UsageError(UserError):
    """The command itself is wrong: nothing was started."""

    exit_code = 2


class Interrupted(UserError):
    """The run was asked to stop, and saved: 75 after SIGTERM or SIGUSR1, 130 after SIGINT."""

    def __init__(self, message: str, exit_code: int):
        super().__init__(message)
        self.exit_code = exit_code


def one_line(error: Exception) -> str:
    """The error's text as one line, as every user error is printed."""
    return " ".join(str(error).split())


def no_more_output() -> None:
    """After a `BrokenPipeError`: whoever reads, as `| head`, has seen enough, and Python must not
    flush again at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
