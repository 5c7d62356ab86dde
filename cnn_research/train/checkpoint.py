"""Checkpoints through Orbax, each with a checksum list without which it does not count.

Orbax notices a checkpoint that was cut short, and restores one with a flipped byte without a word.
So a list of every file's SHA-256 is written once a checkpoint is complete, and only a checkpoint
that agrees with its list is restored.
"""

from __future__ import annotations

import dataclasses
import glob
import json
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from absl import logging
from orbax.checkpoint import checkpoint_managers as policies

from cnn_research.core import metrics
from cnn_research.core.distributed import is_out_of_memory
from cnn_research.core.errors import UserError, out_of_memory
from cnn_research.core.files import sha256_of, write_text
from cnn_research.core.metrics import Direction
from cnn_research.train.state import TrainState

CHECKSUMS = "checksums.json"


@dataclasses.dataclass
class _Best(policies.PreservationPolicy):
    """Keep the first of the best checkpoints by a validation metric.

    It reads the metrics saved with each. Orbax's own policy knows the metrics of this process only,
    and would delete the best of a run that resumes.
    """

    folder: Path
    metric: str
    direction: Direction

    def should_preserve(
        self,
        checkpoints: Sequence[policies.PolicyCheckpointInfo],
        *,
        context: policies.PreservationContext,
    ) -> list[bool]:
        values = [
            _validation(self.folder / str(each.step)).get(self.metric) for each in checkpoints
        ]
        known = [value for value in values if value is not None]
        first = values.index(metrics.best(known, self.direction)) if known else None
        return [index == first for index in range(len(values))]


class Checkpoints:
    """Context manager of a run's checkpoints: the newest few, and the best; leaving it waits for
    saves."""

    def __init__(self, folder: Path, *, keep: int, best: tuple[str, Direction] | None):
        """Open an absolute folder; the newest `keep` stay, and the best by a metric and its
        direction."""
        preserved: list[policies.PreservationPolicy] = [policies.LatestN(keep)]
        if best:
            preserved.append(_Best(folder, *best))
        self.folder = folder
        self._thread = ThreadPoolExecutor(1)
        self._saving: Future[None] | None = None
        self._link = tempfile.TemporaryDirectory()
        self._manager = ocp.CheckpointManager(
            self._without_patterns(),
            options=ocp.CheckpointManagerOptions(
                preservation_policy=policies.AnyPreservationPolicy(preserved),
                cleanup_tmp_directories=True,
            ),
        )

    def _without_patterns(self) -> Path:
        """A path of the folder that is no pattern: Orbax looks for its files by one, finds none
        below `run [1]`, and then writes a checkpoint without any array."""
        if glob.escape(str(self.folder)) == str(self.folder):
            return self.folder
        self.folder.mkdir(parents=True, exist_ok=True)
        link = Path(self._link.name) / self.folder.name
        link.symlink_to(self.folder)
        return link

    def save(
        self, state: TrainState, host: Mapping[str, Any], metrics: Mapping[str, float] | None
    ) -> None:
        """Start to save a state, whose buffers may be donated right after.

        `host` has the JSON values of the run's decisions, `metrics` those of validation, where
        measured. Raises `UserError` if this or an earlier save failed.
        """
        self.wait()
        step, figures = int(state.step), dict(metrics or {})
        if step in self._manager.all_steps():
            if metrics is None:
                return
            # Saved when a signal stopped its evaluation; the same state, now with figures.
            self._manager.delete(step)
        # The run continues while this is written, and its donated buffers are written over.
        snapshot = jax.tree.map(jnp.copy, state)
        try:
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(snapshot),
                    host=ocp.args.JsonSave({"run": dict(host), "validation": figures}),
                ),
            )
        except Exception as error:
            raise _save_error(error, self.folder, step) from error
        self._saving = self._thread.submit(self._finish, step)

    def wait(self) -> None:
        """Wait until all is written; raise `UserError` if it could not be."""
        saving, self._saving = self._saving, None
        if saving is not None:
            saving.result()

    def _finish(self, step: int) -> None:
        try:
            self._manager.wait_until_finished()
            if jax.process_index() == 0:
                write_checksums(self.folder / str(step))
        except Exception as error:
            raise _save_error(error, self.folder, step) from error

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, kind, error, traceback) -> None:
        try:
            self.wait()
        finally:
            self._manager.close()
            self._thread.shutdown()
            self._link.cleanup()


