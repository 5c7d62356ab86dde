"""The self-supervised network of the palette paper."""

from __future__ import annotations

import jax
from flax import linen as nn

from cnn_research import ops
from cnn_research.core.config import register_config
from cnn_research.core.ranges import PositiveInt
from cnn_research.models.layers import Classifier, Conv, Widths, check_lengths
from cnn_research.models.registry import register_model

MEAN, STD = 0.5, 0.25
"""Approximate statistics of pixels."""


class Flat(nn.Module):
    """Flatten maps; a module, so that its output has a name."""

    def __call__(self, maps: jax.Array) -> jax.Array:
        """Reshape `[batch, height, width, channels]` to `[batch, height * width * channels]`."""
        return maps.reshape(maps.shape[0], -1)


@register_config
class SSCNN(Classifier):
    """Three convolutions, each followed by ReLU and a 2x2 pool, the first two also by LRN.

    Jaramillo Ruiz (2023), section 'Implementacion del modelo SS-CNN', after Wang et al., "Color
    names learning using convolutional neural networks", 2015. The paper does not specify the
    pools (those of its figure 3, with an odd last row or column pooled alone), the padding (1, so
    that only strides and pools shrink maps) and the constants of the normalisation (AlexNet's).
    Images are 0 to 1 and are centred here, so that every user of the layers centres them alike.
    """

    features: Widths = (32, 96, 96)
    """Filters of the 3x3 convolutions; the last one has stride 2."""
    num_classes: PositiveInt = 128
    """Units of the last layer; set from the data."""

    def check(self) -> None:
        """Raise `UsageError` for fields that do not fit together."""
        check_lengths("convolution", features=self.features)

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        """Logits of the clusters, float32 `[batch, num_classes]`."""
        return self.logits(Flat(name="features")(self.maps(images)), name="fc")

    def maps(self, images: jax.Array) -> jax.Array:
        """Compute the output of the last pool, `[batch, rows, columns, features[-1]]`.

        With three convolutions a row covers 16 pixels, the last one fewer; `images` are float32
        `[batch, height, width, 3]`, 0 to 1.
        """
        x = ((images - MEAN) / STD).astype(self.dtype)
        last = len(self.features)
        for number, features in enumerate(self.features, 1):
            strides = 2 if number == last else 1
            name = f"conv{number}"
            x = Conv(features, (3, 3), strides, padding=1, dtype=self.dtype, name=name)(x)
            x = ops.max_pool(nn.relu(x), 2, padding="SAME")
            if number < last:
                x = ops.local_response_norm(x)
        return x


register_model("ss_cnn", SSCNN(), image_shape=(37, 37, 3), source="the palette paper; Wang 2015")
