"""LeNet-5, the network for handwritten digits."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import linen as nn

from cnn_research import ops
from cnn_research.core.config import register_config
from cnn_research.models.layers import Activation, Classifier, Conv, activate
from cnn_research.models.registry import register_model

_FRAME = 32


@register_config
class LeNet5(Classifier):
    """LeCun, Bottou, Bengio and Haffner, 'Gradient-based learning applied to document
    recognition' (1998), in its modern form: average pooling without weights, all of C3's maps
    connected to all of S2's, and linear outputs instead of radial basis functions.

    Images smaller than 32x32 are centred and padded with zeros, like the paper's digits.
    """

    activation: Activation = "tanh"
    """Activation after each layer but the last."""

    @property
    def flattened(self) -> dict[str, tuple[int, int, int]]:
        """Linear layer over a flattened map -> the map's height, width and channels."""
        return {"fc1": (5, 5, 16)}

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        act = activate(self.activation)
        missing = [max(0, _FRAME - size) for size in images.shape[1:3]]
        frame = [(size // 2, size - size // 2) for size in missing]
        x = jnp.pad(images.astype(self.dtype), ((0, 0), *frame, (0, 0)))
        x = act(Conv(6, (5, 5), padding=0, dtype=self.dtype, name="conv1")(x))
        x = ops.avg_pool(x, 2)
        x = act(Conv(16, (5, 5), padding=0, dtype=self.dtype, name="conv2")(x))
        x = ops.avg_pool(x, 2)
        x = x.reshape(x.shape[0], -1)
        x = act(nn.Dense(120, dtype=self.dtype, name="fc1")(x))
        x = act(nn.Dense(84, dtype=self.dtype, name="fc2")(x))
        return self.logits(x, name="fc3")


register_model("lenet5", LeNet5(), image_shape=(32, 32, 1), source="LeCun et al. 1998")
