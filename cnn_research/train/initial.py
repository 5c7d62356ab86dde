"""The state that training starts from: drawn, with pretrained weights, or from a checkpoint."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from cnn_research.core.distributed import state_shardings
from cnn_research.core.random import stream_key
from cnn_research.data.dataset import Dataset
from cnn_research.models.pretrained import Loaded, load_pretrained
from cnn_research.train.config import Training
from cnn_research.train.evaluator import scaled
from cnn_research.train.state import TrainState, init_state
from cnn_research.train.trained import weights_of_run


def first_state(
    experiment: Training, optimizer: optax.GradientTransformation, dataset: Dataset, mesh: Mesh
) -> tuple[TrainState, Loaded | None]:
    """The state before the first step, and what it has of pretrained weights.

    Args:
        experiment: bound to its data.
        optimizer: of the first phase.
        dataset: its data.
        mesh: of the devices.
    """
    state = initial_state(experiment, optimizer, dataset.image_shape, mesh)
    if count := getattr(experiment.model, "init_images", 0):
        train = dataset.splits["train"].images
        # A split may be sorted by class: from all of it.
        places = np.linspace(0, len(train) - 1, min(count, len(train))).astype(int)
        images = scaled(jnp.asarray(train[places]), experiment)
        params = experiment.model.with_images(state.params, images)
        state = _with_variables(state, {"params": params, **state.model_state})
    if not experiment.pretrained.source:
        return state, None
    variables = {"params": state.params, **state.model_state}
    folder = Path(experiment.pretrained.source)
    weights = weights_of_run(folder) if folder.is_dir() else None
    variables, loaded = load_pretrained(experiment.model, variables, experiment.pretrained, weights)
    return _with_variables(state, variables), loaded


def initial_state(
    experiment: Training,
    optimizer: optax.GradientTransformation,
    image_shape: tuple[int, int, int],
    mesh: Mesh,
) -> TrainState:
    """The state as it is drawn from the seed, computed under jit where it will stay."""
    init = functools.partial(
        init_state,
        experiment.model,
        optimizer,
        image_shape=image_shape,
        ema=bool(experiment.optimizer.ema_decay),
    )
    key = stream_key(experiment.seed, "init")
    shapes = jax.eval_shape(init, key)
    where = state_shardings(mesh, shapes, sharded=experiment.shard_parameters)
    return jax.jit(init, out_shardings=where)(key)


def _with_variables(state: TrainState, variables: Mapping[str, Any]) -> TrainState:
    """A state before the first step that starts from these variables, averages included."""
    # Averages are copies, because donated buffers must not be shared.
    ema = jax.tree.map(np.array, dict(variables)) if state.ema else {}
    rest = {name: value for name, value in variables.items() if name != "params"}
    where = shardings_of(state)
    state = dataclasses.replace(state, params=variables["params"], model_state=rest, ema=ema)
    return jax.device_put(state, where)


def shardings_of(state: Any) -> Any:
    """Where each of its arrays is."""
    return jax.tree.map(lambda leaf: leaf.sharding, state)
