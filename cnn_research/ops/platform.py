"""Platform-dependent choices: formulations of convolutions and pools, steps per dispatch.

The same mathematics runs at very different speeds on different devices. Only this module knows
about it; all else asks :func:`current_formulation`.

The choice is made while JAX traces and is part of the key of jit's cache: a function compiled
under one formulation is traced again under another.
"""

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager

import jax


@dataclasses.dataclass(frozen=True)
class Formulation:
    """Formulations of operations for one kind of device.

    The derivative rules of the first three are reverse-mode only (`jax.grad`, `jax.vjp`). For
    `jax.jvp`, `jax.hessian` and other uses of forward mode, trace under :data:`PLAIN`.
    """

    sliced_weight_gradient: bool = False
    """Compute a convolution's weight gradient over a few images at a time."""
    convolutions_as_products: bool = False
    """Compute 1x1 convolutions and those over very few channels as a matrix product, and depthwise
    ones as a weighted sum of shifted images."""
    gather_pool_gradient: bool = False
    """Compute the gradient of a max or min pool without XLA's select-and-scatter."""
    changes_apart: bool = False
    """Finish augmenting a batch before the first layer reads it."""
    steps_per_dispatch: int = 1
    """Number of train steps in one compiled loop."""
    vmapped_replicas: bool = False
    """Train replicas as one batched program over all devices; otherwise one after the other."""


PLAIN = Formulation()
"""XLA's own operations throughout: for ONNX, forward mode, and as the reference in tests."""

# On XLA:CPU, convolutions in a compiled loop (lax.scan) are about six times slower than in a Python
# loop over compiled steps; on an accelerator the compiled loop saves a dispatch per step. Replicas
# under vmap become grouped convolutions, which XLA:CPU runs three times slower than one by one.
_BY_PLATFORM = {
    "cpu": Formulation(
        sliced_weight_gradient=True,
        convolutions_as_products=True,
        gather_pool_gradient=True,
        changes_apart=True,
        steps_per_dispatch=1,
    ),
    "gpu": Formulation(steps_per_dispatch=32, vmapped_replicas=True),
    "tpu": Formulation(steps_per_dispatch=32, vmapped_replicas=True),
}

_override = jax.make_user_context(default_value=None)


def default_formulation(platform: str = "") -> Formulation:
    """Return a platform's formulation, by default that of JAX's backend; `PLAIN` if unknown."""
    return _BY_PLATFORM.get(platform or jax.default_backend(), PLAIN)


def current_formulation() -> Formulation:
    """Return the formulation of the innermost :func:`use_formulation`, else the default."""
    return _override.value or default_formulation()


@contextmanager
def use_formulation(formulation: Formulation) -> Iterator[Formulation]:
    """Trace everything in the `with` block under `formulation`, for example :data:`PLAIN`."""
    with _override(formulation):
        yield formulation
