"""Devices: one mesh with a data axis, the same code for one device, several, and processes."""

from __future__ import annotations

import contextlib
import functools
import math
import os
import traceback
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from cnn_research.core.errors import (
    Interrupted,
    UsageError,
    UserError,
    install_command,
    one_line,
    out_of_memory,
    print_error,
)

MIN_SHARD_SIZE = 2**14
"""Size of an array below which sharding it gains nothing."""

# Of a SLURM step, which `srun` sets: the script that a job runs has only the job's.
DETECTED = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE")
"""Variables with the number of processes, for launchers that JAX supports."""
TPU_HOSTS = ("TPU_PROCESS_ADDRESSES", "TPU_WORKER_HOSTNAMES")
"""Variables with the hosts of a slice of Cloud TPUs, separated by commas."""
UNDETECTED = ("PMI_SIZE", "WORLD_SIZE")
"""Variables with the number of processes of MPICH and torchrun, which JAX does not support."""

EXTRAS = {"cuda": "cuda", "gpu": "cuda", "tpu": "tpu"}
"""What to install for a platform of JAX, as an extra of this project."""

HEARTBEAT_TIMEOUT_SECONDS = 30
"""If a process is silent for this long, the others end, too."""


@contextlib.contextmanager
def initialize_distributed() -> Iterator[None]:
    """Connect the processes that a launcher started, and start JAX's devices.

    To be entered before anything else uses JAX's devices. If one of several processes fails, it
    exits here at once: otherwise they would wait for each other. Raises `UsageError` if they cannot
    find each other, `UserError` if there are no devices.
    """
    options = launch_options()
    if options is None:
        start_devices()
        yield
        return
    try:
        jax.distributed.initialize(heartbeat_timeout_seconds=HEARTBEAT_TIMEOUT_SECONDS, **options)
    except ValueError as error:
        raise UsageError(
            f"JAX cannot connect the processes ({error}): set JAX_COORDINATOR_ADDRESS, "
            "JAX_NUM_PROCESSES and JAX_PROCESS_ID in each"
        ) from None
    try:
        start_devices()
        yield
    except Interrupted:
        raise  # all processes are stopped together
    except UserError as error:
        os._exit(print_error(error))
    except (OSError, jax.errors.JaxRuntimeError) as error:
        failed = f"this process, or one that it waits for, failed ({error})"
        advice = "the same command resumes from the newest checkpoint"
        os._exit(print_error(UserError(f"{failed}: {advice}")))
    except Exception:
        traceback.print_exc()
        os._exit(1)


def start_devices() -> None:
    """Start JAX's devices; a `UserError` if there is none of the requested platform."""
    try:
        jax.devices()
    except Exception as error:  # whatever a driver may do; without a plugin, a bare assertion
        reason = one_line(error).partition(" (set JAX_PLATFORMS")[0]
        reason = f" ({reason[:200]})" if reason else ""
        asked = os.environ.get("JAX_PLATFORMS")
        if not asked:
            raise UserError(f"JAX finds no device{reason}: check the installation") from error
        extra = EXTRAS.get(asked)
        advice = install_command(extra) if extra else "name cpu, cuda or tpu"
        raise UserError(
            f"JAX_PLATFORMS is '{asked}', but JAX finds no such device{reason}: {advice}, or unset "
            "it to use what there is"
        ) from error


@contextlib.contextmanager
def device_errors() -> Iterator[None]:
    """Raise `UserError` if there are no devices, or if they run out of memory inside."""
    start_devices()
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if not is_out_of_memory(error):
            raise
        advice = ["give JAX more of the GPU with XLA_PYTHON_CLIENT_MEM_FRACTION=0.95"]
        on_gpu = jax.default_backend() == "gpu"
        raise out_of_memory(str(error).strip().split("\n")[0], *advice * on_gpu) from error


def is_out_of_memory(error: Exception) -> bool:
    """Return whether a device had no memory left; a full disk is RESOURCE_EXHAUSTED, too."""
    return "RESOURCE_EXHAUSTED" in str(error) and "out of memory" in str(error).lower()


def launch_options() -> dict[str, Any] | None:
    """The arguments of `jax.distributed.initialize`, from the environment; None for one process.

    JAX's own variables take precedence. JAX finds the processes of SLURM, Open MPI and Cloud TPUs
    itself. A `UsageError` for launchers that it does not support.
    """
    names = ("JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
    explicit = {name: os.environ[name] for name in names if name in os.environ}
    for name, value in explicit.items():
        if not value.isdecimal():
            raise UsageError(f"{name} is '{value}': must be a whole number")
    if "JAX_COORDINATOR_ADDRESS" in os.environ or explicit:
        return {name.removeprefix("JAX_").lower(): int(value) for name, value in explicit.items()}
    if any(int(os.environ.get(name, 1)) > 1 for name in DETECTED) or any(
        "," in os.environ.get(name, "") for name in TPU_HOSTS
    ):
        return {}
    for name in UNDETECTED:
        if (count := os.environ.get(name, "1")) not in ("", "1"):
            raise UsageError(
                f"this is one of {count} processes ({name}), which JAX cannot connect on its own: "
                "set JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID in each"
            )
    return None


def data_mesh() -> Mesh:
    """A mesh of all devices of all processes along the axis `data`."""
    return Mesh(np.array(jax.devices()), ("data",))


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, P())


def batch_sharded(mesh: Mesh) -> NamedSharding:
    """Each device holds its part of the first axis."""
    return NamedSharding(mesh, P("data"))


def state_shardings(mesh: Mesh, state: Any, *, sharded: bool) -> Any:
    """Sharding of each array of a tree, or of anything with a shape.

    With `sharded`, arrays of `MIN_SHARD_SIZE` numbers or more are divided among the devices, along
    the largest axis that their number divides; every other array is replicated.
    """

    def of(leaf: Any) -> NamedSharding:
        axes = [axis for axis, size in enumerate(leaf.shape) if size % mesh.size == 0]
        if not (sharded and axes) or math.prod(leaf.shape) < MIN_SHARD_SIZE:
            return replicated(mesh)
        divided = max(axes, key=lambda axis: leaf.shape[axis])
        return NamedSharding(mesh, P(*[None] * divided, "data"))

    return jax.tree.map(of, state)


def check_divides(mesh: Mesh, batch_size: int, parts: int) -> None:
    """Raise `UsageError` for a batch whose parts cannot be split evenly over the devices."""
    if batch_size % (mesh.size * parts):
        each = f" in each of {parts} parts" * (parts > 1)
        raise UsageError(
            f"--batch-size is {batch_size}, which {mesh.size} devices cannot share evenly{each}: "
            f"use a multiple of {mesh.size * parts}"
        )


def max_over_processes(value: int) -> jax.Array:
    """Largest of the processes' values, int32 `[]`, in every process.

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


def is_first_process() -> bool:
    """Return whether this process writes the files of the run; starts no device."""
    return not jax.distributed.is_initialized() or jax.process_index() == 0


def wait_for_all(name: str) -> None:
    """Wait for every process of the run, so that all can read files that the first one wrote."""
    if jax.distributed.is_initialized():
        multihost_utils.sync_global_devices(name)


def broadcast_from_process_zero(value: int | None) -> int | None:
    """The first process's value, such as one read from the disk, in every process."""
    if jax.process_count() == 1:
        return value
    sent = np.int64(-1 if value is None else value)
    received = int(multihost_utils.broadcast_one_to_all(sent))
    return None if received < 0 else received
