"""Computing in stages that the compiler keeps apart."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import jax
import jax.numpy as jnp

Values = TypeVar("Values")


def in_turn(stages: Sequence[Callable[[Values], Values]], values: Values) -> Values:
    """Does one stage after the other, each of which is computed in full before the next begins.

    Fused by XLA, stages would compute each pixel anew for every use of it in the next: RandAugment
    takes many times as long so. What works against it is a loop; an optimization barrier does not
    on a CPU.

    Args:
        stages: each keeps shapes and dtypes.
        values: arrays in any structure.
    """
    if len(stages) < 2:
        return stages[0](values) if stages else values

    def step(values: Values, stage: jax.Array) -> tuple[Values, None]:
        return jax.lax.switch(stage, stages, values), None

    return jax.lax.scan(step, values, jnp.arange(len(stages)))[0]
