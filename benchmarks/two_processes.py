"""Train on several processes and devices, and on one, and compare the parameters.

    python -m benchmarks.two_processes --output results/two_processes.json

The network for digits, in float32, 50 steps by the runner: in one process with one device, in two
processes with two devices each, and in one process with eight. Sums over devices round differently,
so parameters agree up to rounding. Adam divides by the root of a second moment, which is itself
rounding if a gradient is nearly 0, so its losses are compared instead. The checkpoint of two
processes is also evaluated on one device and on eight. About four minutes on two idle cores.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.evaluation_exactness import on_devices
from benchmarks.results import ROOT, apart, last_checkpoint, measurement, row, rows_of

STEPS, BATCH = 50, 64
TRAINING_EXAMPLES = 1197
RULES = {
    "sgd": ("parameters", 1e-5, ("--optimizer.learning-rate=0.05", "--optimizer.momentum=0.9")),
    "adam": ("loss", 1e-3, ("--optimizer.learning-rate=1e-3",)),
}
"""Optimizer -> what is compared, the tolerance, and options."""
WAYS = {"2 processes of 2 devices": (2, 2), "1 process of 8 devices": (1, 8)}
LIMIT = 150
"""Seconds after which processes that wait for each other are killed."""

WORK = """
import sys
import jax
port, processes, rank = map(int, sys.argv[1:4])
if processes > 1:
    jax.distributed.initialize(f"127.0.0.1:{port}", processes, rank)
from pathlib import Path
from cnn_research.cli.fields import with_overrides
from cnn_research.cli.run import run
from cnn_research.core.experiment import lookup
run(with_overrides(lookup("digits_cnn").experiment(), sys.argv[5:]), sys.argv[4])
"""
"""One process of a run without SLURM."""


def words_of(optimizer: str) -> list[str]:
    """Options for exactly 50 steps, with a batch size that all device counts divide."""
    epochs = f"--epochs={STEPS * BATCH / TRAINING_EXAMPLES}"
    fields = [f"--optimizer.name={optimizer}", *RULES[optimizer][2]]
    return [*fields, epochs, f"--batch-size={BATCH}", "--log-every-steps=1"]


def trained(optimizer: str, workdir: Path, processes: int, devices: int) -> str | None:
    """Run the processes of a run together; return why it failed, or None.

    Args:
        optimizer: name of the optimizer.
        workdir: folder of the run.
        processes: number of processes.
        devices: number of devices per process.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    environment |= {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices)}
    children = []
    for rank in range(processes):
        words = [*map(str, (port, processes, rank, workdir)), *words_of(optimizer)]
        with workdir.with_name(f"{workdir.name}.{rank}.txt").open("wb") as said:
            command = [sys.executable, "-c", WORK, *words]
            children.append(
                subprocess.Popen(command, cwd=ROOT, env=environment, stdout=said, stderr=said)
            )
    fault = None
    for rank, child in enumerate(children):
        try:
            code = child.wait(LIMIT if fault is None else 20)
            if code:
                fault = fault or f"process {rank} ended with {code}"
        except subprocess.TimeoutExpired:
            fault = fault or f"process {rank} did not end"
            child.kill()
            child.wait()
    if fault is not None:
        for rank in range(processes):
            said = workdir.with_name(f"{workdir.name}.{rank}.txt").read_text(errors="replace")
            print(f"--- the end of the output of process {rank} of {workdir.name}:\n{said[-3000:]}")
    return fault


def compared(one: Path, other: Path) -> dict[str, float]:
    """Largest differences between two runs."""
    (_, first, step), (_, second, other_step) = last_checkpoint(one), last_checkpoint(other)
    if step != other_step or step != STEPS:
        raise RuntimeError(f"{one.name} ended at step {step}, {other.name} at {other_step}")
    losses = [
        abs(a["loss"] - b["loss"]) / abs(a["loss"])
        for a, b in zip(rows_of(one, "train"), rows_of(other, "train"), strict=True)
    ]
    counts = [[r["accuracy"] for r in rows_of(run, "validation")] for run in (one, other)]
    return {
        "parameters": apart(first.params, second.params),
        "loss": max(losses),
        "validation_counts_differ": float(counts[0] != counts[1]),
    }


def counted(workdir: Path, devices: int) -> dict[str, list[float]]:
    """Count correct and all examples with a run's latest checkpoint, per split and batch size."""
    found = on_devices(workdir, devices)
    return {
        what: [values["correct"], values["count"]]
        for what, values in found.items()
        if isinstance(values, dict)
    }


@measurement(
    what=f"{STEPS} steps of digits_cnn, batches of {BATCH}, on several devices",
    target="SGD: parameters within 1e-5 of one device's; Adam: losses within 1e-3, relative",
    seeds=[0],
)
def main(options):
    rows, figures = [], {}
    with tempfile.TemporaryDirectory() as scratch:
        for optimizer, (quantity, tolerance, _) in RULES.items():
            one = Path(scratch, f"{optimizer}-one")
            if fault := trained(optimizer, one, 1, 1):
                raise RuntimeError(fault)
            for way, numbers in WAYS.items():
                other = Path(scratch, f"{optimizer}-{way.replace(' ', '-')}")
                fault = trained(optimizer, other, *numbers)
                found = {} if fault else compared(one, other)
                figures[f"{optimizer}, {way}"] = found or fault
                largest = found.get(quantity, float("inf"))
                rows.append(
                    row(
                        f"{quantity} after {STEPS} steps of {optimizer}, {way} against 1 device",
                        f"within {tolerance:g}" + ", relative" * (quantity == "loss"),
                        fault or f"{largest:.1e}",
                        largest <= tolerance,
                    )
                )
        several = Path(scratch, "sgd-2-processes-of-2-devices")
        counts = {devices: counted(several, devices) for devices in (1, 8)}
    same = counts[1] == counts[8]
    rows.append(
        row(
            "correct examples of a state saved by 2 processes of 2 devices, on 1 and 8 devices",
            "the same numbers",
            "the same" if same else f"{counts[1]} and {counts[8]}",
            same,
        )
    )
    figures["restored, correct and counted"] = {str(n): found for n, found in counts.items()}
    return rows, figures


if __name__ == "__main__":
    sys.exit(main())
