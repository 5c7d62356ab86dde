"""Framework of the measurements: options, rows with targets, results files and processes."""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import functools
import hashlib
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from cnn_research.core import run_folder as folders

ROOT = Path(__file__).resolve().parent.parent

Row = dict[str, Any]
Measured = tuple[Sequence[Row], Mapping[str, Any]]
"""Rows, and all measured values (JSON)."""


def row(what: str, target: str, measured: str, met: bool) -> Row:
    """Make one line of the README's table; `met` is whether the target was met."""
    return {"what": what, "target": target, "measured": measured, "met": bool(met)}


def flag(*names: str, **options: Any) -> tuple[tuple[str, ...], dict[str, Any]]:
    """Make an option of a measurement from the arguments of `ArgumentParser.add_argument`."""
    return names, options


def measurement(
    *flags: tuple[tuple[str, ...], dict[str, Any]],
    what: str,
    target: str,
    seeds: Sequence[int] = (),
) -> Callable[[Callable[[argparse.Namespace], Measured]], Callable[[], int]]:
    """Decorate a function that measures, given the options; it becomes the program's `main`.

    The program prints the rows, writes the results file `--output`, if given, and exits with 0 if
    all targets were met, else 1.
    """

    def decorate(measure: Callable[[argparse.Namespace], Measured]) -> Callable[[], int]:
        @functools.wraps(measure)
        def main() -> int:
            documentation = measure.__globals__["__doc__"]
            parser = argparse.ArgumentParser(description=documentation.strip().split("\n")[0])
            parser.add_argument("--output", type=Path, help="the results file, results/NAME.json")
            for names, options in flags:
                parser.add_argument(*names, **options)
            chosen = parser.parse_args()
            surroundings = {"what": what, "target": target} | began(measure, seeds)
            started = time.monotonic()
            rows, figures = measure(chosen)
            for line in rows:
                verdict = "met" if line["met"] else "MISSED"
                print(f"{line['what']}: {line['measured']} (target: {line['target']}): {verdict}")
            if chosen.output is not None:
                seconds = round(time.monotonic() - started, 1)
                found = {"wall_seconds": seconds, "figures": dict(figures), "rows": list(rows)}
                chosen.output.parent.mkdir(parents=True, exist_ok=True)
                folders.write_json(chosen.output, surroundings | found)
            return 0 if all(line["met"] for line in rows) else 1

        return main

    return decorate


def began(function: Callable[..., Any], seeds: Sequence[int] = ()) -> dict[str, Any]:
    """Command, commit, machine, versions and date for a results file."""
    describe = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=40"]
    return {
        "command": ["python", "-m", _module(function), *sys.argv[1:]],
        "commit": subprocess.run(describe, capture_output=True, text=True).stdout.strip(),
        "machine": folders.machine(),
        "versions": folders.versions(),
        "seeds": list(seeds),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def _module(function: Callable[..., Any]) -> str:
    return f"benchmarks.{Path(function.__code__.co_filename).stem}"


# Processes ---------------------------------------------------------------------------------------


def python(
    *words: object,
    environment: Mapping[str, str] | None = None,
    interpreter: str = sys.executable,
) -> tuple[float, str]:
    """Run Python in the repository; return the seconds of the process, and its output.

    Raises:
        RuntimeError: it failed; the message has the end of its output.
    """
    started = time.monotonic()
    ended = subprocess.run(
        [interpreter, *map(str, words)],
        cwd=ROOT,
        env={**os.environ, **(environment or {})},
        stdin=subprocess.DEVNULL,  # so that a prompt would fail
        capture_output=True,
        text=True,
    )
    if ended.returncode:
        said = (ended.stdout + ended.stderr)[-2000:]
        raise RuntimeError(f"{words} ended with code {ended.returncode}: {said}")
    return time.monotonic() - started, ended.stdout


@dataclasses.dataclass(frozen=True)
class Watched:
    """Output and resources of a process."""

    lines: Sequence[tuple[float, str]]
    """Each line of both outputs, with the seconds since the start."""
    seconds: float
    gigabytes: float
    """Peak resident memory."""


def watched(*words: object, environment: Mapping[str, str] | None = None) -> Watched:
    """Run Python in the repository, like `python`, and record its output and resources."""
    started = time.monotonic()
    with subprocess.Popen(
        [sys.executable, *map(str, words)],
        cwd=ROOT,
        env={**os.environ, "PYTHONUNBUFFERED": "1", **(environment or {})},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        assert process.stdout is not None
        lines = [(time.monotonic() - started, line.rstrip("\n")) for line in process.stdout]
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        said = "\n".join(line for _, line in lines)[-2000:]
        raise RuntimeError(f"{words} ended with code {process.returncode}: {said}")
    return Watched(lines, time.monotonic() - started, peak_gigabytes(usage))


def peak_gigabytes(usage: resource.struct_rusage) -> float:
    """Peak resident memory, in 10^9 bytes."""
    return usage.ru_maxrss / (1e9 if sys.platform == "darwin" else 1e9 / 1024)


def launch(experiment: str, workdir: Path, *words: object) -> float:
    """Train in a folder, as from a terminal; return the seconds."""
    return python("launch.py", f"--experiment={experiment}", f"--workdir={workdir}", *words)[0]


def in_process(
    function: Callable[..., Any],
    *arguments: Any,
    environment: Mapping[str, str] | None = None,
    interpreter: str = sys.executable,
) -> Any:
    """Run a benchmark's function in its own process; arguments and result are JSON values.

    Raises:
        RuntimeError: it failed.
    """
    code = (
        f"import json, sys; from {_module(function)} import {function.__name__} as function; "
        "print('\\n' + json.dumps(function(*json.loads(sys.argv[1]))))"
    )
    words = ("-c", code, json.dumps(arguments))
    _, said = python(*words, environment=environment, interpreter=interpreter)
    return json.loads(said.splitlines()[-1])


# Runs --------------------------------------------------------------------------------------------


def last_checkpoint(workdir: Path) -> tuple[Any, Any, int]:
    """Load a run's experiment, the state of its latest valid checkpoint, and its step.

    It is restored like a run that resumes, from the folder alone.
    """
    from cnn_research.core.distributed import data_mesh
    from cnn_research.train import checkpoint
    from cnn_research.train.state import abstract_state
    from cnn_research.train.trained import bind_to_dataset

    experiment = folders.saved_config(workdir)
    dataset = experiment.data.load()
    folder = workdir.absolute() / folders.CHECKPOINTS
    step = checkpoint.newest(folder)
    like = abstract_state(bind_to_dataset(experiment, dataset), dataset.image_shape, data_mesh())
    return experiment, checkpoint.restore(folder, step, like)[0], step


def digest(tree: Any) -> str:
    """SHA-256 over the path, type, shape and bytes of every leaf."""
    import jax
    import numpy as np

    total = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        array = np.asarray(leaf)
        total.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}\n".encode())
        total.update(array.tobytes())
    return total.hexdigest()


def apart(tree: Any, other: Any) -> float:
    """Largest difference between the numbers of two trees of arrays."""
    import jax
    import numpy as np

    differences = jax.tree.map(
        lambda a, b: float(np.abs(np.asarray(a) - np.asarray(b)).max()), tree, other
    )
    return max(jax.tree.leaves(differences))


def rows_of(workdir: Path, split: str) -> list[dict[str, Any]]:
    """Rows of one split in metrics.jsonl, as written."""
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [found for found in map(json.loads, lines) if found["split"] == split]
