"""Time programs in turns, so that disturbances of the machine affect all alike."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.results import ROOT

TURN_SECONDS = 2.0


class Contender:
    """A process that works on request and sleeps in between.

    Thread pools and allocators thus do not disturb each other. The program prints a JSON object
    when it is ready, and then another, with `seconds` per step, for each line of input, which is a
    number of steps.
    """

    def __init__(
        self,
        *words: str,
        folder: Path = ROOT,
        environment: Mapping[str, str] | None = None,
        interpreter: str = sys.executable,
    ) -> None:
        self.process = subprocess.Popen(
            [interpreter, *words],
            cwd=folder,
            env={**os.environ, "JAX_PLATFORMS": "cpu", **(environment or {})},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.ready = self._answer()
        self._steps = 1
        self._steps = max(1, round(TURN_SECONDS / self.turn()))

    def _answer(self) -> dict[str, Any]:
        # Libraries may also write to standard output; a response is a JSON object.
        for line in self.process.stdout or ():
            if line.startswith("{"):
                return json.loads(line)
        raise RuntimeError(f"{self.process.args} ended with exit code {self.process.wait()}")

    def turn(self) -> float:
        """Run one turn; return the seconds per step."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{self._steps}\n")
        self.process.stdin.flush()
        return self._answer()["seconds"]

    def close(self) -> None:
        """End the process."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def rounds_of(contenders: Mapping[str, Contender], rounds: int) -> dict[str, list[float]]:
    """Milliseconds per step of each contender, over rounds in which each has one turn."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    order = list(contenders)
    for _ in range(rounds):
        for name in order:
            times[name].append(1e3 * contenders[name].turn())
        order.reverse()  # so that the predecessor varies
    return times


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Values of all rounds, and their summary."""
    found = {"median": statistics.median(values), "min": min(values), "max": max(values)}
    return {**found, "rounds": list(values)}


def ratios(some: Sequence[float], others: Sequence[float]) -> dict[str, Any]:
    """Ratios of two times within each round: median, minimum and maximum."""
    return spread([one / other for one, other in zip(some, others, strict=True)])
