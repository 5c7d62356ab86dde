"""Exact evaluation: every example once, whatever the batch size and the number of devices."""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from flax import linen as nn
from flax import traverse_util
from jax.sharding import Mesh

from cnn_research import ops
from cnn_research.core import run_folder as folders
from cnn_research.core.config import from_dict
from cnn_research.core.distributed import batch_sharded, data_mesh, replicated, state_shardings
from cnn_research.core.errors import UsageError, UserError
from cnn_research.core.experiment import Result
from cnn_research.data.dataset import Dataset, Split
from cnn_research.models.layer_outputs import last_features
from cnn_research.models.weights import Weights
from cnn_research.ops.views import cut
from cnn_research.report.report import write_report
from cnn_research.report.tensorboard import Points, chosen, show_report
from cnn_research.report.writers import MetricsWriter, by_epoch, read_metrics
from cnn_research.tasks.task import PIXELS, FittedTask
from cnn_research.train import checkpoint
from cnn_research.train.config import Training
from cnn_research.train.feature_cache import FromFeatures, before, cached_features
from cnn_research.train.state import TrainState, init_state
from cnn_research.train.transfer import Transfer


def scaled(images: jax.Array, experiment: Training) -> jax.Array:
    """Pixels as the model sees them: uint8 0 to 255 -> float32 (x / 255 - mean) / std."""
    mean, std = jnp.array(experiment.mean), jnp.array(experiment.std)
    return (images.astype(jnp.float32) / 255 - mean) / std


def views_of(inputs: jax.Array, experiment: Training) -> list[jax.Array]:
    """What the model is asked about each example: the image, and views of it to average over.

    Args:
        inputs: uint8 images `[batch, height, width, channels]`, or cached features, float32
            `[batch, views, *output]`.
        experiment: says which views.

    Returns:
        As the model takes them: the first is the image as it is.
    """
    how = experiment.evaluation
    if experiment.transfer.cache_after:
        return [inputs[:, view] for view in range(inputs.shape[1] if how.mirror else 1)]
    images = scaled(inputs, experiment)
    views = [images]
    if how.shift:
        height, width = images.shape[1:3]
        pads = [(0, 0), (how.shift, how.shift), (how.shift, how.shift), (0, 0)]
        # The border is repeated: what a black pixel is here depends on the normalisation.
        wide = jnp.pad(images, pads, mode="edge")
        views += [cut(wide, (at, at), (height, width)) for at in (0, 2 * how.shift)]
    if how.mirror:
        views += [jnp.flip(view, axis=2) for view in views]
    return views


def predict(
    model: nn.Module, variables: Mapping[str, Any], views: Sequence[jax.Array], task: FittedTask
) -> jax.Array:
    """The model's outputs for images, or what the task makes of those for several views of each.

    Args:
        model: the network.
        variables: its parameters and statistics.
        views: from `views_of`.
        task: how they are averaged.

    Returns:
        float32 `[batch, outputs]`.
    """
    outputs: list[Any] = [model.apply(variables, view, train=False) for view in views]
    return outputs[0] if len(outputs) == 1 else task.averaged(outputs)


def forward_of(
    found: Trained, formulation: ops.Formulation | None = None
) -> Callable[[jax.Array], jax.Array]:
    """What a trained network makes of images, and of their views, as one function to be jitted.

    Predictions and exports are both made by it, so that they are the same, bit for bit.

    Args:
        found: the network.
        formulation: how operations are written down; None: as is best on each platform.

    Returns:
        `images -> outputs`: uint8 `[batch, height, width, channels]` -> float32
        `[batch, outputs]`, with the parameters inside.
    """
    experiment = found.experiment
    variables = jax.tree.map(np.asarray, found.state.variables())

    def under(formulation: ops.Formulation) -> Callable[..., jax.Array]:
        def outputs(variables: Any, images: jax.Array) -> jax.Array:
            with ops.use_formulation(formulation):
                views = views_of(images, experiment)
                return predict(experiment.model, variables, views, experiment.fitted_task)

        return outputs

    def forward(images: jax.Array) -> jax.Array:
        if formulation is not None:
            return under(formulation)(variables, images)
        # Without the barrier XLA would compute with constants beforehand, and round otherwise than
        # an evaluation, to which parameters are arguments.
        held = jax.lax.optimization_barrier(variables)
        return jax.lax.platform_dependent(
            held, images, cpu=under(ops.default_formulation("cpu")), default=under(ops.PLAIN)
        )

    return forward


