"""The train step on its own, to be timed or compiled without a run."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from cnn_research.core.distributed import data_mesh, replicated
from cnn_research.data.sources.synthetic import Synthetic
from cnn_research.train.config import Training
from cnn_research.train.state import (
    StepContext,
    TrainData,
    abstract_state,
    initial_state,
    shardings_of,
)
from cnn_research.train.step import make_steps
from cnn_research.train.trained import bind_to_dataset

SCHEDULE = 1_000_000
"""Steps of the schedule, more than any measurement runs."""


def noise(shape: tuple[int, int, int], *classes: int, train: int, **fields: Any) -> Synthetic:
    """Random data with `train` training images, and one head per number of classes."""
    sizes = {"validation": 2, "test": 2} | fields
    return Synthetic(train=train, image_shape=shape, classes=classes, **sizes)


@dataclasses.dataclass(frozen=True)
class Steps:
    """A train step and its arguments.

    Attributes:
        states: one state, before the first step; donated by each.
        jitted: called as `(states, *rest)`.
        rest: the other arguments.
        mesh: the mesh under which it is called.
    """

    states: Any
    jitted: Any
    rest: tuple[Any, ...]
    mesh: Mesh

    def __call__(self, states: Any) -> tuple[Any, Any]:
        """Dispatch a step; return the new states and metrics without waiting."""
        with jax.set_mesh(self.mesh):
            return self.jitted(states, *self.rest, 1)

    def compiled(self) -> Callable[..., tuple[Any, Any]]:
        """Compile ahead of time; the result is called like this object."""
        with jax.set_mesh(self.mesh):
            program = self.jitted.lower(self.states, *self.rest, 1).compile()

        def step(states: Any) -> tuple[Any, Any]:
            return program(states, *self.rest)

        step.text = program.as_text  # type: ignore[attr-defined]
        return step


def steps_of(experiment: Training, *, mesh: Mesh | None = None, dataset: Any = None) -> Steps:
    """Make the step of a training.

    Args:
        experiment: the training.
        mesh: mesh to compile for, with shapes as states and data; None for all devices and arrays.
        dataset: the experiment's loaded data, if available.
    """
    dataset = dataset or experiment.data.load()
    experiment = bind_to_dataset(experiment, dataset)
    optimizer = experiment.transfer.optimizer(experiment.optimizer, SCHEDULE, lambda epoch: 0)
    train = dataset.splits["train"]
    arrays = TrainData(train.images, dict(train.labels), window=dataset.window)
    seeds = (jnp.uint32(experiment.seed),)
    on = mesh or data_mesh()
    with jax.set_mesh(on):
        if mesh is None:
            state = initial_state(experiment, dataset.image_shape, on)
            rest = jax.device_put((arrays, seeds), replicated(on))
        else:
            state = abstract_state(experiment, dataset.image_shape, on)
            rest = jax.tree.map(
                lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=replicated(on)),
                (arrays, seeds),
            )
        examples = len(train) * dataset.windows
        context = StepContext(experiment, experiment.model, optimizer, examples, on)
        jitted = make_steps(context, (shardings_of(state),))
    return Steps((state,), jitted, rest, on)


def mean_loss(metrics: Any) -> float:
    """Mean loss of a step over its examples, over all heads."""
    pairs = [pair[-1, 0] for name, pair in metrics.items() if name.split()[-1] == "loss"]
    return sum(float(total) / float(count) for total, count in pairs)
