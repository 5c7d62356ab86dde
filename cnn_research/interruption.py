"""Being asked to stop: signals set a flag, and the run stops where it can save."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType
from typing import Any

from cnn_research.errors import Interrupted

EXIT_CODES = {signal.SIGTERM: 75, signal.SIGUSR1: 75, signal.SIGINT: 130}
"""75 (EX_TEMPFAIL) tells a cluster to queue the run again; 130 is what shells use for Ctrl-C."""


class Interruption:
    """While entered, SIGTERM, SIGUSR1 and SIGINT ask this run to stop; a second SIGINT kills it."""

    def __init__(self, *, enabled: bool = True) -> None:
        self._enabled = enabled
        self._signal: signal.Signals | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __bool__(self) -> bool:
        """Whether the run should stop."""
        return self._signal is not None

    def error(self, saved: str) -> Interrupted:
        """The error to end the run with.

        Args:
            saved: what was saved, for the message.
        """
        assert self._signal is not None
        return Interrupted(
            f"stopped by {self._signal.name}: {saved}; the same command goes on from there",
            EXIT_CODES[self._signal],
        )

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self._signal == signal.SIGINT:
            os._exit(EXIT_CODES[signal.SIGINT])
        self._signal = signal.Signals(number)

    def __enter__(self) -> Interruption:
        # Signals can only be handled in the main thread: elsewhere its owner decides.
        if self._enabled and threading.current_thread() is threading.main_thread():
            for number in EXIT_CODES:
                self._before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, kind, error, traceback) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
