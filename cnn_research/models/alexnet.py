"""AlexNet in torchvision's single-column form."""

from __future__ import annotations

import functools

import jax
from flax import linen as nn

from cnn_research import ops
from cnn_research.core.config import register_config
from cnn_research.core.ranges import PositiveInt
from cnn_research.models.layers import Conv, ImageNetClassifier, Rate, check_size
from cnn_research.models.registry import register_model
from cnn_research.models.vgg import AdaptivePool

_INIT = nn.initializers.he_normal()


@register_config
class AlexNet(ImageNetClassifier):
    """Krizhevsky, 'One weird trick for parallelizing convolutional neural networks' (2014).

    The network of Krizhevsky, Sutskever and Hinton (2012) without the split over two GPUs and
    without local response normalisation. Modules have torchvision's names.
    """

    small: bool = False
    """For images of about 32x32: the first convolution is 3x3 without stride, the last map 3x3."""
    hidden: PositiveInt = 4096
    """Units of the two linear layers before the last."""
    dropout: Rate = 0.5
    """Rate before each of these; survivors are scaled by 1 / (1 - rate)."""

    @property
    def flattened(self) -> dict[str, tuple[int, int, int]]:
        """Linear layer over a flattened map -> the map's height, width and channels."""
        return {"classifier.1": (self._pooled, self._pooled, 256)}

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        check_size(self, images, 15 if self.small else 63)
        conv = functools.partial(Conv, kernel_init=_INIT, dtype=self.dtype)
        x = images.astype(self.dtype)
        if self.small:
            x = conv(64, (3, 3), padding=1, name="features.0")(x)
        else:
            x = conv(64, (11, 11), 4, padding=2, name="features.0")(x)
        x = ops.max_pool(nn.relu(x), 3, 2)
        x = nn.relu(conv(192, (5, 5), padding=2, name="features.3")(x))
        x = ops.max_pool(x, 3, 2)
        x = nn.relu(conv(384, (3, 3), padding=1, name="features.6")(x))
        x = nn.relu(conv(256, (3, 3), padding=1, name="features.8")(x))
        x = nn.relu(conv(256, (3, 3), padding=1, name="features.10")(x))
        x = ops.max_pool(x, 3, 2)
        x = AdaptivePool(self._pooled, name="avgpool")(x)
        x = x.reshape(x.shape[0], -1)
        for index in (1, 4):
            x = nn.Dropout(self.dropout, deterministic=not train)(x)
            x = nn.relu(nn.Dense(self.hidden, dtype=self.dtype, name=f"classifier.{index}")(x))
        return self.logits(x, name="classifier.6")

    @property
    def _pooled(self) -> int:
        return 3 if self.small else 6


_SOURCE = "Krizhevsky 2014, arXiv:1404.5997; Krizhevsky, Sutskever and Hinton 2012"
register_model(
    "alexnet", AlexNet(), AlexNet(small=True, hidden=1024, num_classes=10), source=_SOURCE
)
