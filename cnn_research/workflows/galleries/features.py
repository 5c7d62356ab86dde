"""Filters and feature maps of a trained network, its top-activating images, and Grad-CAM."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import jax
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
from cnn_research.train.config import Training
from cnn_research.train.state import TrainState
from cnn_research.workflows.galleries.feature_pictures import cams_figure, layer_figure, maps_figure
from cnn_research.workflows.galleries.gallery import gallery_page
from cnn_research.workflows.page import Page

BEST = 8
CAMS = 12


@register_config
@dataclasses.dataclass(frozen=True, kw_only=True)
class Features(Experiment):
    """Filters, feature maps, top activating images and Grad-CAM of a trained run."""

    run: str = ""
    """The folder of the trained run."""
    split: Literal["train", "validation", "test"] = "test"
    """Split whose images are shown."""
    layers: PositiveInt = 6
    """Number of convolutions to show, evenly spaced from the first to the last."""
    units: PositiveInt = 8
    """Number of units of each to show, from the first on."""
    search: PositiveInt = 1000
    """Number of images, evenly spaced over the split, to search for each unit's top activations."""
    example: NonNegativeInt = 0
    """The image whose feature maps are drawn, by its place in the split."""
    target_class: str = ""
    """Grad-CAM for this class, on images of it; the default shows the predicted class of an image
    of each class."""
    cam_layer: str = ""
    """Grad-CAM at this module's output; the default is the last convolution, with what follows it
    at the same size: its normalisation, its block."""

    def check(self) -> None:
        super().check()
        if not self.run:
            raise UsageError("--run is missing: the folder of a trained run, as --run=runs/a")


@dataclasses.dataclass(frozen=True)
class Opened:
    """A trained run, opened for drawing: the experiment bound to its data, and the reported state.

    `split` has the images that are shown, `layers` every module whose output is a map.
    """

    training: Training
    dataset: Dataset
    state: TrainState
    split: Split
    layers: Sequence[Layer]

    @property
    def variables(self) -> dict[str, Any]:
        # On the host: of several processes, each draws by itself.
        return jax.tree.map(np.asarray, self.state.variables())

    @property
    def head(self) -> str:
        """The run's first head, whose classes are shown."""
        return self.training.task.heads[0]

    @property
    def class_names(self) -> tuple[str, ...]:
        """Of that head; empty where it estimates a number."""
        return self.dataset.class_names.get(self.head, ())

    def preprocess(self, images: Any) -> jax.Array:
        """uint8 images as the model sees them."""
        from cnn_research.train.evaluator import scaled

        return scaled(jax.numpy.asarray(images), self.training)

    def label(self, index: int) -> str:
        """The class or number of the image at `index` of the split."""
        value = self.split.labels[self.head][index]
        if not self.class_names:
            return f"{value:.4g}"
        return "unknown" if value < 0 else self.class_names[value]


def draw(experiment: Features, workdir: Path) -> Result:
    """Draw the run's features into a folder of their own.

    Raises `UserError` if there is no such run, layer, class or image.
    """
    opened = open_run(experiment)
    convolutions = [layer for layer in opened.layers if layer.kernel]
    if not convolutions:
        raise UserError(f"the network of {experiment.run} has no convolution: nothing to show")
    chosen = spread(convolutions, experiment.layers)
    seen_at = cam_layer(opened.layers, experiment.cam_layer)
    target = target_index(opened.class_names, experiment.target_class)
    indices = cam_images(opened, target)
    step, name = int(opened.state.step), opened.training.name or "a training"
    facts = {"run": experiment.run, "step": step}
    with gallery_page(experiment, workdir, f"What {name} has learned to see", **facts) as page:
        page.text(
            f"The run {experiment.run} at step {step:,}; images of the {experiment.split} split. A "
            "convolution's map is its output before normalisation and activation."
        )
        _feature_maps(page, opened, experiment, chosen)
        _top_activations(page, opened, experiment, chosen)
        _grad_cam(page, opened, seen_at, target, indices)
    return Result(workdir, step, {})


def open_run(experiment: Features) -> Opened:
    """Open `experiment.run`.

    Raises `UserError` if the folder holds no trained network, or the split is not there.
    """
    # Orbax, which takes a second, is not needed to list experiments.
    from cnn_research.train.trained import TrainedModel

    folder = Path(experiment.run).absolute()
    model = TrainedModel.load(folder)
    training, dataset, state = model.experiment, model.load_data(), model.state
    if experiment.split not in dataset.splits:
        raise UserError(
            f"data set {dataset.name} has no {experiment.split} split: give --split, one of "
            f"{', '.join(dataset.splits)}"
        )
    split = dataset.splits[experiment.split]
    if not 0 <= experiment.example < len(split):
        raise UsageError(
            f"--example is {experiment.example}: the split has images 0 to {len(split) - 1}"
        )
    found = layers(training.model, state.variables(), dataset.image_shape)
    return Opened(training, dataset, state, split, found)


def spread(items: Sequence[Layer], count: int) -> list[Layer]:
    """So many of the items, or all: the first, the last, and evenly between them."""
    if count >= len(items):
        return list(items)
    return [items[round(at)] for at in np.linspace(0, len(items) - 1, count)]


