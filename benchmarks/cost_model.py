"""What a train step on many devices costs: a model of it, to be checked against what is compiled.

    python -m benchmarks.cost_model

Counted are operations, bytes that devices send each other, bytes of input and of checkpoints.
Seconds follow from a machine's figures, which are assumptions here.
"""

from __future__ import annotations

import dataclasses
import math
import re
import sys
from collections.abc import Iterator

NUMBER_BYTES = 4
"""Parameters, gradients and moments are float32."""
PASSES = 3
"""Forward passes that a train step is worth: the backward pass is twice as much."""


@dataclasses.dataclass(frozen=True)
class Network:
    """What a network costs, as `models.flops.cost` counts it.

    Attributes:
        parameters: numbers that are trained.
        statistics: numbers that batch norm keeps.
        flops: of one image's forward pass.
        image_bytes: of one image as it is stored, uint8.
    """

    parameters: int
    statistics: int
    flops: int
    image_bytes: int


@dataclasses.dataclass(frozen=True)
class Machine:
    """One accelerator among many; every figure is a round one, of no product in particular."""

    flops: float = 100e12
    """Operations a second that convolutions reach, not the peak."""
    link: float = 50e9
    """Bytes a second that it sends to its neighbour in the ring."""
    latency: float = 5e-6
    """Seconds of one message to the neighbour."""
    input: float = 2e9
    """Bytes of images a second that reach it, decoded."""
    disk: float = 2e9
    """Bytes a second that a checkpoint is written with, by all together."""


@dataclasses.dataclass(frozen=True)
class Step:
    """A train step of one device among several.

    Attributes:
        compute: seconds of the forward and the backward pass.
        sent_bytes: that each device sends for gradients and parameters.
        sending: seconds that it takes.
        input_bytes: of images, for each device.
        input: seconds that these take.
        checkpoint_bytes: of parameters, moments and statistics.
        checkpoint: seconds to write them, which the steps meanwhile do not wait for.
    """

    compute: float
    sent_bytes: float
    sending: float
    input_bytes: float
    input: float
    checkpoint_bytes: float
    checkpoint: float

    @property
    def least(self) -> float:
        """Seconds if everything goes on at once."""
        return max(self.compute, self.sending, self.input)

    @property
    def most(self) -> float:
        """Seconds if nothing is sent before all is computed; input comes in meanwhile."""
        return max(self.compute + self.sending, self.input)


def all_reduce_bytes(size: float, devices: int) -> float:
    """What each device of a ring sends to have the sum of arrays of `size` bytes everywhere."""
    return 2 * (devices - 1) / devices * size


def all_gather_bytes(size: float, devices: int) -> float:
    """What each sends so that all have the `size` bytes of which each has its share."""
    return (devices - 1) / devices * size


reduce_scatter_bytes = all_gather_bytes
"""What each sends so that each has its share of the sum of arrays of `size` bytes."""


def sent_bytes(parameters: int, devices: int, *, sharded: bool = False) -> float:
    """What each device sends in a step for gradients and parameters.

    Batch norm's sums and the metrics are left out: they are thousands of numbers, not millions.

    Args:
        parameters: of the network.
        devices: along the axis `data`.
        sharded: parameters are in shares (`shard_parameters`): gathered once, and gradients
            summed into shares. It is as much as where all devices hold all of them.
    """
    size = NUMBER_BYTES * parameters
    if sharded:
        return all_gather_bytes(size, devices) + reduce_scatter_bytes(size, devices)
    return all_reduce_bytes(size, devices)


