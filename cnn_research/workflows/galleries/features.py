"""Filters and feature maps of a trained network, its top-activating images, and Grad-CAM."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from cnn_research.core.config import did_you_mean, register_config
from cnn_research.core.errors import UsageError, UserError
from cnn_research.core.experiment import Experiment, Result
from cnn_research.core.ranges import NonNegativeInt, PositiveInt
from cnn_research.data.dataset import Dataset, Split
from cnn_research.models.layer_outputs import (
    Layer,
    grad_cam,
    kernel_of,
    layers,
    maps,
    top_activating_images,
)
from cnn_research.report.markdown import markdown_table
from cnn_research.report.names import in_picture, legend, numbers_of
from cnn_research.tasks.decode import answers_of
from cnn_research.workflows.galleries.feature_pictures import cams_figure, layer_figure, maps_figure
from cnn_research.workflows.galleries.gallery import gallery_page
from cnn_research.workflows.page import Page

if TYPE_CHECKING:
    from cnn_research.train.trained import TrainedModel

BEST = 8
CAMS = 12


@register_config
@dataclasses.dataclass(frozen=True, kw_only=True)
class Features(Experiment):
    """Filters, feature maps, top-activating images and Grad-CAM of a trained run."""

    run: str = ""
    """Folder of the trained run."""
    split: Literal["train", "validation", "test"] = "test"
    """Split whose images are shown."""
    layers: PositiveInt = 6
    """Number of convolutions to show, evenly spaced from the first to the last."""
    units: PositiveInt = 8
    """Number of units to show of each, starting with the first."""
    search: PositiveInt = 1000
    """Number of images, evenly spaced over the split, to search for each unit's top activations."""
    example: NonNegativeInt = 0
    """Index in the split of the image whose feature maps are drawn."""
    target_class: str = ""
    """Class for Grad-CAM, shown on images of it; by default, the predicted class of one image of
    each class."""
    cam_layer: str = ""
    """Module whose output Grad-CAM uses; by default, the last one with a map of the size of the
    last convolution's, such as its normalisation or block."""

    def check(self) -> None:
        super().check()
        if not self.run:
            raise UsageError("--run is missing: name the folder of a trained run, --run=runs/a")


def draw(experiment: Features, workdir: Path) -> Result:
    """Draw the run's features into their own folder.

    Raises `UserError` if there is no such run, split, layer, class or image.
    """
    # Here, because importing Orbax takes a second, and listing experiments does not need it.
    from cnn_research.train.trained import TrainedModel

    model = TrainedModel.load(Path(experiment.run).absolute())
    dataset = model.load_data()
    split = shown_split(experiment, dataset)
    head = model.experiment.task.heads[0]

    numbers = numbers_of({head: model.class_names.get(head, ())})

    def label(index: int) -> str:
        value = dataset.label(split, head, index)
        text = f"{value:.4g}" if isinstance(value, float) else value or "unknown"
        return in_picture(text, numbers)

    # All fields are checked before the page is started.
    modules = layers(model.experiment.model, model.host_variables, model.image_shape)
    convolutions = [layer for layer in modules if layer.kernel]
    if not convolutions:
        raise UserError(f"the network of {experiment.run} has no convolution: nothing to show")
    chosen = spread(convolutions, experiment.layers)
    seen_at = cam_layer(modules, experiment.cam_layer)
    class_names = model.class_names.get(head, ())
    target = target_index(class_names, experiment.target_class)
    indices = cam_images(split.labels[head], class_names, target)

    step, name = int(model.state.step), model.experiment.name or "a training"
    facts = {"run": experiment.run, "step": step}
    with gallery_page(experiment, workdir, f"Features of {name}", **facts) as page:
        page.text(
            f"Run {experiment.run} at step {step:,}; images of the {experiment.split} split. A "
            "convolution's map is its output before normalisation and activation."
        )
        if numbers:
            page.text(legend(class_names, [numbers.get(name, name) for name in class_names]))
        page.text("## Feature maps")
        page.text(layers_table(convolutions, chosen))
        image = split.images[experiment.example]
        shown = _maps(model, image, chosen, experiment.units)
        page.picture(
            "feature_maps",
            maps_figure(image, label(experiment.example), chosen, shown),
            "Each map is scaled from its minimum (black) to its maximum (white).",
        )
        _top_activations(page, model, split.images, experiment, chosen, label)
        labels = [label(index) for index in indices]
        _grad_cam(page, model, split.images[indices], labels, seen_at, target)
    return Result(workdir, step, {})


