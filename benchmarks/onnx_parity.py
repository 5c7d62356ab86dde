"""The networks as ONNX: which of them jax2onnx converts, and how far ONNX Runtime's logits are.

    python -m benchmarks.onnx_parity --output results/onnx_parity.json

Every parameter is random, statistics and biases too; the images are the smallest that a network
takes, 32 pixels at least, and it has 10 classes. Needs the extra `onnx`. Each network is converted
by a process of its own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.results import ROOT, Measurement, arguments, row

LEAST = 32
BATCHES = (1, 3)


def compare(name: str) -> dict[str, Any]:
    """How far apart the logits are, by batch size, or why the network does not convert."""
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
        except Exception as error:  # of the converter and the runtime: whatever they do not know
            return {"image": size, "why_not": f"{type(error).__name__}: {error}"[:300]}
    return {"image": size, "relative": apart}


def _drawn(shape: tuple[int, ...], random: np.random.Generator) -> np.ndarray:
    """A value by which the signal neither dies out nor explodes; variances are positive."""
    if len(shape) < 2:
        return random.uniform(0.5, 1.5, shape).astype(np.float32)
    return random.normal(0, np.sqrt(2 / np.prod(shape[:-1])), shape).astype(np.float32)


def in_process(name: str) -> dict[str, Any]:
    """`compare` in a process of its own: what one network does to the converter stays there."""
    code = (
        "import json, sys; from benchmarks.onnx_parity import compare; "
        f"print('\\n' + json.dumps(compare({name!r})))"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=os.environ, capture_output=True, text=True
    )
    if ended.returncode:
        return {"why_not": f"the process ended with {ended.returncode}: {ended.stderr[-200:]}"}
    return json.loads(ended.stdout.splitlines()[-1])


def main() -> int:
    from cnn_research.inference.onnx import LARGEST_DIFFERENCE
    from cnn_research.models.registry import architectures

    parser = arguments(__doc__)
    parser.add_argument("--only", nargs="*", help="architectures; all by default")
    options = parser.parse_args()
    measurement = Measurement(
        "onnx_parity",
        what="logits of ONNX Runtime against ours, by the largest logit",
        target=f"largest difference under {LARGEST_DIFFERENCE} of the largest logit",
        seeds=[0],
    )
    figures: dict[str, Any] = {}
    for name in options.only or architectures():
        figures[name] = in_process(name)
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
    return measurement.finish(rows, figures, options.output)


if __name__ == "__main__":
    sys.exit(main())