def step(network: Network, devices: int, batch: int, machine: Machine, *, moments: int = 1) -> Step:
    """A train step.

    Args:
        network: what is trained.
        devices: how many share a batch.
        batch: images of each device.
        machine: each of them.
        moments: numbers that the optimizer keeps for each parameter: 1 with momentum, 2 for Adam.
    """
    sent = sent_bytes(network.parameters, devices)
    numbers = (1 + moments) * network.parameters + network.statistics
    return Step(
        compute=PASSES * network.flops * batch / machine.flops,
        sent_bytes=sent,
        sending=sent / machine.link + 2 * (devices - 1) * machine.latency,
        input_bytes=batch * network.image_bytes,
        input=batch * network.image_bytes / machine.input,
        checkpoint_bytes=NUMBER_BYTES * numbers,
        checkpoint=NUMBER_BYTES * numbers / machine.disk,
    )


# Compiled programs -------------------------------------------------------------------------------

_COLLECTIVE = re.compile(
    r"= (?P<results>.*?) (?P<kind>all-reduce|all-gather|reduce-scatter|all-to-all"
    r"|collective-permute)(?:-start)?\("
)
_ARRAY = re.compile(r"\b(pred|[a-z]+\d+)\[([\d,]*)\]")


def collective_bytes(program: str) -> dict[str, int]:
    """The bytes of the results of each kind of collective in a compiled program.

    Args:
        program: its text, `jax.jit(f).lower(...).compile().as_text()`; each is counted once, also
            in a loop.

    Returns:
        By kind, as HLO names it: `{"all-reduce": 1234, ...}`.
    """
    found: dict[str, int] = {}
    for line in program.splitlines():
        if match := _COLLECTIVE.search(line):
            size = sum(
                math.prod(map(int, filter(None, shape.split(",")))) * _bytes_of(kind)
                for kind, shape in _ARRAY.findall(match["results"])
            )
            found[match["kind"]] = found.get(match["kind"], 0) + size
    return found


def _bytes_of(kind: str) -> int:
    """Of one number of an HLO type: `f32`, `bf16`, `u8`, `pred`."""
    bits = re.search(r"\d+", kind)
    return max(1, int(bits.group()) // 8) if bits else 1


# The command -------------------------------------------------------------------------------------

DEVICES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
BATCH = 64
"""Images of each device."""


def resnet50() -> Network:
    """ResNet-50 for 1,000 classes, on images of 224x224."""
    from cnn_research.models.flops import cost
    from cnn_research.models.registry import architectures

    found = architectures()["resnet50"]
    counted = cost(found.model, found.image_shape)
    return Network(
        parameters=counted.parameters,
        statistics=counted.statistics,
        flops=counted.flops,
        image_bytes=math.prod(found.image_shape),
    )


def lines() -> Iterator[str]:
    """The table of ResNet-50, in Markdown."""
    from cnn_research.report.markdown import markdown_table

    network, machine = resnet50(), Machine()
    rows = []
    for devices in DEVICES:
        found = step(network, devices, BATCH, machine)
        alone = step(network, 1, BATCH, machine)
        rows.append(
            (
                f"{devices:,}",
                f"{devices * BATCH:,}",
                f"{1e3 * found.compute:.1f}",
                f"{found.sent_bytes / 1e6:.1f}",
                f"{1e3 * found.sending:.1f}",
                f"{devices * BATCH / found.most:,.0f}",
                f"{alone.most / found.most:.0%} to {alone.least / found.least:.0%}",
                f"{devices * found.input_bytes / found.most / 1e9:.2f}",
            )
        )
    yield markdown_table(
        (
            "devices",
            "batch",
            "compute, ms",
            "sent by each, MB",
            "sending, ms",
            "images/s at least",
            "efficiency",
            "input of all, GB/s",
        ),
        rows,
    )
    alone = step(network, 1, BATCH, machine)
    yield (
        f"A checkpoint has {alone.checkpoint_bytes / 1e6:.0f} MB, written in "
        f"{alone.checkpoint:.2f} s; an image has {network.image_bytes / 1e3:.0f} kB and takes "
        f"{PASSES * network.flops / 1e9:.1f} GFLOP."
    )


if __name__ == "__main__":
    print("\n\n".join(lines()))
    sys.exit()
