"""Export a trained network to files that need neither this project nor flax: `--mode=export`.

Only the run folder is needed. `exported.open_export` reads the exported folder, and its README.md
shows how to use it with JAX alone.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from safetensors.numpy import save

from cnn_research.core import run_folder as folders
from cnn_research.core.config import canonical_json, flatten, from_dict
from cnn_research.core.definitions import error_with_place
from cnn_research.core.errors import UsageError, UserError
from cnn_research.core.experiment import Result
from cnn_research.core.metrics import flat
from cnn_research.data.images import FILL, LUMA
from cnn_research.inference import exported
from cnn_research.inference.onnx import ONNX, try_onnx
from cnn_research.report.markdown import markdown_table, number
from cnn_research.report.page import file_suffixes
from cnn_research.train.config import Training
from cnn_research.train.trained import TrainedModel, check_run

FOLDER = "export"
PLATFORMS = ("cpu", "cuda", "tpu")
RESIZE = {
    "stretch": "stretched",
    "crop": "in proportion, with both ends of the longer side cut off",
    "pad": f"in proportion, with the shorter side padded with the colour {FILL}",
}
"""How images are resized to the network's input, by `data.images.Fit`."""
FITTING = {
    "stretch": "image.resize(size, bilinear)",
    "crop": "ImageOps.fit(image, size, bilinear)",
    "pad": f"ImageOps.pad(image, size, bilinear, {FILL})",
}
"""The same as code."""
HOW_EVALUATED = ("evaluation.mirror", "evaluation.shift", "selection.report")
"""Fields that `--mode=evaluate` may change and that affect metrics and the network."""


def export_run(experiment: Training, workdir: Path, folder: Path | None = None) -> Result:
    """Write the network of the run in `workdir` to `folder`, by default `export/`, atomically.

    `evaluation` and `selection.report` may differ from the training's if the run was last evaluated
    with them.

    Raises:
        UsageError: the run was last evaluated with other fields, so its metrics are not those of
            the exported network.
        UserError: `workdir` is not a run folder, or the network cannot be exported.
    """
    folder = folder or workdir / FOLDER
    check_run(workdir)
    folders.check_same(experiment, workdir, ("data.path", "evaluation", "selection.report"))
    check_evaluated(experiment, workdir)
    model = TrainedModel.load(workdir, experiment)
    with folders.locked(workdir), folders.atomic_directory(folder) as partial:
        (partial / exported.MODEL).write_bytes(program(model).serialize())
        variables = traverse_util.flatten_dict(dict(model.state.variables()), sep="/")
        arrays = {name: np.ascontiguousarray(value) for name, value in variables.items()}
        (partial / "model.safetensors").write_bytes(save(arrays))
        (partial / folders.CONFIG).write_text(canonical_json(experiment), encoding="utf-8")
        facts = described(model)
        folders.write_json(partial / exported.FACTS, facts)
        _write_labels(partial, facts["heads"])
        why_not = try_onnx(model, partial)
        run = folders.read_json(workdir / folders.RUN)
        (partial / "README.md").write_text(
            card(facts, run, (partial / ONNX).exists()), encoding="utf-8"
        )
        exported.write_sums(partial)
    size = sum(file.stat().st_size for file in folder.iterdir())
    print(f"{folder}: {size / 1e6:,.1f} MB, step {facts['step']:,}, for {', '.join(PLATFORMS)}")
    if why_not:
        print(f"{ONNX} was not written: {why_not}.")
    return Result(workdir, facts["step"], {})


def check_evaluated(experiment: Training, workdir: Path) -> None:
    """Raise `UsageError` if a run was last evaluated with other fields than this experiment's."""
    evaluated = flatten(from_dict(folders.evaluated_config(workdir)))
    exports = flatten(experiment)
    for name in HOW_EVALUATED:
        if evaluated[name] != exports[name]:
            flag = name.replace("_", "-")
            raise UsageError(
                f"{workdir} was last evaluated with {name} {evaluated[name]!r}, but would be "
                f"exported with {exports[name]!r}: set --{flag} as before, or evaluate the run "
                "again with --mode=evaluate"
            )


def program(model: TrainedModel) -> jax.export.Exported:
    """Export with JAX: uint8 `[batch, height, width, channels]` to float32 `[batch, outputs]`.

    The batch size is symbolic. Raises `UserError` for a network that depends on it.
    """
    (batch,) = jax.export.symbolic_shape("batch")
    images = jax.ShapeDtypeStruct((batch, *model.image_shape), jnp.uint8)
    try:
        return jax.export.export(jax.jit(model.forward()), platforms=PLATFORMS)(images)
    except (  # depending on the operation
        *(TypeError, ValueError, NotImplementedError),
        jax.errors.InconclusiveDimensionOperation,
    ) as error:
        raise UserError(
            f"{type(model.experiment.model).__name__} cannot be exported for any batch size; its "
            f"code may use x.shape[0], but not len(x): {error_with_place(error)[:300]}"
        ) from error


