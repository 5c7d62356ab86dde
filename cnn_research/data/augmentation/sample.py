"""Random numbers for each image of a batch, by its key alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp

# Of every image, in this order and whether they are used or not: what one change sample does not
# depend on which others are on. A change's own number says whether it applies, or how much of it.
_NAMES = (
    *("mirror", "flip", "crop", "crop_aspect", "crop_down", "crop_right", "zoom"),
    *("rotation", "left", "right", "up", "down", "shift_down", "shift_right"),
    *("brightness", "contrast", "saturation", "cutout_down", "cutout_right"),
    *("erasing", "erasing_area", "erasing_aspect", "erasing_down", "erasing_right"),
)


@dataclasses.dataclass(frozen=True)
class AugmentationSample:
    """Random numbers, and the changes that they are for.

    Attributes:
        numbers: by name, float32 `[batch]` in [0, 1).
        changes: that are on.
        chosen: int `[batch]`: the one change of each image, from 1, or 0 for none; None: all
            changes.
    """

    numbers: Mapping[str, jax.Array]
    changes: tuple[str, ...]
    chosen: jax.Array | None

    @property
    def batch(self) -> int:
        return len(self.numbers["mirror"])

    def applies(self, change: str, chance: float = 1.0) -> jax.Array:
        """Draw whether each image gets a change, bool `[batch]`: by this chance, unless chosen."""
        if self.chosen is not None:
            return self.chosen == 1 + self.changes.index(change)
        if chance == 1:
            return jnp.ones(self.batch, bool)
        return self.numbers[change] < chance

    def amount(self, name: str, limits: tuple[float, float], log: bool = False) -> jax.Array:
        """A number between limits, float32 `[batch]`; uniform, or in its logarithm."""
        low, high = jnp.log(jnp.array(limits)) if log else limits
        value = low + (high - low) * self.numbers[name]
        return jnp.exp(value) if log else value

    def strength(self, off: float, change: str, limits: tuple[float, float]) -> jax.Array:
        """Strength of a change for each image; `off` where it does not get it."""
        return jnp.where(self.applies(change), self.amount(change, limits), off)


def numbers(keys: jax.Array) -> dict[str, jax.Array]:
    """`AugmentationSample.numbers` of keys `[batch]`."""
    drawn = jax.vmap(lambda key: jax.random.uniform(key, (len(_NAMES),)))(keys)
    return {name: drawn[:, at] for at, name in enumerate(_NAMES)}
