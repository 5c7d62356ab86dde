"""The train step: a pure function of (context, state, data, seed), and its jitted loop."""

from __future__ import annotations

import dataclasses
import functools
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import PartitionSpec as P

from cnn_research import ops
from cnn_research.core.distributed import replicated
from cnn_research.core.random import stream_key
from cnn_research.train.batch import Targets, draw_batch
from cnn_research.train.state import StepContext, TrainData, TrainState
from cnn_research.train.transfer import frozen_statistics, stopped, with_frozen

Sums = dict[str, Any]
States = tuple[TrainState, ...]


def train_step(
    context: StepContext, state: TrainState, data: TrainData, seed: jax.Array
) -> tuple[TrainState, dict[str, jax.Array]]:
    """Return the state after one step, and its metrics as (sum, count), float32 `[2]` each.

    All random keys depend on (seed, step); the seed is uint32 `[]`.
    """
    images, targets = draw_batch(context, data, seed, state.step)
    dropout = jax.random.fold_in(stream_key(seed, "dropout"), state.step)
    # Sharded parameters are gathered here, once per step.
    params = state.params
    if context.mesh is not None:
        params = jax.lax.with_sharding_constraint(params, replicated(context.mesh))
    gradients_of = _gradients if context.experiment.accumulate == 1 else _accumulated_gradients
    gradients, sums, model_state = gradients_of(
        context, params, state.model_state, images, targets, dropout
    )
    after = _apply_gradients(context, state, gradients, model_state)
    return after, {name: jnp.stack(pair) for name, pair in sums.items()}


def _gradients(
    context: StepContext, params, model_state, images, targets: Targets, dropout, counts=None
) -> tuple[Any, Sums, Any]:
    """Compute gradients, sums of metrics, and the updated other collections of the model."""
    gradient = jax.grad(functools.partial(_objective, context), has_aux=True)
    gradients, (sums, model_state) = gradient(params, model_state, images, targets, dropout, counts)
    return gradients, sums, model_state


def _accumulated_gradients(
    context: StepContext, params, model_state, images, targets: Targets, dropout
) -> tuple[Any, Sums, Any]:
    """Compute the same as `_gradients` for a batch in parts, one after the other."""
    parts, task = context.experiment.accumulate, context.experiment.fitted_task
    # The number of terms in the batch depends only on its labels.
    logits, _ = jax.eval_shape(
        functools.partial(_forward, context), params, model_state, images, dropout
    )
    terms = _summed(task.training_loss, jnp.zeros(logits.shape, logits.dtype), targets)
    counts = {name: count for name, (_, count) in terms.items()}

    def add_part(carry, part):
        total, model_state = carry
        more, sums, model_state = _gradients(context, params, model_state, *part, counts)
        return (jax.tree.map(jnp.add, total, more), model_state), sums

    # Each part contains the same number of images of each device.
    images, targets = jax.tree.map(
        lambda values: values.reshape(-1, parts, *values.shape[1:]).swapaxes(0, 1),
        (images, targets),
    )
    (gradients, model_state), sums = jax.lax.scan(
        add_part,
        (jax.tree.map(jnp.zeros_like, params), model_state),
        (images, targets, jax.random.split(dropout, parts)),
        # Unroll where loops are slow; there, steps are dispatched one by one, too.
        unroll=ops.current_formulation().steps_per_dispatch == 1,
    )
    return gradients, jax.tree.map(lambda values: values.sum(axis=0), sums), model_state


def _objective(
    context: StepContext, params, model_state, images, targets: Targets, dropout, counts=None
) -> tuple[jax.Array, tuple[Sums, Any]]:
    """Compute the objective, or its share of a part of a batch with the batch's `counts`."""
    experiment = context.experiment
    task, penalised, parts = experiment.fitted_task, experiment.penalty, experiment.accumulate
    params = stopped(context.frozen, params)
    logits, model_state = _forward(context, params, model_state, images, dropout)
    # A model's auxiliary heads in training, (weight, logits) each.
    auxiliary = jax.tree.leaves(model_state.pop("auxiliary", {}), is_leaf=_is_head)
    penalty: Any = penalised(params) / parts if penalised else jnp.float32(0)
    value = penalty
    for weight, outputs in [(1.0, logits), *auxiliary]:
        terms = _summed(task.training_loss, outputs, targets)
        value += weight * task.combine_losses(
            {
                name: total / jnp.maximum(counts[name] if counts else count, 1e-6)
                for name, (total, count) in terms.items()
            }
        )
    sums = dict(_summed(task.sums, logits, targets))
    if penalised:
        sums["penalty"] = (penalty, jnp.float32(1 / parts))
    if penalised or task.has_training_loss or auxiliary:
        sums["objective"] = (value, jnp.float32(1 / parts))
    return value, (sums, model_state)


