"""Fits a new head to the features of a pretrained network before the first train step.

Penalised regression on features is convex: L-BFGS finds the optimum without a learning rate or a
number of epochs, and the result does not depend on the seed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import traverse_util
from jax.flatten_util import ravel_pytree
from jax.sharding import Mesh
from scipy import optimize

from cnn_research.core.distributed import replicated
from cnn_research.core.preemption import raise_if_interrupted
from cnn_research.data.dataset import Split
from cnn_research.models.pretrained import matches
from cnn_research.train.config import Training
from cnn_research.train.evaluator import Evaluator
from cnn_research.train.feature_cache import FromFeatures, before
from cnn_research.train.state import TrainState
from cnn_research.train.transfer import Transfer

ITERATIONS = 100
"""Maximum number of L-BFGS iterations; each fit starts from the optimum of the previous penalty."""


def most_operations(examples: int, features: int, outputs: int, penalties: int) -> int:
    """Return the floating-point operations of fitting a linear layer with all iterations."""
    return 6 * examples * features * outputs * ITERATIONS * penalties


@dataclasses.dataclass(frozen=True)
class FittedHead:
    """Variables with a fitted head, and the choice of its penalty."""

    variables: dict[str, Any]
    penalty: float
    validation_loss: Mapping[str, float]
    """Loss by penalty; empty without a validation split, when the middle penalty is used."""

    def __str__(self) -> str:
        if not self.validation_loss:
            return f"penalty {self.penalty:g}, without validation images to select by"
        losses = ", ".join(f"{loss:.4f} at {p}" for p, loss in self.validation_loss.items())
        return f"penalty {self.penalty:g} has the lowest validation loss ({losses})"


def probe_of(experiment: Training, image_shape: tuple[int, int, int]) -> Training:
    """Return the experiment that trains only the layers after `transfer.fit_after`."""
    layer, penalties = experiment.transfer.fit_after, experiment.transfer.penalties
    frozen = before(experiment.model, image_shape, layer)
    transfer = Transfer(cache_after=layer, freeze=frozen, penalties=penalties)
    return dataclasses.replace(experiment, transfer=transfer, shard_parameters=False)


def fit_head(
    probe: Training,
    state: TrainState,
    image_shape: tuple[int, int, int],
    splits: Mapping[str, Split],
    mesh: Mesh,
) -> FittedHead:
    """Fit the layers after the features of `splits` to the training split.

    Minimises the task's loss plus `penalty / 2 * sum(kernels ** 2)`, over images and, if the
    augmentation mirrors, mirror images. Batch norm in the head uses the statistics of all features.
    `probe` is `probe_of` an experiment bound to the data, and `state` a new one.
    """
    frozen = probe.transfer.freeze
    model = FromFeatures(probe.model, probe.transfer.cache_after, image_shape)
    variables = jax.device_get(
        jax.device_put({"params": state.params, **state.model_state}, replicated(mesh))
    )
    train, validation = splits["train"], splits.get("validation")
    views = train.images.shape[1]
    features = jnp.asarray(train.images.reshape(-1, *train.images.shape[2:]))
    labels = {head: np.repeat(values, views, axis=0) for head, values in train.labels.items()}
    variables = _with_statistics(model, variables, features, frozen)
    evaluator = Evaluator(probe, model, mesh)
    losses, best, least = {}, variables, np.inf
    penalties = sorted(probe.transfer.penalties, reverse=True)
    if validation is None:
        penalties = penalties[: len(penalties) // 2 + 1]
    for penalty in penalties:
        variables = _fitted(probe, model, variables, features, labels, frozen, penalty)
        if validation is None:
            best, chosen = variables, penalty
            continue
        sums, _ = evaluator(variables, validation, stop=_never)  # type: ignore[misc]
        losses[f"{penalty:g}"] = loss = probe.fitted_task.means(sums)["loss"]
        if loss < least:
            best, chosen, least = variables, penalty, loss
    return FittedHead(best, chosen, losses)


def _never() -> bool:
    raise_if_interrupted()
    return False


def _fitted(
    experiment: Training,
    model: nn.Module,
    variables: Mapping[str, Any],
    features: jax.Array,
    labels: Mapping[str, np.ndarray],
    frozen: tuple[str, ...],
    penalty: float,
) -> dict[str, Any]:
    """Minimise the penalised loss from the current head; return variables with the new head."""
    task = experiment.fitted_task
    leaves = traverse_util.flatten_dict(variables["params"], sep="/")
    head = {path: leaf for path, leaf in leaves.items() if not matches(path, frozen)}
    start, unravel = ravel_pytree(head)

    def with_head(head: Mapping[str, Any]) -> dict[str, Any]:
        return {**variables, "params": traverse_util.unflatten_dict({**leaves, **head}, sep="/")}

    @jax.jit
    @jax.value_and_grad
    def objective(flat, features, labels):
        head = unravel(flat)
        outputs = model.apply(with_head(head), features, train=False)
        terms = task.training_loss(outputs, labels, jnp.ones(len(features)))
        loss = task.combine_losses({k: s / jnp.maximum(n, 1e-6) for k, (s, n) in terms.items()})
        kernels = [leaf for path, leaf in head.items() if path.endswith("kernel")]
        return loss + penalty / 2 * sum(jnp.square(kernel).sum() for kernel in kernels)

    def in_float64(flat: np.ndarray) -> tuple[float, np.ndarray]:
        raise_if_interrupted()
        value, gradient = objective(jnp.asarray(flat, jnp.float32), features, labels)
        return float(value), np.asarray(gradient, np.float64)

    solution = optimize.minimize(
        in_float64, start, jac=True, method="L-BFGS-B", options={"maxiter": ITERATIONS}
    )
    return jax.device_get(with_head(unravel(jnp.asarray(solution.x, jnp.float32))))


def _with_statistics(
    model: nn.Module, variables: Mapping[str, Any], features: jax.Array, frozen: tuple[str, ...]
) -> dict[str, Any]:
    """Set the head's batch-norm statistics to the mean and variance of all features."""
    moments: dict[str, jax.Array] = {}

    def intercept(call, args, kwargs, context):
        path = "/".join(context.module.path)
        if isinstance(context.module, nn.BatchNorm) and not matches(path, frozen):
            axes = tuple(range(args[0].ndim - 1))
            moments[f"{path}/mean"] = args[0].mean(axes)
            moments[f"{path}/var"] = args[0].var(axes)
        return call(*args, **kwargs)

    @jax.jit
    def statistics(variables, features):
        with nn.intercept_methods(intercept):
            model.apply(variables, features, train=False)
        return moments

    if "batch_stats" not in variables:
        return dict(variables)
    leaves = traverse_util.flatten_dict(variables["batch_stats"], sep="/")
    leaves |= jax.device_get(statistics(variables, features))
    return {**variables, "batch_stats": traverse_util.unflatten_dict(leaves, sep="/")}
