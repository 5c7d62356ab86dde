"""Checkpoints through Orbax, each with a checksum list without which it does not count.

Orbax notices a checkpoint that was cut short, and restores one with a flipped byte without a word.
So a list of every file's SHA-256 is written once a checkpoint is complete, and only a checkpoint
that agrees with its list is restored.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import shutil
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from absl import logging
from orbax.checkpoint import checkpoint_managers as policies

from cnn_research.core import metrics
from cnn_research.core.errors import UserError
from cnn_research.core.metrics import Direction
from cnn_research.core.run_folder import sha256_of
from cnn_research.train.state import TrainState

CHECKSUMS = "checksums.json"


@dataclasses.dataclass
class _Best(policies.PreservationPolicy):
    """Keeps the first of the best checkpoints by a validation metric.

    It reads what was saved with each. Orbax's own policy knows the metrics of this process only,
    and would delete the best of a run that goes on.
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
    """The checkpoints of one run: the newest few, and the best by a validation metric.

    A context manager; leaving it waits for the last save.
    """

    def __init__(self, folder: Path, *, keep: int, best: tuple[str, Direction] | None):
        """Opens the folder, making it if absent.

        Args:
            folder: absolute.
            keep: how many of the newest stay.
            best: (metric, its direction) of the one that stays besides; None if no metric is
                measured.
        """
        kept: list[policies.PreservationPolicy] = [policies.LatestN(keep)]
        if best:
            kept.append(_Best(folder, *best))
        self.folder = folder
        self._writing: threading.Thread | None = None
        self._failure: Exception | None = None
        self._manager = ocp.CheckpointManager(
            folder,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=policies.AnyPreservationPolicy(kept),
                cleanup_tmp_directories=True,
            ),
        )

    def save(
        self, state: TrainState, host: Mapping[str, Any], metrics: Mapping[str, float] | None
    ) -> None:
        """Starts to save; returns before all is written.

        Args:
            state: of the run; its buffers may be donated right after.
            host: JSON values that the run's decisions depend on.
            metrics: of the validation split at this step, where they were measured.

        Raises:
            UserError: this or an earlier save failed.
        """
        self.wait()
        step, figures = int(state.step), dict(metrics or {})
        if step in self._manager.all_steps():
            if metrics is None:
                return
            # Saved when a signal stopped its evaluation; the same state, now with figures.
            self._manager.delete(step)
        # The run goes on while this is written, and its donated buffers are written over.
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
        self._writing = threading.Thread(target=self._finish, args=(step,))
        self._writing.start()

    def wait(self) -> None:
        """Returns when all is written.

        Raises:
            UserError: it could not be.
        """
        if self._writing is not None:
            self._writing.join()
            self._writing = None
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure

    def _finish(self, step: int) -> None:
        try:
            self._manager.wait_until_finished()
            if jax.process_index() == 0:
                write_checksums(self.folder / str(step))
        except Exception as error:
            self._failure = _save_error(error, self.folder, step)

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, kind, error, traceback) -> None:
        try:
            self.wait()
        finally:
            self._manager.close()


def newest_of_all(folders: Sequence[Path], *, repair: bool = False) -> int | None:
    """The newest step with a good checkpoint in each of the folders, or None.

    Args:
        folders: of runs that are trained at once; one was perhaps saved and another not.
        repair: as in `newest`; later checkpoints do not count, either.
    """
    latest: float = math.inf
    while True:
        found = [newest(folder, repair=repair, latest=latest) for folder in folders]
        steps = [-1 if step is None else step for step in found]
        if min(steps) == max(steps):
            return found[0]
        latest = min(steps)


def newest(folder: Path, *, repair: bool = False, latest: float = math.inf) -> int | None:
    """The step of the newest good checkpoint, or None; a damaged one is named and skipped.

    Args:
        folder: of the run's checkpoints.
        repair: set what does not count aside, so that its step can be saved again: for the
            process that writes to the folder, before it opens it.
        latest: the last step that counts.
    """
    for step in sorted(steps_in(folder), reverse=True):
        fault = damage(folder / str(step))
        if step > latest:
            fault = "the runs that it was trained with have none of this step"
        if fault is None:
            return step
        logging.warning("Checkpoint %s is skipped: %s.", folder / str(step), fault)
        if repair:
            aside = folder.parent / "damaged_checkpoints" / str(step)
            shutil.rmtree(aside, ignore_errors=True)
            aside.parent.mkdir(exist_ok=True)
            os.replace(folder / str(step), aside)
    return None


def best(folder: Path, metric: str, direction: metrics.Direction) -> int | None:
    """The step of the good checkpoint with the best validation metric, or None.

    Args:
        folder: of the run's checkpoints.
        metric: its name.
        direction: which end of it is better.
    """
    found: tuple[int, float] | None = None
    for step in sorted(steps_in(folder)):
        value = _validation(folder / str(step)).get(metric)
        if value is not None and metrics.is_better(
            value, None if found is None else found[1], direction
        ):
            fault = damage(folder / str(step))
            if fault is None:
                found = (step, value)
            else:
                logging.warning("Checkpoint %s is skipped: %s.", folder / str(step), fault)
    return None if found is None else found[0]


def restore(folder: Path, step: int, like: TrainState) -> tuple[TrainState, dict[str, Any]]:
    """The state and the host's values of one checkpoint.

    Args:
        folder: of checkpoints.
        step: of a good one.
        like: a state of the same shapes, as arrays or as `jax.ShapeDtypeStruct` with shardings.

    Raises:
        UserError: the checkpoint does not fit the model.
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
    """Writes the list that makes a complete checkpoint count."""
    sums = {
        str(file.relative_to(checkpoint)): sha256_of(file)
        for file in sorted(checkpoint.rglob("*"))
        if file.is_file() and file.name != CHECKSUMS
    }
    temporary = checkpoint / f"{CHECKSUMS}.tmp"
    with temporary.open("w") as out:
        json.dump(sums, out, indent=1)
        out.flush()
        os.fsync(out.fileno())
    os.replace(temporary, checkpoint / CHECKSUMS)


def damage(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint, or None."""
    try:
        sums = json.loads((checkpoint / CHECKSUMS).read_text())
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
    """The validation metrics that were saved with a checkpoint; empty if it has none."""
    try:
        return json.loads((checkpoint / "host" / "metadata").read_text())["validation"]
    except (OSError, ValueError, KeyError):
        return {}


def _save_error(error: Exception, folder: Path, step: int) -> UserError:
    reason = "the disk is full" if _disk_full(error) else str(error).strip().split("\n")[0]
    return UserError(
        f"checkpoint of step {step} could not be saved in {folder}: {reason}; earlier checkpoints "
        "are kept, and the same command goes on from the newest"
    )


def _disk_full(error: Exception) -> bool:
    text = str(error)
    return "RESOURCE_EXHAUSTED" in text or "No space left" in text or "ENOSPC" in text
