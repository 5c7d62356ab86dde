"""Runs on SLURM as one job array, with submitit."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import shlex
import shutil
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cnn_research.core.errors import UserError, install_command, one_line
from cnn_research.core.run_folder import read_json, write_json
from cnn_research.sweep import states
from cnn_research.sweep.definition import Run
from cnn_research.sweep.source import search_path

SIGNAL = "USR1"
"""Signal that SLURM sends before it ends a job, upon which runs save."""
LOGS = "slurm"
"""Subfolder of the sweep's folder with the output of jobs before and after their runs."""


@dataclasses.dataclass(frozen=True)
class Job:
    """Callable that submitit pickles and calls on the node."""

    run: Run

    def __call__(self) -> None:
        from cnn_research.sweep.worker import execute

        state = execute(self.run)
        # A cancelled job is no longer RUNNING, and must not be queued again.
        if state.state == "stopped" and (states.jobs_in_queue() or {}).get(_number()) == "RUNNING":
            # submitit then calls `checkpoint`, queues the job again, and ends the process.
            signal.raise_signal(getattr(signal, f"SIG{SIGNAL}"))
        sys.exit(state.exit_code)

    def checkpoint(self) -> object:
        """Return the job to queue again: the same one, which resumes its run."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def _number() -> str:
    """Return the number of this process's job as printed by `squeue`."""
    if array := os.environ.get("SLURM_ARRAY_JOB_ID"):
        return f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    return os.environ.get("SLURM_JOB_ID", "")


def check() -> None:
    """Raise `UserError` if SLURM or submitit is missing."""
    if shutil.which("sbatch") is None:
        raise UserError(
            "this machine has no SLURM (sbatch is missing): run this on a machine of the cluster, "
            "or omit --cluster=slurm to run here"
        )
    # submitit reads these on import, and otherwise closes the handlers of other logs.
    os.environ |= {"SUBMITIT_PREEMPT_SIGNAL": SIGNAL, "SUBMITIT_LOG_LEVEL": "NOCONFIG"}
    try:
        import submitit  # noqa: F401
    except ImportError:
        raise UserError(
            f"SLURM needs submitit, which is not installed: {install_command('slurm')}"
        ) from None


def submit(runs: Sequence[Run], folder: Path, source: Path, **resources: Any) -> str:
    """Submit runs as a job array that imports `source`; return its number without waiting.

    `resources` are submitit's parameters per run; None for the cluster's default. Raises
    `UserError` with SLURM's message if it refuses the job.
    """
    import submitit
    from submitit.core.utils import FailedJobError

    executor = submitit.SlurmExecutor(folder.absolute() / LOGS, max_num_timeout=1000)
    executor.update_parameters(
        job_name=folder.name,
        stderr_to_stdout=True,
        setup=[
            f"export PYTHONPATH={shlex.quote(search_path(source))}",
            # Do not import from the current folder, which may contain source that is being edited.
            "export PYTHONSAFEPATH=1",
            f"export SUBMITIT_PREEMPT_SIGNAL={SIGNAL} SUBMITIT_LOG_LEVEL=INFO",
        ],
        **{name: value for name, value in resources.items() if value is not None},
    )
    for run in runs:
        run.workdir.mkdir(parents=True, exist_ok=True)
    try:
        # submitit prints SLURM's message, but also includes it in its error.
        with contextlib.redirect_stderr(io.StringIO()):
            jobs = executor.submit_array([Job(run) for run in runs])
    except FailedJobError as error:
        raise UserError(f"SLURM refused the sweep: {_words(error)}") from None
    numbers = {run.name: job.job_id for run, job in zip(runs, jobs, strict=True)}
    write_json(folder / states.JOBS, read_json(folder / states.JOBS) | numbers)
    return jobs[0].job_id.partition("_")[0]


def _words(error: Exception) -> str:
    """Return the errors printed by sbatch, without the command line."""
    lines = [line for line in str(error).splitlines() if "error:" in line]
    return "; ".join(line.partition("error:")[2].strip() for line in lines) or one_line(error)
