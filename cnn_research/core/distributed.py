"""Devices: one mesh with a data axis, for one or several devices and processes."""

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
"""Minimum number of elements of a sharded array; smaller ones are replicated."""

# `srun` sets SLURM's variables of a step; the batch script of a job has only those of the job.
DETECTED = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE")
"""Variables with the number of processes, for launchers that JAX supports."""
TPU_HOSTS = ("TPU_PROCESS_ADDRESSES", "TPU_WORKER_HOSTNAMES")
"""Variables with the comma-separated hosts of a Cloud TPU slice."""
UNDETECTED = ("PMI_SIZE", "WORLD_SIZE")
"""Variables with the number of processes of MPICH and torchrun, which JAX does not support."""

EXTRAS = {"cuda": "cuda", "gpu": "cuda", "tpu": "tpu"}
"""Extras of this project to install, by JAX platform."""

HEARTBEAT_TIMEOUT_SECONDS = 30
"""Time without a heartbeat from a process after which the others exit."""


@contextlib.contextmanager
def initialize_distributed() -> Iterator[None]:
    """Connect the processes of a launcher, and start JAX's devices.

    Must be entered before JAX's devices are used. If one of several processes fails, it exits here
    immediately, as the others would wait for it. Raises `UsageError` if the processes cannot be
    connected, `UserError` if there are no devices.
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
        failed = f"this process or another one of the run failed ({error})"
        advice = "the same command resumes from the latest checkpoint"
        os._exit(print_error(UserError(f"{failed}: {advice}")))
    except Exception:
        traceback.print_exc()
        os._exit(1)


def start_devices() -> None:
    """Start JAX's devices; raise `UserError` if the requested platform has none."""
    try:
        jax.devices()
    except Exception as error:  # drivers may raise anything; without a plugin, AssertionError
        reason = one_line(error).partition(" (set JAX_PLATFORMS")[0]
        reason = f" ({reason[:200]})" if reason else ""
        platform = os.environ.get("JAX_PLATFORMS")
        if not platform:
            raise UserError(f"JAX finds no device{reason}: check the installation") from error
        extra = EXTRAS.get(platform)
        advice = install_command(extra) if extra else "use cpu, cuda or tpu"
        raise UserError(
            f"JAX_PLATFORMS is '{platform}', but JAX finds no such device{reason}: {advice}, or "
            "unset it to use the available devices"
        ) from error


@contextlib.contextmanager
def device_errors() -> Iterator[None]:
    """Raise `UserError` if there are no devices, or if they run out of memory in the block."""
    start_devices()
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if not is_out_of_memory(error):
            raise
        advice = ["let JAX use more GPU memory with XLA_PYTHON_CLIENT_MEM_FRACTION=0.95"]
        on_gpu = jax.default_backend() == "gpu"
        raise out_of_memory(str(error).strip().split("\n")[0], *advice * on_gpu) from error


def is_out_of_memory(error: Exception) -> bool:
    """Return whether a device is out of memory; RESOURCE_EXHAUSTED alone may be a full disk."""
    return "RESOURCE_EXHAUSTED" in str(error) and "out of memory" in str(error).lower()


def launch_options() -> dict[str, Any] | None:
    """Get the arguments of `jax.distributed.initialize` from the environment; None if there is only
    one process.

    JAX's own variables take precedence. JAX detects the processes of SLURM, Open MPI and Cloud TPUs
    itself. Raises `UsageError` for launchers that it does not support.
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
    """Create a mesh of all devices of all processes with the axis `data`."""
    return Mesh(np.array(jax.devices()), ("data",))


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, P())


def batch_sharded(mesh: Mesh) -> NamedSharding:
    """Return the sharding along the first axis."""
    return NamedSharding(mesh, P("data"))


def state_shardings(mesh: Mesh, state: Any, *, sharded: bool) -> Any:
    """Return the sharding of each array, or anything with a shape, in a tree.

    With `sharded`, arrays of at least `MIN_SHARD_SIZE` elements are sharded along the largest axis
    that is divisible by the number of devices; other arrays are replicated.
    """

    def of(leaf: Any) -> NamedSharding:
        axes = [axis for axis, size in enumerate(leaf.shape) if size % mesh.size == 0]
        if not (sharded and axes) or math.prod(leaf.shape) < MIN_SHARD_SIZE:
            return replicated(mesh)
        divided = max(axes, key=lambda axis: leaf.shape[axis])
        return NamedSharding(mesh, P(*[None] * divided, "data"))

    return jax.tree.map(of, state)


def check_divides(mesh: Mesh, batch_size: int, parts: int) -> None:
    """Raise `UsageError` if the parts of a batch cannot be split evenly over the devices."""
    if batch_size % (mesh.size * parts):
        each = f" in each of {parts} parts" * (parts > 1)
        raise UsageError(
            f"--batch-size is {batch_size}, which {mesh.size} devices cannot split evenly{each}: "
            f"use a multiple of {mesh.size * parts}"
        )


def max_over_processes(value: int) -> jax.Array:
    """Compute the maximum of the processes' values in every process, int32 `[]`.

    All processes must call it; it returns before the result is computed.
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
    """Return whether this process writes the run's files, without starting devices."""
    return not jax.distributed.is_initialized() or jax.process_index() == 0


def wait_for_all(name: str) -> None:
    """Wait for all processes of the run, so that all can read files written by the first."""
    if jax.distributed.is_initialized():
        multihost_utils.sync_global_devices(name)


def broadcast_from_process_zero(value: int | None) -> int | None:
    """Return the value of the first process, such as one read from the disk, in all processes."""
    if jax.process_count() == 1:
        return value
    sent = np.int64(-1 if value is None else value)
    received = int(multihost_utils.broadcast_one_to_all(sent))
    return None if received < 0 else received
