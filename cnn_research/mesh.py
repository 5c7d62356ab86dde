"""Devices: one mesh with a data axis, the same code for one device, several, and processes."""

from __future__ import annotations

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from cnn_research.errors import UsageError


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


def agreed(value: int | None) -> int | None:
    """The first process's value, in every process: what it read from the disk, all go by."""
    if jax.process_count() == 1:
        return value
    sent = np.int64(-1 if value is None else value)
    received = int(multihost_utils.broadcast_one_to_all(sent))
    return None if received < 0 else received
