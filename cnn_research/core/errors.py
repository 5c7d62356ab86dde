"""Errors that are meant for the person at the terminal, and the exit codes of commands."""

import os
import sys
from collections.abc import Callable, Sequence

NOBODY_READS = 141
"""The exit code of a command whose output nobody reads any more, as the shell has it of others."""


class UserError(Exception):
    """One line for the user: what is wrong, where, and what to do; printed without traceback.

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


def run_command(
    command: Callable[[list[str]], int | None], words: Sequence[str] | None = None
) -> int:
    """Run a command, and return its exit code; an error is one line on standard error.

    Every program of the project ends here, as `sys.exit(run_command(main))`. Exceptions of other
    kinds are bugs, and keep their traceback.
    """
    try:
        code = command(list(sys.argv[1:] if words is None else words)) or 0
        sys.stdout.flush()
    except BrokenPipeError:
        # Whoever reads, as `| head`, has seen enough, and Python must not flush again at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return NOBODY_READS
    except UserError as error:
        return print_error(error)
    except KeyboardInterrupt:
        return print_error(Interrupted("interrupted: nothing that was saved before is lost", 130))
    except OSError as error:
        if error.errno is None:
            raise
        where = f" ({error.filename})" if error.filename else ""
        return print_error(
            UserError(f"{error.strerror}{where}: nothing that was saved before is lost")
        )
    return code


def print_error(error: UserError) -> int:
    """Print the error as one line, after all that was printed before; return its exit code."""
    sys.stdout.flush()
    print(f"error: {one_line(error)}", file=sys.stderr, flush=True)
    return error.exit_code


def one_line(error: Exception) -> str:
    """The error's text as one line, as every user error is printed."""
    return " ".join(str(error).split())
