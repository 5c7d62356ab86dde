"""What a train step is a function of: its context, the state, the data (and a seed)."""

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

from cnn_research.train.config import Training


@flax.struct.dataclass
class TrainState:
    """All that a checkpoint holds of the model and its optimizer.

    Attributes:
        step: int32 `[]`, steps done.
        params: parameters.
        model_state: the model's other collections (`batch_stats`), updated by the forward pass.
        opt_state: the optimizer's.
        ema: `{"params": ..., **model_state}` averaged over steps, or empty where none is kept.
    """

    step: jax.Array
    params: Any
    model_state: Any
    opt_state: Any
    ema: Any

    def variables(self) -> dict[str, Any]:
        """What the model is evaluated with: the moving average where there is one."""
        return self.ema or {"params": self.params, **self.model_state}


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=("images", "labels", "classes"),
    meta_fields=("window",),
)
@dataclasses.dataclass(frozen=True)
class TrainData:
    """The training split on the device.

    Attributes:
        images: uint8 `[examples, height, width, channels]`; or cached features, float32
            `[examples, views, *output]`.
        labels: per head, int32 or float32 `[examples]`; or of each pixel, integers
            `[examples, height, width]`.
        classes: the examples of each class, where classes are drawn equally often.
        window: height and width of what is cut from an image, and from its labels per pixel, each
            time it is drawn; None takes it whole.
    """

    images: Any
    labels: Mapping[str, Any]
    classes: Mapping[str, Any] | None = None
    window: tuple[int, int] | None = None


@dataclasses.dataclass(frozen=True)
class StepContext:
    """All that is constant in a train step.

    Attributes:
        experiment: what is trained, bound to its data.
        model: the network: of the experiment, or what comes after cached features.
        optimizer: in force at the step.
        examples: examples in an epoch.
        mesh: the batch is split over its axis `data`; None: one device has all of it.
        frozen: whether a layer keeps its parameters and statistics, by its path; None: none does.
    """

    experiment: Training
    model: nn.Module
    optimizer: optax.GradientTransformation
    examples: int
    mesh: Mesh | None
    frozen: Callable[[str], bool] | None = None


def init_state(
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    key: jax.Array,
    image_shape: tuple[int, int, int],
    *,
    ema: bool,
) -> TrainState:
    """The state before the first step; pure, to be jitted.

    Args:
        model: called as `model(images, train=False)`.
        optimizer: an optax transformation.
        key: of the initial parameters.
        image_shape: `(height, width, channels)`.
        ema: whether to keep moving averages.
    """
    variables = dict(model.init(key, jnp.zeros((1, *image_shape), jnp.float32), train=False))
    params = variables.pop("params")
    variables.pop("auxiliary", None)
    averages = {"params": params, **variables} if ema else {}
    return TrainState(
        step=jnp.int32(0),
        params=params,
        model_state=variables,
        opt_state=optimizer.init(params),
        # A copy, because donated buffers must not be shared.
        ema=jax.tree.map(jnp.copy, averages),
    )
