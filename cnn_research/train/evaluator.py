"""Exact evaluation: each example once, for any batch size and number of devices."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.sharding import Mesh

from cnn_research.core.distributed import batch_sharded, replicated
from cnn_research.core.files import release
from cnn_research.data.dataset import Split
from cnn_research.models.layer_outputs import last_features
from cnn_research.ops.batching import apply_in_batches, padded_batches
from cnn_research.ops.views import cut
from cnn_research.tasks.task import PIXELS, FittedTask
from cnn_research.train.config import Training


@dataclasses.dataclass(frozen=True)
class Scaling:
    """Normalisation of pixels for a model: uint8 0 to 255 -> float32 (x / 255 - mean) / std."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, images: jax.Array) -> jax.Array:
        mean, std = jnp.array(self.mean), jnp.array(self.std)
        return (images.astype(jnp.float32) / 255 - mean) / std


def scaled(images: jax.Array, experiment: Training) -> jax.Array:
    """Normalise pixels for the model of a training; see `Scaling`."""
    return Scaling(experiment.mean, experiment.std)(images)


def views_of(inputs: jax.Array, experiment: Training) -> list[jax.Array]:
    """Return the model's input, followed by the views of test-time augmentation.

    `inputs` are images, uint8 `[batch, height, width, channels]`, or cached features, float32
    `[batch, views, *output]`.
    """
    evaluation = experiment.evaluation
    if experiment.transfer.cache_after:
        return [inputs[:, view] for view in range(inputs.shape[1] if evaluation.mirror else 1)]
    images = scaled(inputs, experiment)
    views = [images]
    if evaluation.shift:
        height, width = images.shape[1:3]
        sides = (evaluation.shift, evaluation.shift)
        # Repeat the border, as the value of a black pixel depends on the normalisation.
        wide = jnp.pad(images, [(0, 0), sides, sides, (0, 0)], mode="edge")
        views += [cut(wide, (at, at), (height, width)) for at in (0, 2 * evaluation.shift)]
    if evaluation.mirror:
        views += [jnp.flip(view, axis=2) for view in views]
    return views


def predict(
    model: nn.Module, variables: Mapping[str, Any], views: Sequence[jax.Array], task: FittedTask
) -> jax.Array:
    """Compute the outputs for images, float32 `[batch, outputs]`; the task averages views."""
    outputs: list[Any] = [model.apply(variables, view, train=False) for view in views]
    return outputs[0] if len(outputs) == 1 else task.average_views(outputs)


class Evaluator:
    """Evaluates a model on splits, with one compilation per batch size."""

    def __init__(self, experiment: Training, model: nn.Module, mesh: Mesh):
        self._mesh = mesh
        self.batch_size = _rounded_up(experiment.evaluation.batch_size, mesh.size)

        def step(variables, images, labels, weights):
            views = views_of(images, experiment)
            task = experiment.fitted_task
            outputs = predict(model, variables, views, task)
            seen = {**labels, PIXELS: images} if task.needs_pixels else labels
            return task.sums(outputs, seen, weights), outputs

        def features(variables, images):
            return last_features(model, variables, views_of(images, experiment)[0])[1]

        self._step = jax.jit(step, out_shardings=replicated(mesh))
        self._features = jax.jit(features, out_shardings=replicated(mesh))

    def __call__(
        self,
        variables: Mapping[str, Any],
        split: Split,
        *,
        stop: Callable[[], object] = lambda: False,
    ) -> tuple[dict[str, tuple[float, float]], np.ndarray] | None:
        """Return metrics as (sum, count), and outputs, float32 `[examples, outputs]`.

        `stop` is called before each batch; if it is true, evaluation stops and returns None.
        """
        fetched, pending = [], None
        with jax.set_mesh(self._mesh):
            for indices, weights in padded_batches(len(split), self._size_for(split)):
                if stop():
                    return None
                labels = {head: values[indices] for head, values in split.labels.items()}
                batch = self._on_devices((split.images[indices], labels, weights))
                release(split.images)
                ready, pending = pending, self._step(variables, *batch)
                # Fetch one batch behind, so that devices never wait and the queue stays short.
                if ready is not None:
                    fetched.append(jax.device_get(ready))
            fetched.append(jax.device_get(pending))
        sums = {
            name: (
                float(sum(float(batch[name][0]) for batch, _ in fetched)),
                float(sum(float(batch[name][1]) for batch, _ in fetched)),
            )
            for name in fetched[0][0]
        }
        return sums, np.concatenate([outputs for _, outputs in fetched])[: len(split)]

    def features(self, variables: Mapping[str, Any], split: Split) -> np.ndarray:
        """Compute the `last_features` of each example; the arguments are those of a call."""

        def features(images: np.ndarray) -> jax.Array:
            return self._features(variables, self._on_devices(images))

        with jax.set_mesh(self._mesh):
            return apply_in_batches(features, split.images, self._size_for(split))

    def _size_for(self, split: Split) -> int:
        """Return the batch size, smaller for a small split, but the same on each device."""
        return min(self.batch_size, _rounded_up(len(split), self._mesh.size))

    def _on_devices(self, arrays: Any) -> Any:
        def placed(array: np.ndarray) -> jax.Array:
            return jax.make_array_from_callback(
                array.shape, batch_sharded(self._mesh), lambda part: array[part]
            )

        return jax.tree.map(placed, arrays)


def _rounded_up(count: int, multiple: int) -> int:
    return -(-count // multiple) * multiple
