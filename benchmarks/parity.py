"""Logits compared with Keras' and transformers' networks with the same random weights, full size.

python -m benchmarks.parity --output results/parity.json

Weights are transferred as by users: the other library writes its file, and this project reads it.
All weights are random, including statistics, scales and biases. Needs Keras (in the extra `dev`),
which runs on JAX unless `KERAS_BACKEND` is set; transformers and PyTorch are included if they are
installed. Takes about ten minutes.
"""

from __future__ import annotations

import gc
import importlib.util
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.results import flag, measurement, row
from benchmarks.torch_networks import randomise

os.environ.setdefault("KERAS_BACKEND", "jax")  # read when keras is imported

TARGET = 1e-4
APPLICATIONS = {
    "vgg16": ("VGG16", ".weights.h5"),
    "vgg19": ("VGG19", ".h5"),
    "resnet50_keras": ("ResNet50", ".keras"),
    "resnet101_keras": ("ResNet101", ".h5"),
    "inception_v3_keras": ("InceptionV3", ".weights.h5"),
    "mobilenet_v1": ("MobileNet", ".weights.h5"),
}
"""Architecture -> the equal Keras application, and the kind of file that it writes."""
CONFIGS: dict[str, dict[str, Any]] = {
    "resnet18": {
        "layer_type": "basic",
        "depths": [2, 2, 2, 2],
        "hidden_sizes": [64, 128, 256, 512],
    },
    "resnet34": {
        "layer_type": "basic",
        "depths": [3, 4, 6, 3],
        "hidden_sizes": [64, 128, 256, 512],
    },
    "resnet50": {"layer_type": "bottleneck", "depths": [3, 4, 6, 3]},
}
"""Architecture -> config of transformers' equal `ResNetForImageClassification`."""


@measurement(
    flag("--only", nargs="*", help="architectures; all by default"),
    what="logits against independent implementations, with the same random weights",
    target="largest difference under 1e-4 of the largest logit; as many parameters",
)
def main(options):
    from cnn_research.models.registry import architectures

    missing = [name for name in ("transformers", "torch") if not importlib.util.find_spec(name)]
    if missing:
        print(f"not compared with transformers: {' and '.join(missing)} not installed")
    figures: dict[str, Any] = {}
    for name in [*APPLICATIONS, *([] if missing else CONFIGS)]:
        if options.only and name not in options.only:
            continue
        ours = architectures()[name]
        if name in APPLICATIONS:
            application, suffix = APPLICATIONS[name]
            reference = keras_application(application, ours.image_shape[0])
            found = keras_difference(reference, ours.model, suffix)
            figures[name] = {"against": f"Keras {application}", "file": suffix, **found}
        else:
            found = torch_difference(transformers_resnet(name), ours.model, 224)
            figures[name] = {"against": "transformers ResNet", "file": ".safetensors", **found}
        print(f"{name}: {found['relative']:.1e} of {found['max_reference']:.3g}", flush=True)
        gc.collect()  # a VGG's weights several times over
    rows = [
        row(
            f"{name} against {found['against']}",
            "relative difference < 1e-4, parameters equal",
            f"{found['relative']:.1e}; {found['parameters']:,} parameters, "
            f"{found['reference_parameters']:,} there",
            found["relative"] < TARGET and found["parameters"] == found["reference_parameters"],
        )
        for name, found in figures.items()
    ]
    return rows, figures


