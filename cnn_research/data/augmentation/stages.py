"""Computing in stages that the compiler keeps apart."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import jax
import jax.numpy as jnp

from cnn_research.ops import platform

Values = TypeVar("Values")


def run_in_stages(stages: Sequence[Callable[[Values], Values]], values: Values) -> Values:
    """Run stages one after the other, each computed in full before the next begins.

    Fused by XLA, stages would compute each pixel anew for every use of it in the next, which makes
    RandAugment many times slower. A loop prevents this; an optimization barrier does not on a CPU.
    Each stage keeps shapes and dtypes.
    """
    if len(stages) < 2:
        return stages[0](values) if stages else values

    def step(values: Values, stage: jax.Array) -> tuple[Values, None]:
        return jax.lax.switch(stage, stages, values), None

    return jax.lax.scan(step, values, jnp.arange(len(stages)))[0]


def materialize(function: Callable[[], Values], step: jax.Array) -> Values:
    """Compute the result of `function` in full before it is used, where that is faster.

    The painters paper's six augmentations cost a tenth of a train step of its network Red 1 on a
    CPU when they are fused into the shifted slices of its first convolution, and a hundredth when
    they are not. A branch that is always taken keeps them apart; the compiler must not know `step`,
    an integer `[]` of 0 or above.
    """
    if not platform.current_formulation().changes_apart:
        return function()
    shapes = jax.eval_shape(function)

    def never() -> Values:
        return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)

    return jax.lax.cond(step >= 0, function, never)
