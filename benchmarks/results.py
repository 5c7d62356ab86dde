"""How a measurement is written down, and what several of them need: digests of final states."""

from __future__ import annotations

import argparse
import datetime
import hashlib
import json
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cnn_research.core import run_folder as folders

ROOT = Path(__file__).resolve().parent.parent


def row(what: str, target: str, measured: str, met: bool) -> dict[str, Any]:
    """One line of the README's table, and whether the target was met."""
    return {"what": what, "target": target, "measured": measured, "met": bool(met)}


class Measurement:
    """Takes note of when a measurement began; writes its results file at the end."""

    def __init__(self, module: str, *, what: str, target: str, seeds: Sequence[int] = ()):
        self._started = time.monotonic()
        self._known = {
            "what": what,
            "target": target,
            "command": ["python", "-m", f"benchmarks.{module}", *sys.argv[1:]],
            "commit": commit(),
            "machine": folders.machine(),
            "versions": folders.versions(),
            "seeds": list(seeds),
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        }

    def finish(
        self, rows: Sequence[Mapping[str, Any]], figures: Mapping[str, Any], output: Path | None
    ) -> int:
        """Says the rows, writes the file if one is asked for, and returns the exit code.

        Args:
            rows: made by `row`.
            figures: JSON values: what was measured, in full.
            output: the results file, or None.

        Returns:
            0 if every target was met, else 1.
        """
        for line in rows:
            verdict = "met" if line["met"] else "MISSED"
            print(f"{line['what']}: {line['measured']} (target: {line['target']}): {verdict}")
        if output is not None:
            output.parent.mkdir(parents=True, exist_ok=True)
            folders.write_json(
                output,
                {
                    **self._known,
                    "wall_seconds": round(time.monotonic() - self._started, 1),
                    "figures": dict(figures),
                    "rows": [dict(line) for line in rows],
                },
            )
        return 0 if all(line["met"] for line in rows) else 1


def arguments(documentation: str | None) -> argparse.ArgumentParser:
    """A parser with the option that every measurement has, `--output`."""
    parser = argparse.ArgumentParser(description=(documentation or "").strip().split("\n")[0])
    parser.add_argument("--output", type=Path, help="the results file, as results/NAME.json")
    return parser


def commit() -> str:
    """The commit that is measured, with `-dirty` where files differ from it."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=40"]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip()


def last_checkpoint(workdir: Path) -> tuple[Any, Any, int]:
    """A run's experiment, the state of its newest good checkpoint, and that checkpoint's step.

    Restored as a run that goes on restores it, from the folder alone.
    """
    from cnn_research.core.distributed import data_mesh
    from cnn_research.train import checkpoint
    from cnn_research.train.trained import abstract_state, bound

    experiment = folders.saved_config(workdir)
    dataset = experiment.data.load()
    folder = workdir.absolute() / folders.CHECKPOINTS
    step = checkpoint.newest(folder)
    like = abstract_state(bound(experiment, dataset), dataset.image_shape, data_mesh())
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


def rows_of(workdir: Path, split: str) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl of one split, as written."""
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [found for found in map(json.loads, lines) if found["split"] == split]
