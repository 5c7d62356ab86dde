"""Transfer learning: which layers of a network learn, from when on, and how fast.

As in the convolution lecture (Arévalo): take a pretrained network, replace its output layer, and
retrain only the last layers.
Layers are named by patterns of paths, as in `cnn_research.models.pretrained.matches`.
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
    """The layers that learn. A frozen layer keeps its parameters and its batch statistics."""

    freeze: tuple[str, ...] = ()
    """Layers to freeze: 'layer1', 'conv_*', 'features.0'."""
    unfreeze: tuple[tuple[str, PositiveFloat], ...] = ()
    """Layers, and the epoch from which they learn: 'layer4 2 layer3 4' is gradual unfreezing
    (Howard and Ruder 2018). Their optimizer starts afresh there, in the schedule of the run."""
    rates: tuple[tuple[str, PositiveFloat], ...] = ()
    """Layers, and the factor of their learning rate: 'layer1 0.1 fc 10'. The first pattern that
    matches counts; layers without learning belong in `freeze`."""
    cache_after: str = ""
    """Compute this layer's output once per image, and train only what comes after it; everything
    before is frozen. Images can be mirrored then, but not augmented otherwise."""

    fit_after: str = ""
    """Fit the layers after this one to its output before the first step, by penalised regression:
    the result is evaluated at step 0, and training goes on from there, if `epochs` are above 0."""
    penalties: tuple[NonNegativeFloat, ...] = (1.0, 0.1, 0.01, 1e-3, 1e-4)
    """Ridge penalties of `fit_after`; the one with the least validation loss is taken."""

    @property
    def names_layers(self) -> bool:
        """Return whether any field names layers, which a network may lack."""
        return bool(self.freeze or self.unfreeze or self.rates)

    def check_layers(self, params: Any) -> None:
        """Raise `UsageError` for a pattern that fits no parameter; these are arrays or shapes."""
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
                        f"--transfer.{field}: no layer fits '{pattern}'"
                        f"{did_you_mean(pattern, layers)}; the network has {shown}"
                    )

    def check_learns(self, params: Any) -> None:
        """Raise `UsageError` if every layer is frozen."""
        if all(matches(path, self.freeze) for path in by_path(params)):
            raise UsageError("--transfer: every layer is frozen, nothing is left to learn")

    def begins(self, path: str) -> float:
        """The epoch at which the leaf of that path begins to learn; infinity for never."""
        if matches(path, self.freeze):
            return math.inf
        return max((epoch for layer, epoch in self.unfreeze if matches(path, [layer])), default=0.0)

    def phases(self) -> list[float]:
        """The epochs at which what learns changes: 0 and those of `unfreeze`."""
        return sorted({0.0, *(epoch for _, epoch in self.unfreeze)})

    def frozen(self, phase: float) -> Callable[[str], bool] | None:
        """Test of a path for being frozen from epoch `phase` on; None if no layer is."""
        if not (self.freeze or any(epoch > phase for _, epoch in self.unfreeze)):
            return None
        return lambda path: self.begins(path) > phase

    def optimizer(
        self, base: OptimizerConfig, steps: int, step_of: Callable[[float], int], phase: float = 0.0
    ) -> optax.GradientTransformation:
        """The optimizer in force from epoch `phase` on; its state has one shape in all phases.

        `base` updates each group of leaves that begin to learn together, and clips a norm within
        the group. The run has `steps` steps; `step_of` gives the one at which an epoch begins.
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
    """The same state, which nothing changes, and no update."""
    return optax.GradientTransformation(
        update.init,
        lambda updates, state, params=None: (jax.tree.map(jnp.zeros_like, updates), state),
    )


def with_frozen(frozen: Callable[[str], bool] | None, old: Any, new: Any) -> Any:
    """`new` where layers learn, `old` where they are frozen; trees of parameters or statistics."""
    if frozen is None:
        return new
    return map_by_path(lambda path, before, after: before if frozen(path) else after, old, new)


def stopped(frozen: Callable[[str], bool] | None, params: Any) -> Any:
    """The same parameters; no gradient reaches the frozen ones, nor is it computed."""
    return with_frozen(frozen, jax.lax.stop_gradient(params), params)


@contextlib.contextmanager
def frozen_statistics(frozen: Callable[[str], bool] | None) -> Iterator[None]:
    """In the `with` block, batch norm of frozen layers uses its running statistics in training too.

    Normalised by its batch, a frozen layer would give other features in training than in
    evaluation.
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
    """The leaves of nested dicts by their paths, `layer1/0/conv1/kernel`."""
    return {_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def map_by_path(function: Callable[..., Any], *trees: Any) -> Any:
    """Call a function with each path and the leaves there."""
    return jax.tree_util.tree_map_with_path(
        lambda path, *leaves: function(_name(path), *leaves), *trees
    )


def _name(path: tuple) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")
