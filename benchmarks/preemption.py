"""Asks runs to stop, and kills one process of two: what is saved goes on, bit for bit.

    python -m benchmarks.preemption --output results/preemption.json

One run of digits_cnn is left alone, another is asked to stop three times (SIGTERM, SIGUSR1,
SIGTERM) and started again by the same command. Then two processes with two devices each are started
as `srun` starts them; one is killed with SIGKILL, and the run goes on in both. About five minutes
on two free cores.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.results import ROOT, Measurement, arguments, digest, last_checkpoint, row

OPTIONS = ("--experiment=digits_cnn", "--batch-size=64", "--epochs=8", "--log-every=1")
STOPS = {2: signal.SIGTERM, 4: signal.SIGUSR1, 6: signal.SIGTERM}
"""Signals, by the epoch that has been said when they are sent."""
LIMIT = 600
"""Seconds after which a process that does not end is given up."""
ALL_GONE = 60
"""Seconds within which the others end when one is killed."""


def started(
    words: Sequence[str], said: Path, tasks: int = 2, devices: int = 2
) -> list[subprocess.Popen]:
    """The processes of `launch.py`, in the environment that `srun --ntasks` gives to each.

    Args:
        words: of the command line.
        said: what process RANK says is appended to this name with `.RANK`.
        tasks: how many processes.
        devices: virtual ones of each.
    """
    job = str(time.time_ns() // 10**6)  # of which JAX makes the coordinator's port
    children = []
    for rank in range(tasks):
        step = {
            "SLURM_JOB_ID": job,
            "SLURM_STEP_NODELIST": "127.0.0.1",
            "SLURM_STEP_NUM_NODES": "1",
            "SLURM_STEP_NUM_TASKS": str(tasks),
            "SLURM_NTASKS": str(tasks),
            "SLURM_PROCID": str(rank),
            "SLURM_LOCALID": str(rank),
            "JAX_NUM_CPU_DEVICES": str(devices),
            "JAX_PLATFORMS": "cpu",
        }
        with Path(f"{said}.{rank}").open("ab") as out:
            command = [sys.executable, "launch.py", *words]
            children.append(
                subprocess.Popen(
                    command, cwd=ROOT, env={**os.environ, **step}, stdout=out, stderr=out
                )
            )
    return children


def wait_for(word: bytes, said: Path, children: Sequence[subprocess.Popen]) -> None:
    """Returns when the first process has said a word.

    Raises:
        RuntimeError: a process ended first, or it takes too long.
    """
    end = time.monotonic() + LIMIT
    while word not in Path(f"{said}.0").read_bytes():
        if any(child.poll() is not None for child in children) or time.monotonic() > end:
            raise RuntimeError(f"{word.decode()!r} was not said: see {said}.0")
        time.sleep(0.05)


def preempted(workdir: Path, said: Path) -> list[int]:
    """Runs in one process that is asked to stop again and again; the exit codes."""
    codes = []
    for epoch, number in STOPS.items():
        (child,) = started([*OPTIONS, f"--workdir={workdir}"], said, tasks=1, devices=1)
        wait_for(f"epoch {epoch}/".encode(), said, [child])
        child.send_signal(number)
        codes.append(child.wait(LIMIT))
    (child,) = started([*OPTIONS, f"--workdir={workdir}"], said, tasks=1, devices=1)
    return [*codes, child.wait(LIMIT)]


def main() -> int:
    chosen = arguments(__doc__).parse_args()
    measurement = Measurement(
        "preemption",
        what="digits_cnn, asked to stop, or a process of it killed, and started again",
        target="bit for bit the parameters of the run left alone; all gone within a minute",
        seeds=[0],
    )
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (child,) = started(
            [*OPTIONS, f"--workdir={folder / 'alone'}"], folder / "alone.txt", tasks=1, devices=1
        )
        child.wait(LIMIT)
        codes = preempted(folder / "preempted", folder / "preempted.txt")
        same = digest(last_checkpoint(folder / "preempted")[1]) == digest(
            last_checkpoint(folder / "alone")[1]
        )

        together = [*OPTIONS, f"--workdir={folder / 'killed'}"]
        children = started(together, folder / "killed.txt")
        wait_for(b"epoch 2/", folder / "killed.txt", children)
        began = time.monotonic()
        children[1].kill()
        try:
            children[0].wait(LIMIT)
        finally:
            children[0].kill()
        seconds = time.monotonic() - began
        again = started(together, folder / "killed.txt")
        ended = [child.wait(LIMIT) for child in again]
        went_on = "Going on from the checkpoint" in Path(f"{folder / 'killed.txt'}.0").read_text()
        steps = [last_checkpoint(folder / name)[2] for name in ("killed", "alone")]
    rows = [
        row(
            "parameters of a run that is preempted three times, against one left alone",
            "the same, bit for bit",
            f"{'the same' if same else 'others'}; exit codes {codes}",
            same and codes == [75, 75, 75, 0],
        ),
        row(
            "one of two processes killed: seconds until all are gone",
            f"within {ALL_GONE}",
            f"{seconds:.0f} s",
            seconds <= ALL_GONE,
        ),
        row(
            "and started again",
            "goes on to its end",
            f"exit codes {ended}, step {steps[0]} of {steps[1]}",
            ended == [0, 0] and went_on and steps[0] == steps[1],
        ),
    ]
    figures = {"exit_codes": codes, "seconds_until_gone": seconds, "exit_codes_again": ended}
    return measurement.finish(rows, figures, chosen.output)


if __name__ == "__main__":
    sys.exit(main())
