"""Networks here against those of keras.applications, with the same random weights.

Keras runs on JAX where `KERAS_BACKEND` does not say otherwise.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

os.environ.setdefault("KERAS_BACKEND", "jax")  # read when keras is imported

APPLICATIONS = {
    "vgg16": "VGG16",
    "vgg19": "VGG19",
    "resnet50_keras": "ResNet50",
    "resnet101_keras": "ResNet101",
    "inception_v3_keras": "InceptionV3",
    "mobilenet_v1": "MobileNet",
}
"""By architecture, the application that is the same."""


def application(name: str, image_size: int, classes: int = 1000) -> Any:
    """A Keras application that gives logits, every weight of it random.

    Args:
        name: in `keras.applications`.
        image_size: height and width of its images.
        classes: units of its last layer.
    """
    import keras

    model = getattr(keras.applications, name)(
        weights=None,
        classifier_activation=None,
        input_shape=(image_size, image_size, 3),
        classes=classes,
    )
    random = np.random.default_rng(0)
    for weight in model.weights:
        weight.assign(_randomised(weight, random))
    return model


def _randomised(weight: Any, random: np.random.Generator) -> np.ndarray:
    """A value by which the signal neither dies out nor explodes; variances are positive."""
    shape = tuple(weight.shape)
    if weight.path.endswith("_3_bn/gamma"):  # a residual block's last: shortcuts only ever add
        return random.uniform(0.1, 0.3, shape)
    if weight.name in ("gamma", "moving_variance"):
        return random.uniform(0.5, 1.5, shape)
    if "kernel" in weight.name:
        inputs = shape[:2] if weight.path.endswith("depthwise_kernel") else shape[:-1]
        return random.normal(0, np.sqrt(2 / np.prod(inputs)), shape)
    return random.uniform(-0.5, 0.5, shape)


def difference(reference: Any, model: Any, suffix: str, batch: int = 2) -> dict[str, Any]:
    """How far a flax model's logits are from a Keras model's, whose weights it loads from a file.

    Args:
        reference: a Keras model of images `[batch, height, width, 3]`.
        model: the flax module.
        suffix: of the file: '.weights.h5', '.keras' or '.h5'.
        batch: how many images.

    Returns:
        The number of parameters on both sides, statistics included as Keras counts them; the
        largest difference of logits, the largest logit, and the first over the second.
    """
    import jax

    from cnn_research.models.pretrained import Pretrained, load_pretrained

    images = np.random.default_rng(1).standard_normal(
        (batch, *reference.input_shape[1:]), np.float32
    )
    expected = reference.predict(images, verbose=0)
    blank = jax.eval_shape(model.init, jax.random.key(0), images)
    variables = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), blank)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, f"model{suffix}")
        save = reference.save_weights if suffix == ".weights.h5" else reference.save
        save(file)
        variables, _ = load_pretrained(model, variables, Pretrained(str(file)))
    logits = np.asarray(jax.jit(model.apply)(variables, images))
    largest, apart = np.abs(expected).max(), np.abs(logits - expected).max()
    return {
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(variables)),
        "reference_parameters": reference.count_params(),
        "max_difference": float(apart),
        "max_reference": float(largest),
        "relative": float(apart / largest),
    }


def compare(name: str, suffix: str = ".weights.h5") -> dict[str, Any]:
    """`difference` of a registered architecture in `APPLICATIONS` at its published size."""
    from cnn_research.models.registry import architectures

    found = architectures()[name]
    reference = application(APPLICATIONS[name], found.image_shape[0])
    return difference(reference, found.model, suffix)
