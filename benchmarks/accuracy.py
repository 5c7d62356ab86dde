"""Train an experiment with several seeds, and record the mean and deviation of its test metrics.

    python -m benchmarks.accuracy fashion_mnist_cnn --seeds 5

Runs are in `runs/NAME/seed-N`; finished ones are not trained again. Other options override fields
of all named experiments, such as `--data.path=FOLDER`.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from benchmarks.results import launch
from cnn_research.report.__main__ import main as report


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
            if not (workdir / "evaluation.json").exists():
                splits = [f"--data.split-seed={seed}"] if options.splits else []
                launch(name, workdir, f"--seed={seed}", *splits, *overrides)
        report([*map(str, runs), f"--output=results/{name}.json"])
    return 0


if __name__ == "__main__":
    sys.exit(main())
