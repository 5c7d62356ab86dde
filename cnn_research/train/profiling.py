"""`--profile`: what a few train steps spend their time on, to be looked at in Perfetto."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import jax

FOLDER = "profile"
WARM_UP = 3
"""Dispatches of steps that are not traced: the first compiles."""
TRACED = 5
"""Dispatches that are."""


class Trace:
    """Traces some train steps into `WORKDIR/profile/`; a context manager.

    The run is the same with it and without: it is slower for a few steps.
    """

    def __init__(self, workdir: Path, step: int, *, enabled: bool):
        """
        Args:
            workdir: the run's folder.
            step: that the run starts at.
            enabled: False does nothing.
        """
        self._folder, self._step, self._enabled = workdir / FOLDER, step, enabled
        self._dispatches = 0
        self._running = False

    def __call__(self, steps: Callable[..., Any]) -> Callable[..., Any]:
        """The jitted `(state, arrays, seed, count) -> (state, metrics)`, traced when it is due."""
        if not self._enabled:
            return steps

        @functools.wraps(steps)
        def traced(state: Any, arrays: Any, seed: Any, count: int) -> Any:
            if self._dispatches == WARM_UP:
                self._start(state)
            with jax.profiler.StepTraceAnnotation("train", step_num=self._step):
                after = steps(state, arrays, seed, count)
            self._step += count
            self._dispatches += 1
            if self._dispatches == WARM_UP + TRACED:
                jax.block_until_ready(after)
                self._stop()
            return after

        return traced

    def __enter__(self) -> Trace:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stop()
        if not self._enabled or error is not None:
            return
        if self._dispatches <= WARM_UP:
            print(f"Nothing was profiled: no step was left after the {WARM_UP} that warm up.")
            return
        newest = max(self._folder.rglob("perfetto_trace.json.gz"), key=lambda file: file.parent)
        print(f"Profile: {newest}")
        print(
            "Look at it: open it in https://ui.perfetto.dev, which reads it on your machine; or "
            f"with TensorBoard's profile plugin, tensorboard --logdir {self._folder}"
        )

    def _start(self, state: Any) -> None:
        jax.block_until_ready(state)  # what was dispatched before is no part of it
        options = jax.profiler.ProfileOptions()
        options.python_tracer_level = 0  # Python's calls would be most of it, and slow the steps
        jax.profiler.start_trace(self._folder, create_perfetto_trace=True, profiler_options=options)
        self._running = True

    def _stop(self) -> None:
        if self._running:
            self._running = False
            jax.profiler.stop_trace()
