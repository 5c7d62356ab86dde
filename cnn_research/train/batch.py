"""The batch of a step, drawn inside jit as a function of (seed, step)."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from cnn_research.core.distributed import batch_sharded, replicated
from cnn_research.core.random import example_keys, fold_name, stream_key
from cnn_research.data.augmentation import stages
from cnn_research.data.batches import balanced_indices, batch_indices, random_corners, windows_of
from cnn_research.tasks.task import PIXELS
from cnn_research.train.evaluator import scaled
from cnn_research.train.feature_cache import one_view
from cnn_research.train.state import StepContext, TrainData

Targets = list[tuple[Mapping[str, jax.Array], jax.Array]]
"""Pairs of labels and their weight for each image, float32 `[batch]`; two pairs if images are
mixed, otherwise one."""


def draw_batch(
    context: StepContext, data: TrainData, seed: jax.Array, step: jax.Array
) -> tuple[jax.Array, Targets]:
    """Draw the model's input images of a step (int32 `[]`, from 0) and their targets."""
    experiment = context.experiment
    size, augmentation = experiment.batch_size, experiment.augmentation
    if data.classes is not None:
        indices, draws = balanced_indices(seed, step, size, data.classes)
    else:
        indices, draws = batch_indices(seed, step, size, context.examples)
    # From here on, all random keys depend on the example and on how often it was drawn.
    keys = example_keys(stream_key(seed, "augmentation"), draws, indices)
    count = len(data.images)
    copy = indices // count % augmentation.copies

    def augmented(keys, images):
        if experiment.transfer.cache_after:
            return one_view(keys, images)
        if not (augmentation.changes or augmentation.size):
            return images
        return stages.materialize(lambda: augmentation(keys, images, copy), step)

    images, labels, keys = _take(context, data, indices % count, keys)
    images, targets = augmented(keys, images), [(labels, jnp.ones(size, jnp.float32))]
    if augmentation.mixes:
        others, other_labels, other_keys = _take(
            context, data, augmentation.partners(keys, count), fold_name(keys, "other")
        )
        images, weight = augmentation.mixed(keys, images, augmented(other_keys, others))
        targets = [(labels, weight), (other_labels, 1 - weight)]
    if experiment.task.needs_pixels:
        targets = [({**labels, PIXELS: images}, weight) for labels, weight in targets]
    return images if experiment.transfer.cache_after else scaled(images, experiment), targets


def _take(context: StepContext, data: TrainData, indices: jax.Array, keys: jax.Array):
    """Take the images, labels and keys of examples, sharded over the devices."""
    images, labels, window = data.images, data.labels, data.window
    if window is None:
        images, labels = jax.tree.map(lambda values: values[indices], (images, labels))
    else:
        corners = random_corners(keys, images.shape[1:3], window)
        images, labels = jax.tree.map(
            lambda values: windows_of(values, indices, corners, window), (images, labels)
        )
    taken = (images, labels, keys)
    if context.mesh is None:
        return taken
    return jax.lax.with_sharding_constraint(taken, batch_sharded(context.mesh))


def first_images(
    context: StepContext, data: TrainData, seeds: Sequence[jax.Array]
) -> list[np.ndarray]:
    """Draw the images of each seed's first step, uint8 `[batch, height, width, channels]` each."""
    assert context.mesh is not None
    experiment = context.experiment

    @functools.partial(jax.jit, out_shardings=replicated(context.mesh))
    def images(data, seed):
        seen, _ = draw_batch(context, data, seed, jnp.int32(0))
        pixels = seen * jnp.array(experiment.std) + jnp.array(experiment.mean)
        return jnp.clip(jnp.rint(255 * pixels), 0, 255).astype(jnp.uint8)

    return [np.asarray(images(data, seed)) for seed in seeds]
