"""Progress on standard error: of a training run, and of anything that is counted.

On a terminal one line is written over; elsewhere, as in a pipe or a log, a new one comes every ten
seconds.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Self

LIVE_SECONDS, LINE_SECONDS = 0.2, 10.0
"""The least time between two states that are shown, on a terminal and elsewhere."""


class Line:
    """The state of what is going on, and lines that stay."""

    def __init__(self, *, enabled: bool = True):
        self._enabled, self._live = enabled, sys.stderr.isatty()
        self._clear = "\r\x1b[K" if self._live else ""
        self._seconds = LIVE_SECONDS if self._live else LINE_SECONDS
        self._shown = time.monotonic()

    def show(self, text: Callable[[], str]) -> None:
        """Show a state, unless one was shown just now."""
        now = time.monotonic()
        if self._enabled and now - self._shown >= self._seconds:
            self._shown = now
            self._print(text(), end="" if self._live else "\n")

    def say(self, text: str) -> None:
        """Print a line that stays."""
        if self._enabled:
            self._print(text, end="\n")

    def clear(self) -> None:
        """Remove the state from a terminal."""
        if self._enabled and self._live:
            self._print("", end="")

    def _print(self, text: str, end: str) -> None:
        print(self._clear + text, end=end, file=sys.stderr, flush=True)


class Tally:
    """How many of `total` are done (None: of how many is not known), how fast, and the time left.

    A context manager: at its end the terminal's line is free again.
    """

    def __init__(self, what: str, total: float | None, unit: str = ""):
        self._what, self._total, self._unit = what, total, unit
        self._done, self._line, self._began = 0.0, Line(), time.monotonic()
        self.say = self._line.say

    def advance(self, count: float = 1) -> None:
        self._done += count
        self._line.show(self._state)

    def _state(self) -> str:
        speed = self._done / max(time.monotonic() - self._began, 1e-9)
        total = f"/{self._total:,.0f}" if self._total else ""
        each = f"{speed:,.0f}" if speed >= 100 else f"{speed:.3g}"
        parts = [f"{self._what}: {self._done:,.0f}{total}{self._unit}", f"{each}{self._unit}/s"]
        if self._total and speed:
            parts.append(f"{duration(max(self._total - self._done, 0) / speed)} left")
        return "  ".join(parts)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._line.clear()


class Progress:
    """Progress of a training run: the state of its steps, and a lasting line per evaluation."""

    def __init__(
        self,
        steps: int,
        batch_size: int,
        epochs: float,
        metrics: Iterable[str] = (),
        *,
        enabled: bool = True,
    ):
        """Take the names of the `metrics` that are shown after the loss."""
        self._names = dict.fromkeys(("loss", *metrics))
        self._steps, self._batch, self._epochs = steps, batch_size, epochs
        self._line = Line(enabled=enabled)
        self.say = self._line.say
        self._seconds, self._done = 0.0, 0
        self._began: tuple[float, int] | None = None

    def begin(self, step: int) -> None:
        """Start the clock by which the time that is left is reckoned, evaluations included."""
        self._began = time.monotonic(), step

    def trained(self, steps: int, seconds: float) -> None:
        """Count steps and the time that they took, from which their speed follows."""
        self._seconds += seconds
        self._done += steps

    @property
    def images_per_second(self) -> float:
        """Since the run started or resumed."""
        return self._done * self._batch / self._seconds if self._seconds else 0.0

    def step(self, step: int, loss: float) -> None:
        self._line.show(
            lambda: f"step {step:,}/{self._steps:,}  loss {loss:.4f}  {self._pace(step)}"
        )

    def evaluated(
        self,
        step: int,
        epoch: float,
        training: Mapping[str, float],
        validation: Mapping[str, float] | None,
    ) -> None:
        """Print the results of an epoch."""
        # The last batch may go on into an epoch that is not asked for.
        epoch = min(round(epoch, 1), self._epochs)
        parts = [f"epoch {epoch:g}/{self._epochs:g}", f"step {step:,}"]
        if training:  # none where a continued run begins with an evaluation that was due
            parts.append(self._figures("train", training))
        if validation is not None:
            parts.append(self._figures("validation", validation))
        self.say("  ".join([*parts, self._pace(step)]))

    def _figures(self, split: str, values: Mapping[str, float]) -> str:
        return " ".join([split, *(f"{n} {values[n]:.4f}" for n in self._names if n in values)])

    def _pace(self, step: int) -> str:
        if not self._done or self._began is None or step == self._began[1]:
            return ""
        began, first = self._began
        left = (self._steps - step) * (time.monotonic() - began) / (step - first)
        return f"{self.images_per_second:,.0f} images/s  {duration(left)} left"


def duration(seconds: float) -> str:
    """`8.4 s`, `3 min 20 s` or `2 h 5 min`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"