def described(model: TrainedModel) -> dict[str, Any]:
    heads = model.heads
    run = folders.read_json(model.workdir / folders.RUN)
    evaluation = folders.read_json(model.workdir / folders.EVALUATION)
    fields = flatten(model.experiment)
    step = int(model.state.step)
    figures = {name: values for name, values in evaluation.items() if name in folders.EVALUATED}
    return {
        "format": exported.FORMAT,
        "experiment": model.experiment.name,
        "input": {
            "dtype": "uint8",
            "shape": ["batch", *model.image_shape],
            "fit": model.fit,
            "resize": f"bilinear, antialiased, {RESIZE[model.fit]}",
            "channels": "RGB" if model.image_shape[2] == 3 else "grey",
        },
        "outputs": heads[-1]["stop"],
        "heads": heads,
        "platforms": list(PLATFORMS),
        "versions": folders.versions(),
        "commit": ", ".join(dict.fromkeys(a["commit"] for a in folders.effective_attempts(run))),
        "step": step,
        "evaluation": {name: fields[name] for name in HOW_EVALUATED},
        "figures": figures if evaluation.get("step") == step else {},
    }


def _write_labels(folder: Path, heads: list[dict[str, Any]]) -> None:
    """Write `labels.txt`, one class per line; for several heads `labels_HEAD.txt`."""
    endings = file_suffixes([head["name"] for head in heads])
    for head in heads:
        if "classes" in head:
            lines = "".join(f"{name}\n" for name in head["classes"])
            (folder / f"labels{endings[head['name']]}.txt").write_text(lines, encoding="utf-8")


# The model card ----------------------------------------------------------------------------------

METRICS = {"classes": "accuracy", "labels": "f1", "number": "mae"}
"""Hugging Face's name of the main metric, by kind of head."""


def card(facts: Mapping[str, Any], run: Mapping[str, Any], onnx: bool) -> str:
    """Make README.md, with Hugging Face's metadata, from the values of export.json and run.json."""
    heads, name = facts["heads"], facts["experiment"] or "Network"
    kinds = {head["kind"] for head in heads}
    metrics = [metric for kind, metric in METRICS.items() if kind in kinds]
    front = ["library_name: jax"]
    if kinds & {"classes", "labels"}:
        front.append("pipeline_tag: image-classification")
    front += ["tags:", *(f"- {tag}" for tag in ("jax", "stablehlo", *(["onnx"] if onnx else [])))]
    if metrics:
        front += ["metrics:", *(f"- {metric}" for metric in metrics)]
    _, height, width, _ = facts["input"]["shape"]
    data = run.get("data", {}).get("name", "unknown")
    with_onnx = [
        "With ONNX Runtime (`pip install onnxruntime`), from the same `images`:",
        "```python\n" + ONNX_CODE + "```",
    ]
    parts = [
        "---\n" + "\n".join(front) + "\n---",
        f"# {name}",
        f"A network with {run.get('parameters', 0):,} parameters, trained by cnn-research (commit "
        f"{facts['commit'] or 'unknown'}) on the data set {data} for {facts['step']:,} steps. Its "
        f"input are images of {height}x{width} pixels ({facts['input']['channels']}); it predicts "
        f"{'; '.join(_prediction_text(head) for head in heads)}.",
        *_results(facts["figures"], facts["evaluation"]),
        "## Use",
        "With JAX alone (`pip install jax flatbuffers pillow`), on a CPU, a CUDA GPU or a TPU:",
        "```python\n" + _code(facts["input"], heads) + "```",
        *(with_onnx if onnx else []),
        *([CALIBRATED] if any("temperature" in head for head in heads) else []),
        "`export.json` describes the outputs, and `config.json` the training. Check the files with "
        "`sha256sum -c SHA256SUMS`, because a damaged `model.jaxexport` may load without an error. "
        "`model.safetensors` contains only the variables"
        + (f", `{ONNX}` the same network for ONNX Runtime." if onnx else "."),
        "## Limits",
        f"Images of another size are resized ({facts['input']['resize']}). The metrics were "
        "measured on the data named above and may be worse on other images. The network makes a "
        "prediction for any image, whatever it shows.",
    ]
    return "\n\n".join(parts) + "\n"