def _feature_maps(
    page: Page, opened: Opened, experiment: Features, chosen: Sequence[Layer]
) -> None:
    """Add a table of the convolutions, and the maps of one image."""
    convolutions = [layer for layer in opened.layers if layer.kernel]
    page.text("## Feature maps")
    if len(chosen) < len(convolutions):
        page.text(f"{len(chosen)} of {len(convolutions)} convolutions are shown (--layers).")
    rows = []
    for layer in convolutions:
        (height, width, inputs), (tall, wide, units) = layer.kernel or (0, 0, 0), layer.shape
        sizes = (f"{height}x{width}", f"{inputs}", f"{tall}x{wide}", f"{units}")
        rows.append((layer.path, *sizes, "yes" if layer in chosen else ""))
    header = ("convolution", "kernel", "inputs", "map", "units", "shown")
    page.text(markdown_table(header, rows))
    image, paths = opened.split.images[experiment.example], [layer.path for layer in chosen]
    _, found = jax.jit(lambda v, x: maps(opened.training.model, v, x, paths))(
        opened.variables, opened.preprocess(image[None])
    )
    shown = [np.asarray(each[0, ..., : experiment.units]) for each in found]
    page.picture(
        "feature_maps",
        maps_figure(image, opened.label(experiment.example), chosen, shown),
        "Each map from its least value, black, to its largest, white.",
    )


def _top_activations(
    page: Page, opened: Opened, experiment: Features, chosen: Sequence[Layer]
) -> None:
    """Add each layer's filters beside the images that excite them most."""
    split, variables = opened.split, opened.variables
    # A split may be sorted by class: from all of it.
    searched = np.unique(np.linspace(0, len(split) - 1, experiment.search).astype(int))
    page.text("## Filters, and the images that excite them most")
    page.text(
        f"Searched: {len(searched):,} of the split's {len(split):,} images. The cross is where "
        "the output is largest."
    )
    top_activations = top_activating_images(
        *(opened.training.model, variables, split.images, searched, opened.preprocess, chosen),
        units=experiment.units,
        best=BEST,
    )
    for number, (layer, activations) in enumerate(zip(chosen, top_activations), start=1):
        kernels = np.asarray(kernel_of(variables, layer.path), np.float32)
        page.picture(
            f"layer_{number}",
            layer_figure(layer, kernels, split.images, activations, opened.label),
            f"{layer.path}: {len(activations.indices)} of {layer.shape[2]} units. "
            "In a filter, zero is mid-grey.",
        )


def _grad_cam(
    page: Page, opened: Opened, layer: Layer, target: int | None, indices: np.ndarray
) -> None:
    """Add Grad-CAM at a layer for a class, or for what is predicted."""
    model, variables, classes = opened.training.model, opened.variables, len(opened.class_names)
    pixels = opened.split.images[indices]
    images = opened.preprocess(pixels)
    outputs = np.asarray(jax.jit(lambda v, x: model.apply(v, x, train=False))(variables, images))
    # The first head's outputs stand first; where it estimates a number, that is the only one.
    targets = outputs[:, : max(1, classes)].argmax(axis=1)
    speaks_for = "the predicted class" if classes else "a larger estimate"
    if target is not None:
        targets = np.full(len(indices), target)
        speaks_for = f"the class {opened.class_names[target]}"
    cams, _ = jax.jit(lambda v, x, t: grad_cam(model, v, x, t, layer.path))(
        variables, images, targets
    )
    answers = opened.training.fitted_task.answers(outputs, opened.dataset.class_names)
    at = f"at the output of {layer.path}, {layer.shape[0]}x{layer.shape[1]}x{layer.shape[2]}"
    figure = cams_figure(
        pixels,
        np.asarray(cams),
        [opened.label(index) for index in indices],
        [f"predicted: {answer[opened.head].text}" for answer in answers],
        f"Grad-CAM for {speaks_for}",
        at,
    )
    page.text("## Grad-CAM")
    page.picture(
        "grad_cam",
        figure,
        f"Where the image speaks for {speaks_for}, {at}: red is most. Each map is scaled to its "
        "own largest value.",
    )


def cam_layer(found: Sequence[Layer], path: str) -> Layer:
    """Layer at `path`; for "" the last of the size of the last convolution.

    A convolution with a map of a single place is skipped, as it locates nothing. Raises
    `UsageError` if there is none at that path.
    """
    if not path:
        convolutions = [each for each in found if each.kernel]
        wide = [each for each in convolutions if each.shape[:2] != (1, 1)]
        last = (wide or convolutions)[-1]
        return [each for each in found if each.shape[:2] == last.shape[:2]][-1]
    by_path = {layer.path: layer for layer in found}
    if path not in by_path:
        raise UsageError(
            f"--cam-layer: no layer '{path}' has a map{did_you_mean(path, list(by_path))}; there "
            f"are {', '.join(by_path)}"
        )
    return by_path[path]


def target_index(class_names: Sequence[str], name: str) -> int | None:
    """Index of the class `name`, None for ""; a `UsageError` if it is unknown or the run has no
    classes."""
    if not name:
        return None
    if name not in class_names:
        known = ", ".join(class_names[:20]) + (", ..." if len(class_names) > 20 else "")
        raise UsageError(
            f"--target-class: there is no class '{name}'{did_you_mean(name, list(class_names))}; "
            + (f"there are {known}" if known else "the run estimates a number")
        )
    return class_names.index(name)


def cam_images(opened: Opened, target: int | None) -> np.ndarray:
    """Indices, int `[shown]`: images of the target class, or the first of each class, or the first.

    Raises `UserError` if the split has no image of the target class.
    """
    labels = np.asarray(opened.split.labels[opened.head])
    if target is not None:
        indices = np.flatnonzero(labels == target)
        if not len(indices):
            raise UserError(
                f"the split has no image of class {opened.class_names[target]}: name another "
                "--target-class or --split"
            )
    elif opened.class_names:
        kinds, first = np.unique(labels, return_index=True)
        indices = first[kinds >= 0]
    else:
        indices = np.empty(0, int)
    return indices[:CAMS] if len(indices) else np.arange(len(labels))[:CAMS]
