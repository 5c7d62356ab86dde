"""Training batches as a function of (seed, step), drawn inside the jitted step."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from cnn_research.core.random import fold_name, permuted, stream_key

ClassMembers = Mapping[str, jax.Array]
"""Examples of each class: `members`, int32 `[labelled]`, all labelled examples, sorted by class;
`first` and `count`, int32 `[classes]`, the index of the first member of each class that occurs and
the number of members."""


def batch_indices(
    seed: jax.Array | int, step: jax.Array, batch_size: int, examples: int
) -> tuple[jax.Array, jax.Array]:
    """Return the indices and epochs of the examples of step `step`, uint32 `[batch]` each.

    Each epoch is a permutation, and a batch is the next `batch_size` (over all devices) of their
    concatenation: every example is used once per epoch even if the batch size does not divide the
    data. `step` is int32 `[]`, from 0.
    """
    # uint32 wraps after 4 billion examples (3,300 epochs of ImageNet).
    first = step.astype(jnp.uint32) * jnp.uint32(batch_size)
    position = first + jnp.arange(batch_size, dtype=jnp.uint32)
    epoch = position // examples
    key = stream_key(seed, "order")
    keys = jax.vmap(lambda e: jax.random.fold_in(key, e))(epoch)
    return permuted(keys, position % examples, examples), epoch


def class_members(labels: np.ndarray) -> dict[str, np.ndarray]:
    """Group examples by class, as `ClassMembers`, from labels int32 `[examples]`."""
    members = np.argsort(labels, kind="stable")
    members = members[labels[members] >= 0]
    _, first, count = np.unique(labels[members], return_index=True, return_counts=True)
    return {
        "members": members.astype(np.int32),
        "first": first.astype(np.int32),
        "count": count.astype(np.int32),
    }


def balanced_indices(
    seed: jax.Array | int, step: jax.Array, batch_size: int, classes: ClassMembers
) -> tuple[jax.Array, jax.Array]:
    """Return indices and draw numbers, uint32 `[batch]` each, with all classes equally likely.

    Each draw chooses a class, then one of its examples. A draw number is unique in the run. `step`
    is int32 `[]`, from 0; the batch is over all devices.
    """
    first = step.astype(jnp.uint32) * jnp.uint32(batch_size)
    draws = first + jnp.arange(batch_size, dtype=jnp.uint32)
    key = stream_key(seed, "order")

    def draw(number):
        of_class, of_member = jax.random.split(jax.random.fold_in(key, number))
        at = jax.random.randint(of_class, (), 0, len(classes["count"]))
        member = jax.random.randint(of_member, (), 0, classes["count"][at])
        return classes["members"][classes["first"][at] + member]

    return jax.vmap(draw)(draws).astype(jnp.uint32), draws


def epochs_to_steps(epochs: float, batch_size: int, examples: int) -> int:
    """Number of steps that complete `epochs` epochs: at least one, but none for 0."""
    return max(1, -(-round(epochs * examples) // batch_size)) if epochs else 0


def random_corners(
    keys: jax.Array, size: tuple[int, int], window: tuple[int, int]
) -> tuple[jax.Array, jax.Array]:
    """Draw the first row and column of a window in each image, int32 `[batch]` each."""

    def corner(key):
        return [
            jax.random.randint(each, (), 0, whole - part + 1)
            for each, whole, part in zip(jax.random.split(key), size, window, strict=True)
        ]

    rows, columns = jax.vmap(corner)(fold_name(keys, "window"))
    return rows, columns


def windows_of(
    values: jax.Array,
    indices: jax.Array,
    corners: tuple[jax.Array, jax.Array],
    window: tuple[int, int],
) -> jax.Array:
    """Crop a window from each of the images `indices`, without copying whole images.

    Values are `[examples, height, width, ...]`; values `[examples]` are only indexed. Windows are
    `[batch, *window, ...]`, with corners from `random_corners`.
    """
    if values.ndim == 1:
        return values[indices]

    def cut(index, row, column):
        rest = values.shape[3:]
        start = (index, row, column, *(0 for _ in rest))
        return jax.lax.dynamic_slice(values, start, (1, *window, *rest))[0]

    return jax.vmap(cut)(indices.astype(jnp.int32), *corners)
