"""Compare two commits: parameters after 3 steps of every registered training, bit for bit.

    python -m benchmarks.same_parameters --old 5186677 --new HEAD \
        --output results/same_parameters.json

Each commit is checked out and trains in one process at test size, including the trainings of
pipelines and studies. States are taken from the arguments and results of the compiled functions,
independently of where a commit has its loop. `--digests FOLDER` keeps a commit's results: an
interrupted comparison resumes, and a commit is not run again.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.results import flag, measurement, row
from benchmarks.worktrees import FIND, work_trees

CHANGED: dict[str, str] = {}
"""Trainings whose parameters are changed by a fixed bug at test size -> the bug."""

FAST = "--xla_backend_optimization_level=0"
"""As in the tests, for both commits; `--full` omits it."""

PROGRAM = """
import dataclasses, hashlib, importlib, json, sys, tempfile, traceback
from pathlib import Path
import jax
import numpy as np

STEPS = 3
compiled, states = jax.jit, {}

class Done(BaseException):
    "The state after the last step is known: the run can stop."

def note(tree):
    kind = lambda node: type(node).__name__ == "TrainState"
    for state in filter(kind, jax.tree.leaves(tree, is_leaf=kind)):
        if isinstance(state.step, jax.Array) and not isinstance(state.step, jax.core.Tracer):
            leaves = jax.tree_util.tree_leaves_with_path(state)
            found = {jax.tree_util.keystr(path): sha256(leaf) for path, leaf in leaves}
            states[min(int(state.step), STEPS)] = int(state.step), found
            if int(state.step) >= STEPS:
                raise Done

def sha256(leaf):
    array = np.asarray(leaf)
    head = f"{array.dtype} {array.shape} ".encode()
    return hashlib.sha256(head + array.tobytes()).hexdigest()

class Noted:
    "A jitted function, of whose arguments and results the states are noted."
    def __init__(self, function, **options):
        self.jitted = compiled(function, **options)
        self.__wrapped__ = function
    def __call__(self, *arguments, **keywords):
        note((arguments, keywords))
        results = self.jitted(*arguments, **keywords)
        note(results)
        return results
    def __getattr__(self, name):
        return getattr(self.jitted, name)

def noted(function=None, **options):
    return Noted(function, **options) if function else lambda f: Noted(f, **options)

jax.jit = noted

def trainings(name, experiment):
    "Every training of an experiment by its name: itself, or its parts."
    if hasattr(experiment, "optimizer"):
        yield name, experiment
        return
    for field in dataclasses.fields(experiment):
        part = getattr(experiment, field.name)
        if not hasattr(part, "optimizer"):
            continue
        if hasattr(experiment, "pooling"):  # a study of its kinds
            for kind in experiment.pooling:
                model = part.model.clone(pooling=kind)
                yield f"{name}/{kind}", dataclasses.replace(part, model=model)
        elif field.name == "naming":  # on the outputs of a layer
            transfer = type(part.transfer)(cache_after="features")
            yield f"{name}/naming", dataclasses.replace(part, transfer=transfer)
        else:
            yield f"{name}/{field.name}", part

def digests(training):
    "Per leaf, of the state before the first step and after the last."
    states.clear()
    with tempfile.TemporaryDirectory() as folder:
        try:
            run(training, Path(folder) / "run")
        except Done:
            pass
    if STEPS not in states:  # all its data are fewer steps
        return digests(dataclasses.replace(training, epochs=STEPS * training.epochs))
    return {"steps": states[STEPS][0], "before": states[0][1], "after": states[STEPS][1]}

known, *only = sys.argv[1:]
known = Path(known)
results = json.loads(known.read_text()) if known.exists() else {}
results = {name: found for name, found in results.items() if "error" not in found}
for name, entry in registry().items():
    experiment = entry.experiment()
    if only and name not in only or not callable(getattr(entry, "experiment", None)):
        continue
    for name, training in trainings(name, sized(experiment)):
        if name in results:
            continue
        try:
            results[name] = digests(training)
        except Exception:
            traceback.print_exc()
            results[name] = {"error": traceback.format_exc().splitlines()[-1]}
        known.write_text(json.dumps(results))
        print(name, flush=True)
        jax.clear_caches()
