"""Training batches as a function of (seed, step), drawn inside the jitted step."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from cnn_research.random import permuted, stream_key


def batch_indices(
    seed: jax.Array | int, step: jax.Array, batch_size: int, examples: int
) -> tuple[jax.Array, jax.Array]:
    """Which examples step `step` trains on, and in which epoch each of them stands.

    The epochs are one long row of permutations and a batch is the next `batch_size` of it, so that
    every example is seen once an epoch also where the batch does not divide the data.

    Args:
        seed: of the run.
        step: int32 `[]`, from 0.
        batch_size: of the whole batch, over all devices.
        examples: in the training split.

    Returns:
        (indices, epochs), uint32 `[batch]` each.
    """
    # uint32: a run may see 4 billion examples (3,300 epochs of ImageNet) before this wraps.
    first = step.astype(jnp.uint32) * jnp.uint32(batch_size)
    position = first + jnp.arange(batch_size, dtype=jnp.uint32)
    epoch = position // examples
    key = stream_key(seed, "order")
    keys = jax.vmap(lambda e: jax.random.fold_in(key, e))(epoch)
    return permuted(keys, position % examples, examples), epoch


def steps_at(epochs: float, batch_size: int, examples: int) -> int:
    """The number of steps after which `epochs` epochs are complete."""
    return max(1, -(-round(epochs * examples) // batch_size))
