"""Transfer learning: which layers of a network learn, from which epoch, and how fast.

As in the convolution lecture (Arévalo): take a pretrained network, replace its output layer, and
retrain only the last layers. Layers are given as patterns of paths, as in
`cnn_research.models.pretrained.matches`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from cnn_research.core.config import did_you_mean, register_config
from cnn_research.core.errors import UsageError
from cnn_research.core.ranges import NonNegativeFloat, PositiveFloat
from cnn_research.models.pretrained import matches
from cnn_research.train.optimizers import OptimizerConfig


@register_config
@dataclasses.dataclass(frozen=True)
class Transfer:
    """The layers that learn. Frozen layers keep their parameters and batch statistics."""

    freeze: tuple[str, ...] = ()
    """Layers to freeze: 'layer1', 'conv_*', 'features.0'."""
    unfreeze: tuple[tuple[str, PositiveFloat], ...] = ()
    """Layers and the epoch from which they learn: 'layer4 2 layer3 4' is gradual unfreezing (Howard
    and Ruder 2018). Their optimizer starts anew, in the schedule of the run."""
    rates: tuple[tuple[str, PositiveFloat], ...] = ()
    """Layers and the factor of their learning rate: 'layer1 0.1 fc 10'. The first matching pattern
    applies; use `freeze` for layers that should not learn."""
    cache_after: str = ""
    """Compute this layer's output once per image, freeze the layers up to it, and train only the
    layers after it. Images can then be mirrored, but not otherwise augmented."""

    fit_after: str = ""
    """Before the first step, fit the layers after this one to its output by penalised regression.
    The result is evaluated at step 0, and training continues from it if `epochs` is above 0."""
    penalties: tuple[NonNegativeFloat, ...] = (1.0, 0.1, 0.01, 1e-3, 1e-4)
    """Ridge penalties for `fit_after`; the one with the lowest validation loss is used."""

    @property
    def names_layers(self) -> bool:
        """Whether any field names layers, which may not exist in the network."""
        return bool(self.freeze or self.unfreeze or self.rates)

    def check_layers(self, params: Any) -> None:
        """Raise `UsageError` if a pattern matches no parameter, given as arrays or shapes."""
        paths = list(by_path(params))
        for field, patterns in (
            ("freeze", self.freeze),
            ("unfreeze", [layer for layer, _ in self.unfreeze]),
            ("rates", [layer for layer, _ in self.rates]),
        ):
            for pattern in patterns:
                if not any(matches(path, [pattern]) for path in paths):
                    layers = list(dict.fromkeys(path.rpartition("/")[0] for path in paths))
                    shown = ", ".join(layers[:3] + ["..."] * (len(layers) > 6) + layers[3:][-3:])
                    raise UsageError(
                        f"--transfer.{field}: no layer matches '{pattern}'"
                        f"{did_you_mean(pattern, layers)}; the network has {shown}"
                    )

    def check_learns(self, params: Any) -> None:
        """Raise `UsageError` if every layer is frozen."""
        if all(matches(path, self.freeze) for path in by_path(params)):
            raise UsageError("--transfer: all layers are frozen, so nothing can be trained")

    def begins(self, path: str) -> float:
        """Return the epoch from which the leaf at a path learns; infinity for never."""
        if matches(path, self.freeze):
            return math.inf
        return max((epoch for layer, epoch in self.unfreeze if matches(path, [layer])), default=0.0)

    def phases(self) -> list[float]:
        """Return the epochs at which layers start to learn: 0 and those of `unfreeze`."""
        return sorted({0.0, *(epoch for _, epoch in self.unfreeze)})

    def frozen(self, phase: float) -> Callable[[str], bool] | None:
        """Return a test of paths for frozen layers from epoch `phase`; None if none is frozen."""
        if not (self.freeze or any(epoch > phase for _, epoch in self.unfreeze)):
            return None
        return lambda path: self.begins(path) > phase

    def optimizer(
        self, base: OptimizerConfig, steps: int, step_of: Callable[[float], int], phase: float = 0.0
    ) -> optax.GradientTransformation:
        """Return the optimizer from epoch `phase`; its state has the same shape in all phases.

        `base` updates each group of leaves that start to learn together, with gradient clipping
        per group. The run has `steps` steps; `step_of` returns the step at which an epoch begins.
        """

        def group_of(params):
            return map_by_path(lambda path, _: str(self.begins(path)), params)

        def rate(path: str) -> float:
            return next((factor for layer, factor in self.rates if matches(path, [layer])), 1.0)

        def multiplied(updates, params=None):
            return map_by_path(lambda path, x: x * rate(path), updates)

        update = base.build(steps)
        if self.freeze or self.unfreeze:
            groups = {str(math.inf): optax.set_to_zero()}
            for begins in self.phases():
                group = base.build(steps, first=step_of(begins))
                groups[str(begins)] = group if begins <= phase else _asleep(group)
            update = optax.partition(groups, group_of)
        return optax.chain(update, optax.stateless(multiplied)) if self.rates else update


def _asleep(update: optax.GradientTransformation) -> optax.GradientTransformation:
    """Return a transformation with the same state, but without any update."""
    return optax.GradientTransformation(
        update.init,
        lambda updates, state, params=None: (jax.tree.map(jnp.zeros_like, updates), state),
    )


def with_frozen(frozen: Callable[[str], bool] | None, old: Any, new: Any) -> Any:
    """Merge trees of parameters or statistics: `old` for frozen layers, `new` for the others."""
    if frozen is None:
        return new
    return map_by_path(lambda path, before, after: before if frozen(path) else after, old, new)


def stopped(frozen: Callable[[str], bool] | None, params: Any) -> Any:
    """Stop the gradients of frozen parameters, which are then not computed."""
    return with_frozen(frozen, jax.lax.stop_gradient(params), params)


@contextlib.contextmanager
def frozen_statistics(frozen: Callable[[str], bool] | None) -> Iterator[None]:
    """Make frozen layers' batch norm use running statistics in training, within the `with` block.

    With batch statistics, a frozen layer would give different features in training and evaluation.
    """
    if frozen is None:
        yield
        return

    def intercept(call, args, kwargs, context):
        path = "/".join(context.module.path)
        if isinstance(context.module, nn.BatchNorm) and frozen(path):
            kwargs = {**kwargs, "use_running_average": True}
        return call(*args, **kwargs)

    with nn.intercept_methods(intercept):
        yield


def by_path(tree: Any) -> dict[str, Any]:
    """Return the leaves of nested dicts by path, `layer1/0/conv1/kernel`."""
    return {_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def map_by_path(function: Callable[..., Any], *trees: Any) -> Any:
    """Call a function with each path and its leaves; return a tree of the results."""
    return jax.tree_util.tree_map_with_path(
        lambda path, *leaves: function(_name(path), *leaves), *trees
    )


def _name(path: tuple) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")
