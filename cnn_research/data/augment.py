"""Random changes to training images, drawn inside the jitted step per (seed, epoch, example)."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from cnn_research.errors import UsageError


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """Which random changes a training image gets; all are off by default."""

    mirror: bool = False
    """Mirror left and right, every second image."""
    shift: int = 0
    """Move by up to so many pixels in both directions; black comes in."""
    cutout: int = 0
    """Blacken a square of so many pixels a side, its centre anywhere in the image
    (DeVries and Taylor 2017)."""

    def check(self) -> None:
        """Raises `UsageError` for a field out of range."""
        if self.shift < 0 or self.cutout < 0:
            raise UsageError("augmentation.shift and augmentation.cutout cannot be negative")

    def __call__(self, keys: jax.Array, images: jax.Array) -> jax.Array:
        """Changes each image by its own key.

        Args:
            keys: keys `[batch]`.
            images: `[batch, height, width, channels]` of any dtype; 0 is black.

        Returns:
            As `images`.
        """
        height, width = images.shape[1:3]
        bits = jax.vmap(lambda key: jax.random.uniform(key, (5,)))(keys)
        rows, columns = jnp.arange(height), jnp.arange(width)
        if self.mirror:
            flip = bits[:, 0] < 0.5
            images = jnp.where(flip[:, None, None, None], images[:, :, ::-1], images)
        if self.shift:
            images = self._shifted(images, bits[:, 1], bits[:, 2])
        if self.cutout:
            top = jnp.floor(bits[:, 3] * height) - self.cutout // 2
            left = jnp.floor(bits[:, 4] * width) - self.cutout // 2
            in_rows = (rows >= top[:, None]) & (rows < top[:, None] + self.cutout)
            in_columns = (columns >= left[:, None]) & (columns < left[:, None] + self.cutout)
            hole = in_rows[:, :, None] & in_columns[:, None, :]
            images = jnp.where(hole[..., None], jnp.zeros((), images.dtype), images)
        return images

    def _shifted(self, images: jax.Array, down: jax.Array, right: jax.Array) -> jax.Array:
        size = images.shape[1:]
        pad = ((0, 0), (self.shift, self.shift), (self.shift, self.shift), (0, 0))
        span = 2 * self.shift + 1
        starts = jnp.floor(jnp.stack([down, right], axis=1) * span).astype(jnp.int32)
        cut = jax.vmap(lambda image, at: jax.lax.dynamic_slice(image, (at[0], at[1], 0), size))
        return cut(jnp.pad(images, pad), starts)