def _forward(context: StepContext, params, model_state, images, dropout) -> tuple[Any, Any]:
    """Compute the model's outputs in training, and its updated other collections."""
    with frozen_statistics(context.frozen):
        return context.model.apply(
            {"params": params, **model_state},
            images,
            train=True,
            mutable=[*model_state, "auxiliary"],
            rngs={"dropout": dropout},
        )


def _apply_gradients(context: StepContext, state: TrainState, gradients, model_state) -> TrainState:
    """Update the state, except for frozen layers and their statistics."""
    updates, opt_state = context.optimizer.update(gradients, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    decay = context.experiment.optimizer.ema_decay
    ema = moving_average(decay, state, {"params": params, **model_state})

    def kept(old, new):
        return {name: with_frozen(context.frozen, old[name], new[name]) for name in new}

    return TrainState(
        step=state.step + 1,
        params=params,
        model_state=kept(state.model_state, model_state),
        opt_state=opt_state,
        ema=kept(state.ema, ema),
    )


def moving_average(decay: float, state: TrainState, new: Mapping[str, Any]) -> Any:
    """Update the moving average; its decay is smaller in the first steps, as the initial values
    should not persist."""
    if not state.ema:
        return state.ema
    weight = jnp.minimum(decay, (1 + state.step) / (10 + state.step))
    return jax.tree.map(lambda old, now: weight * old + (1 - weight) * now, state.ema, dict(new))


def _summed(function: Callable[..., Mapping[str, Any]], outputs: Any, targets: Targets) -> Sums:
    """Sum each metric or term over all targets; return (sum, count) each."""
    each = [function(outputs, labels, weight) for labels, weight in targets]
    return jax.tree.map(lambda *terms: sum(terms), *each)


def _is_head(value: object) -> bool:
    return isinstance(value, tuple) and len(value) == 2 and isinstance(value[0], float)


# Many steps, and several states ------------------------------------------------------------------


def make_steps(
    context: StepContext, shardings: Any = None
) -> Callable[[States, TrainData, tuple[jax.Array, ...], int], tuple[States, dict[str, jax.Array]]]:
    """Create the jitted `(states, data, seeds, count) -> (states, metrics)` of `count` steps.

    There may be one state and seed, or several that are trained together. The states' buffers are
    donated; without `shardings`, they are replicated on all devices. Metrics are (sum, count),
    float32 `[count, states, 2]` each.
    """
    mesh = context.mesh
    assert mesh is not None

    @functools.partial(
        jax.jit,
        static_argnames="count",
        donate_argnums=0,
        out_shardings=(shardings or replicated(mesh), replicated(mesh)),
    )
    def steps(states, data, seeds, count):
        formulation = ops.current_formulation()
        if len(states) == 1 or len(states) % mesh.size or not formulation.vmapped_replicas:
            return _repeated(
                functools.partial(_sequential_step, context), states, data, seeds, count
            )
        # Sliced weight gradients were not measured under vmap.
        plain = dataclasses.replace(formulation, sliced_weight_gradient=False)
        with ops.use_formulation(plain):
            step = functools.partial(_vmapped_step, context)
            after, metrics = _repeated(step, _stacked(states), data, _stacked(seeds), count)
        each = (jax.tree.map(operator.itemgetter(i), after) for i in range(len(states)))
        return tuple(each), metrics

    return steps


def _sequential_step(context: StepContext, states, data, seeds):
    """Do a step of each state, with each batch split over all devices."""
    each = [
        train_step(context, state, data, seed) for state, seed in zip(states, seeds, strict=True)
    ]
    return tuple(state for state, _ in each), _stacked([metrics for _, metrics in each])


def _vmapped_step(context: StepContext, states, data, seeds):
    """Do a step of states along a leading axis, which is split over the devices."""
    alone = functools.partial(train_step, dataclasses.replace(context, mesh=None))
    along = P("data")
    return jax.shard_map(
        jax.vmap(alone, in_axes=(0, None, 0)),
        mesh=context.mesh,
        in_specs=(along, P(), along),
        out_specs=along,
        check_vma=False,
    )(states, data, seeds)


def _repeated(step, states, data, seeds, count):
    if count == 1:
        states, metrics = step(states, data, seeds)
        return states, {name: value[None] for name, value in metrics.items()}
    return jax.lax.scan(lambda states, _: step(states, data, seeds), states, None, count)


def _stacked(trees: Sequence[Any]) -> Any:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)
