"""Reads what devices send each other in a compiled train step, and compares it with the model.

    python -m benchmarks.scaling --output results/scaling.json

ResNet-50 for 1,000 classes, SGD with momentum, two images of 224x224 for each of 2, 4 and 8 virtual
CPU devices; with all parameters on every device, and with shares of them. Nothing is trained: the
steps are compiled, in about five minutes on two free cores, and their collectives read.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from typing import Any

from benchmarks.results import ROOT, Measurement, arguments, row

DEVICES = (2, 4, 8)
TOLERANCE = 0.05


def compiled(name: str) -> dict[str, dict[str, Any]]:
    """What the train step of a network sends, by way and number of devices, and what is expected.

    Args:
        name: of a registered network.
    """
    import jax
    import jax.numpy as jnp
    import numpy as np
    from jax.sharding import Mesh

    from benchmarks.cost_model import NUMBER_BYTES, collective_bytes
    from cnn_research.core.distributed import LEAST_SHARDED, replicated
    from cnn_research.data.sources import Synthetic
    from cnn_research.models.registry import architectures
    from cnn_research.train.config import Training
    from cnn_research.train.loop import Arrays, make_steps, shardings_of
    from cnn_research.train.optimizers import Optimizer
    from cnn_research.train.trained import abstract_state, bound

    found = architectures()[name]
    shape = found.image_shape
    figures = {}
    for devices in DEVICES:
        mesh = Mesh(np.array(jax.devices()[:devices]), ("data",))
        experiment = Training(
            data=Synthetic(
                train=16,
                validation=2,
                test=2,
                image_shape=shape,
                classes=(found.model.num_classes,),
            ),
            model=found.model,
            optimizer=Optimizer(name="sgd", learning_rate=0.1, momentum=0.9),
            batch_size=2 * devices,
        )
        dataset = experiment.data.load()
        for sharded in (False, True):
            experiment = bound(dataclasses.replace(experiment, shard_parameters=sharded), dataset)
            state = abstract_state(experiment, shape, mesh)
            on = replicated(mesh)
            arrays = Arrays(
                jax.ShapeDtypeStruct((16, *shape), jnp.uint8, sharding=on),
                {"label": jax.ShapeDtypeStruct((16,), jnp.int32, sharding=on)},
            )
            seed = jax.ShapeDtypeStruct((), jnp.uint32, sharding=on)
            with jax.set_mesh(mesh):
                steps = make_steps(
                    experiment,
                    experiment.model,
                    experiment.optimizer.build(100),
                    16,
                    mesh,
                    where=(shardings_of(state),),
                )
                program = steps.lower((state,), arrays, (seed,), 1).compile()  # type: ignore[attr-defined]
            sizes = [leaf.size for leaf in jax.tree.leaves(state.params)]
            divided = [
                leaf.size
                for leaf in jax.tree.leaves(state.params)
                if leaf.size >= LEAST_SHARDED and any(n % devices == 0 for n in leaf.shape)
            ]
            figures[f"{devices} devices{', in shares' * sharded}"] = {
                "compiled": collective_bytes(program.as_text()),
                "gradients": NUMBER_BYTES * sum(sizes),
                "gathered": NUMBER_BYTES * sum(divided) if sharded else 0,
            }
    return figures


def on_virtual_devices(name: str) -> dict[str, dict[str, Any]]:
    """The same in a process of its own, with as many devices as are needed."""
    ended = subprocess.run(
        [sys.executable, "-m", "benchmarks.scaling", "--work", name],
        cwd=ROOT,
        env={
            **os.environ,
            "JAX_NUM_CPU_DEVICES": str(max(DEVICES)),
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": "--xla_backend_optimization_level=0",
        },
        capture_output=True,
        text=True,
    )
    if ended.returncode:
        raise RuntimeError(ended.stderr[-2000:])
    return json.loads(ended.stdout.splitlines()[-1])


def compared(figures: dict[str, Any]) -> float:
    """How much of what the model expects the compiled step sends otherwise, as a share of it.

    XLA:CPU knows no reduce-scatter: gradients are summed everywhere, also those of shares.
    """
    sent = figures["compiled"]
    expected = {"all-reduce": figures["gradients"], "all-gather": figures["gathered"]}
    return max(
        abs(sent.get(kind, 0) - size) / (size or figures["gradients"])
        for kind, size in expected.items()
    )


def main() -> int:
    parser = arguments(__doc__)
    parser.add_argument("--work", help="compile the steps of this network, here")
    chosen = parser.parse_args()
    if chosen.work:
        print(json.dumps(compiled(chosen.work)))
        return 0
    measurement = Measurement(
        "scaling",
        what="bytes of collectives in compiled train steps of ResNet-50, against the model's",
        target=f"within {TOLERANCE:.0%} on {', '.join(map(str, DEVICES))} devices",
    )
    figures = on_virtual_devices("resnet50")
    rows = [
        row(
            f"bytes of gradients and parameters that ResNet-50's step sends, {way}, against the "
            "cost model",
            f"within {TOLERANCE:.0%}",
            f"{compared(found):.1%} apart",
            compared(found) <= TOLERANCE,
        )
        for way, found in figures.items()
    ]
    return measurement.finish(rows, figures, chosen.output)


if __name__ == "__main__":
    sys.exit(main())
