"""Communication between devices in a train step: a cost model, and compiled programs.

    python -m benchmarks.scaling --output results/scaling.json
    python -m benchmarks.scaling --table

Compiles the steps of ResNet-50 for 1,000 classes, SGD with momentum, two images of 224x224 per
device, on 2, 4 and 8 virtual CPU devices, with replicated and with sharded parameters, and reads
their collectives; nothing is trained. Takes about five minutes on two idle cores. `--table` prints
the model's predictions for up to 1,024 accelerators, whose speeds are assumptions.
"""

from __future__ import annotations

import dataclasses
import math
import re
import sys
from typing import Any

from benchmarks.results import flag, in_process, measurement, row

DEVICES = (2, 4, 8)
TOLERANCE = 0.05
NUMBER_BYTES = 4
"""Parameters, gradients and moments are float32."""
PASSES = 3
"""Cost of a train step in forward passes: the backward pass costs two."""


# The model ---------------------------------------------------------------------------------------


def all_gather_bytes(size: float, devices: int) -> float:
    """Bytes that each device of a ring sends in an all-gather of an array of `size` bytes.

    A reduce-scatter sends as many.
    """
    return (devices - 1) / devices * size


def all_reduce_bytes(size: float, devices: int) -> float:
    """Bytes that each device sends in an all-reduce: a reduce-scatter and an all-gather."""
    return 2 * all_gather_bytes(size, devices)


@dataclasses.dataclass(frozen=True)
class Accelerator:
    """One of many devices, with round numbers of no particular product."""

    flops: float = 100e12
    """Operations per second that convolutions reach, not the peak."""
    link: float = 50e9
    """Bytes per second that it sends to its neighbour in the ring."""
    latency: float = 5e-6
    """Seconds per message to the neighbour."""
    input: float = 2e9
    """Bytes of decoded images per second that it receives."""


@dataclasses.dataclass(frozen=True)
class Step:
    """A train step of one of several devices, in seconds.

    The sums of batch normalisation and metrics are ignored, as they are thousands of numbers, not
    millions.

    Attributes:
        compute: time of the forward and backward passes.
        sending: time to send gradients and, if sharded, parameters, which takes as long.
        input: time to receive images.
    """

    compute: float
    sending: float
    input: float

    @classmethod
    def of(cls, parameters: int, flops: int, image_bytes: int, devices: int, batch: int) -> Step:
        """Model a network with `flops` per image's forward pass and `batch` images per device."""
        machine = Accelerator()
        sent = all_reduce_bytes(NUMBER_BYTES * parameters, devices)
        return cls(
            compute=PASSES * flops * batch / machine.flops,
            sending=sent / machine.link + 2 * (devices - 1) * machine.latency,
            input=batch * image_bytes / machine.input,
        )

    @property
    def least(self) -> float:
        """Time if everything overlaps."""
        return max(self.compute, self.sending, self.input)

    @property
    def most(self) -> float:
        """Time if sending starts after computing; input overlaps."""
        return max(self.compute + self.sending, self.input)


def table(batch: int = 64) -> str:
    """ResNet-50 on up to 1,024 devices, in Markdown."""
    from cnn_research.models.flops import cost
    from cnn_research.models.registry import architectures
    from cnn_research.report.markdown import markdown_table

    found = architectures()["resnet50"]
    counted, image = cost(found.model, found.image_shape), math.prod(found.image_shape)
    alone, rows = Step.of(counted.parameters, counted.flops, image, 1, batch), []
    for devices in (2**power for power in range(11)):
        step = Step.of(counted.parameters, counted.flops, image, devices, batch)
        sent = all_reduce_bytes(NUMBER_BYTES * counted.parameters, devices)
        rows.append(
            (
                f"{devices:,}",
                f"{devices * batch:,}",
                f"{1e3 * step.compute:.1f}",
                f"{sent / 1e6:.1f}",
                f"{1e3 * step.sending:.1f}",
                f"{devices * batch / step.most:,.0f}",
                f"{alone.most / step.most:.0%} to {alone.least / step.least:.0%}",
                f"{devices * batch * image / step.most / 1e9:.2f}",
            )
        )
    header = "devices|batch|compute, ms|sent by each, MB|sending, ms|images/s at least|efficiency"
    saved = NUMBER_BYTES * (2 * counted.parameters + counted.statistics)
    return (
        f"{markdown_table([*header.split('|'), 'input of all, GB/s'], rows)}\n\n"
        f"A checkpoint has {saved / 1e6:.0f} MB; an image has {image / 1e3:.0f} kB and takes "
        f"{PASSES * counted.flops / 1e9:.1f} GFLOP."
    )


