"""Optimizers and learning-rate schedules as config, built with optax."""

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
    """The fields that all optimizers share: a learning-rate schedule, clipping, a moving average.

    A registered subclass makes any optax optimizer part of a config. It declares the fields that it
    needs, and returns the transformation from `update`. Frozen layers, learning rates of layers and
    exact resume work as with `Optimizer`:

        @register_config
        @dataclasses.dataclass(frozen=True)
        class Lion(OptimizerConfig):
            weight_decay: float = 1e-3

            def update(self, rate):
                return optax.lion(rate, weight_decay=self.weight_decay, mask=kernels)
    """

    learning_rate: PositiveFloat = 1e-3
    """Learning rate of the constant schedule; the peak of the others."""
    schedule: Literal["constant", "cosine", "linear"] = "constant"
    """After the warm-up: constant; half a cosine down to 0; or linear, down to 0."""
    warmup: ProperFraction = 0.0
    """Share of all steps, from 0 to 1, in which the learning rate first rises linearly."""
    clip_norm: NonNegativeFloat = 0.0
    """Largest norm of the whole gradient; 0 for no clipping."""
    ema_decay: ProperFraction = 0.0
    """Evaluate an exponential moving average of parameters and batch statistics with this decay;
    0 for none."""

    @abc.abstractmethod
    def update(self, rate: optax.Schedule) -> optax.GradientTransformation:
        """The transformation of gradients, clipped already, to the changes of parameters.

        `rate` is the learning rate as a function of the steps that this transformation has done.
        Its state must have the same shapes whatever the rate; it may use the parameters, but not
        the loss. With `mask=kernels`, weight decay leaves out biases and scales.
        """

    def check(self) -> None:  # noqa: B027 (there may be none)
        """Raise `UsageError` for fields that contradict each other."""

    def learning_rate_at(self, steps: int) -> optax.Schedule:
        """The learning rate as a function of the step, for a run of `steps` steps."""
        rising = round(self.warmup * steps)
        falling = max(1, steps - rising)
        after = {
            "constant": optax.constant_schedule(self.learning_rate),
            "cosine": optax.cosine_decay_schedule(self.learning_rate, falling),
            "linear": optax.linear_schedule(self.learning_rate, 0.0, falling),
        }[self.schedule]
        if not rising:
            return after
        # From the first share of the way and not from 0, where the first step would be lost.
        start = self.learning_rate / rising
        before = optax.linear_schedule(start, self.learning_rate, max(1, rising - 1))
        return optax.join_schedules([before, after], [rising])

    def build(self, steps: int, first: int = 0) -> optax.GradientTransformation:
        """The optax transformation for a run of `steps` steps, of which `first` is its first.

        Raises `UsageError` if `update` returns something else.
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
    """Use Nesterov's momentum, with any of the three."""
    beta1: ProperFraction = 0.9
    """Decay of the first moment in adam and adamw."""
    beta2: ProperFraction = 0.999
    """Decay of the second moment in adam and adamw."""
    epsilon: PositiveFloat = 1e-8
    """Added to the root of the second moment in adam and adamw."""
    weight_decay: NonNegativeFloat = 0.0
    """Pull kernels (not biases, nor scales) towards 0. With sgd it is added to the gradient, with
    adamw to the update (Loshchilov and Hutter 2019); adam has none."""

    def check(self) -> None:
        """Raise `UsageError` for a field that the optimizer does not have."""
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
    """Regularisation of large weights in the objective (the painters paper, figures 10 and 11).

    `l1 / N * sum |w| + l2 / (2 N) * sum w^2`, over the N weights of all kernels.
    """

    l1: NonNegativeFloat = 0.0
    """Lasso's alpha: pushes weights to exactly 0."""
    l2: NonNegativeFloat = 0.0
    """Ridge's alpha: keeps weights small. Both together are the elastic net."""

    def __bool__(self) -> bool:
        return bool(self.l1 or self.l2)

    def __call__(self, params) -> jax.Array:
        """The penalty, float32 `[]`, of a tree of parameters."""
        leaves = [
            leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params) if is_kernel(path)
        ]
        count = sum(leaf.size for leaf in leaves)
        total = jnp.float32(0)
        for leaf in leaves:
            total += self.l1 * jnp.abs(leaf).sum() + self.l2 / 2 * jnp.square(leaf).sum()
        return total / count


def is_kernel(path: tuple) -> bool:
    """Return whether the leaf at this path is a layer's kernel: neither a bias nor a scale."""
    return getattr(path[-1], "key", None) == "kernel"


def kernels(params: Any) -> Any:
    """Which leaves of a tree are kernels: the same tree of bools, a mask for optax."""
    return jax.tree_util.tree_map_with_path(lambda path, _: is_kernel(path), params)
