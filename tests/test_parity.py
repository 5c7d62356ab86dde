"""Logits against keras.applications with the same random weights, which travel in Keras' files.

Small images and few classes, for speed; `benchmarks.parity` has the published sizes.
"""

from __future__ import annotations

import pytest

from benchmarks import parity
from cnn_research.models.registry import architectures

# A whole network each, in two libraries.
pytestmark = pytest.mark.slow

CASES = {
    # Keras flattens the last map, which 32 pixels leave as one; so does the small variant.
    "VGG16": ("vgg16_small", {"hidden": 4096}, 32, ".weights.h5"),
    "ResNet50": ("resnet50_keras", {}, 64, ".keras"),
    "InceptionV3": ("inception_v3_keras", {}, 75, ".h5"),
    "MobileNet": ("mobilenet_v1", {}, 63, ".weights.h5"),
}


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # Keras' own
@pytest.mark.parametrize("name", CASES)
def test_logits_and_parameters_are_those_of_keras(name):
    # Only here, because workers that run other tests would load Keras too.
    pytest.importorskip("keras", reason="Keras, of the extra `dev`, is not installed")
    ours, fields, size, suffix = CASES[name]
    model = architectures()[ours].model.clone(num_classes=5, **fields)
    reference = parity.keras_application(name, size, classes=5)
    found = parity.keras_difference(reference, model, suffix)
    assert found["relative"] < 1e-4
    assert found["parameters"] == found["reference_parameters"]
