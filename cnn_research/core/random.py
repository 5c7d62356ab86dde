"""Random keys as a function of (seed, stream, step), without any state to save."""

from __future__ import annotations

import zlib

import jax
import jax.numpy as jnp

_ROUNDS = 8


def stream_key(seed: jax.Array | int, stream: str) -> jax.Array:
    """Return the key of a named stream (`dropout`, `order`, ...); streams are independent."""
    return jax.random.fold_in(jax.random.key(seed), zlib.crc32(stream.encode()))


def example_keys(key: jax.Array, epoch: jax.Array, example: jax.Array) -> jax.Array:
    """Return a key per (epoch, example), both int `[batch]`; keys `[batch]`.

    Augmentation with these keys does not depend on the batch or the device.
    """
    fold = jax.vmap(lambda e, i: jax.random.fold_in(jax.random.fold_in(key, e), i))
    return fold(epoch, example)


def fold_name(keys: jax.Array, name: str) -> jax.Array:
    """Derive keys for a named purpose from keys `[batch]`."""
    return jax.vmap(lambda key: jax.random.fold_in(key, zlib.crc32(name.encode())))(keys)


def permuted(key: jax.Array, position: jax.Array, size: int) -> jax.Array:
    """Map positions by a random permutation of `range(size)`, with one key per position.

    Computing a full permutation would need a sort at every step; this computes single elements of
    it. A Feistel network permutes the next power of four, and is repeated for values out of range
    until they are in range (cycle walking; Black and Rogaway 2002). Keys are `[batch]`, equal for
    the same permutation; positions are uint32 `[batch]`, below `size`, as is the result.
    """
    half = max(1, ((size - 1).bit_length() + 1) // 2)
    mask = jnp.uint32((1 << half) - 1)
    seeds = jax.vmap(lambda k: jax.random.bits(k, (_ROUNDS,), "uint32"))(key)

    def shuffle(value: jax.Array) -> jax.Array:
        left, right = value >> half, value & mask
        for i in range(_ROUNDS):
            left, right = right, left ^ (_mix(right ^ seeds[:, i]) & mask)
        return (left << half) | right

    def outside(value: jax.Array) -> jax.Array:
        return jnp.any(value >= size)

    def again(value: jax.Array) -> jax.Array:
        return jnp.where(value >= size, shuffle(value), value)

    return jax.lax.while_loop(outside, again, shuffle(position.astype(jnp.uint32)))


def _mix(x: jax.Array) -> jax.Array:
    """Hash uint32 bijectively, such that each output bit depends on all input bits."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)
    return x ^ (x >> 16)
