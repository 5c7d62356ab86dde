"""Evaluate a trained model with several batch sizes, on one device and on eight.

    python -m benchmarks.evaluation_exactness --output results/evaluation_exactness.json

Every example must count once with any batch size: the numbers of correct and counted examples must
be the same. XLA presents one processor as several devices. Losses are sums of floats in a different
order and agree up to rounding; they are recorded with the counts.
"""

from __future__ import annotations

import dataclasses
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.results import Row, in_process, last_checkpoint, launch, measurement, row

BATCH_SIZES = (1, 7, 128)
DEVICES = (1, 8)


def counts(workdir: str | Path) -> dict[str, Any]:
    """Count correct and all examples, and sum the loss, per split and batch size."""
    from cnn_research.core.distributed import data_mesh
    from cnn_research.train.evaluator import Evaluator

    experiment, state, step = last_checkpoint(Path(workdir))
    dataset = experiment.data.load()
    model = experiment.task.bind(experiment.model, dataset)
    found: dict[str, Any] = {"step": step, "devices": data_mesh().size}
    for size in BATCH_SIZES:
        how = dataclasses.replace(experiment.evaluation, batch_size=size)
        evaluator = Evaluator(dataclasses.replace(experiment, evaluation=how), model, data_mesh())
        for name, split in dataset.splits.items():
            if name == "train":
                continue
            sums, logits = evaluator(state.variables(), split)
            correct, count = sums["accuracy"]
            found[f"{name}, batches of {size}"] = {
                "correct": correct,
                "count": count,
                "examples": len(logits),
                "loss": sums["loss"][0],
            }
    return found


def on_devices(workdir: Path, devices: int) -> dict[str, Any]:
    """Run `counts` in its own process with `devices` devices."""
    flags = f"--xla_force_host_platform_device_count={devices}"
    environment = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
    return in_process(counts, str(workdir), environment=environment)


def compare(name: str, workdir: Path) -> tuple[Row, dict[str, Any]]:
    """Make the row of a trained model, and its metrics."""
    found = {f"{devices} devices": on_devices(workdir, devices) for devices in DEVICES}
    outcomes: dict[str, set[tuple[float, float]]] = {}
    losses: dict[str, list[float]] = {}
    everything = True
    for one in found.values():
        for what, values in one.items():
            if isinstance(values, dict):
                split = what.partition(",")[0]
                outcomes.setdefault(split, set()).add((values["correct"], values["count"]))
                losses.setdefault(split, []).append(values["loss"])
                everything &= values["count"] == values["examples"]
    spread = max((max(values) - min(values)) / max(values) for values in losses.values())
    shown = "; ".join(
        f"{split} " + " or ".join(f"{correct:g} of {count:g}" for correct, count in sorted(pairs))
        for split, pairs in outcomes.items()
    )
    sizes = ", ".join(map(str, BATCH_SIZES))
    line = row(
        f"correct test and validation examples of {name} in batches of {sizes} on 1 and 8 devices",
        "the same number in all six",
        shown,
        everything and all(len(pairs) == 1 for pairs in outcomes.values()),
    )
    return line, {"by_devices": found, "relative_spread_of_loss_sums": spread}


@measurement(
    what="evaluation in batches of several sizes and on several devices",
    target="the same numbers of correct and of counted examples",
    seeds=[0],
)
def main(options):
    from cnn_research.data.sources.official import FashionMnist

    rows, figures = [], {}
    runs = {"digits_cnn": ["--epochs=5"]}
    if (FashionMnist.home() / "prepared").is_dir():
        runs["fashion_mnist_cnn"] = ["--epochs=0.2", "--eval-every-epochs=0.2"]
    with tempfile.TemporaryDirectory() as scratch:
        for name, words in runs.items():
            launch(name, Path(scratch, name), *words)
            line, figures[name] = compare(name, Path(scratch, name))
            rows.append(line)
    return rows, figures


if __name__ == "__main__":
    sys.exit(main())
