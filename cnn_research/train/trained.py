"""Trained models, loaded from the folder of their run."""

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
    """A trained model, loaded from the folder of its run.

    The experiment is bound to its training data; the state is the reported one, the last or the
    best; `class_names` and `calibration` are by head, the latter as fitted to the validation split
    by the evaluation.
    """

    workdir: Path
    experiment: Training
    state: TrainState
    image_shape: tuple[int, int, int]
    class_names: Mapping[str, tuple[str, ...]]
    calibration: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)

    @classmethod
    def load(cls, workdir: Path, experiment: Training | None = None) -> TrainedModel:
        """Load a run's model, with `data`, `evaluation` and `selection` of an experiment, if given.

        Raises `UserError` if the folder is not that of a training, or has no valid checkpoint.
        """
        facts = _facts(workdir)
        trained = folders.config_of(workdir, facts["experiment"])
        if experiment is not None:
            replaced = ("data", "evaluation", "selection")
            trained = dataclasses.replace(trained, **{f: getattr(experiment, f) for f in replaced})
        height, width, channels = facts["image_shape"]
        shape = (height, width, channels)
        like = abstract_state(trained, shape, data_mesh())
        step = reported_step(trained, workdir)
        state, _ = checkpoint.restore(workdir / folders.CHECKPOINTS, step, like)
        names = {head: tuple(names) for head, names in facts["class_names"].items()}
        evaluation = folders.read_json(workdir / folders.EVALUATION)
        fitted = evaluation.get("calibration", {}) if evaluation.get("step") == step else {}
        return cls(workdir, trained, state, shape, names, fitted)

    @property
    def heads(self) -> list[dict[str, Any]]:
        """Descriptions of the outputs of each head, for `decode`."""
        return calibrated(
            self.experiment.fitted_task.output_spec(self.class_names), self.calibration
        )

    @property
    def fit(self) -> Fit:
        """How images of another shape are resized to `image_shape`, as in training."""
        # Sources of windows and sources that do not read image files have no such field.
        return getattr(self.experiment.data, "fit", "stretch")

    def load_data(self) -> Dataset:
        """Load the training data; raise `UsageError` if it has changed."""
        dataset = folders.located(self.experiment.data, self.workdir).load()
        check_same_data(self.workdir, dataset)
        return dataset

    @functools.cached_property
    def host_variables(self) -> dict[str, Any]:
        """Parameters and statistics on the host, complete in each process."""
        return jax.tree.map(np.asarray, self.state.variables())

    def forward(
        self, formulation: ops.Formulation | None = None
    ) -> Callable[[jax.Array], jax.Array]:
        """Return the model as a function, with test-time augmentation, to be jitted.

        uint8 `[batch, height, width, channels]` -> float32 `[batch, outputs]`, with the parameters
        as constants and, by default, each platform's best formulation. Predictions and exports use
        this function, so that they are equal bit for bit.
        """
        # The inputs are images, even if the model was trained on cached features.
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
            # Without the barrier, XLA would fold constants and round differently from evaluation,
            # in which the parameters are arguments.
            params = jax.lax.optimization_barrier(variables)
            return jax.lax.platform_dependent(
                params, images, cpu=under(ops.default_formulation("cpu")), default=under(ops.PLAIN)
            )

        return forward

    def predict(self, images: np.ndarray) -> list[dict[str, Answer]]:
        """Predict like `--mode=predict`; return the prediction of each image by head.

        Images are uint8 `[batch, height, width, channels]`. Raises `UsageError` if their dtype or
        size differs from that of the training images.
        """
        images = np.asarray(images)
        if images.dtype != np.uint8 or images.shape[1:] != self.image_shape:
            raise UsageError(
                f"images are {images.dtype} {list(images.shape)}: the network takes uint8 "
                f"{['batch', *self.image_shape]}, so convert and resize them first"
            )
        if not len(images):
            return []
        size = min(self.experiment.evaluation.batch_size, len(images))
        return answers_of(self.heads, apply_in_batches(self._forward, images, size))

    @functools.cached_property
    def _forward(self) -> Callable[[np.ndarray], jax.Array]:
        return jax.jit(self.forward())

    def features(self) -> Callable[[np.ndarray], jax.Array]:
        """Return the jitted `uint8 images -> features` of `last_features`, without augmentation."""
        experiment = self.experiment

        def features(variables: Any, images: jax.Array) -> jax.Array:
            return last_features(experiment.model, variables, scaled(images, experiment))[1]

        compiled = jax.jit(features, out_shardings=replicated(data_mesh()))
        return functools.partial(compiled, self.state.variables())