class Evaluator:
    """Evaluates a model on splits; one compilation serves all of them.

    Attributes:
        batch_size: images in a forward pass, over all devices.
    """

    def __init__(self, experiment: Training, model: nn.Module, mesh: Mesh):
        self._mesh = mesh
        # Every device gets as many images; what is too much is masked, not counted.
        self.batch_size = -(-experiment.evaluation.batch_size // mesh.size) * mesh.size

        def step(variables, images, labels, weights):
            views = views_of(images, experiment)
            task = experiment.fitted_task
            outputs = predict(model, variables, views, task)
            seen = {**labels, PIXELS: images} if task.sees_images else labels
            return task.sums(outputs, seen, weights), outputs

        def features(variables, images):
            return last_features(model, variables, views_of(images, experiment)[0])[1]

        self._step = jax.jit(step, out_shardings=replicated(mesh))
        self._features = jax.jit(features, out_shardings=replicated(mesh))

    def __call__(
        self,
        variables: Mapping[str, Any],
        split: Split,
        *,
        stop: Callable[[], object] = lambda: False,
    ) -> tuple[dict[str, tuple[float, float]], np.ndarray] | None:
        """Metrics as (sum, count), and every example's outputs, float32 `[examples, outputs]`.

        Args:
            variables: what the model is evaluated with.
            split: uint8 images and labels.
            stop: asked between batches; once it is true the evaluation is given up: None.
        """
        fetched, pending = [], None
        with ops.large_blocks_returned(), jax.set_mesh(self._mesh):
            for start in range(0, len(split), self.batch_size):
                if stop():
                    return None
                before, pending = pending, self._step(variables, *self._padded(split, start))
                # One batch behind: the devices never wait, and no queue grows before them.
                if before is not None:
                    fetched.append(jax.device_get(before))
            fetched.append(jax.device_get(pending))
        sums = {
            name: (
                float(sum(float(batch[name][0]) for batch, _ in fetched)),
                float(sum(float(batch[name][1]) for batch, _ in fetched)),
            )
            for name in fetched[0][0]
        }
        return sums, np.concatenate([outputs for _, outputs in fetched])[: len(split)]

    def features(self, variables: Mapping[str, Any], split: Split) -> np.ndarray:
        """Every example's features, as of `last_features`; the arguments are those of a call."""
        with ops.large_blocks_returned(), jax.set_mesh(self._mesh):
            parts = [
                np.asarray(self._features(variables, self._padded(split, start)[0]))
                for start in range(0, len(split), self.batch_size)
            ]
        return np.concatenate(parts)[: len(split)]

    def _padded(self, split: Split, start: int) -> tuple[jax.Array, Any, jax.Array]:
        indices = np.arange(start, start + self.batch_size)
        weights = (indices < len(split)).astype(np.float32)
        indices = np.minimum(indices, len(split) - 1)
        labels = {head: values[indices] for head, values in split.labels.items()}
        return jax.tree.map(self._on_devices, (split.images[indices], labels, weights))

    def _on_devices(self, array: np.ndarray) -> jax.Array:
        return jax.make_array_from_callback(
            array.shape, batch_sharded(self._mesh), lambda part: array[part]
        )


def evaluate(experiment: Training, workdir: Path) -> Result:
    """Evaluates the run in a folder, from that folder alone, and writes its report anew.

    Raises:
        UserError: the folder holds no run, or no good checkpoint.
    """
    check_run(workdir)
    first = jax.process_index() == 0
    with folders.claimed(workdir, enabled=first):
        # Other data, or the same split otherwise, may be what the model was trained on; where it
        # lies does not matter, for `trained` looks at what it is.
        free = ("data.path", "evaluation", "selection.report")
        folders.check_same(experiment, workdir, free)
        experiment, dataset, state = trained(experiment, workdir)
        model, splits = inputs(experiment, state, dataset)
        evaluator = Evaluator(experiment, model, data_mesh())
        last = max((row["step"] for row in read_metrics(workdir)), default=0)
        with MetricsWriter(workdir, restored_step=last, enabled=first) as writer:
            return report(experiment, workdir, dataset, splits, state, evaluator, writer)


def check_run(workdir: Path) -> None:
    """Raises `UserError` for a folder that holds no run."""
    if not (workdir / folders.CONFIG).exists():
        raise UserError(f"{workdir} holds no run: train one there first, with --mode=train")


def check_same_data(workdir: Path, dataset: Dataset) -> None:
    """Raises `UsageError` if the run in a folder was trained on other examples or classes."""
    before = folders.read_json(workdir / folders.RUN).get("data", {}).get("content")
    names = folders.read_json(workdir / folders.BOUND).get("class_names")
    now = dataset.provenance.get("content")
    renamed = names is not None and names != {h: list(n) for h, n in dataset.class_names.items()}
    if renamed or (before and now and before != now):
        raise UsageError(
            f"{workdir} holds a run on other data: images, labels or classes of {dataset.name} "
            "have changed since it was trained; put them back, or name another --workdir"
        )


def trained(experiment: Training, workdir: Path) -> tuple[Training, Dataset, TrainState]:
    """What a run has come to: the experiment bound to its data, the data, the reported state.

    Raises:
        UsageError: the data has changed since.
        UserError: there is no good checkpoint, or the data is not there.
    """
    dataset = experiment.data.load()
    check_same_data(workdir, dataset)
    experiment.task.check_data(dataset)
    experiment = bound(experiment, dataset)
    like = abstract_state(experiment, dataset.image_shape, data_mesh())
    step = reported_step(experiment, workdir)
    state, _ = checkpoint.restore(workdir / folders.CHECKPOINTS, step, like)
    return experiment, dataset, state


@dataclasses.dataclass(frozen=True)
class Trained:
    """A trained network that can be asked, from its folder alone.

    Attributes:
        experiment: bound to the data that it was trained on.
        state: the one that its report is about.
        image_shape: `(height, width, channels)` of what the network takes.
        class_names: per head of classes, the name of each class.
    """

    experiment: Training
    state: TrainState
    image_shape: tuple[int, int, int]
    class_names: Mapping[str, tuple[str, ...]]


def open_trained(workdir: Path) -> Trained:
    """The trained network of a run's folder.

    Raises:
        UserError: the folder holds no run, or no good checkpoint.
    """
    check_run(workdir)
    facts = folders.read_json(workdir / folders.BOUND)
    if not facts:
        raise UserError(
            f"{workdir} has no {folders.BOUND} that can be read: run its training again, which "
            "goes on where it ended"
        )
    experiment = from_dict(facts["experiment"])
    height, width, channels = facts["image_shape"]
    shape = (height, width, channels)
    step = reported_step(experiment, workdir)
    like = abstract_state(experiment, shape, data_mesh())
    state, _ = checkpoint.restore(workdir / folders.CHECKPOINTS, step, like)
    names = {head: tuple(names) for head, names in facts["class_names"].items()}
    # Whole images are asked about, not cached features.
    return Trained(dataclasses.replace(experiment, transfer=Transfer()), state, shape, names)


def weights_of_run(workdir: Path) -> Weights:
    """What a run's report is about, for another network to start from.

    Raises:
        UserError: the folder holds no run, or no good checkpoint.
    """
    found = open_trained(workdir)
    checksums = workdir / folders.CHECKPOINTS / str(int(found.state.step)) / checkpoint.CHECKSUMS
    arrays = {}
    for collection in found.state.variables().values():
        for leaf, value in traverse_util.flatten_dict(collection, sep="/").items():
            module, _, weight = leaf.rpartition("/")
            arrays[module.replace("/", "."), weight] = np.asarray(value)
    # Keras' layout is flax's.
    return Weights(arrays, "keras", hashlib.sha256(checksums.read_bytes()).hexdigest())


def bound(experiment: Training, dataset: Dataset) -> Training:
    """The experiment with all that it has to know of its data.

    The model has the outputs that the task needs, the task knows what it takes from the training
    split, and what comes before cached features is frozen.

    Raises:
        UsageError: the images are too small for the model, or a layer is named that it lacks.
    """
    model = experiment.task.bind(experiment.model, dataset)
    transfer = experiment.transfer
    if transfer.cache_after:
        if dataset.window:
            raise UsageError(
                "--transfer.cache-after computes features once, and of this data another window is "
                "cut each time: leave it out"
            )
        frozen = before(model, dataset.image_shape, transfer.cache_after)
        transfer = dataclasses.replace(transfer, freeze=(*transfer.freeze, *frozen))
    return dataclasses.replace(
        experiment, model=model, task=experiment.task.fitted(dataset), transfer=transfer
    )


def inputs(
    experiment: Training,
    state: TrainState,
    dataset: Dataset,
    say: Callable[[str], None] = lambda text: None,
) -> tuple[nn.Module, Mapping[str, Split]]:
    """The model and the splits that it is given: images, or features that are computed once.

    Args:
        experiment: bound to its data.
        state: with the parameters that features are computed with.
        dataset: its data.
        say: told when features have to be computed.
    """
    layer = experiment.transfer.cache_after
    if not layer:
        return experiment.model, dataset.splits
    splits = cached_features(
        experiment.model,
        {"params": state.params, **state.model_state},
        layer,
        dataset.splits,
        lambda images: scaled(images, experiment),
        mirror=experiment.augmentation.mirror,
        frozen=lambda path: experiment.transfer.begins(path) == math.inf,
        say=say,
    )
    return FromFeatures(experiment.model, layer, dataset.image_shape), splits


def reported_step(experiment: Training, workdir: Path) -> int:
    """The step of the checkpoint that a run's report is about.

    Raises:
        UserError: there is no good checkpoint.
    """
    folder, selection = workdir / folders.CHECKPOINTS, experiment.selection
    if selection.report == "best":
        step = checkpoint.best(folder, selection.metric, selection.better)
    else:
        step = checkpoint.newest(folder)
    if step is None:
        raise UserError(f"{folder} has no good checkpoint: train first, with --mode=train")
    return step


def abstract_state(
    experiment: Training, image_shape: tuple[int, int, int], mesh: Mesh
) -> TrainState:
    """Shapes, dtypes and shardings of a bound experiment's state, without computing any of it."""
    optimizer = experiment.transfer.optimizer(experiment.optimizer, 1, lambda epoch: 1)
    shapes = jax.eval_shape(
        lambda key: init_state(
            experiment.model,
            optimizer,
            key,
            image_shape,
            ema=bool(experiment.optimizer.ema_decay),
        ),
        jax.random.key(0),
    )
    where = state_shardings(mesh, shapes, sharded=experiment.shard_parameters)
    return jax.tree.map(
        lambda x, on: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=on), shapes, where
    )


