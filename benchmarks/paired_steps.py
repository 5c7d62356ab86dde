"""Time of a train step at two commits, measured in turns.

    python -m benchmarks.paired_steps --old 5186677 --new HEAD --output results/paired_steps.json

Each commit is checked out and trains with its own `launch.py` on noise of the size of its
experiment's images. The two take turns of a few seconds while the other sleeps, and the ratio is
taken within rounds. The loop around the step is included; evaluations and saves are not. Run it on
an idle machine; it takes about four minutes.
"""

from __future__ import annotations

import contextlib
import json
import sys
from typing import Any

from benchmarks.results import flag, measurement, row
from benchmarks.turns import Contender, ratios, rounds_of, spread
from benchmarks.worktrees import FIND, work_trees

NOISE = {
    "fashion_mnist_cnn": {"train": 12_800, "image_shape": (28, 28, 1), "classes": (10,)},
    "artworks_red1": {"train": 256, "image_shape": (244, 244, 3), "classes": (50,)},
}
"""Experiment -> data that replace its own."""
SLOWER = 0.03
"""Maximum relative slowdown of a step."""

PROGRAM = """
import dataclasses, json, os, runpy, tempfile, time
import jax

WARM_UP = 5
name, noise = sys.argv[1], json.loads(sys.argv[2])
noise = {field: tuple(v) if isinstance(v, list) else v for field, v in noise.items()}
Synthetic = first_of(
    "cnn_research.data.sources.synthetic:Synthetic", "cnn_research.data.sources:Synthetic"
)
register = first_of(
    "cnn_research.core.experiment:register", "cnn_research.experiment:register"
)

@register(data="noise")
def paired():
    "Never ends, and is never evaluated."
    experiment = registry()[name].experiment()
    data = Synthetic(validation=64, test=64, **noise)
    names = {field.name for field in dataclasses.fields(experiment)}
    every = {"eval_every_epochs", "evaluate_every"} & names  # by commit
    return dataclasses.replace(experiment, data=data, epochs=1e6, **dict.fromkeys(every, 1e6))

compiled = jax.jit
left, steps, started = WARM_UP, 0, 0.0

def answer_and_wait():
    "Tell the time of the steps that were asked for, and read how many are asked for next."
    global left, steps, started
    seconds = (time.perf_counter() - started) / max(steps, 1)
    print(json.dumps({"seconds": seconds}), flush=True)
    line = sys.stdin.readline()
    if not line:
        os._exit(0)
    left = steps = int(line)
    started = time.perf_counter()

class Timed:
    "A jitted function whose calls are counted where it is the train step."
    def __init__(self, function, **options):
        self.jitted = compiled(function, **options)
        self.__wrapped__ = function
    def __call__(self, *arguments, **keywords):
        global left
        results = self.jitted(*arguments, **keywords)
        if has_states(arguments):
            left -= 1
            if not left:
                jax.block_until_ready(results)
                answer_and_wait()
        return results
    def __getattr__(self, name):
        return getattr(self.jitted, name)

jax.jit = lambda function=None, **options: (
    Timed(function, **options) if function else lambda f: Timed(f, **options)
)
with tempfile.TemporaryDirectory() as folder:
    sys.argv = ["launch.py", "--experiment=paired", f"--workdir={folder}/run"]
    runpy.run_path("launch.py", run_name="__main__")
"""


@measurement(
    flag("--old", required=True, help="a commit"),
    flag("--new", default="HEAD", help="another; its files must be committed"),
    flag("--rounds", type=int, default=21),
    flag("--only", nargs="+", default=list(NOISE), choices=list(NOISE), metavar="NAME"),
    what="milliseconds a train step at two commits, in turns",
    target=f"at most {SLOWER:.0%} more",
)
def main(options):

    rows, figures = [], {}
    for name in options.only:
        found: dict[str, Any] = {}
        with work_trees(options.old, options.new) as trees, contextlib.ExitStack() as stack:
            contenders = {}
            for which, (commit, tree) in zip(("old", "new"), trees.items(), strict=True):
                found[f"{which} commit"] = commit
                words = ("-c", FIND + PROGRAM, name, json.dumps(NOISE[name]))
                contenders[which] = Contender(*words, folder=tree)
                stack.callback(contenders[which].close)
            times = rounds_of(contenders, options.rounds)
        ratio = ratios(times["new"], times["old"])
        found |= {"milliseconds": {which: spread(each) for which, each in times.items()}}
        figures[name] = found | {"new of old": ratio}
        rows.append(
            row(
                f"time of a train step of {name}, relative to an earlier commit, {options.rounds} "
                "pairs of turns",
                f"at most {1 + SLOWER:.2f}",
                f"{ratio['median']:.3f} ({ratio['min']:.2f} to {ratio['max']:.2f})",
                ratio["median"] <= 1 + SLOWER,
            )
        )
    return rows, figures


if __name__ == "__main__":
    sys.exit(main())
