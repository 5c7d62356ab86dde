"""Start times of the command line.

    python -m benchmarks.start_time --output results/start_time.json

Each round runs every command once, and a process that only imports flax and optax, which is the
minimum for configs of flax modules. Disturbances thus affect all alike.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

from benchmarks.results import ROOT, flag, measurement, row

FLOOR = (["-c", "import flax.linen, optax"], 0)
COMMANDS = {
    "--list": (["launch.py", "--list"], 0),
    "a mistyped experiment": (["launch.py", "--experiment=digits_cn"], 2),
    "a mistyped field": (["launch.py", "--experiment=digits_cnn", "--optimizer.learnin-rate=1"], 2),
    "--experiment=digits_cnn --help": (["launch.py", "--experiment=digits_cnn", "--help"], 0),
}
ALLOWED = 0.5
"""Seconds that a command may take in addition to the imports."""


def seconds(words: list[str], expected: int) -> float:
    """Wall time of a Python process, which must end with the expected exit code."""
    started = time.perf_counter()
    ended = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True)
    if ended.returncode != expected:
        raise RuntimeError(f"{words} ended with {ended.returncode}: {ended.stderr.decode()}")
    return round(time.perf_counter() - started, 3)


@measurement(
    flag("--rounds", type=int, default=7),
    what="wall time of commands that train nothing",
    target=f"each within {ALLOWED} s of `import flax.linen, optax`, medians of the same rounds",
)
def main(options):
    commands = {**COMMANDS, "imports": FLOOR}
    # The first round, which fills caches, is not counted.
    rounds = [
        {name: seconds(*command) for name, command in commands.items()}
        for _ in range(options.rounds + 1)
    ][1:]
    times = {name: [each[name] for each in rounds] for name in commands}
    medians = {name: statistics.median(values) for name, values in times.items()}
    base = medians.pop("imports")
    rows = [
        row(
            f"response time of {name}",
            f"at most {ALLOWED} s more than the imports alone",
            f"{median:.2f} s; the imports alone {base:.2f} s",
            median - base <= ALLOWED,
        )
        for name, median in medians.items()
    ]
    return rows, {"seconds": times}


if __name__ == "__main__":
    sys.exit(main())
