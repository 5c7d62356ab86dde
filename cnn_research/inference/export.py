"""A trained network as files that need neither this project nor flax: `--mode=export`.

All that it takes is the run's folder. `exported.open_export` reads the folder that it writes, and
so does anyone with JAX alone, as its README.md says.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from safetensors.numpy import save

from cnn_research import ops
from cnn_research.core import run_folder as folders
from cnn_research.core.errors import UserError, one_line
from cnn_research.core.experiment import Result
from cnn_research.inference import exported
from cnn_research.report.markdown import markdown_table, number
from cnn_research.tasks.task import file_suffixes
from cnn_research.train.config import Training
from cnn_research.train.trained import TrainedModel

FOLDER = "export"
PLATFORMS = ("cpu", "cuda", "tpu")
RESIZE = "bilinear, antialiased, stretched"
"""How images of another size become the network's (`data.images.decode`)."""
ONNX = "model.onnx"
MOST_APART = 1e-4
"""Of the largest output: what ONNX Runtime's may differ by."""
FOR_ONNX = ops.Formulation(gather_pool_gradient=True)
"""A pool of XLA's own becomes one over four dimensions, which ONNX Runtime does not have."""


def export(experiment: Training, workdir: Path) -> Result:
    """Writes the run's network to `export/`, whole or not at all.

    Raises:
        UserError: the folder holds no run, or its network cannot be exported.
    """
    return export_to(experiment, workdir, workdir / FOLDER)


def export_to(experiment: Training, workdir: Path, folder: Path) -> Result:
    """Writes the network of the run in `workdir` to another folder; `export` says the rest."""
    # The figures are those of the evaluation that the config describes.
    folders.check_same(experiment, workdir, ())
    model = TrainedModel.load(workdir)
    with folders.claimed(workdir), folders.whole_folder(folder) as partial:
        (partial / exported.MODEL).write_bytes(program(model).serialize())
        (partial / "model.safetensors").write_bytes(save(_flat(model.state.variables())))
        (partial / folders.CONFIG).write_text((workdir / folders.CONFIG).read_text())
        facts = described(model, workdir)
        folders.write_json(partial / exported.FACTS, facts)
        _write_labels(partial, facts["heads"])
        why_not = _write_onnx(model, partial)
        run = folders.read_json(workdir / folders.RUN)
        (partial / "README.md").write_text(card(facts, run, (partial / ONNX).exists()))
        exported.write_sums(partial)
    size = sum(file.stat().st_size for file in folder.iterdir())
    print(f"{folder}: {size / 1e6:,.1f} MB, of step {facts['step']:,}, for {', '.join(PLATFORMS)}")
    if why_not:
        print(f"Without {ONNX}: {why_not}.")
    return Result(workdir, facts["step"], {})


def program(model: TrainedModel) -> jax.export.Exported:
    """The network as JAX keeps it: uint8 images `[batch, height, width, channels]`, of any number,
    to float32 outputs `[batch, outputs]`.

    Raises:
        UserError: it does something that needs the number of images.
    """
    (batch,) = jax.export.symbolic_shape("batch")
    images = jax.ShapeDtypeStruct((batch, *model.image_shape), jnp.uint8)
    try:
        return jax.export.export(jax.jit(model.forward()), platforms=PLATFORMS)(images)
    except (  # each for its kind of operation
        *(TypeError, ValueError, NotImplementedError),
        jax.errors.InconclusiveDimensionOperation,
    ) as error:
        raise UserError(
            f"{type(model.experiment.model).__name__} cannot be exported for any number of images: "
            f"{one_line(error)[:200]}"
        ) from error


def described(model: TrainedModel, workdir: Path) -> dict[str, Any]:
    """What export.json says."""
    heads = model.experiment.fitted_task.described(model.class_names)
    run = folders.read_json(workdir / folders.RUN)
    evaluation = folders.read_json(workdir / folders.EVALUATION)
    step = int(model.state.step)
    figures = {name: values for name, values in evaluation.items() if name in folders.EVALUATED}
    return {
        "format": exported.FORMAT,
        "experiment": model.experiment.name,
        "input": {
            "dtype": "uint8",
            "shape": ["batch", *model.image_shape],
            "resize": RESIZE,
            "channels": "RGB" if model.image_shape[2] == 3 else "grey",
        },
        "outputs": heads[-1]["stop"],
        "heads": heads,
        "platforms": list(PLATFORMS),
        "versions": folders.versions(),
        "commit": run.get("commit", ""),
        "step": step,
        "figures": figures if evaluation.get("step") == step else {},
    }


