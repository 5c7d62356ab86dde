"""Errors that are meant for the person at the terminal, and the exit codes of commands."""

import errno
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from cnn_research.core.files import ROOT

PROGRAM = "cnn-research" if Path(sys.argv[0]).stem == "cnn-research" else "python launch.py"
"""The command that started the program, for messages that suggest another."""
IN_CHECKOUT = (ROOT / "setup.cfg").is_file()
"""Whether this is a checkout, and not an installed package."""
FULL_DISK = (errno.ENOSPC, errno.EDQUOT)
NOBODY_READS = 141
"""The exit code of a command whose output pipe was closed, as shells report it."""


class UserError(Exception):
    """One line for the user: what is wrong, where, and what to do; printed without traceback.

    The exit code is 1 (a run failed); `UsageError` is for what was typed wrong (2).
    """

    exit_code = 1

    def _render_traceback_(self) -> list[str]:
        """What IPython and notebooks show in place of a traceback."""
        return [f"{type(self).__name__}: {one_line(self)}"]


class UsageError(UserError):
    """The command itself is wrong: nothing was started."""

    exit_code = 2


class Interrupted(UserError):
    """The run was asked to stop, and saved; it is not printed as an error.

    Its exit code is 75 after SIGTERM or SIGUSR1, 130 after SIGINT.
    """

    def __init__(self, message: str, exit_code: int):
        super().__init__(message)
        self.exit_code = exit_code


def run_command(
    command: Callable[[list[str]], int | None], words: Sequence[str] | None = None
) -> int:
    """Run a command and return its exit code; an error is one line on standard error.

    Every command uses it, as in `sys.exit(run_command(main))`. Other exceptions are bugs, and keep
    their traceback.
    """
    try:
        try:
            code = command(list(sys.argv[1:] if words is None else words)) or 0
        except SystemExit as end:  # of --help, or argparse's refusal
            code = int(end.code or 0)
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader, such as `| head`, has closed the pipe: Python must not flush it again on exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return NOBODY_READS
    except UserError as error:
        return print_error(error)
    except KeyboardInterrupt:
        return print_error(Interrupted("interrupted; what was saved before is kept", 130))
    except MemoryError as error:
        return print_error(out_of_memory(one_line(error)))
    except OSError as error:
        if error.errno is None:
            raise
        return print_error(UserError(_system_error(error)))
    return code


def _system_error(error: OSError) -> str:
    where = f" ({error.filename})" if error.filename else ""
    if error.errno in FULL_DISK:
        return (
            f"the disk is full{where}: free some space, and repeat the command; what was saved "
            "before is kept"
        )
    return f"{error.strerror}{where}: what was saved before is kept"


def out_of_memory(reason: str, *advice: str) -> UserError:
    """The error of a run that needs more memory than there is."""
    ways = (
        *("lower --batch-size or --evaluation.batch-size", "split batches with --accumulate=2"),
        *("compute in --model.dtype=bfloat16", *advice),
    )
    reason = f" ({reason[:200]})" if reason else ""
    return UserError(f"out of memory{reason}: {', '.join(ways[:-1])}, or {ways[-1]}")


def only_help(words: Sequence[str], text: str | None) -> int:
    """Print the help of a command without options; a `UsageError` for any other than `--help`."""
    if words[0] not in ("--help", "-h"):
        raise UsageError(f"this command has no option '{words[0]}'; --help describes it")
    print(text, end="")
    return 0


def install_command(*extras: str) -> str:
    """The command that installs what extras need."""
    # Of a package that is installed pip fetches only what it lacks.
    wanted = f"[{','.join(extras)}]"
    return f"pip install -e '.{wanted}'" if IN_CHECKOUT else f"pip install 'cnn-research{wanted}'"


def print_error(error: UserError) -> int:
    """Print the error as one line, after flushing earlier output; return its exit code."""
    sys.stdout.flush()
    prefix = "" if isinstance(error, Interrupted) else "error: "
    if sys.stderr.isatty():
        from cnn_research.core.terminal import CLEAR, styled

        # In the place of the ^C that a terminal shows, or of the state of what has failed.
        prefix = CLEAR + styled(prefix, "bold red", sys.stderr)
    print(f"{prefix}{one_line(error)}", file=sys.stderr, flush=True)
    return error.exit_code


def one_line(error: Exception) -> str:
    """The text of an error as one line, as it is printed."""
    return " ".join(str(error).split())
