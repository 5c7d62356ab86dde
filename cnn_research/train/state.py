"""Arguments of a train step: its context, state and data; and the initial state."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jax.sharding import Mesh

from cnn_research.core.distributed import state_shardings
from cnn_research.core.random import stream_key
from cnn_research.train.config import Training


@flax.struct.dataclass
class TrainState:
    """The state of model and optimizer, as saved in a checkpoint.

    `step` is the number of completed steps, int32 `[]`; `model_state` has the model's other
    collections (`batch_stats`), which the forward pass updates; `ema` is the moving average of
    `{"params": ..., **model_state}`, or empty.
    """

    step: jax.Array
    params: Any
    model_state: Any
    opt_state: Any
    ema: Any

    def variables(self) -> dict[str, Any]:
        """Return the variables for evaluation: the moving average, if any."""
        return self.ema or {"params": self.params, **self.model_state}


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=("images", "labels", "classes"),
    meta_fields=("window",),
)
@dataclasses.dataclass(frozen=True)
class TrainData:
    """The training split on the devices.

    Images and labels are those of a `Split`, or images are cached features, float32
    `[examples, views, *output]`. `classes` has the examples of each class for balanced sampling;
    `window` is the height and width of the random crops of images and labels per pixel (None for
    whole images).
    """

    images: Any
    labels: Mapping[str, Any]
    classes: Mapping[str, Any] | None = None
    window: tuple[int, int] | None = None


@dataclasses.dataclass(frozen=True)
class StepContext:
    """The constants of train steps.

    `model` is the experiment's model, or the layers after cached features; an epoch has `examples`
    examples; batches are split over the axis `data` of the mesh, or not split if it is None;
    `frozen` returns whether the layer at a path is frozen.
    """

    experiment: Training
    model: nn.Module
    optimizer: optax.GradientTransformation
    examples: int
    mesh: Mesh | None
    frozen: Callable[[str], bool] | None = None


def _drawn(experiment: Training, image_shape: tuple[int, int, int], key: jax.Array) -> TrainState:
    """Create the initial state; pure, to be jitted."""
    # The state of an optimizer does not depend on the length of the run or on the phase.
    optimizer = experiment.transfer.optimizer(experiment.optimizer, 1, lambda epoch: 1)
    images = jnp.zeros((1, *image_shape), jnp.float32)
    variables = dict(experiment.model.init(key, images, train=False))
    params = variables.pop("params")
    variables.pop("auxiliary", None)
    averages = {"params": params, **variables} if experiment.optimizer.ema_decay else {}
    return TrainState(
        step=jnp.int32(0),
        params=params,
        model_state=variables,
        opt_state=optimizer.init(params),
        # A copy, because donated buffers must not be shared.
        ema=jax.tree.map(jnp.copy, averages),
    )


def abstract_state(
    experiment: Training, image_shape: tuple[int, int, int], mesh: Mesh
) -> TrainState:
    """Return shapes, dtypes and shardings of a bound experiment's state, without computing it."""
    init = functools.partial(_drawn, experiment, image_shape)
    shapes = jax.eval_shape(init, jax.random.key(0))
    where = state_shardings(mesh, shapes, sharded=experiment.shard_parameters)
    return jax.tree.map(
        lambda x, on: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=on), shapes, where
    )


def initial_state(
    experiment: Training, image_shape: tuple[int, int, int], mesh: Mesh
) -> TrainState:
    """Create a bound experiment's initial state from its seed, with its final sharding."""
    init = functools.partial(_drawn, experiment, image_shape)
    where = shardings_of(abstract_state(experiment, image_shape, mesh))
    return jax.jit(init, out_shardings=where)(stream_key(experiment.seed, "init"))


def shardings_of(state: Any) -> Any:
    """Return the sharding of each array."""
    return jax.tree.map(lambda leaf: leaf.sharding, state)