def shown_split(experiment: Features, dataset: Dataset) -> Split:
    """Return the split whose images are shown; check that it and the example exist."""
    if experiment.split not in dataset.splits:
        raise UserError(
            f"data set {dataset.name} has no {experiment.split} split: set --split to one of "
            f"{', '.join(dataset.splits)}"
        )
    split = dataset.splits[experiment.split]
    if experiment.example >= len(split):
        raise UsageError(
            f"--example is {experiment.example}: the split has images 0 to {len(split) - 1}"
        )
    return split


def spread(items: Sequence[Layer], count: int) -> list[Layer]:
    """Select up to `count` items, evenly spaced from the first to the last."""
    if count >= len(items):
        return list(items)
    return [items[round(at)] for at in np.linspace(0, len(items) - 1, count)]


def layers_table(convolutions: Sequence[Layer], chosen: Sequence[Layer]) -> str:
    """Make a Markdown table of all convolutions, and mark those that are shown."""
    rows = []
    for layer in convolutions:
        (height, width, inputs), (tall, wide, units) = layer.kernel or (0, 0, 0), layer.shape
        sizes = (f"{height}x{width}", f"{inputs}", f"{tall}x{wide}", f"{units}")
        rows.append((layer.path, *sizes, "yes" if layer in chosen else ""))
    header = ("convolution", "kernel", "inputs", "map", "units", "shown")
    counts = f"{len(chosen)} of {len(convolutions)} convolutions are shown (--layers)."
    return f"{counts}\n\n{markdown_table(header, rows)}"


def _maps(
    model: TrainedModel, image: np.ndarray, chosen: Sequence[Layer], units: int
) -> list[np.ndarray]:
    """Compute an image's maps of the first units, `[height, width, units]` per layer."""
    network, paths = model.experiment.model, [layer.path for layer in chosen]
    compute = jax.jit(lambda v, x: maps(network, v, x, paths)[1])
    outputs = compute(model.host_variables, _inputs(model, image[None]))
    return [np.asarray(each[0, ..., :units]) for each in outputs]


def _inputs(model: TrainedModel, images: Any) -> jax.Array:
    """Preprocess uint8 images to the model's input."""
    from cnn_research.train.evaluator import scaled

    return scaled(jnp.asarray(images), model.experiment)


def _top_activations(
    page: Page,
    model: TrainedModel,
    images: np.ndarray,
    experiment: Features,
    chosen: Sequence[Layer],
    label: Callable[[int], str],
) -> None:
    """Add each layer's filters beside their top-activating images."""
    # Evenly spaced, as a split may be sorted by class.
    searched = np.unique(np.linspace(0, len(images) - 1, experiment.search).astype(int))
    page.text("## Filters and their top-activating images")
    page.text(
        f"{len(searched):,} of the split's {len(images):,} images were searched. A cross marks the "
        "largest output."
    )
    top_activations = top_activating_images(
        *(model.experiment.model, model.host_variables, images, searched),
        *(functools.partial(_inputs, model), chosen),
        units=experiment.units,
        best=BEST,
    )
    for number, (layer, activations) in enumerate(zip(chosen, top_activations), start=1):
        kernels = np.asarray(kernel_of(model.host_variables, layer.path), np.float32)
        page.picture(
            f"layer_{number}",
            layer_figure(layer, kernels, images, activations, label),
            f"{layer.path}: {len(activations.indices)} of {layer.shape[2]} units. "
            "In filters, zero is mid-grey.",
        )


