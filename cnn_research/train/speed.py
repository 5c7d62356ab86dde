"""Assumed speeds for planning a training in advance; a dry run measures them instead."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn

from cnn_research.models.flops import flops
from cnn_research.models.pretrained import matches
from cnn_research.train.transfer import stopped

TRAINING = 2.8e10
"""Floating-point operations per second and processor core in training small networks."""
FITTING = 5.4e10
"""The same for the matrix products of fitting a head."""
PRETRAINED = 2e10
"""The same for large networks for photographs, most of which have depthwise convolutions."""
CORES = 2
"""Number of cores for which a budget is planned on every machine, as a command must choose the same
when it resumes a run on another machine."""
PLANNED = 0.8
"""Fraction of a budget that is planned; the rest is for decoding, compilation and the report."""


def planned_operations(minutes: float, speed: float) -> float:
    """Return the operations in a budget of `minutes` at `speed` operations per second and core."""
    return 60 * minutes * PLANNED * CORES * speed


def step_flops(
    model: nn.Module, image_shape: tuple[int, int, int], freeze: Sequence[str] = ()
) -> int:
    """Count the operations per image of a train step with frozen layers, given as patterns."""
    key = jax.eval_shape(jax.random.key, 0)
    images = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    variables = jax.eval_shape(functools.partial(model.init, train=False), key, images)
    rest = {name: values for name, values in variables.items() if name != "params"}

    def outputs(params, rest, images, key):
        params = stopped(lambda path: matches(path, freeze), params)
        logits, _ = model.apply(
            {"params": params, **rest}, images, train=True, mutable=[*rest], rngs={"dropout": key}
        )
        return logits.sum()

    return flops(jax.grad(outputs), variables["params"], rest, images, key)
