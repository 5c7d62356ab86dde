"""Exports in a fresh environment with only JAX, flatbuffers and NumPy: logits and start time.

    python -m benchmarks.export --output results/export.json

Trains digits_cnn with its defaults and two networks for a few steps, exports them, and runs the
exports in an environment without flax and this project, in batches of 1, 7 and 64. Their logits
are compared bit for bit with those of `--mode=predict`. The time is the median time from the start
of a process to its first prediction; on a busy machine it is longer, so the processor time of all
threads is also given.
"""

from __future__ import annotations

import dataclasses
import os
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.results import ROOT, flag, measurement, row

BATCHES = (1, 7, 64)
ALLOWED = 3.0
"""Maximum time in seconds from the start of a process to its first prediction."""
NEEDED = ("jax", "jaxlib", "flatbuffers", "numpy", "ml_dtypes", "opt_einsum", "scipy")
"""Installed packages: JAX, its dependencies and flatbuffers."""

ASK = """\
import sys
import numpy as np
import jax
from jax import export

with open(sys.argv[1], "rb") as file:
    network = jax.jit(export.deserialize(bytearray(file.read())).call)
np.save(sys.argv[3], np.asarray(network(np.load(sys.argv[2]))))
print(*sorted({name.split(".")[0] for name in sys.modules}))
"""


def trained(folder: Path) -> dict[str, Path]:
    """Train and export the runs below `folder`, by name."""
    from cnn_research.cli.run import run
    from cnn_research.core.experiment import lookup
    from cnn_research.data.sources.synthetic import Synthetic
    from cnn_research.models.registry import architectures
    from cnn_research.train.config import Training

    few: dict[str, Any] = {"epochs": 1, "batch_size": 32}
    digits = lookup("digits_cnn").experiment()
    photos = Synthetic(train=128, test=32, classes=(10,), image_shape=(32, 32, 3))
    clothes = Synthetic(train=128, test=32, classes=(10,), image_shape=(28, 28, 1))
    models = {name: found.model for name, found in architectures().items()}
    experiments = {
        "digits_cnn": digits,
        "fashion_mnist_cnn, 4 steps": dataclasses.replace(
            lookup("fashion_mnist_cnn").experiment(), data=clothes, **few
        ),
        "resnet18_small, 4 steps": Training(data=photos, model=models["resnet18_small"], **few),
    }
    for name, experiment in experiments.items():
        run(experiment, folder / name)
        run(experiment, folder / name, "export")
    return {name: folder / name for name in experiments}


def fresh_environment(folder: Path) -> Path:
    """Create an environment with only JAX, pinned by constraints.txt; return its Python."""
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    exact = [line for line in lines if re.split("==", line)[0] in NEEDED]
    python = folder / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "-q", *exact], check=True)
    return python


def ask(python: Path, run: Path, rounds: int, folder: Path) -> dict[str, Any]:
    """Compare the export's logits with the run's, by batch size; measure the time to the first."""
    import jax

    from cnn_research.train.trained import TrainedModel

    model = TrainedModel.load(run)
    forward = jax.jit(model.forward())
    random = np.random.default_rng(0)
    equal, seconds, processor, modules = {}, [], [], ""
    for batch in BATCHES:
        images = random.integers(0, 256, (batch, *model.image_shape), np.uint8)
        np.save(folder / "images.npy", images)
        words = [run / "export" / "model.jaxexport", folder / "images.npy", folder / "logits.npy"]
        # The first fills the disk's cache, and the folder of compiled modules.
        for _ in range(1 + rounds if batch == 1 else 1):
            started, before = time.perf_counter(), children_seconds()
            ended = subprocess.run(
                [python, "-c", ASK, *words], capture_output=True, text=True, check=True, cwd=folder
            )
            seconds.append(time.perf_counter() - started)
            processor.append(children_seconds() - before)
        modules = ended.stdout
        logits = np.load(folder / "logits.npy")
        equal[batch] = np.array_equal(logits, np.asarray(forward(images)))
    strange = {"flax", "cnn_research", "optax", "orbax"} & set(modules.split())
    if strange:
        raise RuntimeError(f"the fresh environment has {strange}")
    times, busy = seconds[1 : 1 + rounds], processor[1 : 1 + rounds]
    return {
        "equal": equal,
        "seconds": [round(value, 3) for value in times],
        "median_seconds": round(statistics.median(times), 3),
        "processor_seconds": [round(value, 3) for value in busy],
        "median_processor_seconds": round(statistics.median(busy), 3),
        "bytes": (run / "export" / "model.jaxexport").stat().st_size,
    }


def children_seconds() -> float:
    """Processor time of the finished child processes."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@measurement(
    flag("--rounds", type=int, default=5),
    what="exports in an environment with JAX alone",
    target=f"bit-equal logits in batches of {BATCHES}; first answer in under {ALLOWED} s",
)
def main(options):
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        python = fresh_environment(folder / "environment")
        figures = {
            run: ask(python, path, options.rounds, folder)
            for run, path in trained(folder / "runs").items()
        }
        load = os.getloadavg()[0]
    rows = []
    for run, found in figures.items():
        same = [str(batch) for batch, equal in found["equal"].items() if equal]
        rows.append(
            row(
                f"logits of the export of {run}, JAX alone, in batches of 1, 7 and 64",
                "those of --mode=predict, bit for bit",
                f"the same in batches of {', '.join(same)}" if same else "other ones",
                len(same) == len(BATCHES),
            )
        )
        rows.append(
            row(
                f"time from process start to the first prediction of {run}",
                f"under {ALLOWED:.0f} s",
                f"{found['median_seconds']:.1f} s, "
                f"{found['median_processor_seconds']:.1f} s of CPU time",
                found["median_seconds"] < ALLOWED,
            )
        )
    return rows, {"load": round(load, 1), **figures}


if __name__ == "__main__":
    sys.exit(main())
