"""Progress of a training run on the terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Mapping


class Progress:
    """A line that is written over on a terminal, and one lasting line per evaluation."""

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
        self._enabled = enabled
        self._live = enabled and sys.stderr.isatty()
        self._clear = "\r\x1b[K" if self._live else ""
        self._shown = 0.0
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
        now = time.monotonic()
        if self._live and now - self._shown > 0.2:
            self._shown = now
            text = f"step {step:,}/{self._steps:,}  loss {loss:.4f}  {self._pace(step)}"
            print(f"{self._clear}{text}", end="", file=sys.stderr, flush=True)

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

    def say(self, text: str) -> None:
        """Print a line that stays."""
        if self._enabled:
            print(self._clear + text, file=sys.stderr, flush=True)

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
