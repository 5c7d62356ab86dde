"""Trained models, opened from the folder of their run."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from flax import traverse_util

from cnn_research import ops
from cnn_research.core import run_folder as folders
from cnn_research.core.distributed import data_mesh, replicated
from cnn_research.core.errors import UsageError, UserError
from cnn_research.data.dataset import Dataset, Split
from cnn_research.data.images import Fit
from cnn_research.models.layer_outputs import last_features
from cnn_research.models.pretrained import Pretrained, read_pretrained
from cnn_research.models.weights import Weights
from cnn_research.ops.batching import apply_in_batches
from cnn_research.tasks.decode import Answer, answers_of, calibrated
from cnn_research.train import checkpoint
from cnn_research.train.config import Training
from cnn_research.train.evaluator import Scaling, predict, scaled, views_of
from cnn_research.train.feature_cache import FeatureCache, FromFeatures, before
from cnn_research.train.state import TrainState, abstract_state
from cnn_research.train.transfer import Transfer


@dataclasses.dataclass(frozen=True)
class TrainedModel:
    """A trained model, loaded from the folder of its run alone.

    The experiment is bound to its training data; the state is the run's reported one, the last or
    the best; `class_names` are per head of classes; `calibration` has what its evaluation fitted to
    the validation split, by head.
    """

    workdir: Path
    experiment: Training
    state: TrainState
    image_shape: tuple[int, int, int]
    class_names: Mapping[str, tuple[str, ...]]
    calibration: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)

    @classmethod
    def load(cls, workdir: Path, experiment: Training | None = None) -> TrainedModel:
        """Load a run's model; an experiment's `data`, `evaluation` and `selection` replace its.

        Raises `UserError` if the folder is not that of a training, or has no good checkpoint.
        """
        facts = _facts(workdir)
        bound = folders.config_of(workdir, facts["experiment"])
        if experiment is not None:
            replaced = ("data", "evaluation", "selection")
            bound = dataclasses.replace(bound, **{f: getattr(experiment, f) for f in replaced})
        height, width, channels = facts["image_shape"]
        shape = (height, width, channels)
        like = abstract_state(bound, shape, data_mesh())
        step = reported_step(bound, workdir)
        state, _ = checkpoint.restore(workdir / folders.CHECKPOINTS, step, like)
        names = {head: tuple(names) for head, names in facts["class_names"].items()}
        evaluation = folders.read_json(workdir / folders.EVALUATION)
        fitted = evaluation.get("calibration", {}) if evaluation.get("step") == step else {}
        return cls(workdir, bound, state, shape, names, fitted)

    @property
    def heads(self) -> list[dict[str, Any]]:
        """Description of the outputs of each head, for `decode`."""
        return calibrated(
            self.experiment.fitted_task.output_spec(self.class_names), self.calibration
        )

    @property
    def fit(self) -> Fit:
        """How an image of another shape comes to `image_shape`, as in training."""
        # Sources of windows, and those that read no files of images, have no such field.
        return getattr(self.experiment.data, "fit", "stretch")

    def load_data(self) -> Dataset:
        """Load the data that it was trained on; raise `UsageError` if they have changed."""
        dataset = folders.located(self.experiment.data, self.workdir).load()
        check_same_data(self.workdir, dataset)
        return dataset

    @functools.cached_property
    def host_variables(self) -> dict[str, Any]:
        """Parameters and statistics on the host: of several processes, each has them all."""
        return jax.tree.map(np.asarray, self.state.variables())

    def forward(
        self, formulation: ops.Formulation | None = None
    ) -> Callable[[jax.Array], jax.Array]:
        """The model as a function of images, test-time augmentation included, to be jitted.

        uint8 `[batch, height, width, channels]` -> float32 `[batch, outputs]`, with the parameters
        as constants, and by default each platform's best formulation. Predictions and exports both
        use it, so that they are equal bit for bit.
        """
        # Of images also where it was trained on cached features.
        experiment = dataclasses.replace(self.experiment, transfer=Transfer())
        variables = self.host_variables

        def under(formulation: ops.Formulation) -> Callable[..., jax.Array]:
            def outputs(variables: Any, images: jax.Array) -> jax.Array:
                with ops.use_formulation(formulation):
                    views = views_of(images, experiment)
                    return predict(experiment.model, variables, views, experiment.fitted_task)

            return outputs

        def forward(images: jax.Array) -> jax.Array:
            if formulation is not None:
                return under(formulation)(variables, images)
            # Without the barrier XLA would compute with constants beforehand, and round otherwise
            # than an evaluation, to which parameters are arguments.
            held = jax.lax.optimization_barrier(variables)
            return jax.lax.platform_dependent(
                held, images, cpu=under(ops.default_formulation("cpu")), default=under(ops.PLAIN)
            )

        return forward

    def predict(self, images: np.ndarray) -> list[dict[str, Answer]]:
        """The prediction for each image, by head, as `--mode=predict` gives it for a file.

        Images are uint8 `[batch, height, width, channels]`; a `UsageError` for images of another
        dtype or size than those of training.
        """
        images = np.asarray(images)
        if images.dtype != np.uint8 or images.shape[1:] != self.image_shape:
            raise UsageError(
                f"images are {images.dtype} {list(images.shape)}: the network takes uint8 "
                f"{['batch', *self.image_shape]}, so scale and resize them first"
            )
        if not len(images):
            return []
        size = min(self.experiment.evaluation.batch_size, len(images))
        return answers_of(self.heads, apply_in_batches(self._forward, images, size))

    @functools.cached_property
    def _forward(self) -> Callable[[np.ndarray], jax.Array]:
        return jax.jit(self.forward())

    def features(self) -> Callable[[np.ndarray], jax.Array]:
        """The jitted `uint8 images -> features`, as of `last_features`; without augmentation."""
        experiment = self.experiment

        def features(variables: Any, images: jax.Array) -> jax.Array:
            return last_features(experiment.model, variables, scaled(images, experiment))[1]

        compiled = jax.jit(features, out_shardings=replicated(data_mesh()))
        return functools.partial(compiled, self.state.variables())


def load(workdir: str | Path) -> TrainedModel:
    """Load the trained model of a run's folder; errors are those of `TrainedModel.load`."""
    return TrainedModel.load(Path(workdir))


