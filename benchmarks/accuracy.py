"""Trains an experiment with several seeds and writes down its test figures, mean and deviation.

    python -m benchmarks.accuracy fashion_mnist_cnn --seeds 5

Runs stand in `runs/NAME/seed-N`; one that is finished already is not trained again. Other flags
override fields of every experiment named, as in `--data.path=FOLDER`.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from cnn_research.report.compare import main as report

ROOT = Path(__file__).resolve().parent.parent


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("experiments", nargs="+", help="names of registered experiments")
    parser.add_argument("--seeds", type=int, default=5, help="seeds 0 to SEEDS - 1")
    parser.add_argument(
        "--splits", action="store_true", help="with each seed another split of the data, too"
    )
    options, overrides = parser.parse_known_args()
    for name in options.experiments:
        runs = [Path("runs") / name / f"seed-{seed}" for seed in range(options.seeds)]
        for seed, workdir in enumerate(runs):
            if (workdir / "evaluation.json").exists():
                continue
            command = [f"--experiment={name}", f"--seed={seed}", f"--workdir={workdir}"]
            if options.splits:
                command.append(f"--data.split-seed={seed}")
            subprocess.run(
                [sys.executable, "launch.py", *command, *overrides], cwd=ROOT, check=True
            )
        report([*map(str, runs), f"--output=results/{name}.json"])
    return 0


if __name__ == "__main__":
    sys.exit(main())
