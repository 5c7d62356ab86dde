"""Cost of a model: parameters, floating-point operations, and smallest image size.

They are counted in the model's jaxpr; nothing is computed.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.extend.core import Jaxpr, jaxprs_in_params
from jax.interpreters import partial_eval

from cnn_research import ops
from cnn_research.models.layers import ImageTooSmall

_KEY = jax.eval_shape(jax.random.key, 0)
"""Shape of a key, which is all that tracing needs: no device is started."""


@dataclasses.dataclass(frozen=True)
class Cost:
    """Cost of a model for images of one size."""

    parameters: int
    """Including those of auxiliary heads."""
    statistics: int
    """Numbers in the running statistics of batch normalisation."""
    flops: int
    """Operations of one image's forward pass in evaluation."""
    outputs: int
    """Numbers in the outputs of its convolutions and matrix products."""


def cost(model: nn.Module, image_shape: tuple[int, int, int]) -> Cost:
    """Count a model's parameters and operations for images `(height, width, channels)`."""

    def forward(key, images):
        return model.init_with_output(key, images, train=False)

    images = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    with ops.use_formulation(ops.PLAIN):
        # One trace for all, because tracing is slow.
        program, (logits, variables) = jax.make_jaxpr(forward, return_shape=True)(_KEY, images)
    wanted = [True] * len(jax.tree.leaves(logits)) + [False] * len(jax.tree.leaves(variables))
    evaluated, _ = partial_eval.dce_jaxpr(program.jaxpr, wanted)
    return Cost(
        parameters=_size(variables["params"]),
        statistics=_size(variables.get("batch_stats", {})),
        flops=_of_program(evaluated),
        outputs=_outputs_of_program(evaluated),
    )


def flops(function: Callable[..., Any], *arguments: Any) -> int:
    """Count the operations of the convolutions and matrix products in a function, as written.

    A multiplication and an addition are two operations. Pools, normalisation and activations are
    not counted, as usual; padding counts like pixels. Raises `ValueError` for a loop of unknown
    length.
    """
    with ops.use_formulation(ops.PLAIN):
        return _of_program(jax.make_jaxpr(function)(*arguments).jaxpr)


def least_size(model: nn.Module, channels: int = 3) -> int:
    """Smallest height and width of images that a model accepts."""

    class Reached(Exception):
        """A layer was called: the image is large enough."""

    def stop(layer, arguments, options, context):
        if context.module.path:
            raise Reached
        return layer(*arguments, **options)

    pixel = jax.ShapeDtypeStruct((1, 1, 1, channels), jnp.float32)
    try:
        with nn.intercept_methods(stop):
            jax.eval_shape(model.init, _KEY, pixel)
    except ImageTooSmall as error:
        return error.least
    except Reached:
        pass
    return 1


def _size(tree: Any) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def _outputs_of_program(program: Jaxpr) -> int:
    total = 0
    for equation in program.eqns:
        if equation.primitive.name in ("conv_general_dilated", "dot_general"):
            total += _size(equation.outvars[0].aval)
        else:
            total += sum(map(_outputs_of_program, jaxprs_in_params(equation.params)))
    return total


def _of_program(program: Jaxpr) -> int:
    return sum(_of_equation(equation) for equation in program.eqns)


def _of_equation(equation: Any) -> int:
    name, options = equation.primitive.name, equation.params
    if name == "conv_general_dilated":
        kernel = equation.invars[1].aval.shape
        outputs = kernel[options["dimension_numbers"].rhs_spec[0]]
        return 2 * equation.outvars[0].aval.size * (math.prod(kernel) // outputs)
    if name == "dot_general":
        (contracted, _), _ = options["dimension_numbers"]
        sizes = [equation.invars[0].aval.shape[axis] for axis in contracted]
        return 2 * equation.outvars[0].aval.size * math.prod(sizes)
    inner = [_of_program(program) for program in jaxprs_in_params(options)]
    if name == "while" and any(inner):
        raise ValueError("the operations of a loop of unknown length cannot be counted")
    if name == "cond":
        return max(inner)
    return sum(inner) * options.get("length", 1) if name == "scan" else sum(inner)