def newest(*folders: Path, repair: bool = False) -> int | None:
    """Newest step of which each folder has a good checkpoint, or None; others are skipped.

    Runs that are trained at once have a folder each: one was perhaps saved and another not.
    `repair` sets skipped checkpoints aside, so that their steps can be saved again: for the process
    that writes to the folders, before it opens them.
    """
    for step in sorted({step for folder in folders for step in steps_in(folder)}, reverse=True):
        faults = {folder / str(step): damage(folder / str(step)) for folder in folders}
        if not any(faults.values()):
            return step
        for path, fault in faults.items():
            if not path.exists():
                continue
            reason = fault or "the runs that it was trained with have none of this step"
            logging.warning("Checkpoint %s is skipped: %s.", path, reason)
            if repair:
                aside = path.parent.parent / "damaged_checkpoints" / path.name
                shutil.rmtree(aside, ignore_errors=True)
                aside.parent.mkdir(exist_ok=True)
                os.replace(path, aside)
    return None


def best(folder: Path, metric: str, direction: metrics.Direction) -> int | None:
    """The step of the first good checkpoint with the best validation metric, or None."""
    best_step: int | None = None
    best_value: float | None = None
    for step in sorted(steps_in(folder)):
        path = folder / str(step)
        value = _validation(path).get(metric)
        if value is None or not metrics.is_better(value, best_value, direction):
            continue
        if fault := damage(path):
            logging.warning("Checkpoint %s is skipped: %s.", path, fault)
        else:
            best_step, best_value = step, value
    return best_step


def restore(folder: Path, step: int, like: TrainState) -> tuple[TrainState, dict[str, Any]]:
    """The state and the host's values of one good checkpoint.

    `like` is a state of the same shapes, as arrays or as `jax.ShapeDtypeStruct` with shardings.
    Raises `UserError` for a checkpoint that does not fit the model.
    """
    folder = folder.absolute()  # as Orbax insists
    path = folder / str(step)
    with ocp.CheckpointManager(folder, options=ocp.CheckpointManagerOptions(create=False)) as m:
        try:
            restored = m.restore(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardRestore(like), host=ocp.args.JsonRestore()
                ),
            )
        except (ValueError, KeyError, FileNotFoundError) as error:
            reason = str(error).strip().split("\n")[0]
            raise UserError(f"checkpoint {path} does not fit this model: {reason}") from error
    # Orbax's buffers may be shared with its own reader; donation needs buffers of our own.
    return jax.tree.map(jnp.copy, restored["state"]), restored["host"]["run"]


def steps_in(folder: Path) -> list[int]:
    """The steps that have a folder, complete or not."""
    if not folder.is_dir():
        return []
    return [int(path.name) for path in folder.iterdir() if path.name.isdigit()]


def write_checksums(checkpoint: Path) -> None:
    """Write the list that makes a complete checkpoint count."""
    sums = {
        file.relative_to(checkpoint).as_posix(): sha256_of(file)
        for file in sorted(checkpoint.rglob("*"))
        if file.is_file() and file.name != CHECKSUMS
    }
    write_text(checkpoint / CHECKSUMS, json.dumps(sums, indent=1))


def damage(checkpoint: Path) -> str | None:
    """Describe the damage of a checkpoint; None if it is good."""
    try:
        sums = json.loads((checkpoint / CHECKSUMS).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return "it is incomplete (the run was stopped while saving it)"
    except ValueError:
        return f"its {CHECKSUMS} is damaged"
    for name, expected in sums.items():
        file = checkpoint / name
        if not file.is_file():
            return f"its file {name} is missing"
        if sha256_of(file) != expected:
            return f"its file {name} is damaged (its checksum differs)"
    return None


def _validation(checkpoint: Path) -> dict[str, float]:
    """Validation metrics saved with a checkpoint; empty if it has none."""
    try:
        return json.loads((checkpoint / "host" / "metadata").read_text(encoding="utf-8"))[
            "validation"
        ]
    except (OSError, ValueError, KeyError):
        return {}


def _save_error(error: Exception, folder: Path, step: int) -> UserError:
    reason = str(error).strip().split("\n")[0]
    if is_out_of_memory(error):
        return out_of_memory(reason)
    if any(sign in str(error) for sign in ("RESOURCE_EXHAUSTED", "No space left", "ENOSPC")):
        reason = "the disk is full, so free some space"
    return UserError(
        f"checkpoint of step {step} could not be saved in {folder}: {reason}; earlier checkpoints "
        "are kept, and the same command resumes from the newest"
    )
