"""Stopping by signals: a signal sets a flag, and the run stops where it can save.

Several processes of a run must stop together, as the others would wait for one that stops alone.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, SupportsInt

from cnn_research.core.errors import Interrupted

EXIT_CODES = {signal.SIGTERM: 75, signal.SIGINT: 130}
if hasattr(signal, "SIGUSR1"):  # not on Windows
    EXIT_CODES[signal.SIGUSR1] = 75
"""75 (EX_TEMPFAIL) tells a cluster to queue the run again; shells use 130 for Ctrl-C."""

_current: Interruption | None = None


class Interruption:
    """While entered, SIGTERM, SIGUSR1 and SIGINT stop this run; a second SIGINT kills it.

    The first signal determines the exit code; with several processes, the highest signal number.
    """

    def __init__(self, largest: Callable[[int], SupportsInt] | None = None) -> None:
        # Computes the maximum over all processes while they continue.
        self._largest = largest
        self._pending: SupportsInt = 0
        self._received = 0
        self._asked_by_hand = False
        self._agreed = 0
        self._before: dict[signal.Signals, Any] = {}
        self._outer: Interruption | None = None

    def __bool__(self) -> bool:
        """Return whether the run should stop.

        Several processes must call this equally often; they get the result of their previous call,
        so that none waits.
        """
        if self._largest is None:
            self._agreed = self._received
        elif not self._agreed:
            self._agreed, self._pending = int(self._pending), self._largest(self._received)
        return bool(self._agreed)

    def check(self, saved: str = "training had not begun") -> None:
        """Raise `Interrupted` with the text `saved` if the run should stop with nothing to save.

        Several processes wait for each other.
        """
        if self._largest is not None:
            self._pending = int(self._largest(self._received))
        if self:
            raise self.error(saved)

    @contextlib.contextmanager
    def interruptible_setup(self) -> Iterator[None]:
        """Let each process prepare and stop at `raise_if_interrupted`; then check together."""
        # A process that stops joins the others in the check, which then stops all.
        with contextlib.suppress(Interrupted):
            yield
        self.check()

    def error(self, saved: str) -> Interrupted:
        """Create the error that ends the run; its message states what was saved."""
        number = signal.Signals(self._agreed)
        return Interrupted(
            f"stopped by {number.name}: {saved}; the same command resumes from there",
            EXIT_CODES[number],
        )

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self._asked_by_hand:
            os._exit(EXIT_CODES[signal.SIGINT])
        self._asked_by_hand |= number == signal.SIGINT
        self._received = self._received or number

    def __enter__(self) -> Interruption:
        global _current
        # Python handles signals only in the main thread; in others, leave them to its owner.
        if threading.current_thread() is threading.main_thread():
            for number in EXIT_CODES:
                self._before[number] = signal.signal(number, self._receive)
            self._outer, _current = _current, self
            if self._outer is not None:
                self._received = self._outer._received
        return self

    def __exit__(self, kind, error, traceback) -> None:
        global _current
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if _current is self:
            _current = self._outer
            # If the run ended before it could be stopped, stop the program that contains it.
            if _current is not None:
                _current._received = _current._received or self._received


def raise_if_interrupted() -> None:
    """Raise `Interrupted` after a signal to stop; for preparation of data, also without a run."""
    if _current is not None and _current._received:
        raise Interrupted("stopped", EXIT_CODES[signal.Signals(_current._received)])
