"""The train step by itself, for what is timed or compiled without a run around it."""

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
"""Steps: more than anything here takes."""


def noise(shape: tuple[int, int, int], *classes: int, train: int, **fields: Any) -> Synthetic:
    """Data of so many training images, with a head for each number of classes."""
    sizes = {"validation": 2, "test": 2} | fields
    return Synthetic(train=train, image_shape=shape, classes=classes, **sizes)


@dataclasses.dataclass(frozen=True)
class Steps:
    """A train step, and what it is called with.

    Attributes:
        states: before the first step, one; donated with each.
        jitted: called as `(states, *rest)`.
        rest: its other arguments.
        mesh: that it is called under.
    """

    states: Any
    jitted: Any
    rest: tuple[Any, ...]
    mesh: Mesh

    def __call__(self, states: Any) -> tuple[Any, Any]:
        """The states after a step, and its metrics, which are not waited for."""
        with jax.set_mesh(self.mesh):
            return self.jitted(states, *self.rest, 1)

    def compiled(self) -> Callable[..., tuple[Any, Any]]:
        """Compile ahead of the first step; the result is called as this is."""
        with jax.set_mesh(self.mesh):
            program = self.jitted.lower(self.states, *self.rest, 1).compile()

        def step(states: Any) -> tuple[Any, Any]:
            return program(states, *self.rest)

        step.text = program.as_text  # type: ignore[attr-defined]
        return step


def steps_of(experiment: Training, *, mesh: Mesh | None = None, dataset: Any = None) -> Steps:
    """The step of a training.

    Args:
        experiment: what is trained.
        mesh: where to compile for; states and data are then shapes. None: all devices, with arrays.
        dataset: what the experiment's data load as, where that is known.
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
    """The loss of a step, a mean over its examples, all heads together."""
    pairs = [pair[-1, 0] for name, pair in metrics.items() if name.split()[-1] == "loss"]
    return sum(float(total) / float(count) for total, count in pairs)
