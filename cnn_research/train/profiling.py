"""`--profile`: a trace of a few train steps for Perfetto."""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax

Steps = Callable[..., Any]
"""The jitted `(states, data, seeds, count) -> (states, metrics)`."""

FOLDER = "profile"
WARM_UP = 3
"""Number of dispatches before the trace; the first one compiles."""
TRACED = 5
"""Number of traced dispatches."""


@contextlib.contextmanager
def profiled(workdir: Path, step: int, *, enabled: bool) -> Iterator[Callable[[Steps], Steps]]:
    """Yield a function that wraps steps to trace a few dispatches to `WORKDIR/profile/`.

    The run starts at `step`; its results are the same, but a few steps are slower.
    """
    if not enabled:
        yield lambda steps: steps
        return
    folder, dispatches, trace = workdir / FOLDER, 0, contextlib.ExitStack()
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0  # Python calls would dominate the trace and slow the steps

    def wrapped(steps: Steps) -> Steps:
        def traced(states: Any, data: Any, seeds: Any, count: int) -> Any:
            nonlocal step, dispatches
            if dispatches == WARM_UP:
                jax.block_until_ready(states)  # exclude earlier dispatches
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
        print(f"Nothing was profiled: training ended within the {WARM_UP} warm-up dispatches.")
        return
    newest = max(folder.rglob("perfetto_trace.json.gz"), key=lambda file: file.parent)
    print(f"Profile: {newest}")
    print(
        "Open it in https://ui.perfetto.dev, which processes it locally, or use TensorBoard's "
        f"profile plugin: tensorboard --logdir {shlex.quote(str(folder))}"
    )
