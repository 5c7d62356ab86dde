"""How long it takes until the command line answers.

    python -m benchmarks.start_time --output results/start_time.json

Every round runs each command once, and with them one process that only imports flax and optax:
the least that configs of flax modules cost. What the machine does meanwhile thus falls on all.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time

from benchmarks.results import ROOT, Measurement, arguments, row

FLOOR = ["-c", "import flax.linen, optax"]
COMMANDS = {
    "--list": (["launch.py", "--list"], 0),
    "a mistyped experiment": (["launch.py", "--experiment=digits_cn"], 2),
    "a mistyped field": (["launch.py", "--experiment=digits_cnn", "--optimizer.learnin-rate=1"], 2),
    "--experiment=digits_cnn --help": (["launch.py", "--experiment=digits_cnn", "--help"], 0),
}
ALLOWED = 0.5
"""Seconds that a command may take more than the imports alone."""


def seconds(words: list[str], expected: int) -> float:
    """The wall time of one process of Python, which must end with the expected exit code."""
    started = time.perf_counter()
    ended = subprocess.run([sys.executable, *words], cwd=ROOT, env=os.environ, capture_output=True)
    taken = time.perf_counter() - started
    if ended.returncode != expected:
        raise RuntimeError(f"{words} ended with {ended.returncode}: {ended.stderr.decode()}")
    return taken


def main() -> int:
    parser = arguments(__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args()
    measurement = Measurement(
        "start_time",
        what="wall time of commands that train nothing",
        target=f"each within {ALLOWED} s of `import flax.linen, optax`, medians of the same rounds",
    )
    floor: list[float] = []
    times: dict[str, list[float]] = {name: [] for name in COMMANDS}
    # The first round fills the disk's cache, and the folder of compiled modules; it is not counted.
    for number in range(rounds.rounds + 1):
        taken = {name: seconds(*command) for name, command in COMMANDS.items()}
        imports = seconds(FLOOR, 0)
        if number:
            floor.append(imports)
            for name, value in taken.items():
                times[name].append(value)
    base = statistics.median(floor)
    medians = {name: statistics.median(values) for name, values in times.items()}
    return measurement.finish(
        [
            row(
                f"time to answer {name}",
                f"at most {ALLOWED} s more than the imports alone",
                f"{median:.2f} s; the imports alone {base:.2f} s",
                median - base <= ALLOWED,
            )
            for name, median in medians.items()
        ],
        {
            "seconds": {
                name: [round(value, 3) for value in values] for name, values in times.items()
            },
            "imports_seconds": [round(value, 3) for value in floor],
            "more_than_imports": {name: round(m - base, 3) for name, m in medians.items()},
        },
        rounds.output,
    )


if __name__ == "__main__":
    sys.exit(main())
