"""Random numbers for each image of a batch, determined by its key."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp

# All are drawn for every image, in this order, used or not, so that a change's randomness does not
# depend on which others are on. A change's number decides whether, or how strongly, it applies.
_NAMES = (
    *("mirror", "flip", "crop", "crop_aspect", "crop_down", "crop_right", "zoom"),
    *("rotation", "left", "right", "up", "down", "shift_down", "shift_right"),
    *("brightness", "contrast", "saturation", "cutout_down", "cutout_right"),
    *("erasing", "erasing_area", "erasing_aspect", "erasing_down", "erasing_right"),
)


@dataclasses.dataclass(frozen=True)
class AugmentationSample:
    """Random numbers and the changes that use them.

    Attributes:
        numbers: by name, float32 `[batch]` in [0, 1).
        changes: names of the changes that are on.
        chosen: int `[batch]`, the only change to each image, from 1, or 0 for none; None for all
            changes.
    """

    numbers: Mapping[str, jax.Array]
    changes: tuple[str, ...]
    chosen: jax.Array | None

    @property
    def batch(self) -> int:
        return len(self.numbers["mirror"])

    def applies(self, change: str, chance: float = 1.0) -> jax.Array:
        """Decide whether a change applies to each image, bool `[batch]`, by chance or `chosen`."""
        if self.chosen is not None:
            return self.chosen == 1 + self.changes.index(change)
        if chance == 1:
            return jnp.ones(self.batch, bool)
        return self.numbers[change] < chance

    def amount(self, name: str, limits: tuple[float, float], log: bool = False) -> jax.Array:
        """Draw a number between limits, float32 `[batch]`, uniform or log-uniform."""
        low, high = jnp.log(jnp.array(limits)) if log else limits
        value = low + (high - low) * self.numbers[name]
        return jnp.exp(value) if log else value

    def strength(self, off: float, change: str, limits: tuple[float, float]) -> jax.Array:
        """Draw the strength of a change for each image; `off` if it does not apply."""
        return jnp.where(self.applies(change), self.amount(change, limits), off)


def numbers(keys: jax.Array) -> dict[str, jax.Array]:
    """Draw `AugmentationSample.numbers` for keys `[batch]`."""
    drawn = jax.vmap(lambda key: jax.random.uniform(key, (len(_NAMES),)))(keys)
    return {name: drawn[:, at] for at, name in enumerate(_NAMES)}
