"""Choice of formulations of convolutions and pools, and of the number of steps per dispatch.

The same mathematics runs at very different speeds on different devices. This module is the only
place that knows it: everything else asks :func:`current_formulation`.

The choice is made while JAX traces. It takes part in the key of jit's cache, so a function that
was compiled under one formulation is traced again under another.
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
    """Compute convolutions over very few channels, or 1x1 ones, as a matrix product, and depthwise
    ones as shifted images times numbers, added up."""
    gather_pool_gradient: bool = False
    """Compute the gradient of a max or min pool without XLA's select-and-scatter."""
    changes_apart: bool = False
    """Compute the changes to training images in full before the first layer reads them."""
    steps_per_dispatch: int = 1
    """Number of train steps in one compiled loop."""
    vmapped_replicas: bool = False
    """Train replicas as one batched program, spread over the devices; otherwise in turn."""


PLAIN = Formulation()
"""XLA's own operations throughout: for ONNX, forward mode, and as the reference in tests."""

# A loop inside the compiled program (lax.scan) runs its convolutions about six times slower than
# a Python loop over compiled steps on XLA:CPU; on an accelerator the loop saves a dispatch a step.
# Under vmap replicas make grouped convolutions, which XLA:CPU runs three times slower than in turn.
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
    """The formulation of a platform (`cpu`; JAX's own by default); `PLAIN` of an unknown one."""
    return _BY_PLATFORM.get(platform or jax.default_backend(), PLAIN)


def current_formulation() -> Formulation:
    """The formulation chosen by the innermost :func:`use_formulation`, else the default one."""
    return _override.value or default_formulation()


@contextmanager
def use_formulation(formulation: Formulation) -> Iterator[Formulation]:
    """Trace everything in the `with` block under `formulation`, for example :data:`PLAIN`."""
    with _override(formulation):
        yield formulation
