"""The state of a training run: arrays only, all that the next step depends on."""

from __future__ import annotations

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from flax import linen as nn


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
