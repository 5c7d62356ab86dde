"""Runs on this machine: a few warm processes, each of which serves many runs."""

from __future__ import annotations

import dataclasses
import json
import os
import selectors
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from cnn_research.core.preemption import Interruption
from cnn_research.sweep import states
from cnn_research.sweep.definition import Run
from cnn_research.sweep.source import search_path
from cnn_research.sweep.states import State

# -P: the folder that one is in may hold the source that is being edited.
WORKER = (sys.executable, "-P", "-m", "cnn_research.sweep.worker")
POLL_SECONDS = 0.5
"""Between looks at signals and at what running runs have measured."""


class Feed:
    """A queue of runs that records how each of them ended; here, of runs known beforehand."""

    def __init__(self, left: Sequence[Run], total: int):
        """Take the runs that are `left` of a sweep of `total` runs."""
        self._left, self.total, self._num_finished = iter(left), total, total - len(left)

    @property
    def num_finished(self) -> int:
        return self._num_finished

    def next(self) -> Run | None:
        """The next run; None where there is none to begin now."""
        return next(self._left, None)

    def should_prune(self, run: Run) -> bool:
        return False

    def finished(self, run: Run, state: State, *, pruned: bool) -> State:
        """Record the final state of a run, and whether it was pruned; return the state that
        counts."""
        self._num_finished += state.state != "stopped"
        return state


def run_locally(
    feed: Feed, workers: int, source: Path, say: Callable[[Run, State], None]
) -> Interruption:
    """Run all that a feed has, however single runs end, in `workers` parallel processes.

    They import `source`; `say` is called with each finished run and its state. The returned
    interruption is true if it was stopped; then runs have saved, and resume the next time.
    """
    pool = [_Worker(source, alone=workers == 1) for _ in range(workers)]
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
                for worker in _heard(busy):
                    run, state = worker.result(stopping=bool(interruption))
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


def _heard(busy: list[_Worker]) -> list[_Worker]:
    """Workers with a message, or that are gone; waits a little for one."""
    with selectors.DefaultSelector() as selector:
        for worker in busy:
            selector.register(worker.output, selectors.EVENT_READ, worker)
        return [key.data for key, _ in selector.select(POLL_SECONDS)]


class _Worker:
    """A process that serves runs; another takes its place when it is gone."""

    def __init__(self, source: Path, *, alone: bool):
        self.run: Run | None = None
        self.pruned = False
        self._process: subprocess.Popen[str] | None = None
        self._environment = os.environ | {"PYTHONPATH": search_path(source)}
        if not alone:
            # Each would take most of a GPU's memory when it starts.
            self._environment.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

    @property
    def output(self):
        assert self._process is not None and self._process.stdout is not None
        return self._process.stdout

    def give(self, run: Run) -> None:
        if self._process is None or self._process.poll() is not None:
            self._process = subprocess.Popen(
                WORKER,
                env=self._environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                # A Ctrl-C is for the sweep, which tells its workers.
                start_new_session=True,
            )
        assert self._process.stdin is not None
        self.run, self.pruned = run, False
        values = dataclasses.asdict(run) | {"workdir": str(run.workdir)}
        self._process.stdin.write(json.dumps(values) + "\n")
        self._process.stdin.flush()

    def stop(self) -> None:
        """Ask the run to save and end."""
        assert self._process is not None
        self._process.terminate()

    def result(self, *, stopping: bool) -> tuple[Run, State]:
        """The finished run and its final state; an end requested by `stopping` is no failure."""
        assert self.run is not None and self._process is not None
        run, self.run = self.run, None
        if line := self.output.readline():
            return run, State(**json.loads(line))
        code = self._process.wait()
        before = states.read(run.workdir)
        if before.state != "running":
            before = states.record_start(run.workdir)
        if stopping or self.pruned:
            return run, states.record_end(run.workdir, before, "stopped", "stopped", 75)
        how = f"with {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
        hint = " (out of memory?)" if code == -signal.SIGKILL else ""
        message = f"its process ended {how}{hint}; see {run.workdir / states.LOG}"
        return run, states.record_end(run.workdir, before, "failed", message, code)

    def close(self) -> None:
        """End the process, once its run has saved."""
        if self._process is not None:
            assert self._process.stdin is not None
            self._process.stdin.close()
            self._process.wait()
            self.output.close()
