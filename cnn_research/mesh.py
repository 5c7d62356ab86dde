"""Devices: one mesh with a data axis, the same code for one device, several, and processes."""

from __future__ import annotations

import contextlib
import functools
import os
import sys
from collections.abc import Iterator

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from cnn_research.errors import Interrupted, UsageError, UserError, one_line

SILENCE_SECONDS = 30
"""A process that has not been heard of for so long is gone, and the others end, too."""


@contextlib.contextmanager
def joined() -> Iterator[None]:
    """Under `srun` with several tasks, these are one program; otherwise nothing is changed.

    Before anything else asks JAX for devices. Where one of several processes fails, it ends here
    and at once with its exit code: the others would wait for it, and it for them.
    """
    # Of the step, which `srun` sets: the script that a job runs has only the job's.
    if int(os.environ.get("SLURM_STEP_NUM_TASKS", 1)) == 1:
        yield
        return
    jax.distributed.initialize(heartbeat_timeout_seconds=SILENCE_SECONDS)
    try:
        yield
    except Interrupted:
        raise  # all processes are stopped together
    except UserError as error:
        _end(error, error.exit_code)
    except jax.errors.JaxRuntimeError as error:
        _end(UserError(f"another process of this run has ended, or the network: {error}"), 1)


def _end(error: UserError, code: int) -> None:
    sys.stdout.flush()
    print(f"error: {one_line(error)}", file=sys.stderr, flush=True)
    os._exit(code)


def data_mesh() -> Mesh:
    """A mesh of all devices of all processes along the axis `data`."""
    return Mesh(np.array(jax.devices()), ("data",))


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device holds the whole array."""
    return NamedSharding(mesh, P())


def batch_sharded(mesh: Mesh) -> NamedSharding:
    """Every device holds its part of the first axis."""
    return NamedSharding(mesh, P("data"))


def check_divides(mesh: Mesh, batch_size: int) -> None:
    """Raises `UsageError` for a batch that cannot be split evenly over the devices."""
    devices = mesh.size
    if batch_size % devices:
        raise UsageError(
            f"--batch-size is {batch_size}, which {devices} devices cannot share evenly: "
            f"take a multiple of {devices}"
        )


def largest(value: int) -> jax.Array:
    """The largest of the processes' values, int32 `[]`, in every process.

    All must call it; it returns before it is computed.
    """
    mesh = data_mesh()
    values = jax.make_array_from_callback(
        (mesh.size,), batch_sharded(mesh), lambda part: np.full(1, value, np.int32)
    )
    return _maximum(mesh)(values)


@functools.cache
def _maximum(mesh: Mesh):
    return jax.jit(lambda values: values.max(), out_shardings=replicated(mesh))


def agreed(value: int | None) -> int | None:
    """The first process's value, in every process: what it read from the disk, all go by."""
    if jax.process_count() == 1:
        return value
    sent = np.int64(-1 if value is None else value)
    received = int(multihost_utils.broadcast_one_to_all(sent))
    return None if received < 0 else received