"""


@measurement(
    flag("--old", required=True, help="a commit"),
    flag("--new", default="HEAD", help="another; its files must be committed"),
    flag("--only", nargs="+", default=[], metavar="NAME", help="these experiments"),
    flag("--full", nargs="*", default=[], metavar="NAME", help="these compiled optimised, too"),
    flag("--digests", type=Path, help="where digests are kept; else nowhere"),
    what="parameters after 3 steps of every training at test size, at two commits",
    target="bit for bit the same, except where a mended fault changes them",
)
def main(options):
    folder = options.digests or Path(tempfile.mkdtemp())
    rows, figures = [], {}
    with work_trees(options.old, options.new) as trees:
        figures["old"], figures["new"] = trees
        for what, flags, only in (
            ("compiled as tests are", FAST, options.only),
            ("optimised", "", options.full),
        ):
            if what == "optimised" and not only:
                continue
            old, new = (
                digests(commit, tree, flags, only, folder.absolute())
                for commit, tree in trees.items()
            )
            found = {name: compared(old.get(name), new.get(name)) for name in sorted({*old, *new})}
            figures[what] = found
            same = [name for name, verdict in found.items() if verdict == SAME]
            wrong = [name for name in found if name not in same and name not in CHANGED]
            expected = [f"{name}: {CHANGED[name]}" for name in found if name in CHANGED]
            rows.append(
                row(
                    f"{len(found)} trainings at two commits, {what}: initial state, and the state "
                    "after 3 steps",
                    "bit for bit the same",
                    f"{len(same)} of {len(found)}" + "; ".join(["", *expected, *wrong]),
                    not wrong,
                )
            )
    if options.digests is None:
        shutil.rmtree(folder)
    return rows, figures


def digests(
    commit: str, tree: Path, flags: str, only: Sequence[str], folder: Path
) -> dict[str, Any]:
    """Digests of the states of a commit's trainings, which are run if they are not cached."""
    folder.mkdir(parents=True, exist_ok=True)
    known = folder / f"{commit[:12]}-{'fast' if flags else 'full'}.json"
    environment = {
        "XLA_FLAGS": flags,
        # Both compile the same programs, if they are the same.
        "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
    print(f"{commit[:12]}, XLA_FLAGS='{flags}'", flush=True)
    child = subprocess.Popen(
        [sys.executable, "-c", FIND + PROGRAM, str(known), *only],
        cwd=tree,
        env={**os.environ, "JAX_PLATFORMS": "cpu", **environment},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None
    for line in child.stdout:
        print(f"  {line.strip()}", flush=True)
    if child.wait():
        raise SystemExit(f"{commit}: the program failed with exit code {child.returncode}")
    found = json.loads(known.read_text())
    return {k: v for k, v in found.items() if not only or k.split("/")[0] in only}


SAME = "same"


def compared(old: Mapping[str, Any] | None, new: Mapping[str, Any] | None) -> str:
    """Return `same`, or the first difference: a missing config, an error, or a leaf."""
    if old is None or new is None:
        return f"only the {'new' if old is None else 'old'} commit has it"
    for which, found in (("old", old), ("new", new)):
        if "error" in found:
            return f"the {which} commit: {found['error']}"
    for when in ("before", "after"):
        if old[when] != new[when]:
            names = [n for n in old[when] | new[when] if old[when].get(n) != new[when].get(n)]
            training = "the first step" if when == "before" else "the last"
            return f"{len(names)} leaves differ {when} {training} step: {', '.join(names[:3])}"
    return SAME if old["steps"] == new["steps"] else f"{old['steps']} and {new['steps']} steps"


if __name__ == "__main__":
    sys.exit(main())