# Compiled programs -------------------------------------------------------------------------------

_COLLECTIVE = re.compile(
    r"= (?P<results>.*?) (?P<kind>all-reduce|all-gather|reduce-scatter|all-to-all"
    r"|collective-permute)(?:-start)?\("
)
_ARRAY = re.compile(r"\b(pred|[a-z]+\d+)\[([\d,]*)\]")


def collective_bytes(program: str) -> dict[str, int]:
    """Count the bytes of the results of each kind of collective in a compiled program.

    Args:
        program: its text, `jax.jit(f).lower(...).compile().as_text()`; those in a loop are counted
            once.

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
    """Bytes per number of an HLO type: `f32`, `bf16`, `u8`, `pred`."""
    bits = re.search(r"\d+", kind)
    return max(1, int(bits.group()) // 8) if bits else 1


def compiled(name: str) -> dict[str, dict[str, Any]]:
    """Measure what a network's train step sends, by way and number of devices, and predict it.

    Args:
        name: name of a registered network.
    """
    import jax
    import numpy as np
    from jax.sharding import Mesh

    from benchmarks.steps import noise, steps_of
    from cnn_research.core.distributed import MIN_SHARD_SIZE
    from cnn_research.models.registry import architectures
    from cnn_research.train.config import Training
    from cnn_research.train.optimizers import Optimizer

    found = architectures()[name]
    figures = {}
    for devices in DEVICES:
        mesh = Mesh(np.array(jax.devices()[:devices]), ("data",))
        for sharded in (False, True):
            experiment = Training(
                data=noise(found.image_shape, found.model.num_classes, train=16),
                model=found.model,
                optimizer=Optimizer(name="sgd", learning_rate=0.1, momentum=0.9),
                batch_size=2 * devices,
                shard_parameters=sharded,
            )
            steps = steps_of(experiment, mesh=mesh)
            leaves = jax.tree.leaves(steps.states[0].params)
            divided = [
                leaf.size
                for leaf in leaves
                if leaf.size >= MIN_SHARD_SIZE and any(n % devices == 0 for n in leaf.shape)
            ]
            figures[f"{devices} devices{', sharded' * sharded}"] = {
                "compiled": collective_bytes(steps.compiled().text()),  # type: ignore[attr-defined]
                "gradients": NUMBER_BYTES * sum(leaf.size for leaf in leaves),
                "gathered": NUMBER_BYTES * sum(divided) if sharded else 0,
            }
    return figures


def on_virtual_devices(name: str) -> dict[str, dict[str, Any]]:
    """Run `compiled` in its own process, with enough devices."""
    environment = {
        "JAX_NUM_CPU_DEVICES": str(max(DEVICES)),
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_backend_optimization_level=0",
    }
    return in_process(compiled, name, environment=environment)


def compared(figures: dict[str, Any]) -> float:
    """Relative difference between the bytes sent by the compiled step and the model's.

    XLA:CPU has no reduce-scatter: even sharded gradients are summed on all devices.
    """
    sent = figures["compiled"]
    expected = {"all-reduce": figures["gradients"], "all-gather": figures["gathered"]}
    return max(
        abs(sent.get(kind, 0) - size) / (size or figures["gradients"])
        for kind, size in expected.items()
    )


@measurement(
    flag("--table", action="store_true", help="print the model's table, and compile nothing"),
    what="bytes of collectives in compiled train steps of ResNet-50, against the model's",
    target=f"within {TOLERANCE:.0%} on {', '.join(map(str, DEVICES))} devices",
)
def main(options):
    if options.table:
        print(table())
        return [], {}
    figures = on_virtual_devices("resnet50")
    rows = [
        row(
            f"bytes sent by a step of ResNet-50, {way}, against the cost model",
            f"within {TOLERANCE:.0%}",
            f"{compared(found):.1%} apart",
            compared(found) <= TOLERANCE,
        )
        for way, found in figures.items()
    ]
    return rows, figures


if __name__ == "__main__":
    sys.exit(main())
