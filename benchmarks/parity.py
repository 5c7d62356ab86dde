"""Logits against Keras' and transformers' networks with the same random weights, at full size.

python -m benchmarks.parity --output results/parity.json

Weights travel as users' do: the other library writes its file, and this project reads it.
Every weight is random, statistics, scales and biases too. Needs Keras (in the extra `dev`);
transformers and PyTorch are compared with where they are installed. Takes about ten minutes.
"""

from __future__ import annotations

import gc
import importlib.util
import sys
from typing import Any

from benchmarks import keras_parity, transformers_parity
from benchmarks.results import Measurement, arguments, row

TARGET = 1e-4
# Each kind of file that Keras writes is read at least once.
SUFFIXES = {"vgg19": ".h5", "resnet50_keras": ".keras", "resnet101_keras": ".h5"}
OTHER_LIBRARY = ("transformers", "torch")


def main() -> int:
    parser = arguments(__doc__)
    parser.add_argument("--only", nargs="*", help="architectures; all by default")
    options = parser.parse_args()
    measurement = Measurement(
        "parity",
        what="logits against independent implementations, with the same random weights",
        target="largest difference under 1e-4 of the largest logit; as many parameters",
    )
    figures: dict[str, Any] = {}
    for name in keras_parity.APPLICATIONS:
        if not options.only or name in options.only:
            suffix = SUFFIXES.get(name, ".weights.h5")
            found = keras_parity.compare(name, suffix)
            theirs = f"Keras {keras_parity.APPLICATIONS[name]}"
            figures[name] = {"against": theirs, "file": suffix, **found}
            _say(name, figures[name])
    missing = [module for module in OTHER_LIBRARY if importlib.util.find_spec(module) is None]
    for name in transformers_parity.CONFIGS:
        if missing or (options.only and name not in options.only):
            continue
        found = transformers_parity.compare(name)
        figures[name] = {"against": "transformers ResNet", "file": ".safetensors", **found}
        _say(name, figures[name])
    if missing:
        print(f"not compared with transformers: {' and '.join(missing)} not installed")
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
    return measurement.finish(rows, figures, options.output)


def _say(name: str, found: dict[str, Any]) -> None:
    print(f"{name}: {found['relative']:.1e} of {found['max_reference']:.3g}", flush=True)
    gc.collect()  # a VGG's weights several times over


if __name__ == "__main__":
    sys.exit(main())
