"""A trained network as an ONNX file; the extra `onnx` must be installed."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import logging
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from cnn_research import ops
from cnn_research.core.errors import one_line
from cnn_research.train.trained import TrainedModel

ONNX = "model.onnx"
LARGEST_DIFFERENCE = 1e-4
"""By which outputs of ONNX Runtime may differ from ours, relative to the largest of ours."""
FOR_ONNX = ops.Formulation(gather_pool_gradient=True)
"""A pool of XLA's own becomes one over four dimensions, which ONNX Runtime does not have."""


def try_onnx(model: TrainedModel, folder: Path) -> str:
    """Write model.onnx, where possible; otherwise return the reason why not, and "" on success."""
    if not all(importlib.util.find_spec(name) for name in ("jax2onnx", "onnxruntime")):
        return "jax2onnx and onnxruntime are not installed (pip install 'cnn-research[onnx]')"
    file = folder / ONNX
    try:
        write_onnx(model, file)
        apart = onnx_difference(model, file)
        if apart <= LARGEST_DIFFERENCE:
            return ""
        reason = f"ONNX Runtime's outputs differ by {apart:.1e} of the largest"
    except Exception as error:  # of the converter: whatever it does not know, it raises as it likes
        reason = one_line(error)[:200] or type(error).__name__
    file.unlink(missing_ok=True)
    return f"jax2onnx does not convert this network ({reason})"


def write_onnx(model: TrainedModel, file: Path) -> None:
    """Write the network as ONNX, for any number of images."""
    with _silence():
        import jax2onnx
        from jax2onnx.converter import ir_optimizations

        # Of networks with shortcuts, 0.13 takes a transposition from one summand alone.
        harmful = "remove_redundant_transpose_pairs_ir"
        with mock.patch.object(ir_optimizations, harmful, lambda graph: None):
            jax2onnx.to_onnx(
                model.forward(FOR_ONNX),
                [jax.ShapeDtypeStruct(("B", *model.image_shape), jnp.uint8)],
                return_mode="file",
                output_path=str(file),
            )


def onnx_difference(model: TrainedModel, file: Path, batch: int = 2) -> float:
    """Largest difference of ONNX Runtime's outputs from ours, relative to the largest of ours."""
    import onnxruntime

    session = onnxruntime.InferenceSession(file)
    (given,) = session.get_inputs()
    shape = (batch, *model.image_shape)
    images = np.random.default_rng(batch).integers(0, 256, shape, np.uint8)
    expected = np.asarray(jax.jit(model.forward())(images))
    (outputs,) = session.run(None, {given.name: images})
    return float(np.abs(outputs - expected).max() / np.abs(expected).max())


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Silence the converter's messages on layers and missing parts of JAX within the block."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(before)
