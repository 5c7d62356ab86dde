"""Errors that are shown to the user in one line, and exit codes of commands."""

import errno
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from cnn_research.core.files import ROOT

PROGRAM = "cnn-research" if Path(sys.argv[0]).stem == "cnn-research" else "python launch.py"
"""The command that started the program, for messages that suggest a command."""
IN_CHECKOUT = (ROOT / "setup.cfg").is_file()
"""Whether this is a checkout, not an installed package."""
FULL_DISK = (errno.ENOSPC, errno.EDQUOT)
NOBODY_READS = 141
"""Exit code if the reader closes the output pipe, as in shells."""


class UserError(Exception):
    """An error that is printed in one line without traceback: what is wrong, where, what to do.

    The exit code is 1 (a run failed), or 2 for `UsageError`.
    """

    exit_code = 1

    def _render_traceback_(self) -> list[str]:
        """Return the line that IPython and notebooks show instead of a traceback."""
        return [f"{type(self).__name__}: {one_line(self)}"]


class UsageError(UserError):
    """The command is invalid, and nothing was started."""

    exit_code = 2


class Interrupted(UserError):
    """The run was stopped by a signal and saved; not printed as an error.

    The exit code is 75 after SIGTERM or SIGUSR1, 130 after SIGINT.
    """

    def __init__(self, message: str, exit_code: int):
        super().__init__(message)
        self.exit_code = exit_code


def run_command(
    command: Callable[[list[str]], int | None], words: Sequence[str] | None = None
) -> int:
    """Run a command and return its exit code; print a `UserError` in one line on standard error.

    Every command uses it: `sys.exit(run_command(main))`. Other exceptions are bugs and keep their
    traceback.
    """
    try:
        try:
            code = command(list(sys.argv[1:] if words is None else words)) or 0
        except SystemExit as end:  # --help, or invalid arguments in argparse
            code = int(end.code or 0)
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader, such as `| head`, closed the pipe: Python must not flush it again on exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return NOBODY_READS
    except UserError as error:
        return print_error(error)
    except KeyboardInterrupt:
        return print_error(Interrupted("interrupted; saved results are kept", 130))
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
            f"the disk is full{where}: free some space and repeat the command; saved results are "
            "kept"
        )
    return f"{error.strerror}{where}: saved results are kept"


def out_of_memory(reason: str, *advice: str) -> UserError:
    """Create the error of a run that needs more memory than is available."""
    ways = (
        *("lower --batch-size or --evaluation.batch-size", "split batches with --accumulate=2"),
        *("use --model.dtype=bfloat16", *advice),
    )
    reason = f" ({reason[:200]})" if reason else ""
    return UserError(f"out of memory{reason}: {', '.join(ways[:-1])}, or {ways[-1]}")


def only_help(words: Sequence[str], text: str | None) -> int:
    """Print the help of a command without options; raise `UsageError` for options but `--help`."""
    if words[0] not in ("--help", "-h"):
        raise UsageError(f"this command has no option '{words[0]}'; --help describes it")
    print(text, end="")
    return 0


def install_command(*extras: str) -> str:
    """Return the command that installs extras."""
    # For an installed package, pip installs only missing dependencies.
    wanted = f"[{','.join(extras)}]"
    return f"pip install -e '.{wanted}'" if IN_CHECKOUT else f"pip install 'cnn-research{wanted}'"


def print_error(error: UserError) -> int:
    """Flush earlier output and print an error in one line; return its exit code."""
    sys.stdout.flush()
    prefix = "" if isinstance(error, Interrupted) else "error: "
    if sys.stderr.isatty():
        from cnn_research.core.terminal import CLEAR, styled

        # Overwrite the terminal's ^C or a line of progress.
        prefix = CLEAR + styled(prefix, "bold red", sys.stderr)
    print(f"{prefix}{one_line(error)}", file=sys.stderr, flush=True)
    return error.exit_code


def one_line(error: BaseException) -> str:
    """Return the text of an error in one line."""
    return " ".join(str(error).split())
