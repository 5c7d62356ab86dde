"""Apply a function to any number of examples, batch by batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np


def padded_batches(count: int, batch_size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the indices, int `[batch_size]`, and weights, float32, of equally large batches.

    The last batch is padded with copies of the last example, whose weight is 0; all others have 1.
    """
    for start in range(0, count, batch_size):
        indices = np.arange(start, start + batch_size)
        yield np.minimum(indices, count - 1), (indices < count).astype(np.float32)


def map_batches(function: Callable[[Any], Any], examples: Any, batch_size: int) -> Iterator[Any]:
    """Yield a function's outputs for consecutive batches, as NumPy arrays without the padding.

    `function` maps `[batch_size, ...]` to a tree of arrays with as many rows. `examples` has a
    length and accepts an index array: images, or the indices of images that `function` looks up.
    """
    pending: tuple[Any, int] | None = None
    for indices, weights in padded_batches(len(examples), batch_size):
        ready, pending = pending, (function(examples[indices]), int(weights.sum()))
        # One batch behind, so that the device computes while outputs are fetched.
        if ready is not None:
            yield _fetch(*ready)
    if pending is not None:
        yield _fetch(*pending)


def apply_in_batches(function: Callable[[Any], Any], examples: Any, batch_size: int) -> Any:
    """Concatenate the outputs of `map_batches` into one tree of arrays."""
    parts = list(map_batches(function, examples, batch_size))
    return jax.tree.map(lambda *arrays: np.concatenate(arrays), *parts)


def _fetch(outputs: Any, count: int) -> Any:
    return jax.tree.map(lambda array: array[:count], jax.device_get(outputs))