def report(
    experiment: Training,
    workdir: Path,
    dataset: Dataset,
    splits: Mapping[str, Split],
    state: TrainState,
    evaluator: Evaluator,
    writer: MetricsWriter,
) -> Result:
    """Evaluates a state on all splits but the training one, and writes the run's report.

    Args:
        experiment: what was trained, bound to its data.
        workdir: where; gets evaluation.json and `report/`.
        dataset: its data.
        splits: of what the evaluator is given, from `inputs`.
        state: the state that the report is about.
        evaluator: of the model.
        writer: the run's, for the figures in TensorBoard.
    """
    step, task = int(state.step), experiment.fitted_task
    evaluated = [name for name in ("validation", "test", "target") if name in splits]
    if not evaluated:
        logging.warning("nothing to evaluate on, so there is no report: all images are trained on")
        return Result(workdir, step, {})
    figures, predictions, said = {}, {}, {}
    for name in evaluated:
        sums, outputs = evaluator(state.variables(), splits[name]) or ({}, np.empty(0))
        said[name] = outputs
        predictions[name] = task.predictions(dataset, name, outputs, task.means(sums))
        figures[name] = task.figures(predictions[name])
    # Figures on data that the run chose by are shown where there are no others.
    shown = [name for name in evaluated if name != "validation"] or evaluated
    places = chosen(splits[shown[0]])
    points = Points(
        dataset.splits[shown[0]].take(places),
        evaluator.features(state.variables(), splits[shown[0]].take(places)),
        task.answers(said[shown[0]][places], dataset.class_names),
    )
    if jax.process_index() != 0:
        return Result(workdir, step, figures)
    history = read_metrics(workdir)
    folders.write_json(
        workdir / folders.EVALUATION,
        {"step": step, "training": while_training(history, step), **figures},
    )
    page = write_report(
        workdir,
        title=experiment.name or "Training",
        figures={name: figures[name] for name in shown},
        predictions={name: predictions[name] for name in shown},
        images={name: dataset.splits[name].images for name in shown},
        history=history,
        params=state.params,
    )
    show_report(
        writer,
        workdir,
        experiment,
        dataset,
        page,
        figures,
        {name: predictions[name] for name in shown},
        points,
        step,
    )
    for name in shown:
        print(f"Result on the {name} split, step {step:,}:")
        print(task.text(predictions[name]))
    print(f"Report: {page}")
    print(f"Look at it: tensorboard --logdir {workdir.parent}")
    return Result(workdir, step, figures)


def while_training(history: Sequence[Mapping[str, Any]], step: int) -> dict[str, float]:
    """Loss and accuracies of the training examples, while the epoch that ends at `step` ran."""
    epochs = by_epoch([row for row in history if row["step"] <= step])
    means = epochs[-1]["train"] if epochs else {}
    return {name: means[name] for name in means if name.split()[-1] in ("loss", "accuracy", "MAE")}