def _grad_cam(
    page: Page,
    model: TrainedModel,
    pixels: np.ndarray,
    labels: Sequence[str],
    layer: Layer,
    target: int | None,
) -> None:
    """Add Grad-CAM at a layer for a class, or for the predicted classes."""
    network, variables, images = (
        model.experiment.model,
        model.host_variables,
        _inputs(model, pixels),
    )
    head = model.experiment.task.heads[0]
    classes = model.class_names.get(head, ())
    outputs = np.asarray(jax.jit(lambda v, x: network.apply(v, x, train=False))(variables, images))
    # The first head's outputs come first; a number is a single output.
    targets = outputs[:, : max(1, len(classes))].argmax(axis=1)
    explained = "the predicted class" if classes else "a larger number"
    if target is not None:
        targets = np.full(len(pixels), target)
        explained = f"the class {classes[target]}"
    cams, _ = jax.jit(lambda v, x, t: grad_cam(network, v, x, t, layer.path))(
        variables, images, targets
    )
    answers = answers_of(model.heads, outputs)
    numbers = numbers_of({head: classes})
    predicted = [f"predicted: {in_picture(answer[head].text, numbers)}" for answer in answers]
    title = f"Grad-CAM for {in_picture(explained, numbers)}"
    at = f"at the output of {layer.path}, {layer.shape[0]}x{layer.shape[1]}x{layer.shape[2]}"
    page.text("## Grad-CAM")
    page.picture(
        "grad_cam",
        cams_figure(pixels, np.asarray(cams), labels, predicted, title, at),
        f"Regions that contribute to {explained}, {at}; red ones contribute most. Each map is "
        "scaled to its own maximum.",
    )


def cam_layer(modules: Sequence[Layer], path: str) -> Layer:
    """Find the layer at `path`; for "" the last one of the size of the last convolution's map.

    Convolutions with 1x1 maps are skipped, as these cannot locate anything. Raises `UsageError` if
    there is no layer at that path.
    """
    if not path:
        convolutions = [each for each in modules if each.kernel]
        wide = [each for each in convolutions if each.shape[:2] != (1, 1)]
        last = (wide or convolutions)[-1]
        return [each for each in modules if each.shape[:2] == last.shape[:2]][-1]
    by_path = {layer.path: layer for layer in modules}
    if path not in by_path:
        raise UsageError(
            f"--cam-layer: no layer '{path}' has a map{did_you_mean(path, list(by_path))}; choose "
            f"one of {', '.join(by_path)}"
        )
    return by_path[path]


def target_index(class_names: Sequence[str], name: str) -> int | None:
    """Index of the class `name`; None for "".

    Raises `UsageError` if it is unknown or the run has no classes.
    """
    if not name:
        return None
    if name not in class_names:
        known = ", ".join(class_names[:20]) + (", ..." if len(class_names) > 20 else "")
        raise UsageError(
            f"--target-class: there is no class '{name}'{did_you_mean(name, list(class_names))}; "
            + (f"the classes are {known}" if known else "the run predicts a number")
        )
    return class_names.index(name)


def cam_images(labels: np.ndarray, class_names: Sequence[str], target: int | None) -> np.ndarray:
    """Choose images of the target class, or the first of each class, or the first: int `[shown]`.

    Raises `UserError` if no label is the target class.
    """
    indices = np.empty(0, int)
    several = labels.ndim == 2
    if target is not None:
        indices = np.flatnonzero(labels[:, target] if several else labels == target)
        if not len(indices):
            raise UserError(
                f"the split has no image of class {class_names[target]}: choose another "
                "--target-class or --split"
            )
    elif several:
        indices = np.unique(labels.argmax(axis=0)[labels.any(axis=0)])
    elif class_names:
        kinds, first = np.unique(labels, return_index=True)
        indices = first[kinds >= 0]
    return indices[:CAMS] if len(indices) else np.arange(len(labels))[:CAMS]
