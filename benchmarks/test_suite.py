"""Time and memory per worker of the README's test command.

    python -m benchmarks.test_suite --output results/test_suite.json
    python -m benchmarks.test_suite --slow

It runs in the current environment; the other cores should be idle.
"""

from __future__ import annotations

import re
import subprocess
import sys
import time

from benchmarks.results import ROOT, flag, measurement, row

MINUTES = 6
"""Maximum time of the README's test command on two cores."""
GIGABYTES = 1.5
"""Maximum resident memory of a worker."""
WORKER = re.compile(
    r"^(\w+): (\d+) s of processor time, at most ([\d.]+) GB resident; "
    r"what it started, ([\d.]+) GB",
    re.MULTILINE,
)
CLOSING = re.compile(r"^=* ?(\d+ (?:passed|failed).*?) in [\d.]+s", re.MULTILINE)


@measurement(
    flag("--slow", action="store_true", help="measure the tests that the command leaves out"),
    what="time and memory of the tests",
    target=f"within {MINUTES} minutes on two cores, and {GIGABYTES} GB resident a worker",
)
def main(options):
    selection = ["-m", "slow"] if options.slow else []
    started = time.monotonic()
    ended = subprocess.run(
        [sys.executable, "-m", "pytest", *selection], cwd=ROOT, capture_output=True, text=True
    )
    seconds = time.monotonic() - started
    workers = WORKER.findall(ended.stdout)
    counts = CLOSING.findall(ended.stdout)
    if not workers or not counts:
        raise RuntimeError(f"pytest ended with {ended.returncode}: {ended.stdout[-2000:]}")
    peak = max(float(resident) for *_, resident, _ in workers)
    name = "the slow tests" if options.slow else "the README's test command"
    passed = row(f"result of {name}", "all pass", counts[-1], ended.returncode == 0)
    rows = [
        passed,
        row(
            f"wall time of {name}",
            "no target" if options.slow else f"at most {MINUTES} min",
            f"{seconds / 60:.1f} min",
            options.slow or seconds <= 60 * MINUTES,
        ),
        row(
            f"resident memory of a worker, {name}",
            f"at most {GIGABYTES} GB",
            f"{peak:.2f} GB",
            peak <= GIGABYTES,
        ),
    ]
    figures = {
        "wall_seconds": round(seconds, 1),
        "processor_seconds": sum(int(taken) for _, taken, *_ in workers),
        "workers": {
            name: {"processor_seconds": int(taken), "gb": float(own), "gb_of_started": float(other)}
            for name, taken, own, other in workers
        },
    }
    return rows, figures


if __name__ == "__main__":
    sys.exit(main())
