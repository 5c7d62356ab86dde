"""Functions of batches, applied to any number of examples."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np


def padded_batches(count: int, batch_size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the indices, int `[batch_size]`, and weights of batches that are all of one size.

    The last batch is padded with the last example, at weight 0; the others are float32 1.
    """
    for start in range(0, count, batch_size):
        indices = np.arange(start, start + batch_size)
        yield np.minimum(indices, count - 1), (indices < count).astype(np.float32)


def map_batches(function: Callable[[Any], Any], examples: Any, batch_size: int) -> Iterator[Any]:
    """Yield a function's outputs for consecutive batches, as NumPy arrays without the padding.

    `function` maps `[batch_size, ...]` to a tree of arrays with as many rows. `examples` have a
    length and are indexed by an array: images, or indices by which `function` looks them up.
    """
    pending: tuple[Any, int] | None = None
    for indices, weights in padded_batches(len(examples), batch_size):
        ready, pending = pending, (function(examples[indices]), int(weights.sum()))
        # One batch behind, so that the device computes while outputs are fetched.
        if ready is not None:
            yield _fetched(*ready)
    if pending is not None:
        yield _fetched(*pending)


def apply_in_batches(function: Callable[[Any], Any], examples: Any, batch_size: int) -> Any:
    """The rows of all batches of `map_batches` as one tree of arrays."""
    parts = list(map_batches(function, examples, batch_size))
    return jax.tree.map(lambda *arrays: np.concatenate(arrays), *parts)


def _fetched(outputs: Any, count: int) -> Any:
    return jax.tree.map(lambda array: array[:count], jax.device_get(outputs))
