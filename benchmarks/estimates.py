"""What is said before a run, against what happens: time and peak memory.

    python -m benchmarks.estimates --output results/estimates.json

Every registered training at test size, and some at full size for a part of their epochs, each in a
process of its own, on a machine that has nothing else to do. Fashion-MNIST, the paintings and the
products have to be prepared.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from typing import Any

from benchmarks.results import ROOT, Measurement, arguments, row
from cnn_research.core.experiment import registry
from cnn_research.train.config import Training

FULL_SIZE = {
    "digits_cnn": 1.0,
    "fashion_mnist_mlp": 1.0,
    "fashion_mnist_cnn": 0.2,
    "artworks_red1": 0.05,
    "products_t3": 0.1,
}
"""Which are run at full size, for what share of their epochs: where images are read from a file
as they are needed, one epoch, after which all are in memory."""
TIME, MEMORY = 0.5, 0.3
"""How far off an estimate may be, as a share of what happened."""
CHILD = """
import dataclasses, json, resource, sys, time
from cnn_research import runner
from cnn_research.cli.run import run
from cnn_research.core.experiment import lookup
from tests.sizes import scaled_down
name, share, workdir = sys.argv[1], float(sys.argv[2]), sys.argv[3]
experiment = lookup(name).experiment()
if share:
    experiment = dataclasses.replace(experiment, epochs=share * experiment.epochs)
else:
    experiment = scaled_down(experiment)
estimate, said = runner.estimate, {}
def told(*arguments):
    found = estimate(*arguments)
    said.update(dataclasses.asdict(found), at=time.monotonic())
    return found
runner.estimate = told
run(experiment, workdir)
took = time.monotonic() - said.pop("at")
unit = 1 if sys.platform == "darwin" else 1024
peak = unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps({"said": said, "seconds": took, "memory": peak}))
"""


def main() -> int:
    parser = arguments(__doc__)
    options = parser.parse_args()
    measurement = Measurement(
        "estimates",
        what="time and peak memory said before a run, against what it took",
        target="time within 50 %, memory within 30 %",
    )
    names = [n for n, entry in registry().items() if isinstance(entry.experiment(), Training)]
    small = {name: measured(name, 0.0) for name in names}
    full = {name: measured(name, share) for name, share in FULL_SIZE.items()}
    rows = []
    for what, found in (
        (f"each of {len(small)} registered trainings at test size", small),
        (f"at full size: {', '.join(full)}", full),
    ):
        for quantity, limit in (("seconds", TIME), ("memory", MEMORY)):
            off = {name: error(values, quantity) for name, values in found.items()}
            worst = max(off, key=lambda name: abs(off[name]))
            within = sum(abs(value) <= limit for value in off.values())
            rows.append(
                row(
                    f"{'time' if quantity == 'seconds' else 'peak memory'} said before a run "
                    f"against what it took, {what}",
                    f"within {limit:.0%}",
                    f"{within} of {len(off)}; the farthest {off[worst]:+.0%} ({worst})",
                    within == len(off),
                )
            )
    return measurement.finish(rows, {"test size": small, "full size": full}, options.output)


def measured(name: str, share: float) -> dict[str, Any]:
    """What a run in a process of its own said, and what it took; a share of 0: at test size."""
    with tempfile.TemporaryDirectory() as folder:
        ended = subprocess.run(
            [sys.executable, "-c", CHILD, name, str(share), f"{folder}/run"],
            cwd=ROOT,
            check=True,
            capture_output=True,
            text=True,
        )
    found = json.loads(ended.stdout.splitlines()[-1])
    print(name, *(f"{q}: {error(found, q):+.0%}" for q in ("seconds", "memory")), flush=True)
    return found


def error(found: Mapping[str, Any], quantity: str) -> float:
    """How far what was said is from what happened, as a share of that."""
    return (found["said"][quantity] - found[quantity]) / found[quantity]


if __name__ == "__main__":
    sys.exit(main())
