"""Sweeps, preempted runs and multi-node runs on a real SLURM that is started for the measurement.

    python -m benchmarks.slurm --output results/slurm.json

`tests/slurm.py` starts two nodes on this machine; this needs root, `slurm-wlm` and `munge`. There
are an array of 12 runs, one of which fails on purpose; a run that is preempted by a signal, by a
job of higher priority and by its time limit; and a run on two nodes with two devices each, one
process of which is killed. About ten minutes on two idle cores.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.results import ROOT, digest, flag, last_checkpoint, measurement, python, row
from benchmarks.two_processes import RULES, STEPS, compared, words_of
from cnn_research.sweep import definition, states
from tests.slurm import PROGRAMS, Slurm, running_slurm

RUNS, BAD = 12, "1e30"
LIMIT = 900
"""Timeout in seconds of each wait."""
ALL_GONE = 60
"""Seconds within which the other processes must end after one is killed."""
PREEMPTED = (
    *("--experiment=digits_cnn", "--batch-size=16", "--log-every-steps=10"),
    *("--model.features", "128", "256"),
)
TIME = 3
"""Time limit in minutes; the signal is sent 90 to 150 seconds before."""


def until(happened: Callable[[], Any], what: str) -> Any:
    """Wait until a call returns a true value, and return it.

    Raises:
        RuntimeError: it takes too long.
    """
    end = time.monotonic() + LIMIT
    while not (answer := happened()):
        if time.monotonic() > end:
            raise RuntimeError(f"{what}: not within {LIMIT} seconds")
        time.sleep(0.1)
    return answer


def swept(folder: Path, *words: str) -> str:
    """Submit a sweep; return the command's output."""
    shared = (f"--workdir={folder}", "--cluster=slurm", "--cpus=1")
    return python("-m", "cnn_research.sweep", *words, *shared)[1]


# An array ----------------------------------------------------------------------------------------


def array(cluster: Slurm, folder: Path) -> dict[str, Any]:
    """Run a sweep with one failing run, and the same command again."""
    rates = ",".join([*(f"{number}e-3" for number in range(1, RUNS)), BAD])
    words = ("--experiment=digits_mlp", f"--grid=optimizer.learning-rate={rates}", "--epochs=1")
    began = time.monotonic()
    first = swept(folder, *words, "--time=10", "--parallel=2")
    submitted = time.monotonic() - began
    until(lambda: not cluster.waiting(), "the array is over")
    runs = [folder / definition.RUNS / name for name in definition.read(folder)[1]]
    before = states.all_states(folder, runs)
    again = swept(folder, *words, "--time=10", "--parallel=2")
    until(lambda: not cluster.waiting(), "the array is over")
    after = states.all_states(folder, runs)
    return {
        "seconds of the submission": submitted,
        "said": [_last(first, "Submitted"), _last(again, "Submitted")],
        "attempts": {path.name: state.attempt for path, state in after.items()},
        "results": sum((path / "evaluation.json").exists() for path in runs),
        "failed": {p.name: s.message for p, s in before.items() if s.state == "failed"},
        "table": python("-m", "cnn_research.sweep", "status", folder)[1],
    }


def _last(text: str, begin: str) -> str:
    return [line for line in text.splitlines() if line.startswith(begin)][-1]


# Preemption --------------------------------------------------------------------------------------


def preempted(cluster: Slurm, folder: Path, epochs: int) -> tuple[Path, dict[str, list[int]]]:
    """Preempt a run in three ways.

    Returns:
        Its workdir, and the steps at which it saved, by the cause.

    Raises:
        RuntimeError: the run ended before; more epochs give it time.
    """
    words = (*PREEMPTED, f"--epochs={epochs}", "--partition=main", f"--time={TIME}")
    swept(folder, *words)
    (name,) = definition.read(folder)[1]
    workdir = folder / definition.RUNS / name
    job = states.read_json(folder / states.JOBS)[name]
    log = workdir / states.LOG
    stops: dict[str, list[int]] = {}

    def saved() -> list[int]:
        text = log.read_text() if log.exists() else ""
        found = re.findall(r"stopped by \w+: step ([\d,]+) is saved", text)
        return [int(step.replace(",", "")) for step in found]

    def trains(attempt: int) -> bool:
        text = log.read_text() if log.exists() else ""
        # A line of an epoch after the last stop.
        if states.read(workdir).state == "complete":
            raise RuntimeError("the run ended before it was preempted three times: more --epochs")
        return states.read(workdir).attempt >= attempt and bool(
            re.search(r"^epoch", text.rpartition("stopped by ")[2], re.MULTILINE)
        )

    until(lambda: trains(1), "the run trains")
    cluster.command("scancel", "--signal=USR1", job)
    until(lambda: len(saved()) == 1, "it saves at a signal")
    stops["signal"] = saved()
    until(lambda: trains(2), "it goes on")
    cluster.command(
        *("sbatch", "--partition=urgent", "--nodes=2", "--ntasks=2", "--exclusive"),
        *("--output=/dev/null", "--wrap=srun sleep 2"),
    )
    until(lambda: len(saved()) == 2, "it saves for a job of a higher priority")
    stops["job of a higher priority"] = saved()[1:]
    until(lambda: not cluster.waiting(), "the run is over")
    stops["time limit"] = saved()[2:]
    return workdir, stops


# Two nodes ---------------------------------------------------------------------------------------


