"""The palette paper's palette: a second head on the self-supervised network, for a whole image."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from cnn_research.core.config import register_config
from cnn_research.core.ranges import NonNegativeFloat, NonNegativeInt, PositiveInt
from cnn_research.models.layers import Widths, check_size
from cnn_research.models.ss_cnn import SSCNN
from cnn_research.ops.colours import srgb_to_lab
from cnn_research.ops.views import cut

PATCH = 3
"""Rows and columns of the maps that the last layer sees of one 37x37 crop."""

SCALE = 20.0
"""CIELAB units per unit of a layer's output."""


class PaletteHead(nn.Module):
    """Colours from a histogram, refined on the image's pixels.

    A network predicts CIELAB colours from the histogram; the mean and maximum over the pixels of
    each of `pixel_features` units add rare colours. Each refinement step is one of soft k-means: a
    colour becomes the mean of the pixels assigned to it by a softmax over squared distances, whose
    bandwidth is learned, as is the extra weight of distant pixels. Last, a small network may move
    each colour, because people do not choose the means of pixels.
    """

    colours: int
    hidden: tuple[int, ...]
    refinement_steps: int
    pixel_features: int
    residual_refiner: int

    @nn.compact
    def __call__(self, histogram: jax.Array, pixels: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Return the colours before and after refinement, CIELAB, float32 `[batch, colours, 3]`.

        The histogram is `[batch, clusters]`, the pixels are CIELAB `[batch, pixels, 3]`.
        """
        # Square roots of the shares, so that rare clusters count as much as common ones.
        x = jnp.sqrt(histogram * histogram.shape[-1])
        for number, features in enumerate(self.hidden, 1):
            x = nn.Dense(features, name=f"hidden{number}")(x)
            if number == 1 and self.pixel_features:
                units = nn.relu(nn.Dense(self.pixel_features, name="pixels")(pixels / SCALE))
                seen = jnp.concatenate([units.max(axis=1), units.mean(axis=1)], axis=-1)
                # Zero at first, so that a head trained without these features is unchanged.
                x += nn.Dense(features, kernel_init=nn.initializers.zeros, name="accents")(seen)
            x = nn.relu(x)
        x = nn.Dense(
            3 * self.colours,
            kernel_init=nn.initializers.normal(0.02),
            bias_init=_spread,
            name="colours_dense",
        )(x)
        first = colours = SCALE * x.reshape(-1, self.colours, 3)
        log_bandwidths = self.param(
            "widths", nn.initializers.constant(3.0), (self.refinement_steps,)
        )
        exponents = self.param("reaches", nn.initializers.zeros, (self.refinement_steps,))
        for log_bandwidth, exponent in zip(log_bandwidths, exponents):
            squares = ((pixels[:, :, None] - colours[:, None]) ** 2).sum(-1)
            own = nn.softmax(-squares * jnp.exp(-log_bandwidth))
            # The exponent p / 2 - 1 minimises the mean p-th power of the distances.
            weights = own * (squares / 100 + 0.01) ** exponent
            sums = jnp.einsum("bpc,bpd->bcd", weights, pixels)
            # The old colour has the weight of one pixel: a colour without pixels stays.
            colours = (sums + colours) / (weights.sum(axis=1) + 1)[..., None]
        if self.residual_refiner:
            colours = Retouch(self.residual_refiner, name="retouch")(colours, own.mean(axis=1))
        return first, colours


class Retouch(nn.Module):
    """Move each colour by a function of itself and the others, initially zero."""

    hidden: int

    @nn.compact
    def __call__(self, colours: jax.Array, shares: jax.Array) -> jax.Array:
        """Return new colours, CIELAB, float32 `[batch, colours, 3]`.

        `shares` are `[batch, colours]`.
        """
        weights = shares[..., None]
        middle = (colours * weights).sum(1, keepdims=True) / weights.sum(1, keepdims=True)
        chroma = jnp.sqrt((colours[..., 1:] ** 2).sum(-1, keepdims=True) + 1e-6)
        seen = jnp.concatenate([colours, colours - middle, chroma], axis=-1) / SCALE
        x = jnp.concatenate([seen, jnp.log(weights + 0.01)], axis=-1)
        x = nn.tanh(nn.Dense(self.hidden, name="hidden")(x))
        moved = nn.Dense(3, kernel_init=nn.initializers.zeros, name="moved")(x)
        return colours + SCALE * moved


def _spread(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
    """Initial colours, uniform over the part of CIELAB that photographs fill."""
    low, high = jnp.array([10.0, -15.0, -15.0]), jnp.array([90.0, 25.0, 35.0])
    drawn = jax.random.uniform(key, (shape[0] // 3, 3), minval=low, maxval=high)
    return drawn.reshape(shape).astype(dtype) / SCALE


@register_config
class PaletteNet(SSCNN):
    """The self-supervised network over a whole image, and a head that predicts a palette.

    Jaramillo Ruiz (2023) replaces the last layer by 10 RGB colours and freezes the others. He names
    no target for the colours, and purifies with them, which needs classes. Here the 11 colour names
    are purified (`colour_names`), as in Prades (2017) and Wang et al. (2015), and the palette is a
    second head on the same layers. Its inputs are the network's histogram of clusters, averaged
    over all crops of the image, and the pixels.
    """

    num_classes: PositiveInt = 128
    """Clusters of the network that was trained first; set from that network."""
    colours: PositiveInt = 10
    """Number of colours in a palette; set from the task."""
    hidden: Widths = (512, 512)
    """Units of the head's hidden layers."""
    refinement_steps: PositiveInt = 6
    """Number of soft k-means steps that move the colours to the nearest pixels; at least 1."""
    pixel_features: NonNegativeInt = 0
    """Units that the head computes from the pixels, in addition to their histogram; 0 for none."""
    residual_refiner: NonNegativeInt = 0
    """Hidden units of a small network that moves each colour at the end; 0 for none."""
    first_weight: NonNegativeFloat = 0.3
    """Weight of the colours before refinement in the objective."""

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        """Return CIELAB colours and the share of the image that each covers.

        Images are float32 `[batch, height, width, 3]`, 0 to 1, large enough for `PATCH` rows and
        columns of maps: 33 pixels with three convolutions. Training uses every other row and column
        of pixels. The result is float32 `[batch, colours * 4]`: each colour's L*, a*, b* and share.
        """
        # Each pool and the last convolution halve the size, rounding up.
        check_size(self, images, (PATCH - 1) * 2 ** (len(self.features) + 1) + 1)
        maps = self.maps(images)
        rows, columns = maps.shape[1] - PATCH + 1, maps.shape[2] - PATCH + 1
        crops = jnp.concatenate(
            [cut(maps, (row, column), (rows, columns)) for row, column in np.ndindex(PATCH, PATCH)],
            axis=-1,
        )
        logits = nn.Dense(self.num_classes, dtype=self.dtype, name="fc")(crops)
        histogram = nn.softmax(logits.astype(jnp.float32)).mean(axis=(1, 2))
        seen = images[:, ::2, ::2] if train else images
        pixels = srgb_to_lab(seen.reshape(seen.shape[0], -1, 3).astype(jnp.float32))
        first, colours = PaletteHead(
            self.colours,
            self.hidden,
            self.refinement_steps,
            self.pixel_features,
            self.residual_refiner,
            name="head",
        )(histogram, pixels)
        if self.first_weight:
            self.sow("auxiliary", "first", (self.first_weight, with_shares(first, pixels)))
        return with_shares(colours, pixels)


def with_shares(colours: jax.Array, pixels: jax.Array) -> jax.Array:
    """Append to each CIELAB colour the share of pixels nearest to it, `[batch, colours * 4]`."""
    squares = ((pixels[:, :, None] - colours[:, None]) ** 2).sum(-1)
    own = jax.nn.one_hot(jnp.argmin(squares, axis=-1), colours.shape[1])
    shares = own.mean(axis=1)
    return jnp.concatenate([colours, shares[..., None]], axis=-1).reshape(colours.shape[0], -1)
