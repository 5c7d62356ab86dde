"""A process that executes many runs: `python -m cnn_research.sweep.worker`, used by `local`.

Each line of standard input is a run, or `null` to stop the current run; each line of standard
output is the final state of a run. At the end of standard input, the current run saves and the
process exits.
"""

from __future__ import annotations

import _thread
import contextlib
import dataclasses
import json
import os
import queue
import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from pathlib import Path

from absl import logging

from cnn_research.cli.run import run
from cnn_research.core.config import from_dict
from cnn_research.core.definitions import import_outside
from cnn_research.core.errors import Interrupted, UserError, one_line, print_error
from cnn_research.core.run_folder import is_locked
from cnn_research.sweep import states
from cnn_research.sweep.definition import Run
from cnn_research.sweep.states import State


def execute(planned: Run) -> State:
    """Execute a run in this process, with its output in its log, and record its final state."""
    if is_locked(planned.workdir):
        # Only the other process may write the state.
        message = f"another process is running in {planned.workdir}: wait for it"
        return State("failed", message=message, exit_code=1)
    before = states.record_start(planned.workdir)
    # run.json records this as the command that repeats the run.
    sys.argv = planned.command
    # Orbax logs every step of every save.
    logging.set_verbosity(logging.WARNING)
    state, message, code = "complete", "", 0
    with output_to(planned.workdir / states.LOG):
        try:
            for name in planned.imports:
                import_outside(name)
            run(from_dict(json.loads(planned.config)), planned.workdir)
        except UserError as error:
            state = "stopped" if isinstance(error, Interrupted) else "failed"
            message, code = one_line(error), error.exit_code
            print_error(error)
        except Exception as error:
            traceback.print_exc()
            state, message, code = "failed", f"{type(error).__name__}: {one_line(error)}", 1
    return states.record_end(planned.workdir, before, state, message, code)


@contextlib.contextmanager
def output_to(file: Path) -> Iterator[None]:
    """Append all output of this process and its libraries to a file."""
    originals = {number: os.dup(number) for number in (1, 2)}
    with file.open("ab") as log:
        for number in originals:
            os.dup2(log.fileno(), number)
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for number, copy in originals.items():
            os.dup2(copy, number)
            os.close(copy)


def main() -> None:
    """Execute runs until there are no more, or one is stopped before it starts."""
    runs: queue.Queue[dict | None] = queue.Queue()
    busy = threading.Event()

    def stop(number: int, frame: object) -> None:
        # During training, the run has its own handler, which saves.
        if busy.is_set():
            raise Interrupted("stopped; there was nothing to save", 75)

    def read() -> None:
        for values in map(json.loads, sys.stdin):
            if values is None:
                _thread.interrupt_main(signal.SIGTERM)  # Windows cannot send the signal
            else:
                busy.set()
                runs.put(values)
        # The sweep has ended.
        runs.put(None)
        _thread.interrupt_main(signal.SIGTERM)

    signal.signal(signal.SIGTERM, stop)
    threading.Thread(target=read, daemon=True).start()
    with contextlib.suppress(Interrupted):
        while (values := runs.get()) is not None:
            lists = {name: tuple(values[name]) for name in ("words", "imports")}
            state = execute(Run(**{**values, **lists, "workdir": Path(values["workdir"])}))
            busy.clear()
            print(json.dumps(dataclasses.asdict(state)), flush=True)


if __name__ == "__main__":
    main()
