"""Networks as ONNX: which of them jax2onnx converts, and the differences of their logits.

    python -m benchmarks.onnx_parity --output results/onnx_parity.json

All parameters are random, including statistics and biases; images have the smallest size that a
network accepts, at least 32 pixels, and there are 10 classes. Needs the extra `onnx`. Each network
is converted in its own process.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.results import flag, in_process, measurement, row

LEAST = 32
BATCHES = (1, 3)


def compare(name: str) -> dict[str, Any]:
    """Measure the differences of logits by batch size, or return why conversion failed."""
    import jax

    from cnn_research.inference.onnx import onnx_difference, write_onnx
    from cnn_research.models.flops import least_size
    from cnn_research.models.registry import architectures
    from cnn_research.train.config import Training
    from cnn_research.train.state import TrainState
    from cnn_research.train.trained import TrainedModel

    found = architectures()[name]
    channels = found.image_shape[2]
    size = max(LEAST, least_size(found.model, channels))
    model = found.model.clone(num_classes=10)
    shape = (size, size, channels)
    random = np.random.default_rng(0)
    blank = jax.eval_shape(
        lambda key: model.init(key, np.zeros((1, *shape), np.float32), train=False),
        jax.random.key(0),
    )
    blank = {key: value for key, value in blank.items() if key != "auxiliary"}
    variables = jax.tree.map(lambda leaf: _drawn(leaf.shape, random), blank)
    state = TrainState(step=0, params={}, model_state={}, opt_state={}, ema=variables)
    trained = TrainedModel(Path(), Training(data=None, model=model), state, shape, {})
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "model.onnx")
        try:
            write_onnx(trained, file)
            apart = {batch: onnx_difference(trained, file, batch) for batch in BATCHES}
        except Exception as error:  # the converter and the runtime raise many kinds
            return {"image": size, "why_not": f"{type(error).__name__}: {error}"[:300]}
    return {"image": size, "relative": apart}


def _drawn(shape: tuple[int, ...], random: np.random.Generator) -> np.ndarray:
    """A value by which the signal neither dies out nor explodes; variances are positive."""
    if len(shape) < 2:
        return random.uniform(0.5, 1.5, shape).astype(np.float32)
    return random.normal(0, np.sqrt(2 / np.prod(shape[:-1])), shape).astype(np.float32)


@measurement(
    flag("--only", nargs="*", help="architectures; all by default"),
    what="logits of ONNX Runtime against ours, by the largest logit",
    target="largest difference under 0.0001 of the largest logit",
    seeds=[0],
)
def main(options):
    from cnn_research.inference.onnx import LARGEST_DIFFERENCE
    from cnn_research.models.registry import architectures

    figures: dict[str, Any] = {}
    for name in options.only or architectures():
        try:  # in its own process, so that the converter's state is not shared
            figures[name] = in_process(compare, name)
        except RuntimeError as error:
            figures[name] = {"why_not": str(error)[-200:]}
        print(name, figures[name], flush=True)
    apart = {
        name: max(found["relative"].values())
        for name, found in figures.items()
        if "relative" in found
    }
    failed = {name: found["why_not"] for name, found in figures.items() if "why_not" in found}
    rows = [
        row(
            f"largest difference of logits of {len(figures)} networks in ONNX Runtime",
            f"< {LARGEST_DIFFERENCE} of the largest logit",
            f"{max(apart.values(), default=float('nan')):.1e} in {len(apart)} networks"
            + (f"; not converted: {', '.join(failed)}" if failed else ""),
            bool(apart) and not failed and max(apart.values()) < LARGEST_DIFFERENCE,
        )
    ]
    return rows, figures


if __name__ == "__main__":
    sys.exit(main())