def bound_experiment(workdir: Path) -> Training:
    """The experiment of a training's folder, bound to its data; no checkpoint is read."""
    return folders.config_of(workdir, _facts(workdir)["experiment"])


def _facts(workdir: Path) -> Mapping[str, Any]:
    check_run(workdir)
    facts = folders.read_json(workdir / folders.RESOLVED_CONFIG)
    if facts:
        return facts
    if not isinstance(folders.saved_config(workdir), Training):
        raise UserError(f"{workdir} has no trained network: name the folder of a training")
    raise UserError(
        f"{workdir} has no {folders.RESOLVED_CONFIG} that can be read: run its training again, "
        "which resumes where it ended"
    )


def weights_of_run(workdir: Path) -> Weights:
    """The weights of a run's model, for another network to start from."""
    state = TrainedModel.load(workdir).state
    checksums = workdir / folders.CHECKPOINTS / str(int(state.step)) / checkpoint.CHECKSUMS
    arrays = {}
    for collection in state.variables().values():
        for leaf, value in traverse_util.flatten_dict(collection, sep="/").items():
            module, _, weight = leaf.rpartition("/")
            arrays[module.replace("/", "."), weight] = np.asarray(value)
    # Keras' layout is flax's.
    return Weights(arrays, "keras", hashlib.sha256(checksums.read_bytes()).hexdigest())


def weights_to_start_from(pretrained: Pretrained) -> Weights:
    """The weights of a run's folder or, as `read_pretrained`, of a file."""
    if pretrained.source and Path(pretrained.source).is_dir():
        return weights_of_run(Path(pretrained.source))
    return read_pretrained(pretrained)


def check_run(workdir: Path) -> None:
    """Raise `UserError` for a folder that is not a run folder."""
    if not (workdir / folders.CONFIG).exists():
        raise UserError(f"{workdir} is not a run folder: train there first, with --mode=train")


def check_same_data(workdir: Path, dataset: Dataset) -> None:
    """Raise `UsageError` if the run in a folder was trained on other examples or classes."""
    before = folders.read_json(workdir / folders.RUN).get("data", {}).get("content")
    names = folders.read_json(workdir / folders.RESOLVED_CONFIG).get("class_names")
    now = dataset.provenance.get("content")
    renamed = names is not None and names != {h: list(n) for h, n in dataset.class_names.items()}
    if renamed or (before and now and before != now):
        raise UsageError(
            f"{workdir} holds a run on other data: images, labels or classes of {dataset.name} "
            "have changed since it was trained; put them back, or name another --workdir"
        )


def reported_step(experiment: Training, workdir: Path) -> int:
    """The step of the checkpoint that a run reports on; raises `UserError` if none is good."""
    folder, selection = workdir / folders.CHECKPOINTS, experiment.selection
    if selection.report == "best":
        step = checkpoint.best(folder, selection.metric, experiment.direction)
    else:
        step = checkpoint.newest(folder)
    if step is None:
        raise UserError(f"{folder} has no good checkpoint: train first, with --mode=train")
    return step


def bind_to_dataset(experiment: Training, dataset: Dataset) -> Training:
    """Bind an experiment to its data: the model's outputs, the task, and layers frozen for a cache.

    Raises `UsageError` for images too small for the model, or a layer that it lacks.
    """
    model = experiment.task.bind(experiment.model, dataset)
    transfer = experiment.transfer
    if dataset.window and (transfer.cache_after or transfer.fit_after):
        raise UsageError(
            "--transfer.cache-after and .fit-after compute features once, and of this data another "
            "window is cut each time: leave them out"
        )
    if transfer.cache_after:
        frozen = before(model, dataset.image_shape, transfer.cache_after)
        transfer = dataclasses.replace(transfer, freeze=(*transfer.freeze, *frozen))
    return dataclasses.replace(
        experiment, model=model, task=experiment.task.fitted(dataset), transfer=transfer
    )


def model_and_splits(
    experiment: Training,
    state: TrainState,
    dataset: Dataset,
    say: Callable[[str], None] = lambda text: None,
) -> tuple[nn.Module, Mapping[str, Split]]:
    """The trained network, and its inputs: images, or features, whose computation `say`
    announces."""
    layer = experiment.transfer.cache_after
    if not layer:
        return experiment.model, dataset.splits
    splits = features_of(experiment, state, dataset).read(say)
    return FromFeatures(experiment.model, layer, dataset.image_shape), splits


def features_of(experiment: Training, state: TrainState, dataset: Dataset) -> FeatureCache:
    """The output of the layer `transfer.cache_after` for all images of the data."""
    return FeatureCache(
        experiment.model,
        {"params": state.params, **state.model_state},
        experiment.transfer.cache_after,
        dataset.splits,
        Scaling(experiment.mean, experiment.std),
        mirror=experiment.augmentation.mirror,
        frozen=lambda path: experiment.transfer.begins(path) == math.inf,
        of=dataset.provenance.get("source", dataset.name),
    )
