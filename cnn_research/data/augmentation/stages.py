"""Computation in stages that the compiler does not fuse."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import jax
import jax.numpy as jnp

from cnn_research.ops import platform

Values = TypeVar("Values")


def run_in_stages(stages: Sequence[Callable[[Values], Values]], values: Values) -> Values:
    """Run stages one after the other without fusing them.

    If XLA fused them, each pixel would be computed again for every use in the next stage, which
    makes RandAugment many times slower. A loop prevents this; on a CPU an optimization barrier does
    not. Stages must keep shapes and dtypes.
    """
    if len(stages) < 2:
        return stages[0](values) if stages else values

    def step(values: Values, stage: jax.Array) -> tuple[Values, None]:
        return jax.lax.switch(stage, stages, values), None

    return jax.lax.scan(step, values, jnp.arange(len(stages)))[0]


def materialize(function: Callable[[], Values], step: jax.Array) -> Values:
    """Finish computing `function` before its result is used, if that is faster.

    On a CPU the painters paper's six augmentations take a tenth of a train step of its network
    Red 1 if XLA fuses them into the shifted slices of the first convolution, and a hundredth if
    not. A branch that is always taken prevents this; `step`, an integer `[]` of 0 or more, must be
    unknown to the compiler.
    """
    if not platform.current_formulation().changes_apart:
        return function()
    shapes = jax.eval_shape(function)

    def never() -> Values:
        return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)

    return jax.lax.cond(step >= 0, function, never)
