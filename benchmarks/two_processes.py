"""Trains on several processes and devices, and on one, and compares the parameters.

    python -m benchmarks.two_processes --output results/two_processes.json

The network for digits, in float32, 50 steps by the runner: in one process with one device, in two
processes with two devices each, and in one process with eight. Sums over devices round differently,
so parameters agree to rounding. Adam divides by the root of a second moment, which is rounding
itself where a gradient is nearly 0; so its losses are compared instead. What two processes have
saved is evaluated on one device and on eight, too. About four minutes on two free cores.
"""

from __future__ import annotations

import dataclasses
import json
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.evaluation_exactness import on_devices
from benchmarks.results import ROOT, Measurement, arguments, last_checkpoint, row, rows_of

STEPS, BATCH = 50, 64
TRAINING_EXAMPLES = 1197
TOLERANCE = {"sgd": 1e-5, "adam": 1e-3}
LIMIT = 150
"""Seconds after which processes that wait for each other are ended."""


def experiment(optimizer: str) -> Any:
    """Exactly 50 steps of the network for digits, on batches that every number here divides."""
    from cnn_research.core.experiment import lookup
    from cnn_research.train.optimizers import Optimizer

    rules = {
        "sgd": Optimizer(name="sgd", learning_rate=0.05, momentum=0.9),
        "adam": Optimizer(name="adam", learning_rate=1e-3),
    }
    return dataclasses.replace(
        lookup("digits_cnn").experiment(),
        optimizer=rules[optimizer],
        epochs=STEPS * BATCH / TRAINING_EXAMPLES,
        batch_size=BATCH,
        log_every=1,
    )


def work(optimizer: str, workdir: Path, devices: int, rank: int, processes: int, port: int) -> None:
    """One process of a run."""
    import jax

    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", devices)
    if processes > 1:
        jax.distributed.initialize(f"127.0.0.1:{port}", processes, rank)
    from cnn_research.cli.run import run

    result = run(experiment(optimizer), workdir)
    print(json.dumps({"rank": rank, "step": result.step, "devices": jax.device_count()}))


def trained(optimizer: str, workdir: Path, *, processes: int, devices: int) -> str | None:
    """Runs the processes of a run together; why it failed, or None.

    Args:
        optimizer: its name.
        workdir: shared by all of them.
        processes: how many.
        devices: of each process.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = []
    for rank in range(processes):
        words = [optimizer, str(workdir), str(devices), str(rank), str(processes), str(port)]
        with workdir.with_name(f"{workdir.name}.{rank}.txt").open("wb") as said:
            children.append(
                subprocess.Popen(
                    [sys.executable, "-m", "benchmarks.two_processes", "--work", *words],
                    cwd=ROOT,
                    env={k: v for k, v in os.environ.items() if k != "XLA_FLAGS"},
                    stdout=said,
                    stderr=said,
                )
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
            print(f"--- process {rank} of {workdir.name} said at last:\n{said[-3000:]}")
    return fault


def compared(one: Path, other: Path) -> dict[str, float]:
    """The largest differences between two runs."""
    import jax

    (_, first, step), (_, second, other_step) = last_checkpoint(one), last_checkpoint(other)
    if step != other_step or step != STEPS:
        raise RuntimeError(f"{one.name} ended at step {step}, {other.name} at {other_step}")
    apart = jax.tree.map(
        lambda a, b: float(np.abs(np.asarray(a) - np.asarray(b)).max()), first.params, second.params
    )
    losses = [
        abs(a["loss"] - b["loss"]) / abs(a["loss"])
        for a, b in zip(rows_of(one, "train"), rows_of(other, "train"), strict=True)
    ]
    return {
        "parameters": max(jax.tree.leaves(apart)),
        "loss": max(losses),
        "validation_counts_differ": float(
            [r["accuracy"] for r in rows_of(one, "validation")]
            != [r["accuracy"] for r in rows_of(other, "validation")]
        ),
    }


def counted(workdir: Path, devices: int) -> dict[str, list[float]]:
    """Per split and batch size, correct and counted examples of a run's newest checkpoint."""
    found = on_devices(workdir, devices)
    return {
        what: [values["correct"], values["count"]]
        for what, values in found.items()
        if isinstance(values, dict)
    }


def main() -> int:
    parser = arguments(__doc__)
    parser.add_argument("--work", nargs=6, help="be one process of a run")
    chosen = parser.parse_args()
    if chosen.work:
        optimizer, workdir, *numbers = chosen.work
        work(optimizer, Path(workdir), *map(int, numbers))
        return 0
    measurement = Measurement(
        "two_processes",
        what=f"{STEPS} steps of digits_cnn, batches of {BATCH}, on several devices",
        target="SGD: parameters within 1e-5 of one device's; Adam: losses within 1e-3, relative",
        seeds=[0],
    )
    ways = {
        "2 processes of 2 devices": {"processes": 2, "devices": 2},
        "1 process of 8 devices": {"processes": 1, "devices": 8},
    }
    rows, figures = [], {}
    with tempfile.TemporaryDirectory() as scratch:
        for optimizer, tolerance in TOLERANCE.items():
            one = Path(scratch, f"{optimizer}-one")
            fault = trained(optimizer, one, processes=1, devices=1)
            if fault:
                raise RuntimeError(fault)
            quantity = "parameters" if optimizer == "sgd" else "loss"
            for way, numbers in ways.items():
                other = Path(scratch, f"{optimizer}-{way.replace(' ', '-')}")
                fault = trained(optimizer, other, **numbers)
                found = {} if fault else compared(one, other)
                figures[f"{optimizer}, {way}"] = found or fault
                largest = found.get(quantity, float("inf"))
                relative = "" if optimizer == "sgd" else ", relative"
                rows.append(
                    row(
                        f"{quantity} after {STEPS} steps of {optimizer}, {way} against 1 device",
                        f"within {tolerance:g}{relative}",
                        fault or f"{largest:.1e}",
                        largest <= tolerance,
                    )
                )
        apart = Path(scratch, "sgd-2-processes-of-2-devices")
        counts = {devices: counted(apart, devices) for devices in (1, 8)}
    rows.append(
        row(
            "correct examples of what 2 processes of 2 devices saved, on 1 and on 8 devices",
            "the same numbers",
            "the same" if counts[1] == counts[8] else f"{counts[1]} and {counts[8]}",
            counts[1] == counts[8],
        )
    )
    figures["restored, correct and counted"] = {str(n): found for n, found in counts.items()}
    return measurement.finish(rows, figures, chosen.output)


if __name__ == "__main__":
    sys.exit(main())