def compared(
    model: Any, images: np.ndarray, expected: np.ndarray, suffix: str, save: Callable[[Path], Any]
) -> tuple[dict[str, Any], dict[str, float]]:
    """Load a flax model's variables from another library's file, and compare the logits.

    Args:
        model: the flax module.
        images: float32 `[batch, height, width, channels]`.
        expected: the other library's logits.
        suffix: suffix of the file.
        save: writes the file.

    Returns:
        The variables; and the largest difference of logits, the largest logit, and the first over
        the second.
    """
    import jax

    from cnn_research.models.pretrained import Pretrained, load_pretrained

    blank = jax.eval_shape(model.init, jax.random.key(0), images)
    variables = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), blank)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, f"model{suffix}")
        save(file)
        variables, _ = load_pretrained(model, variables, Pretrained(str(file)))
    logits = np.asarray(jax.jit(model.apply)(variables, images))
    largest, apart = float(np.abs(expected).max()), float(np.abs(logits - expected).max())
    return variables, {
        "max_difference": apart,
        "max_reference": largest,
        "relative": apart / largest,
    }


# Keras -------------------------------------------------------------------------------------------


def keras_application(name: str, image_size: int, classes: int = 1000) -> Any:
    """Make a Keras application that outputs logits, with random weights.

    Args:
        name: name in `keras.applications`.
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
    """Draw values that neither attenuate nor amplify the signal; variances are positive."""
    shape = tuple(weight.shape)
    if weight.path.endswith("_3_bn/gamma"):  # a residual block's last: shortcuts only ever add
        return random.uniform(0.1, 0.3, shape)
    if weight.name in ("gamma", "moving_variance"):
        return random.uniform(0.5, 1.5, shape)
    if "kernel" in weight.name:
        inputs = shape[:2] if weight.path.endswith("depthwise_kernel") else shape[:-1]
        return random.normal(0, np.sqrt(2 / np.prod(inputs)), shape)
    return random.uniform(-0.5, 0.5, shape)


def keras_difference(reference: Any, model: Any, suffix: str, batch: int = 2) -> dict[str, Any]:
    """Compare a flax model's logits with those of a Keras model, whose weights it loads.

    Args:
        reference: a Keras model of images `[batch, height, width, 3]`.
        model: the flax module.
        suffix: suffix of the file, '.weights.h5', '.keras' or '.h5'.
        batch: number of images.

    Returns:
        The results of `compared`, and both numbers of parameters, including statistics, as Keras
        counts them.
    """
    import jax

    shape = (batch, *reference.input_shape[1:])
    images = np.random.default_rng(1).standard_normal(shape, np.float32)
    expected = reference.predict(images, verbose=0)
    save = reference.save_weights if suffix == ".weights.h5" else reference.save
    variables, found = compared(model, images, expected, suffix, save)
    ours = sum(leaf.size for leaf in jax.tree.leaves(variables))
    return {"parameters": ours, "reference_parameters": reference.count_params(), **found}


# transformers and PyTorch ------------------------------------------------------------------------


def transformers_resnet(name: str) -> Any:
    """Make the network of `CONFIGS` for 1,000 classes, with random weights."""
    import torch
    from transformers import ResNetConfig, ResNetForImageClassification

    torch.manual_seed(0)
    module = ResNetForImageClassification(ResNetConfig(**CONFIGS[name], num_labels=1000))
    randomise(module)
    return module


def torch_difference(module: Any, model: Any, image_size: int, batch: int = 2) -> dict[str, Any]:
    """Compare a flax model's logits with those of a PyTorch module, whose weights it loads.

    Args:
        module: a `torch.nn.Module`, called with images `[batch, channels, height, width]`.
        model: the flax module.
        image_size: height and width of the images.
        batch: number of images.

    Returns:
        The results of `compared`, and both numbers of parameters.
    """
    import jax
    import torch
    from safetensors.torch import save_file

    module.eval()
    shape = (batch, image_size, image_size, 3)
    images = np.random.default_rng(0).standard_normal(shape, np.float32)
    with torch.no_grad():
        outputs = module(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()))
    expected = getattr(outputs, "logits", outputs).numpy()
    variables, found = compared(
        model, images, expected, ".safetensors", lambda file: save_file(module.state_dict(), file)
    )
    return {
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(variables["params"])),
        "reference_parameters": sum(leaf.numel() for leaf in module.parameters()),
        **found,
    }


if __name__ == "__main__":
    sys.exit(main())
