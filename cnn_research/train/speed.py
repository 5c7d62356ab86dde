"""What is reckoned with before anything is computed; the estimate of a run measures instead."""

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
"""Floating-point operations a second of a processor core, as trainings of small networks have."""
FITTING = 5.4e10
"""The same, of the matrix products that fit a head."""
PRETRAINED = 2e10
"""The same, of large networks for photographs, most of which have depthwise convolutions."""
CORES = 2
"""Cores for which a budget's minutes are planned, on every machine: the same command has to choose
the same when it resumes a run elsewhere."""
PLANNED = 0.8
"""Share of a budget that is planned. In the rest images are decoded, programs are compiled, and the
report is written."""


def planned_operations(minutes: float, speed: float) -> float:
    """Operations that a budget of `minutes` has, at `speed` operations a second of a core."""
    return 60 * minutes * PLANNED * CORES * speed


def step_flops(
    model: nn.Module, image_shape: tuple[int, int, int], freeze: Sequence[str] = ()
) -> int:
    """Operations of one image in a train step where the layers of these patterns are frozen."""
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
