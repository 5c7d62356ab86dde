"""`--profile`: what a few train steps spend their time on, to be looked at in Perfetto."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax

Steps = Callable[..., Any]
"""The jitted `(states, data, seeds, count) -> (states, metrics)`."""

FOLDER = "profile"
WARM_UP = 3
"""Dispatches of steps that are not traced: the first compiles."""
TRACED = 5
"""Dispatches that are."""


@contextlib.contextmanager
def profiled(workdir: Path, step: int, *, enabled: bool) -> Iterator[Callable[[Steps], Steps]]:
    """Trace some dispatches of the steps that the yielded function wraps into `WORKDIR/profile/`.

    The run, which starts at `step`, is the same with it and without: slower for a few steps.
    """
    if not enabled:
        yield lambda steps: steps
        return
    folder, dispatches, trace = workdir / FOLDER, 0, contextlib.ExitStack()
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0  # Python's calls would be most of it, and slow the steps

    def wrapped(steps: Steps) -> Steps:
        def traced(states: Any, data: Any, seeds: Any, count: int) -> Any:
            nonlocal step, dispatches
            if dispatches == WARM_UP:
                jax.block_until_ready(states)  # what was dispatched before is no part of it
                trace.enter_context(
                    jax.profiler.trace(folder, create_perfetto_trace=True, profiler_options=options)
                )
            with jax.profiler.StepTraceAnnotation("train", step_num=step):
                after = steps(states, data, seeds, count)
            step, dispatches = step + count, dispatches + 1
            if dispatches == WARM_UP + TRACED:
                jax.block_until_ready(after)
                trace.close()
            return after

        return traced

    with trace:
        yield wrapped
    if dispatches <= WARM_UP:
        print(f"Nothing was profiled: no step was left after the {WARM_UP} that warm up.")
        return
    newest = max(folder.rglob("perfetto_trace.json.gz"), key=lambda file: file.parent)
    print(f"Profile: {newest}")
    print(
        "Look at it: open it in https://ui.perfetto.dev, which reads it on your machine; or "
        f"with TensorBoard's profile plugin, tensorboard --logdir {folder}"
    )
