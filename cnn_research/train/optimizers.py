"""Configs of optimizers and learning-rate schedules, built with optax."""

from __future__ import annotations

import abc
import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

from cnn_research.core.config import register_config
from cnn_research.core.errors import UsageError
from cnn_research.core.ranges import NonNegativeFloat, PositiveFloat, ProperFraction


@dataclasses.dataclass(frozen=True)
class OptimizerConfig(abc.ABC):
    """Common fields of all optimizers: learning-rate schedule, clipping and moving average.

    Register a subclass to use any optax optimizer in a config. It declares its fields and returns
    the transformation from `update`. Frozen layers, learning rates per layer and exact resuming
    work as with `Optimizer`::

        @register_config
        @dataclasses.dataclass(frozen=True)
        class Lion(OptimizerConfig):
            weight_decay: float = 1e-3

            def update(self, rate):
                return optax.lion(rate, weight_decay=self.weight_decay, mask=kernels)
    """

    learning_rate: PositiveFloat = 1e-3
    """Peak learning rate, reached after the warm-up."""
    schedule: Literal["constant", "cosine", "linear"] = "constant"
    """Learning rate after the warm-up: constant, half a cosine to 0, or linear to 0."""
    warmup: ProperFraction = 0.0
    """Fraction of all steps in which the learning rate first rises linearly."""
    clip_norm: NonNegativeFloat = 0.0
    """Maximum norm of the gradient; 0 for no clipping."""
    ema_decay: ProperFraction = 0.0
    """Decay of an exponential moving average of parameters and batch statistics, which is evaluated
    in their place; 0 for none."""

    @abc.abstractmethod
    def update(self, rate: optax.Schedule) -> optax.GradientTransformation:
        """Return the transformation of the clipped gradients to updates of the parameters.

        `rate` is the learning rate as a function of the number of steps of this transformation. The
        shapes of its state must not depend on the rate; it may use the parameters, but not the
        loss. With `mask=kernels`, weight decay excludes biases and scales.
        """

    def check(self) -> None:  # noqa: B027 (optional)
        """Raise `UsageError` for contradictory fields."""

    def learning_rate_at(self, steps: int) -> optax.Schedule:
        """Return the learning rate as a function of the step, for a run of `steps` steps."""
        rising = round(self.warmup * steps)
        falling = max(1, steps - rising)
        after = {
            "constant": optax.constant_schedule(self.learning_rate),
            "cosine": optax.cosine_decay_schedule(self.learning_rate, falling),
            "linear": optax.linear_schedule(self.learning_rate, 0.0, falling),
        }[self.schedule]
        if not rising:
            return after
        # Do not start at 0, which would waste the first step.
        start = self.learning_rate / rising
        before = optax.linear_schedule(start, self.learning_rate, max(1, rising - 1))
        return optax.join_schedules([before, after], [rising])

    def build(self, steps: int, first: int = 0) -> optax.GradientTransformation:
        """Build the transformation for a run of `steps` steps, in which it starts at step `first`.

        Raises `UsageError` if `update` does not return an optax transformation.
        """
        schedule = self.learning_rate_at(steps)

        def rate(count):
            return schedule(count + first)

        update = self.update(rate)
        if not isinstance(update, optax.GradientTransformation):
            raise UsageError(
                f"{type(self).__name__}.update returned {update!r}: return an "
                "optax.GradientTransformation"
            )
        clip = optax.clip_by_global_norm(self.clip_norm) if self.clip_norm else optax.identity()
        return optax.chain(clip, update)


@register_config
@dataclasses.dataclass(frozen=True)
class Optimizer(OptimizerConfig):
    """An optimizer and its learning-rate schedule."""

    name: Literal["sgd", "adam", "adamw"] = "adam"
    """SGD with momentum, Adam, or Adam with decoupled weight decay."""
    momentum: ProperFraction = 0.9
    """Momentum of sgd; 0 for none."""
    nesterov: bool = False
    """Use Nesterov momentum, with any of the three."""
    beta1: ProperFraction = 0.9
    """Decay of the first moment in adam and adamw."""
    beta2: ProperFraction = 0.999
    """Decay of the second moment in adam and adamw."""
    epsilon: PositiveFloat = 1e-8
    """Added to the root of the second moment in adam and adamw."""
    weight_decay: NonNegativeFloat = 0.0
    """Weight decay of kernels, but not of biases and scales: added to the gradient with sgd, to the
    update with adamw (Loshchilov and Hutter 2019); adam has none."""

    def check(self) -> None:
        """Raise `UsageError` for a field that the optimizer does not use."""
        if self.name == "adam" and self.weight_decay:
            raise UsageError(
                "--optimizer.weight-decay needs --optimizer.name=adamw or sgd, not adam"
            )

    def update(self, rate: optax.Schedule) -> optax.GradientTransformation:
        moments = dict(b1=self.beta1, b2=self.beta2, eps=self.epsilon, nesterov=self.nesterov)
        if self.name == "sgd":
            return optax.chain(
                optax.add_decayed_weights(self.weight_decay, mask=kernels),
                optax.sgd(rate, momentum=self.momentum or None, nesterov=self.nesterov),
            )
        if self.name == "adam":
            return optax.adam(rate, **moments)
        return optax.adamw(rate, **moments, weight_decay=self.weight_decay, mask=kernels)


@register_config
@dataclasses.dataclass(frozen=True)
class Penalty:
    """Penalty on large weights, added to the loss (the painters paper, figures 10 and 11).

    `l1 / N * sum |w| + l2 / (2 N) * sum w^2`, over the N weights of all kernels.
    """

    l1: NonNegativeFloat = 0.0
    """Coefficient of the lasso penalty, which makes weights exactly 0."""
    l2: NonNegativeFloat = 0.0
    """Coefficient of the ridge penalty, which keeps weights small. Both: elastic net."""

    def __bool__(self) -> bool:
        return bool(self.l1 or self.l2)

    def __call__(self, params) -> jax.Array:
        """Compute the penalty of a tree of parameters, float32 `[]`."""
        leaves = [
            leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params) if is_kernel(path)
        ]
        count = sum(leaf.size for leaf in leaves)
        total = jnp.float32(0)
        for leaf in leaves:
            total += self.l1 * jnp.abs(leaf).sum() + self.l2 / 2 * jnp.square(leaf).sum()
        return total / count


def is_kernel(path: tuple) -> bool:
    """Return whether the leaf at a path is a layer's kernel, not a bias or a scale."""
    return getattr(path[-1], "key", None) == "kernel"


def kernels(params: Any) -> Any:
    """Return optax's mask of kernels, a tree of bools like the parameters."""
    return jax.tree_util.tree_map_with_path(lambda path, _: is_kernel(path), params)