def load(workdir: str | Path) -> TrainedModel:
    """Load the trained model of a run's folder; raises the errors of `TrainedModel.load`."""
    return TrainedModel.load(Path(workdir))


def bound_experiment(workdir: Path) -> Training:
    """Load the experiment of a training's folder, bound to its data, without a checkpoint."""
    return folders.config_of(workdir, _facts(workdir)["experiment"])


def _facts(workdir: Path) -> Mapping[str, Any]:
    check_run(workdir)
    facts = folders.read_json(workdir / folders.RESOLVED_CONFIG)
    if facts:
        return facts
    if not isinstance(folders.saved_config(workdir), Training):
        raise UserError(f"{workdir} has no trained network: give the folder of a training")
    raise UserError(
        f"{workdir} has no readable {folders.RESOLVED_CONFIG}: repeat its training command, which "
        "resumes and writes it"
    )


def weights_of_run(workdir: Path) -> Weights:
    """Load the weights of a run's model as pretrained weights of another network."""
    state = TrainedModel.load(workdir).state
    checksums = workdir / folders.CHECKPOINTS / str(int(state.step)) / checkpoint.CHECKSUMS
    arrays = {}
    for collection in state.variables().values():
        for leaf, value in traverse_util.flatten_dict(collection, sep="/").items():
            module, _, weight = leaf.rpartition("/")
            arrays[module.replace("/", "."), weight] = np.asarray(value)
    # Keras and Flax have the same layout.
    return Weights(arrays, "keras", hashlib.sha256(checksums.read_bytes()).hexdigest())


def weights_to_start_from(pretrained: Pretrained) -> Weights:
    """Read pretrained weights from a run's folder or, with `read_pretrained`, from a file."""
    if pretrained.source and Path(pretrained.source).is_dir():
        return weights_of_run(Path(pretrained.source))
    return read_pretrained(pretrained)


def check_run(workdir: Path) -> None:
    """Raise `UserError` if a folder is not a run folder."""
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
            f"{workdir} has a run on other data: images, labels or classes of {dataset.name} "
            "have changed since it was trained; restore them, or use another --workdir"
        )


def reported_step(experiment: Training, workdir: Path) -> int:
    """Return the step of a run's reported checkpoint; raise `UserError` if none is valid."""
    folder, selection = workdir / folders.CHECKPOINTS, experiment.selection
    if selection.report == "best":
        step = checkpoint.best(folder, selection.metric, experiment.direction)
    else:
        step = checkpoint.newest(folder)
    if step is None:
        raise UserError(f"{folder} has no valid checkpoint: train first, with --mode=train")
    return step


def bind_to_dataset(experiment: Training, dataset: Dataset) -> Training:
    """Bind an experiment to its data: the model's outputs, the task, and layers frozen for a cache.

    Raises `UsageError` if images are too small for the model, or it does not have the cached layer.
    """
    model = experiment.task.bind(experiment.model, dataset)
    transfer = experiment.transfer
    if dataset.window and (transfer.cache_after or transfer.fit_after):
        raise UsageError(
            "--transfer.cache-after and .fit-after compute features once, but this data is cropped "
            "at random each time: omit them"
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
    """Return the trained network and its inputs, images or features, which `say` announces."""
    layer = experiment.transfer.cache_after
    if not layer:
        return experiment.model, dataset.splits
    splits = features_of(experiment, state, dataset).read(say)
    return FromFeatures(experiment.model, layer, dataset.image_shape), splits


def features_of(experiment: Training, state: TrainState, dataset: Dataset) -> FeatureCache:
    """Return the cache of the output of layer `transfer.cache_after` for all images."""
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
