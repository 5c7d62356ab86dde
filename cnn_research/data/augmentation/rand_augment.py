"""RandAugment: random changes, out of fourteen, of one magnitude (Cubuk et al. 2020)."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from cnn_research.data.augmentation import colour, geometry
from cnn_research.data.augmentation.geometry import rounded
from cnn_research.data.augmentation.stages import run_in_stages

OPERATIONS = (
    *("identity", "rotate", "shear_x", "shear_y", "translate_x", "translate_y"),
    *("colour", "sharpness"),
    *("autocontrast", "equalise", "solarise", "posterise", "contrast", "brightness"),
)
STRONGEST = 30
"""The largest magnitude: rotations by 30 degrees, shears by 0.3, shifts by 150/331 of the image,
factors of 0.1 and 1.9, solarising all levels, and posterising to 4 bits. This is torchvision's
scale; the paper's has 10 for these values and goes beyond them."""


class RandAugment:
    """Changes drawn for each image of a batch; all operations are equally likely.

    The paper applies them in the order drawn. Here the geometric ones come first, as one warp, to
    interpolate only once; then saturation and sharpness, whose factors are multiplied if drawn
    twice; then, in the order drawn, those that are lookup tables, as one table. Changes with a
    direction have a random sign, as in the paper.
    """

    def __init__(self, keys: jax.Array, changes: int, magnitude: float, on: jax.Array):
        """Draw for keys `[batch]`; `on`, bool `[batch]`, selects the images to change."""
        draw = jax.vmap(lambda key: jax.random.uniform(key, (changes, 2)))(keys)
        kinds = jnp.floor(draw[..., 0] * len(OPERATIONS)).astype(jnp.int32)
        self._kinds = jnp.where(on[:, None], kinds, OPERATIONS.index("identity"))
        self._signs = jnp.where(draw[..., 1] < 0.5, -1.0, 1.0)
        self._changes, self._share = changes, magnitude / STRONGEST

    def _is(self, operation: str, number: int) -> jax.Array:
        return self._kinds[:, number] == OPERATIONS.index(operation)

    def _signed(self, operation: str, number: int, most: float) -> jax.Array:
        """Signed strength of an operation in each image's change `number`; 0 if not drawn."""
        return jnp.where(
            self._is(operation, number), self._signs[:, number] * self._share * most, 0
        )

    def warp(self, size: tuple[int, int]) -> jax.Array:
        """Compose the geometric changes of images of this size: float32 `[batch, 2, 3]`."""
        one, warps = jnp.ones(len(self._kinds)), []
        for n in range(self._changes):
            shear_x, shear_y = (self._signed(f"shear_{axis}", n, 0.3) for axis in "xy")
            down = jnp.round(self._signed("translate_y", n, 150 / 331 * size[0]))
            right = jnp.round(self._signed("translate_x", n, 150 / 331 * size[1]))
            warps += [
                geometry.rotation(self._signed("rotate", n, 30)),
                geometry.affine((one, shear_y, down), (shear_x, one, right)),
            ]
        return geometry.compose(*warps)

    def coloured(self, images: jax.Array) -> jax.Array:
        """Apply all other changes; the dtype stays, but levels are rounded."""
        table = jnp.zeros((len(images), images.shape[-1], 256), jnp.int32)
        stages = [
            lambda now: (self._away(now[0], "colour", colour.saturation), now[1]),
            lambda now: (self._away(now[0], "sharpness", colour.sharpness), now[1]),
            lambda now: (now[0], self._all_tables(_levels(now[0]))),
            lambda now: (
                colour.looked_up(_levels(now[0]), now[1]).astype(images.dtype),
                now[1],
            ),
        ]
        return run_in_stages(stages, (images, table))[0]

    def _away(
        self,
        images: jax.Array,
        operation: str,
        change: Callable[[jax.Array, jax.Array], jax.Array],
    ) -> jax.Array:
        factors = [1 + self._signed(operation, n, 0.9) for n in range(self._changes)]
        factor = jnp.prod(jnp.stack(factors), axis=0)
        return rounded(change(images.astype(jnp.float32), factor), images.dtype)

    def _all_tables(self, levels: jax.Array) -> jax.Array:
        """Compose the changes that are lookup tables, for uint8 images."""
        counts = colour.histogram(levels)
        table = colour.unchanged(counts)
        for n in range(self._changes):
            now = self._table(n, counts)
            table, counts = colour.then(table, now), colour.histogram_after(counts, now)
        return table

    def _table(self, number: int, counts: jax.Array) -> jax.Array:
        """Lookup table of each image's change `number`; the identity for other operations."""
        batch = len(counts)
        threshold = jnp.full(batch, 256 * (1 - self._share))
        bits = jnp.full(batch, 8 - round(4 * self._share), jnp.int32)
        table = colour.unchanged(counts)
        for operation, other in (
            ("autocontrast", colour.autocontrast(counts)),
            ("equalise", colour.equalised(counts)),
            ("solarise", colour.solarised(counts, threshold)),
            ("posterise", colour.posterised(counts, bits)),
            ("contrast", colour.contrasted(counts, 1 + self._signed("contrast", number, 0.9))),
            ("brightness", colour.brightened(counts, 1 + self._signed("brightness", number, 0.9))),
        ):
            table = jnp.where(self._is(operation, number)[:, None, None], other, table)
        return table


def _levels(images: jax.Array) -> jax.Array:
    return rounded(images.astype(jnp.float32), jnp.dtype("uint8"))
