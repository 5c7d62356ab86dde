"""Where is the bird? A data set, a network, a loss and an experiment in a file of one's own."""

import dataclasses

import jax.numpy as jnp
import numpy as np
from flax import linen as nn

import cnn_research as cr


@cr.register_config
@dataclasses.dataclass(frozen=True)
class Sky:
    """Grey noise with a bright square, the bird, in one of four corners."""

    noise: int = 150

    def load(self) -> cr.Dataset:
        random = np.random.default_rng(0)
        labels = random.integers(0, 4, 480, np.int32)
        images = random.integers(0, self.noise, (480, 12, 12, 1), np.uint8)
        for image, label in zip(images, labels):
            image[label // 2 * 7 :, label % 2 * 7 :][:5, :5] += 100
        parts = {"train": slice(320), "validation": slice(320, 400), "test": slice(400, 480)}
        splits = {name: cr.Split(images[i], {"label": labels[i]}) for name, i in parts.items()}
        return cr.Dataset("sky", splits, {"label": ("NW", "NE", "SW", "SE")}, {"noise": self.noise})


@cr.register_config
class BirdNet(nn.Module):
    width: int = 8
    num_classes: int = 4  # set from the data

    @nn.compact
    def __call__(self, images, train=False):  # float32 [batch, height, width, channels]
        x = nn.relu(nn.Conv(self.width, (3, 3), strides=2)(images))
        return nn.Dense(self.num_classes)(x.reshape(x.shape[0], -1))


@cr.register_config
@dataclasses.dataclass(frozen=True)
class Focal(cr.Classification):
    """The focal loss (Lin et al. 2017), and a metric: the probability of the right class."""

    gamma: float = 2.0
    metrics = {**cr.Classification.metrics, "confidence": "maximize"}

    def sums(self, outputs, labels, weights):
        p = nn.softmax(outputs)[jnp.arange(len(outputs)), labels[self.head]]
        known = jnp.where(labels[self.head] < 0, 0, weights)
        loss = (known * (1 - p) ** self.gamma * -jnp.log(p + 1e-9)).sum(), known.sum()
        confidence = (known * p).sum(), known.sum()
        return super().sums(outputs, labels, weights) | {"loss": loss, "confidence": confidence}


@cr.register(data="sky")
def my_birds() -> cr.Training:
    """A small network finds the bird."""
    return cr.Training(data=Sky(), model=BirdNet(), task=Focal(), epochs=6, batch_size=32)
