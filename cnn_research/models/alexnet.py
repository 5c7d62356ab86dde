"""AlexNet in the one-column form of torchvision."""

from __future__ import annotations

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

    The network of Krizhevsky, Sutskever and Hinton (2012) without its split over two GPUs and
    without local response normalisation. Modules are called as in torchvision.
    """

    small: bool = False
    """For images of about 32x32: a 3x3 convolution without stride first; maps of 3x3 last."""
    hidden: PositiveInt = 4096
    """Units of the two linear layers before the last."""
    dropout: Rate = 0.5
    """Rate before each of these; survivors are scaled by 1 / (1 - rate)."""

    @property
    def flattened(self) -> dict[str, tuple[int, int, int]]:
        """The linear layer over a map, with the map's height, width and channels."""
        return {"classifier.1": (self._pooled, self._pooled, 256)}

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        check_size(self, images, 15 if self.small else 63)

        def convolution(
            index: int, x: jax.Array, features: int, size: int, padding: int, strides: int = 1
        ) -> jax.Array:
            layer = Conv(
                features,
                (size, size),
                strides,
                padding=padding,
                kernel_init=_INIT,
                dtype=self.dtype,
                name=f"features.{index}",
            )
            return nn.relu(layer(x))

        x = images.astype(self.dtype)
        if self.small:
            x = convolution(0, x, 64, size=3, padding=1)
        else:
            x = convolution(0, x, 64, size=11, padding=2, strides=4)
        x = ops.max_pool(x, 3, 2)
        x = convolution(3, x, 192, size=5, padding=2)
        x = ops.max_pool(x, 3, 2)
        x = convolution(6, x, 384, size=3, padding=1)
        x = convolution(8, x, 256, size=3, padding=1)
        x = convolution(10, x, 256, size=3, padding=1)
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
register_model("alexnet", AlexNet(), source=_SOURCE)
register_model(
    "alexnet_small",
    AlexNet(small=True, hidden=1024, num_classes=10),
    image_shape=(32, 32, 3),
    source=_SOURCE,
)