def _prediction_text(head: Mapping[str, Any]) -> str:
    if head["kind"] == "number":
        return f"a number, {head['name']}"
    if head["kind"] == "palette":
        return f"{(head['stop'] - head['start']) // 4} colours, with the share of each"
    if head["kind"] == "labels":
        return (
            f"which of {len(head['classes'])} {head['name']} labels they have, any number of them"
        )
    return f"which of {len(head['classes'])} {head['name']} classes they show"


def _results(figures: Mapping[str, Any], evaluation: Mapping[str, Any]) -> list[str]:
    """Make the table of metrics per split, and describe the evaluation; empty without metrics."""
    by_split = {split: dict(flat(values, " ")) for split, values in figures.items()}
    names = dict.fromkeys(name for values in by_split.values() for name in values)
    rows = [[name, *(number(values.get(name)) for values in by_split.values())] for name in names]
    if not rows:
        return []
    fields = ", ".join(f"`{name}={json.dumps(value)}`" for name, value in evaluation.items())
    table = markdown_table(["metric", *by_split], rows)
    return ["## Results", table, f"Evaluated with {fields}, like the exported network."]


def _code(image: Mapping[str, Any], heads: list[dict[str, Any]]) -> str:
    """Generate code that decodes an image like `data.images.decode` and runs the network with JAX.

    `image` is the input as in export.json.
    """
    grey = "" if image["channels"] == "RGB" else f"pixels = np.round(pixels @ {list(LUMA)})\n"
    answers = {
        "number": 'print(head["name"], values[0] * head["std"] + head["mean"])',
        "palette": "print(values.reshape(-1, 4))  # L*, a*, b* of CIELAB, and the share",
        "labels": LABELS_CODE,
    }
    answer = answers.get(heads[0]["kind"], 'print(head["name"], head["classes"][values.argmax()])')
    flat = OPAQUE if any(head["kind"] == "palette" for head in heads) else ON_WHITE
    return f"""\
import io, json, jax, numpy as np
from jax import export
from PIL import Image, ImageCms, ImageOps

facts = json.load(open("export.json"))
network = jax.jit(export.deserialize(bytearray(open("model.jaxexport", "rb").read())).call)
_, height, width, channels = facts["input"]["shape"]
size, bilinear = (width, height), Image.Resampling.BILINEAR

image = Image.open("IMAGE")  # 8 bits per channel; scale others first
image.draft("RGB", (2 * max(size), 2 * max(size)))  # decodes a large JPEG at a reduced size
image = ImageOps.exif_transpose(image)
if image.mode == "P" or image.has_transparency_data:
    image = image.convert("RGBA")
if image.info.get("icc_profile"):
    profile, srgb = io.BytesIO(image.info["icc_profile"]), ImageCms.createProfile("sRGB")
    mode = "RGBA" if image.mode == "RGBA" else "RGB"
    image = ImageCms.profileToProfile(image, profile, srgb, outputMode=mode)
{flat}image = image.convert("RGB")
pixels = np.asarray({FITTING[image["fit"]]})
{grey}images = pixels.reshape(1, height, width, channels).astype(np.uint8)

outputs = np.asarray(network(images))
for head in facts["heads"]:
    values = outputs[0, head["start"] : head["stop"]]
    {answer}
"""


ON_WHITE = """\
if image.mode == "RGBA":
    image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
"""
OPAQUE = """\
if image.mode == "RGBA":  # replace transparent pixels by opaque ones
    rgba = np.array(image)
    seen = rgba[..., 3] >= max(1, rgba[..., 3].max() / 2)
    colours, others = rgba[seen, :3], np.count_nonzero(~seen)
    rgba[~seen, :3] = colours[np.arange(others) * len(colours) // max(1, others)]
    image = Image.fromarray(rgba[..., :3])
"""
CALIBRATED = """\
For calibrated probabilities, divide the outputs by their head's `temperature` in `export.json`. It
was fitted to validation images, so that about 80% of the predictions with a probability of 80% are
correct."""
LABELS_CODE = """\
probabilities = 1 / (1 + np.exp(-values / head.get("temperature", 1)))
    for label, probability, threshold in zip(
        head["classes"], probabilities, head.get("thresholds") or [0.5] * len(probabilities)
    ):
        print(head["name"], label, probability >= threshold, probability, threshold)"""
ONNX_CODE = f"""\
import onnxruntime

session = onnxruntime.InferenceSession("{ONNX}")
(outputs,) = session.run(None, {{session.get_inputs()[0].name: images}})
"""
