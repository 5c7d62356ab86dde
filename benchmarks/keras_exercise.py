"""Trains CIFAR-10's exercise in Keras, as TensorFlow's tutorial does, on the same image files.

    python -m benchmarks.keras_exercise --output results/keras_exercise.json

The tutorial reports 0.70 on the original images. The files here were saved again as JPEG, which
loses: what Keras comes to on them is what the experiment `cifar10_exercise` is to be held against.
The network, Adam and 10 epochs of batches of 32 are the tutorial's; Keras runs on JAX.
"""

from __future__ import annotations

import os
import statistics
import sys
from pathlib import Path

import numpy as np

from benchmarks.results import ROOT, Measurement, arguments, row

os.environ.setdefault("KERAS_BACKEND", "jax")  # read when keras is imported


def accuracy(images: Path, seed: int, epochs: int) -> float:
    """The test accuracy of the last epoch, as the tutorial reports it."""
    import keras

    from cnn_research.data import Cifar10

    splits = Cifar10(path=str(images), validation=0.04).load().splits
    keras.utils.set_random_seed(seed)
    layers = keras.layers
    model = keras.Sequential(
        [
            layers.Input((32, 32, 3)),
            layers.Conv2D(32, 3, activation="relu"),
            layers.MaxPooling2D(2),
            layers.Conv2D(64, 3, activation="relu"),
            layers.MaxPooling2D(2),
            layers.Conv2D(64, 3, activation="relu"),
            layers.Flatten(),
            layers.Dense(64, activation="relu"),
            layers.Dense(10),
        ]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("adam", loss, metrics=["accuracy"])
    train, test = (
        (np.asarray(splits[name].images, np.float32) / 255, splits[name].labels["label"])
        for name in ("train", "test")
    )
    model.fit(*train, epochs=epochs, batch_size=32, verbose=2)
    return float(model.evaluate(*test, batch_size=500, verbose=0)[1])


def main() -> int:
    parser = arguments(__doc__)
    parser.add_argument(
        "--images", type=Path, default=ROOT.parent / "shared" / "data" / "cifar10_jpeg.tar.xz"
    )
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=10)
    chosen = parser.parse_args()
    measurement = Measurement(
        "keras_exercise",
        what="test accuracy of the tutorial's network, trained by Keras on the same JPEG files",
        target="the tutorial's 0.70 is on the original images; a control, without a target",
    )
    found = [accuracy(chosen.images, seed, chosen.epochs) for seed in range(chosen.seeds)]
    mean = statistics.fmean(found)
    rows = [row(f"test accuracy in Keras, mean of {len(found)} seeds", "-", f"{mean:.4f}", True)]
    return measurement.finish(rows, {"test_accuracy": found, "mean": mean}, chosen.output)


if __name__ == "__main__":
    sys.exit(main())
