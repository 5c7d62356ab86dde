"""Progress of a training or any count, on standard error.

In a terminal, one line is rewritten; a pipe or log gets a new line every ten seconds.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Self

from cnn_research.core.terminal import CLEAR, columns, console, wrapped

LIVE_SECONDS, LINE_SECONDS = 0.2, 10.0
"""Minimum seconds between two updates, in a terminal and elsewhere."""
BAR = 20
"""Width of the bar in columns."""
SHORT = {"train": "train", "validation": "val"}


class Line:
    """A line of progress that is rewritten, and permanent lines."""

    def __init__(self, *, enabled: bool = True):
        self._enabled, self._live = enabled, sys.stderr.isatty()
        self._clear = CLEAR if self._live else ""
        self._seconds = LIVE_SECONDS if self._live else LINE_SECONDS
        self._shown = time.monotonic()

    @property
    def columns(self) -> int:
        return columns(sys.stderr)

    def show(self, text: Callable[[], str], done: float | None = None) -> None:
        """Update the line unless it was just updated; `done`, from 0 to 1, is shown as a bar."""
        now = time.monotonic()
        if not self._enabled or now - self._shown < self._seconds:
            return
        self._shown = now
        if self._live:
            self._draw(text(), done)
        else:
            self.say(text())

    def say(self, text: str) -> None:
        """Print a permanent line."""
        if self._enabled:
            fitting = "\n".join(wrapped(line, self.columns) for line in text.split("\n"))
            print(f"{self._clear}{fitting}", file=sys.stderr, flush=True)

    def clear(self) -> None:
        """Clear the line in a terminal."""
        if self._enabled and self._live:
            print(self._clear, end="", file=sys.stderr, flush=True)

    def _draw(self, text: str, done: float | None) -> None:
        from rich.progress_bar import ProgressBar

        self.clear()
        terminal = console(sys.stderr)
        if done is not None and len(text) + BAR + 3 <= terminal.width:
            bar = ProgressBar(1, done, width=BAR, complete_style="cyan", finished_style="cyan")
            terminal.print(bar, end="")
            text = f"  {text}"
        # Leave the last column free: some terminals wrap after it.
        print(text[: terminal.width - 1], end="", file=sys.stderr, flush=True)


class Tally:
    """Shows the count of `total` (None if unknown), the speed and the time left.

    A context manager that clears the line on exit.
    """

    def __init__(self, what: str, total: float | None, unit: str = ""):
        self._what, self._total, self._unit = what, total, unit
        self._done, self._line, self._began = 0.0, Line(), time.monotonic()
        self.say = self._line.say

    def advance(self, count: float = 1) -> None:
        self._done += count
        self._line.show(self._state, self._done / self._total if self._total else None)

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
    """Progress of a training: a rewritten line for steps, a permanent one per evaluation."""

    def __init__(
        self,
        steps: int,
        batch_size: int,
        epochs: float,
        metrics: Iterable[str] = (),
        *,
        enabled: bool = True,
    ):
        """`metrics` are the names of the metrics shown after the loss."""
        self._names = dict.fromkeys(("loss", *metrics))
        self._steps, self._batch, self._epochs = steps, batch_size, epochs
        self._line = Line(enabled=enabled)
        self.say = self._line.say
        self._seconds, self._done = 0.0, 0
        self._began: tuple[float, int] | None = None
        self._titles: list[tuple[str, str, str]] = []

    def begin(self, step: int) -> None:
        """Start the clock for the time left, which includes evaluations and saves."""
        self._began = time.monotonic(), step

    def trained(self, steps: int, seconds: float) -> None:
        """Count steps and their time, to compute the speed."""
        self._seconds += seconds
        self._done += steps

    @property
    def images_per_second(self) -> float:
        """Images per second since the run started or resumed."""
        return self._done * self._batch / self._seconds if self._seconds else 0.0

    def step(self, step: int, loss: float) -> None:
        def state() -> str:
            speed = f"{self.images_per_second:,.0f} images/s" if self._done else ""
            parts = [f"step {step:,}/{self._steps:,}", f"loss {loss:.4f}", speed]
            left = self._left(step)
            return "  ".join(part for part in (*parts, left and f"{left} left") if part)

        self._line.show(state, step / self._steps)

    def evaluated(
        self,
        step: int,
        epoch: float,
        training: Mapping[str, float],
        validation: Mapping[str, float] | None,
    ) -> None:
        """Print the metrics of an epoch as a row of a table, with a header before the first."""
        whole = f"{self._epochs:g}"
        # The last batch may extend into another epoch.
        name = f"epoch {min(round(epoch, 1), self._epochs):g}/{whole}"
        first = len(f"epoch {whole}/{whole}") + 2  # some rows have a decimal
        values = {"train": training, "validation": validation or {}}
        if not self._titles:
            self._titles = self._columns(values, first)
            titles = [title for *_, title in self._titles]
            self.say("  ".join([" " * first, *titles, f"{'left':>11}"]))
        cells = [
            f"{values[split][metric]:.4f}" if metric in values[split] else ""
            for split, metric, _ in self._titles
        ]
        widths = [len(title) for *_, title in self._titles]
        row = [f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True)]
        self.say("  ".join([f"{name:<{first}}", *row, f"{self._left(step):>11}"]).rstrip())

    def _columns(
        self, values: Mapping[str, Mapping[str, float]], first: int
    ) -> list[tuple[str, str, str]]:
        """Return split, metric and title of each column, for the metrics that fit on a line."""
        known = [name for name in self._names if any(name in each for each in values.values())]
        splits = [split for split in values if split == "train" or values[split]]
        for count in range(len(known), 0, -1):
            titles = [
                (split, name, f"{SHORT[split]} {name}" if name == known[0] else f"{name:>6}")
                for split in splits
                for name in known[:count]
            ]
            if first + 13 + sum(2 + len(title) for *_, title in titles) <= self._line.columns:
                break
        return titles

    def _left(self, step: int) -> str:
        """Estimate the time left; "" if nothing is measured yet, and at the end."""
        if not self._done or self._began is None or not self._began[1] < step < self._steps:
            return ""
        began, first = self._began
        return duration((self._steps - step) * (time.monotonic() - began) / (step - first))


def duration(seconds: float) -> str:
    """Format a duration as `8.4 s`, `3 min 20 s` or `2 h 5 min`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"
