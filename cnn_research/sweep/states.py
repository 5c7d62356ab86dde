"""States of a sweep's runs, from files with one writer each, and from SLURM's queue."""

from __future__ import annotations

import dataclasses
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cnn_research.core.errors import UserError
from cnn_research.core.metrics_log import read_metrics
from cnn_research.core.progress import duration
from cnn_research.core.run_folder import CONFIG, is_locked, read_json, write_json
from cnn_research.report.markdown import markdown_table, number

STATE = "sweep_run.json"
"""File in a run's folder; while the run's process exists, only it writes the file."""
LOG = "log.txt"
JOBS = "jobs.json"
"""File in the sweep's folder with the last SLURM job of each run."""

STATES = ("complete", "pruned", "running", "queued", "waiting", "stopped", "failed")
ENDED = ("complete", "pruned")
"""Final states of runs, which are not run again."""


@dataclasses.dataclass(frozen=True)
class State:
    """The state of a run."""

    state: str
    attempt: int = 0
    since: float = 0.0
    """Time of its last start, in seconds since 1970."""
    seconds: float = 0.0
    """Duration of its last attempt."""
    message: str = ""
    """Reason for stopping or failing, in one line."""
    exit_code: int | None = None
    """Exit code of the process, or the one that `launch.py` would have returned."""


def read(workdir: Path) -> State:
    values = read_json(workdir / STATE)
    return State(**values) if values else State("waiting")


def write(workdir: Path, state: State) -> None:
    """Record a run's state in its folder."""
    write_json(workdir / STATE, dataclasses.asdict(state))


def record_start(workdir: Path) -> State:
    """Record the start of a run; return its state."""
    workdir.mkdir(parents=True, exist_ok=True)
    state = State("running", read(workdir).attempt + 1, time.time())
    write(workdir, state)
    return state


def record_end(
    workdir: Path, before: State, state: str, message: str = "", exit_code: int | None = 0
) -> State:
    """Record the end of a run; return its state."""
    seconds = round(time.time() - before.since, 3)
    after = State(state, before.attempt, before.since, seconds, message, exit_code)
    write(workdir, after)
    return after


def all_states(folder: Path, workdirs: Sequence[Path]) -> dict[Path, State]:
    """Return the states of a sweep's runs by folder.

    A recorded state `running` is valid only while the run's process exists: on this machine, the
    sweep's folder is then locked; on SLURM, the job is in the queue.
    """
    jobs = read_json(folder / JOBS)
    queue = jobs_in_queue() if jobs else {}
    here = is_locked(folder)
    return {each: _now(read(each), jobs.get(each.name), queue, here) for each in workdirs}


def _now(state: State, job: str | None, queue: Mapping[str, str] | None, here: bool) -> State:
    if state.state in ENDED or (queue is None and job):
        return state
    if job and queue and job in queue:
        if queue[job] == "COMPLETING" and state.state == "failed":
            return state
        running = queue[job] == "RUNNING" and state.state == "running"
        return state if running else dataclasses.replace(state, state="queued")
    if state.state == "running" and not here:
        if not job:
            return dataclasses.replace(state, state="stopped", message="its process has ended")
        message = f"job {job} ended without a report: killed, or out of memory or time"
        return dataclasses.replace(state, state="failed", message=message)
    if state.state == "waiting" and job and not here:
        message = f"job {job} left the queue without starting"
        return dataclasses.replace(state, state="failed", message=message)
    return state


def jobs_in_queue() -> dict[str, str] | None:
    """Return the states of the user's unfinished jobs by number; None if squeue fails."""
    if shutil.which("squeue") is None:
        return None
    command = ["squeue", "--me", "--noheader", "--array", "--format=%i %T"]
    try:
        listed = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    except (OSError, subprocess.SubprocessError):
        return None
    return dict(line.split() for line in listed.stdout.splitlines())


# The table ---------------------------------------------------------------------------------------


def table(states: Mapping[Path, State]) -> str:
    """Format counts of the states, a row per run, and reasons for failing, as Markdown."""
    rows = [_row(workdir, state) for workdir, state in states.items()]
    header = ("run", "state", "epoch", "step", "validation", "time")
    reasons = [
        f"{state.state}  {workdir.name}: {state.message}"
        for workdir, state in states.items()
        if state.state in ("failed", "stopped") and state.message
    ]
    parts = [counts(states.values()), markdown_table(header, rows), "\n".join(reasons)]
    return "\n\n".join(filter(None, parts))


def counts(states: Any) -> str:
    """Format the counts of states: `12 runs: 11 complete, 1 failed`."""
    number_of = Counter(state.state for state in states)
    parts = ", ".join(f"{number_of[state]} {state}" for state in STATES if number_of[state])
    total = number_of.total()
    return f"{total} run{'s' * (total != 1)}: {parts}" if total else "no runs yet"


def _row(workdir: Path, state: State) -> Sequence[str]:
    try:
        rows = read_metrics(workdir)
    except UserError:
        rows = []  # the run itself reports the error
    last = rows[-1] if rows else {}
    validation = [row for row in rows if row.get("split") == "validation"][-1:]
    # The run's selection metric.
    metric = read_json(workdir / CONFIG).get("selection", {}).get("metric")
    names = [name for name in (metric, "loss") if validation and name in validation[0]]
    metrics = f"{names[0]} {number(validation[0][names[0]])}" if names else ""
    seconds = time.time() - state.since if state.state == "running" else state.seconds
    return (
        workdir.name,
        state.state,
        f"{last['epoch']:.1f}" if "epoch" in last else "",
        f"{last['step']:,}" if last else "",
        metrics,
        duration(seconds) if state.attempt else "",
    )
