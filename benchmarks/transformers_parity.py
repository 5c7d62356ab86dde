"""ResNets here against those of Hugging Face's transformers, with the same random weights."""

from __future__ import annotations

import math
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

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
"""By architecture, what makes transformers' `ResNetForImageClassification` the same."""


def randomise(module: Any, seed: int = 0) -> None:
    """Gives a PyTorch module random biases and normalisations: scales, biases and statistics.

    Other weights keep their random initial values.
    """
    import torch

    generator = torch.Generator().manual_seed(seed)

    def uniform(like: Any, low: float, high: float) -> Any:
        return low + (high - low) * torch.rand(like.shape, generator=generator)

    with torch.no_grad():
        for part in module.modules():
            if isinstance(part, torch.nn.BatchNorm2d):
                part.weight.copy_(uniform(part.weight, 0.5, 1.5))
                part.running_mean.copy_(uniform(part.running_mean, -0.5, 0.5))
                part.running_var.copy_(uniform(part.running_var, 0.5, 1.5))
            if getattr(part, "bias", None) is not None:
                part.bias.copy_(uniform(part.bias, -0.5, 0.5))


def difference(module: Any, model: Any, image_size: int, batch: int = 2) -> dict[str, Any]:
    """How far a flax model's logits are from a PyTorch module's, whose weights it loads.

    Args:
        module: a `torch.nn.Module`, called with images `[batch, channels, height, width]`.
        model: the flax module.
        image_size: height and width of the images.
        batch: how many images.

    Returns:
        The number of parameters on both sides; the largest difference of logits, the largest
        logit, and the first over the second.
    """
    import jax
    import torch
    from safetensors.torch import save_file

    from cnn_research.models.pretrained import Pretrained, load_pretrained

    module.eval()
    images = np.random.default_rng(0).standard_normal(
        (batch, image_size, image_size, 3), np.float32
    )
    with torch.no_grad():
        outputs = module(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()))
    reference = getattr(outputs, "logits", outputs).numpy()
    blank = jax.eval_shape(model.init, jax.random.key(0), images)
    variables = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), blank)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "model.safetensors")
        save_file(module.state_dict(), file)
        variables, _ = load_pretrained(model, variables, Pretrained(str(file)))
    logits = np.asarray(jax.jit(model.apply)(variables, images))
    largest, apart = np.abs(reference).max(), np.abs(logits - reference).max()
    return {
        "parameters": sum(math.prod(x.shape) for x in jax.tree.leaves(variables["params"])),
        "reference_parameters": sum(x.numel() for x in module.parameters()),
        "max_difference": float(apart),
        "max_reference": float(largest),
        "relative": float(apart / largest),
    }


def compare(name: str, image_size: int = 224) -> dict[str, Any]:
    """`difference` of a registered architecture in `CONFIGS`."""
    import torch
    from transformers import ResNetConfig, ResNetForImageClassification

    from cnn_research.models.registry import architectures

    torch.manual_seed(0)
    module = ResNetForImageClassification(ResNetConfig(**CONFIGS[name], num_labels=1000))
    randomise(module)
    return difference(module, architectures()[name].model, image_size)
