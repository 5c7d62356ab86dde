"""Runs on this machine, in a few worker processes that each execute many runs."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from cnn_research.core.preemption import Interruption
from cnn_research.sweep import states
from cnn_research.sweep.definition import Run
from cnn_research.sweep.source import search_path
from cnn_research.sweep.states import State

# -P: do not import from the current folder, which may contain source that is being edited.
WORKER = (sys.executable, "-P", "-m", "cnn_research.sweep.worker")
POLL_SECONDS = 0.5
"""Seconds between checks for signals and new metrics."""


Heard: TypeAlias = "queue.Queue[tuple[_Worker, subprocess.Popen[str], str]]"
"""Workers, their processes, and the lines that they wrote; "" for a process that has ended."""


class Feed:
    """A queue of runs that records their final states; here, for runs known in advance."""

    def __init__(self, left: Sequence[Run], total: int):
        """`left` are the unfinished runs of a sweep of `total` runs."""
        self._left, self.total, self._num_finished = iter(left), total, total - len(left)

    @property
    def num_finished(self) -> int:
        return self._num_finished

    def next(self) -> Run | None:
        """Return the next run; None if none can start now."""
        return next(self._left, None)

    def should_prune(self, run: Run) -> bool:
        return False

    def finished(self, run: Run, state: State, *, pruned: bool) -> State:
        """Record the state of a finished run, and whether it was pruned; return its final state."""
        self._num_finished += state.state != "stopped"
        return state


def run_locally(
    feed: Feed, workers: int, source: Path, say: Callable[[Run, State], None]
) -> Interruption:
    """Execute all runs of a feed, even if some fail, in `workers` parallel processes.

    They import `source`; `say` is called with each finished run and its state. The returned
    interruption is true if a signal stopped the runs, which were saved and can be resumed.
    """
    heard: Heard = queue.Queue()
    pool = [_Worker(source, heard, alone=workers == 1) for _ in range(workers)]
    try:
        with Interruption() as interruption:
            signalled = False
            while True:
                for worker in pool:
                    if worker.run is None and not interruption and (run := feed.next()):
                        worker.give(run)
                busy = [worker for worker in pool if worker.run is not None]
                if not busy:
                    return interruption
                if message := _next(heard):
                    worker, line = message
                    run, state = worker.result(line, stopping=bool(interruption))
                    say(run, feed.finished(run, state, pruned=worker.pruned))
                for worker in busy:
                    if worker.run is None or worker.pruned:
                        continue
                    if interruption and not signalled:
                        worker.stop()
                    elif not interruption and feed.should_prune(worker.run):
                        worker.pruned = True
                        worker.stop()
                signalled = bool(interruption)
    finally:
        for worker in pool:
            worker.close()


def _next(heard: Heard) -> tuple[_Worker, str] | None:
    """Return a worker whose run has ended, and its line; None after a time without any."""
    try:
        worker, process, line = heard.get(timeout=POLL_SECONDS)
    except queue.Empty:
        return None
    return (worker, line) if worker.process is process and worker.run is not None else None


class _Worker:
    """A process that executes runs; it is replaced if it ends."""

    def __init__(self, source: Path, heard: Heard, *, alone: bool):
        self.run: Run | None = None
        self.pruned = False
        self.process: subprocess.Popen[str] | None = None
        self._heard = heard
        self._environment = os.environ | {"PYTHONPATH": search_path(source)}
        if not alone:
            # By default, each process would reserve most of a GPU's memory.
            self._environment.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

    def give(self, run: Run) -> None:
        if self.process is None or self.process.poll() is not None:
            self.process = subprocess.Popen(
                WORKER,
                env=self._environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                # Ctrl-C must reach only the sweep, which stops its workers.
                start_new_session=True,
                creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),  # on Windows
            )
            # Windows cannot wait for several pipes at once.
            threading.Thread(target=self._listen, args=[self.process], daemon=True).start()
        self.run, self.pruned = run, False
        self._write(dataclasses.asdict(run) | {"workdir": str(run.workdir)})

    def stop(self) -> None:
        """Ask the run to save and end."""
        with contextlib.suppress(BrokenPipeError):  # the process has ended
            self._write(None)

    def _write(self, values: Any) -> None:
        assert self.process is not None and self.process.stdin is not None
        self.process.stdin.write(json.dumps(values) + "\n")
        self.process.stdin.flush()

    def _listen(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        with process.stdout:
            for line in process.stdout:
                self._heard.put((self, process, line))
        self._heard.put((self, process, ""))

    def result(self, line: str, *, stopping: bool) -> tuple[Run, State]:
        """Return the finished run and its final state; with `stopping`, it has not failed."""
        assert self.run is not None and self.process is not None
        run, self.run = self.run, None
        if line:
            return run, State(**json.loads(line))
        code = self.process.wait()
        before = states.read(run.workdir)
        if before.state != "running":
            before = states.record_start(run.workdir)
        if stopping or self.pruned:
            return run, states.record_end(run.workdir, before, "stopped", "stopped", 75)
        how = f"with {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
        hint = " (out of memory?)" if how.endswith("SIGKILL") else ""
        message = f"its process ended {how}{hint}; see {run.workdir / states.LOG}"
        return run, states.record_end(run.workdir, before, "failed", message, code)

    def close(self) -> None:
        """End the process after its run has saved."""
        if self.process is not None:
            assert self.process.stdin is not None
            self.process.stdin.close()
            self.process.wait()
