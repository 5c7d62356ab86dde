"""Export a trained network to ONNX; the extra `onnx` must be installed."""

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
from cnn_research.core.errors import install_command, one_line
from cnn_research.train.trained import TrainedModel

ONNX = "model.onnx"
LARGEST_DIFFERENCE = 1e-4
"""Maximum difference of ONNX Runtime's outputs from ours, relative to our largest."""
FOR_ONNX = ops.Formulation(gather_pool_gradient=True)
"""XLA's own pools become four-dimensional ones, which ONNX Runtime does not support."""


def try_onnx(model: TrainedModel, folder: Path) -> str:
    """Write model.onnx; return "", or the reason if it cannot be written."""
    if not all(importlib.util.find_spec(name) for name in ("jax2onnx", "onnxruntime")):
        return f"jax2onnx and onnxruntime are not installed ({install_command('onnx')})"
    file = folder / ONNX
    try:
        write_onnx(model, file)
        apart = onnx_difference(model, file)
        if apart <= LARGEST_DIFFERENCE:
            return ""
        reason = f"ONNX Runtime's outputs differ by {apart:.1e} of the largest output"
    except Exception as error:  # the converter raises any kind for what it does not support
        reason = one_line(error)[:200] or type(error).__name__
    file.unlink(missing_ok=True)
    return f"jax2onnx cannot convert this network ({reason})"


def write_onnx(model: TrainedModel, file: Path) -> None:
    """Write the network as ONNX, for any number of images."""
    with _silence():
        import jax2onnx
        from jax2onnx.converter import ir_optimizations

        # In networks with shortcuts, 0.13 removes a transposition from only one summand.
        harmful = "remove_redundant_transpose_pairs_ir"
        with mock.patch.object(ir_optimizations, harmful, lambda graph: None):
            jax2onnx.to_onnx(
                model.forward(FOR_ONNX),
                [jax.ShapeDtypeStruct(("B", *model.image_shape), jnp.uint8)],
                return_mode="file",
                output_path=str(file),
            )


def onnx_difference(model: TrainedModel, file: Path, batch: int = 2) -> float:
    """Largest difference of ONNX Runtime's outputs from ours, relative to our largest."""
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
    """Silence the converter's messages about layers and missing parts of JAX in the block."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(before)