def on_two_nodes(cluster: Slurm, words: Sequence[str], said: Path) -> subprocess.Popen:
    """`srun` of the launcher on two nodes, one process with two devices on each."""
    devices = {"JAX_NUM_CPU_DEVICES": "2", "JAX_PLATFORMS": "cpu"}
    with said.open("ab") as out:
        return subprocess.Popen(
            [
                *("srun", "--nodes=2", "--ntasks=2", "--ntasks-per-node=1", "--partition=main"),
                *(sys.executable, "launch.py", *words),
            ],
            cwd=ROOT,
            env=os.environ | cluster.environment | devices,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
        )


def together(cluster: Slurm, folder: Path, rule: str) -> dict[str, float]:
    """Compare 50 steps on two nodes with 50 in one process."""
    words = ["--experiment=digits_cnn", *words_of(rule)]
    one, two = folder / f"{rule}-one", folder / f"{rule}-two"
    python("launch.py", *words, f"--workdir={one}")
    said = folder / f"{rule}.txt"
    if code := on_two_nodes(cluster, [*words, f"--workdir={two}"], said).wait(LIMIT):
        raise RuntimeError(f"srun ended with {code}: {said.read_text()[-2000:]}")
    return compared(one, two)


def ranks(workdir: Path) -> dict[str, int]:
    """The processes of a run, by their rank."""
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (process / "cmdline").read_bytes().split(b"\0")
            environment = (process / "environ").read_bytes().split(b"\0")
            if b"launch.py" in words and f"--workdir={workdir}".encode() in words:
                rank = [e for e in environment if e.startswith(b"SLURM_PROCID=")]
                found |= {each.partition(b"=")[2].decode(): int(process.name) for each in rank}
    return found


def killed(cluster: Slurm, folder: Path) -> dict[str, Any]:
    """Kill one of two processes; measure when the other ends, and resume the run."""
    workdir, said = folder / "killed", folder / "killed.txt"
    words = ["--experiment=digits_cnn", "--epochs=8", "--batch-size=64", f"--workdir={workdir}"]
    srun = on_two_nodes(cluster, words, said)
    until(lambda: "epoch 2/" in said.read_text(), "the run trains")
    processes = ranks(workdir)
    began = time.monotonic()
    os.kill(processes["1"], signal.SIGKILL)
    until(lambda: not ranks(workdir), "all processes are gone")
    seconds = time.monotonic() - began
    code = srun.wait(LIMIT)
    again = on_two_nodes(cluster, words, said).wait(LIMIT)
    text = said.read_text()
    return {
        "seconds until all are gone": seconds,
        "exit code": code,
        "exit code of the next": again,
        "went on": bool(re.search(r"^Resuming from the checkpoint", text, re.MULTILINE)),
        "step": last_checkpoint(workdir)[2],
    }


@measurement(
    flag("--epochs", type=int, default=250, help="of the run that is preempted"),
    what="runs on a SLURM of two nodes on this machine",
    target="what fails, is preempted or killed costs nothing else",
    seeds=[0],
)
def main(options):
    if missing := [name for name in (*PROGRAMS, "srun") if shutil.which(name) is None]:
        raise SystemExit(f"{missing[0]} is not installed: apt-get install slurm-wlm munge")
    with tempfile.TemporaryDirectory() as scratch, running_slurm() as cluster:
        os.environ |= cluster.environment
        folder = Path(scratch)
        sweep = array(cluster, folder / "array")
        print(sweep["table"], flush=True)
        workdir, stops = preempted(cluster, folder / "preempted", options.epochs)
        print(stops, flush=True)
        alone = folder / "alone"
        python("launch.py", *PREEMPTED, f"--epochs={options.epochs}", f"--workdir={alone}")
        same = digest(last_checkpoint(workdir)[1]) == digest(last_checkpoint(alone)[1])
        apart = {rule: together(cluster, folder, rule) for rule in RULES}
        print(apart, flush=True)
        ended = killed(cluster, folder)
    attempts = sweep.pop("attempts")
    twice = [name for name, attempt in attempts.items() if attempt == 2]
    rows = [
        row(
            f"job array of {RUNS} runs, one of which fails on purpose",
            f"{RUNS - 1} results, 1 named failure",
            f"{sweep['results']} results; failed: {', '.join(sweep['failed']) or 'none'}",
            sweep["results"] == RUNS - 1 and len(sweep["failed"]) == 1,
        ),
        row(
            "the command repeated",
            "runs 1",
            f"runs {len(twice)}",
            twice == list(sweep["failed"]) and set(attempts.values()) == {1, 2},
        ),
        row(
            "parameters of a run preempted by a signal, a job of a higher priority and its time "
            "limit, against an uninterrupted one",
            "the same, bit for bit",
            f"{'the same' if same else 'others'}, after "
            + ", ".join(f"{len(steps)} x {way}" for way, steps in stops.items()),
            same and all(stops.values()),
        ),
        *(
            row(
                f"2 nodes of 1 process and 2 devices under srun, {STEPS} steps of {rule}, against "
                f"1 process: {quantity}",
                f"within {tolerance:g}{', relative' * (quantity == 'loss')}",
                f"{apart[rule][quantity]:.1e}",
                apart[rule][quantity] <= tolerance,
            )
            for rule, (quantity, tolerance, _) in RULES.items()
        ),
        row(
            "a process of one node killed with SIGKILL: time until all have ended",
            f"within {ALL_GONE} s",
            f"{ended['seconds until all are gone']:.0f} s",
            ended["seconds until all are gone"] <= ALL_GONE,
        ),
        row(
            "restarting it",
            "finishes",
            f"exit code {ended['exit code of the next']}, step {ended['step']}",
            ended["went on"] and ended["exit code of the next"] == 0,
        ),
    ]
    return rows, {"array": sweep, "stopped at": stops, "apart": apart, "killed": ended}


if __name__ == "__main__":
    sys.exit(main())
