"""Checks of data sets, networks and tasks from outside this project, before the first step."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

from cnn_research.core.definitions import error_with_place, is_own
from cnn_research.core.errors import UsageError, UserError
from cnn_research.data.dataset import Dataset
from cnn_research.tasks.task import PIXELS, FittedTask, Task
from cnn_research.train.config import Training


def load(source: Any) -> Dataset:
    """Load a data set; raise `UsageError` if its source is invalid or fails."""
    name = type(source).__name__
    if is_own(type(source).__module__):
        return source.load()
    if not hasattr(source, "load"):
        raise UsageError(f"data is a {name}, which has no load()")
    with _refused(f"{name}.load fails"):
        dataset = source.load()
    if not isinstance(dataset, Dataset):
        kind = type(dataset).__name__
        raise UsageError(f"{name}.load returned a {kind}: it must return a cnn_research.Dataset")
    if "train" not in dataset.splits:
        raise UsageError(f"{name}.load returned no split 'train', but {', '.join(dataset.splits)}")
    return dataset


def check_outside(experiment: Training, dataset: Dataset) -> None:
    """Raise `UsageError` if a network or a task from outside cannot be trained.

    The experiment is bound to the data. Both are traced with two examples, without computing
    anything.
    """
    model, task = experiment.model, experiment.fitted_task
    if is_own(type(model).__module__) and is_own(type(task).__module__):
        return
    for train in (True, False):
        outputs = _outputs(model, dataset, train=train)
        # A task that binds networks in its own way knows what they return.
        if type(task).bind is Task.bind:
            _check_outputs(model, outputs)
    # With random crops, the stored labels per pixel are larger than the outputs.
    if not (is_own(type(task).__module__) or dataset.window):
        _check_task(task, outputs, dataset)


def _outputs(model: Any, dataset: Dataset, *, train: bool) -> Any:
    """Trace a network with two images; return the shape of its outputs."""
    images = jax.ShapeDtypeStruct((2, *dataset.image_shape), jnp.float32)
    rngs = {"params": jax.random.key(0), "dropout": jax.random.key(1)}

    def apply(images: jax.Array) -> Any:
        return model.init_with_output(rngs, images, train=train)[0]

    with _refused(f"{type(model).__name__} cannot be applied to images {list(images.shape)}"):
        outputs = jax.eval_shape(apply, images)
    return outputs


def _check_outputs(model: Any, outputs: Any) -> None:
    expected, kind = (2, model.num_classes), getattr(outputs, "dtype", "")
    shape = getattr(outputs, "shape", type(outputs).__name__)
    if (shape, kind) != (expected, jnp.float32):
        raise UsageError(
            f"{type(model).__name__} returns {shape} {kind} for two images: it must return float32 "
            f"{expected}, one row per image and num_classes columns"
        )


def _check_task(task: FittedTask, outputs: Any, dataset: Dataset) -> None:
    train, name = dataset.splits["train"], type(task).__name__
    labels = {head: jnp.asarray(train.labels[head][:2]) for head in task.heads}
    if task.needs_pixels:
        labels[PIXELS] = jnp.asarray(train.images[:2])
    for method in ("sums", "training_loss"):
        with _refused(f"{name}.{method} fails for outputs {list(outputs.shape)}"):
            sums = jax.eval_shape(getattr(task, method), outputs, labels, jnp.ones(2))
            shapes = {key: [part.shape for part in pair] for key, pair in sums.items()}
        if wrong := [key for key, pair in shapes.items() if pair != [(), ()]]:
            raise UsageError(
                f"{name}.{method} returns '{wrong[0]}' of shapes {shapes[wrong[0]]}: it must "
                "return a sum and a count, both scalars"
            )
        if method == "sums":
            with _refused(f"{name}.means fails"):
                means = task.means(dict.fromkeys(shapes, (1.0, 1.0)))
            if missing := {"loss", *task.metrics} - means.keys():
                raise UsageError(
                    f"{name} has no {' and no '.join(sorted(missing))}: sums() must return the "
                    "loss and all metrics of the task"
                )


@contextlib.contextmanager
def _refused(what: str) -> Iterator[None]:
    """Convert errors in the block to `UsageError`, in one line with the place in the code."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # code from outside may raise anything
        raise UsageError(f"{what}: {error_with_place(error)}") from error