def _flat(variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
    flat = traverse_util.flatten_dict(dict(variables), sep="/")
    return {name: np.ascontiguousarray(value) for name, value in flat.items()}


def _write_labels(folder: Path, heads: list[dict[str, Any]]) -> None:
    """`labels.txt`, a class a line; of several heads `labels_HEAD.txt`."""
    endings = file_suffixes([head["name"] for head in heads])
    for head in heads:
        if "classes" in head:
            lines = "".join(f"{name}\n" for name in head["classes"])
            (folder / f"labels{endings[head['name']]}.txt").write_text(lines, encoding="utf-8")


# The model card ----------------------------------------------------------------------------------

METRICS = {"classes": "accuracy", "number": "mae"}
"""Per kind of head, what Hugging Face calls the figure that counts."""


def card(facts: Mapping[str, Any], run: Mapping[str, Any], onnx: bool) -> str:
    """README.md, with what Hugging Face reads of a model at its top.

    Args:
        facts: of export.json.
        run: of the run's run.json.
        onnx: whether there is a model.onnx.
    """
    heads, name = facts["heads"], facts["experiment"] or "Network"
    kinds = {head["kind"] for head in heads}
    metrics = [metric for kind, metric in METRICS.items() if kind in kinds]
    front = ["library_name: jax"]
    if "classes" in kinds:
        front.append("pipeline_tag: image-classification")
    front += ["tags:", *(f"- {tag}" for tag in ("jax", "stablehlo", *(["onnx"] if onnx else [])))]
    if metrics:
        front += ["metrics:", *(f"- {metric}" for metric in metrics)]
    _, height, width, channels = facts["input"]["shape"]
    data = run.get("data", {}).get("name", "unknown")
    parts = [
        "---\n" + "\n".join(front) + "\n---",
        f"# {name}",
        f"A network trained on the data set {data} for {facts['step']:,} steps by cnn-research "
        f"(commit {facts['commit'][:12] or 'unknown'}), with {run.get('parameters', 0):,} "
        f"parameters. It takes images of {height}x{width} pixels ({facts['input']['channels']}) "
        f"and says {'; '.join(_what(head) for head in heads)}.",
        *_results(facts["figures"]),
        "## Use",
        "With JAX alone (`pip install jax flatbuffers pillow`), on a CPU, a CUDA GPU or a TPU:",
        "```python\n" + _code(channels, heads) + "```",
        "`export.json` says how outputs are read, `SHA256SUMS` whether files are whole "
        "(`sha256sum -c SHA256SUMS`; a flipped byte in `model.jaxexport` would load without an "
        "error), `config.json` how the network was trained. `model.safetensors` holds its "
        "variables alone" + (f", `{ONNX}` the same network for ONNX Runtime." if onnx else "."),
        "## Limits",
        f"Images of another size are resized ({facts['input']['resize']}). The figures are of the "
        "data named above: on other images the network may do worse, and it says one of its "
        "answers whatever it is shown.",
    ]
    return "\n\n".join(parts) + "\n"


def _what(head: Mapping[str, Any]) -> str:
    if head["kind"] == "number":
        return f"a number, {head['name']}"
    if head["kind"] == "palette":
        return f"{(head['stop'] - head['start']) // 4} colours, with the share of each"
    return f"which of {len(head['classes'])} {head['name']} classes they show"


def _results(figures: Mapping[str, Any]) -> list[str]:
    """The numbers of each split in a table, or nothing."""
    by_split = {split: _by_name(values) for split, values in figures.items()}
    names = dict.fromkeys(name for values in by_split.values() for name in values)
    rows = [[name, *(number(values.get(name)) for values in by_split.values())] for name in names]
    return ["## Results", markdown_table(["figure", *by_split], rows)] if rows else []


def _by_name(figures: Mapping[str, Any], before: str = "") -> dict[str, float]:
    """A split's figures; those of a head after its name, `material accuracy`."""
    found: dict[str, float] = {}
    for name, value in figures.items():
        inner = isinstance(value, Mapping)
        found |= _by_name(value, f"{before}{name} ") if inner else {before + name: value}
    return found


def _code(channels: int, heads: list[dict[str, Any]]) -> str:
    """How the network is asked, with JAX alone."""
    grey = "" if channels == 3 else "pixels = np.round(pixels @ [0.299, 0.587, 0.114])\n"
    answers = {
        "number": 'print(head["name"], said[0] * head["std"] + head["mean"])',
        "palette": "print(said.reshape(-1, 4))  # L*, a*, b* of CIELAB, and the share",
    }
    answer = answers.get(heads[0]["kind"], 'print(head["name"], head["classes"][said.argmax()])')
    return f"""\
import json, jax, numpy as np
from jax import export
from PIL import Image

facts = json.load(open("export.json"))
network = jax.jit(export.deserialize(bytearray(open("model.jaxexport", "rb").read())).call)
_, height, width, channels = facts["input"]["shape"]
image = Image.open("IMAGE").convert("RGB").resize((width, height), Image.Resampling.BILINEAR)
pixels = np.asarray(image)
{grey}outputs = np.asarray(network(pixels.reshape(1, height, width, channels).astype(np.uint8)))
for head in facts["heads"]:
    said = outputs[0, head["start"] : head["stop"]]
    {answer}
"""


# ONNX --------------------------------------------------------------------------------------------


def _write_onnx(model: TrainedModel, folder: Path) -> str:
    """Writes model.onnx where the extra `onnx` is installed and the network converts.

    Returns:
        Why there is none; empty where there is one.
    """
    if not all(importlib.util.find_spec(name) for name in ("jax2onnx", "onnxruntime")):
        return "jax2onnx and onnxruntime are not installed (pip install 'cnn-research[onnx]')"
    file = folder / ONNX
    try:
        write_onnx(model, file)
        apart = onnx_difference(model, file)
        if apart <= MOST_APART:
            return ""
        reason = f"ONNX Runtime is {apart:.1e} of the largest output away"
    except Exception as error:  # of the converter: whatever it does not know, it raises as it likes
        reason = one_line(error)[:200] or type(error).__name__
    file.unlink(missing_ok=True)
    return f"jax2onnx does not convert this network ({reason})"


def write_onnx(model: TrainedModel, file: Path) -> None:
    """The network as ONNX, for any number of images; the extra `onnx` must be installed."""
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
    """How far ONNX Runtime's outputs for random images are from ours, by the largest of ours."""
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
    """The converter tells of every layer, and of every part of JAX that it does not find."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(before)
