"""Arguments of a train step: its context, the state, the data (and a seed); and the state
before the first step.
"""

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
    """All that a checkpoint holds of the model and its optimizer.

    `step` is int32 `[]`, steps done; `model_state` the model's other collections (`batch_stats`),
    updated by the forward pass; `ema` is `{"params": ..., **model_state}` averaged over steps, or
    empty where none is kept.
    """

    step: jax.Array
    params: Any
    model_state: Any
    opt_state: Any
    ema: Any

    def variables(self) -> dict[str, Any]:
        """Variables for evaluation: the moving average where there is one."""
        return self.ema or {"params": self.params, **self.model_state}


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=("images", "labels", "classes"),
    meta_fields=("window",),
)
@dataclasses.dataclass(frozen=True)
class TrainData:
    """The training split on the device.

    Images and labels are those of a `Split`; or images are cached features, float32
    `[examples, views, *output]`. `classes` has the examples of each class, where classes are drawn
    equally often; `window` the height and width of what is cut from an image, and from its labels
    per pixel, each time it is drawn (None takes it whole).
    """

    images: Any
    labels: Mapping[str, Any]
    classes: Mapping[str, Any] | None = None
    window: tuple[int, int] | None = None


@dataclasses.dataclass(frozen=True)
class StepContext:
    """All that is constant in a train step.

    `model` is the experiment's, or what comes after cached features; an epoch has `examples`
    examples; the batch is split over the axis `data` of the mesh, or not at all where it is None;
    `frozen` tells by its path whether a layer keeps its parameters and statistics.
    """

    experiment: Training
    model: nn.Module
    optimizer: optax.GradientTransformation
    examples: int
    mesh: Mesh | None
    frozen: Callable[[str], bool] | None = None


def _drawn(experiment: Training, image_shape: tuple[int, int, int], key: jax.Array) -> TrainState:
    """The state before the first step; pure, to be jitted."""
    # The state of an optimizer depends neither on the length of the run nor on the phase.
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
    """Shapes, dtypes and shardings of a bound experiment's state, without computing any of it."""
    init = functools.partial(_drawn, experiment, image_shape)
    shapes = jax.eval_shape(init, jax.random.key(0))
    where = state_shardings(mesh, shapes, sharded=experiment.shard_parameters)
    return jax.tree.map(
        lambda x, on: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=on), shapes, where
    )


def initial_state(
    experiment: Training, image_shape: tuple[int, int, int], mesh: Mesh
) -> TrainState:
    """The state as a bound experiment's seed draws it, computed under jit where it will stay."""
    init = functools.partial(_drawn, experiment, image_shape)
    where = shardings_of(abstract_state(experiment, image_shape, mesh))
    return jax.jit(init, out_shardings=where)(stream_key(experiment.seed, "init"))


def shardings_of(state: Any) -> Any:
    """Sharding of each of its arrays."""
    return jax.tree.map(lambda leaf: leaf.sharding, state)
