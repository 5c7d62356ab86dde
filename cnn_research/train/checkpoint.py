"""Checkpoints written with Orbax, each with a list of checksums.

Orbax detects truncated checkpoints, but silently restores one with a flipped byte. A list of the
SHA-256 checksums of all files is therefore written when a checkpoint is complete, and only
checkpoints that match their list are restored.
"""

from __future__ import annotations

import contextlib
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
from cnn_research.core.files import free_bytes, sha256_of, write_text
from cnn_research.core.metrics import Direction
from cnn_research.train.state import TrainState

CHECKSUMS = "checksums.json"
METADATA_BYTES = 2**18
"""Maximum size of a checkpoint without its arrays."""


@dataclasses.dataclass
class _Best(policies.PreservationPolicy):
    """Keep the best checkpoint by a validation metric, the first if several are equal.

    Reads the metrics saved with each checkpoint. Orbax's own policy knows only the metrics of this
    process and would delete the best checkpoint of a resumed run.
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
    """The latest and best checkpoints of a run; a context manager that waits for saves on exit."""

    def __init__(self, folder: Path, *, keep: int, best: tuple[str, Direction] | None):
        """Open an absolute folder; keep the latest `keep` checkpoints, and the best by a metric and
        its direction."""
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
        """Return a path of the folder without special characters of glob patterns: Orbax globs for
        its files, finds none in `run [1]`, and then writes a checkpoint without arrays."""
        if glob.escape(str(self.folder)) == str(self.folder):
            return self.folder
        self.folder.mkdir(parents=True, exist_ok=True)
        link = Path(self._link.name) / self.folder.name
        try:
            link.symlink_to(self.folder)
        except OSError as error:  # Windows requires a privilege
            raise UserError(
                f"{self.folder} has brackets in its name, and a link with another name cannot be "
                f"created ({error.strerror}): use a --workdir without brackets"
            ) from None
        return link

    def save(
        self, state: TrainState, host: Mapping[str, Any], metrics: Mapping[str, float] | None
    ) -> None:
        """Start to save a state; its buffers may be donated directly afterwards.

        `host` has JSON values of the run, `metrics` the validation metrics, if measured. Raises
        `UserError` if this or an earlier save failed.
        """
        self.wait()
        step, validation = int(state.step), dict(metrics or {})
        if step in self._manager.all_steps():
            if metrics is None:
                return
            # Saved when a signal stopped its evaluation; replaced by the same state with metrics.
            self._manager.delete(step)
        needed = METADATA_BYTES + sum(leaf.nbytes for leaf in jax.tree.leaves(state))
        if free_bytes(self.folder) < needed:
            # Checked in advance, as Orbax's threads would print tracebacks.
            raise _save_error(OSError("No space left on device"), self.folder, step)
        # Training continues during the save and overwrites its donated buffers.
        snapshot = jax.tree.map(jnp.copy, state)
        try:
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(snapshot),
                    host=ocp.args.JsonSave({"run": dict(host), "validation": validation}),
                ),
            )
        except Exception as error:
            raise _save_error(error, self.folder, step) from error
        self._saving = self._thread.submit(self._finish, step)

    def wait(self) -> None:
        """Wait until everything is written; raise `UserError` if a save failed."""
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
        except UserError:
            kind = UserError
            raise
        finally:
            # A save that failed does so here once more, and would hide the error that says why.
            with contextlib.suppress(Exception) if kind else contextlib.nullcontext():
                self._manager.close()
            self._thread.shutdown()
            self._link.cleanup()


def newest(*folders: Path, repair: bool = False) -> int | None:
    """Find the latest step with a valid checkpoint in each folder; None if there is none.

    Runs that are trained together have one folder each, and may not all have saved a step. With
    `repair`, skipped checkpoints are moved aside so that their steps can be saved again; only the
    process that writes to the folders may do so, before it opens them.
    """
    for step in sorted({step for folder in folders for step in steps_in(folder)}, reverse=True):
        faults = {folder / str(step): damage(folder / str(step)) for folder in folders}
        if not any(faults.values()):
            return step
        for path, fault in faults.items():
            if not path.exists():
                continue
            reason = fault or "runs that are trained with it have no checkpoint of this step"
            logging.warning("Checkpoint %s is skipped: %s.", path, reason)
            if repair:
                aside = path.parent.parent / "damaged_checkpoints" / path.name
                shutil.rmtree(aside, ignore_errors=True)
                aside.parent.mkdir(exist_ok=True)
                os.replace(path, aside)
    return None


def best(folder: Path, metric: str, direction: metrics.Direction) -> int | None:
    """Find the first valid checkpoint with the best validation metric; return its step or None."""
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
    """Restore the state and the host's values of a valid checkpoint.

    `like` is a state of the same shapes, with arrays or with `jax.ShapeDtypeStruct` and shardings.
    Raises `UserError` if the checkpoint does not fit the model.
    """
    folder = folder.absolute()  # Orbax requires it
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
    # Orbax's reader may share its buffers; donated buffers must not be shared.
    return jax.tree.map(jnp.copy, restored["state"]), restored["host"]["run"]


def steps_in(folder: Path) -> list[int]:
    """List the steps that have a folder, complete or not."""
    if not folder.is_dir():
        return []
    return [int(path.name) for path in folder.iterdir() if path.name.isdigit()]


def write_checksums(checkpoint: Path) -> None:
    """Write the list of checksums, which marks a checkpoint as complete."""
    sums = {
        file.relative_to(checkpoint).as_posix(): sha256_of(file)
        for file in sorted(checkpoint.rglob("*"))
        if file.is_file() and file.name != CHECKSUMS
    }
    write_text(checkpoint / CHECKSUMS, json.dumps(sums, indent=1))


def damage(checkpoint: Path) -> str | None:
    """Describe the damage of a checkpoint; None if it is valid."""
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
        reason = "the disk is full; free some space"
    return UserError(
        f"checkpoint of step {step} could not be saved in {folder}: {reason}; earlier checkpoints "
        "are kept, and the same command resumes from the latest"
    )
