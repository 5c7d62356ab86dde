"""The config of every trained experiment."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any, ClassVar, Literal

from flax import linen as nn

from cnn_research.core.config import register_config
from cnn_research.core.errors import UsageError
from cnn_research.core.experiment import Experiment
from cnn_research.core.metrics import Direction
from cnn_research.core.ranges import (
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Range,
    Seed,
)
from cnn_research.data.augmentation.config import Augmentation
from cnn_research.models.pretrained import Pretrained
from cnn_research.report.loggers import TYPED, Logger, TensorBoard
from cnn_research.tasks.classification import Classification
from cnn_research.tasks.task import FittedTask, Task
from cnn_research.train.callbacks import Callback
from cnn_research.train.optimizers import Optimizer, OptimizerConfig, Penalty
from cnn_research.train.transfer import Transfer


@register_config
@dataclasses.dataclass(frozen=True)
class Selection:
    """Choice of the reported checkpoint, and early stopping, by metrics on the validation split."""

    metric: str = "accuracy"
    """Validation metric to compare checkpoints by: accuracy, loss, MAE or another of the task."""
    report: Literal["last", "best"] = "last"
    """Checkpoint to report and to evaluate on the test split: the last, or the best by `metric`."""
    patience: NonNegativeInt = 0
    """Stop after this many evaluations without an improvement; 0 trains all epochs."""


@register_config
@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Evaluation of a trained model; metrics do not depend on the batch size."""

    batch_size: PositiveInt = 500
    """Images per forward pass, over all devices."""
    mirror: bool = False
    """Average the probabilities of each image and its mirror image."""
    shift: NonNegativeInt = 0
    """Also average over the image shifted by this many pixels up and left, and down and right."""


@register_config
@dataclasses.dataclass(frozen=True, kw_only=True)
class Training(Experiment):
    """Training of a model on a data set."""

    resumable_fields: ClassVar = (
        "data.path",  # the images may be moved: their content is compared
        "epochs",
        "log_every_steps",
        "keep_checkpoints",
        "shard_parameters",
        "callbacks",
        "loggers",
    )

    data: Any
    """The data set."""
    model: nn.Module
    """The network."""
    epochs: NonNegativeFloat = 10
    """Number of passes over the training examples; 0 to stop after `transfer.fit_after`."""
    batch_size: PositiveInt = 128
    """Training examples per step, over all devices."""
    seed: Seed = 0
    """Seed of initial parameters, batch order, augmentation and dropout."""
    pretrained: Pretrained = Pretrained()
    """Pretrained weights to start from."""
    transfer: Transfer = Transfer()
    """Transfer learning: which layers learn, from which epoch, and how fast."""
    task: Task = Classification()
    """Meaning of the network's outputs, and the loss."""
    optimizer: OptimizerConfig = Optimizer()
    """Optimizer and learning-rate schedule."""
    penalty: Penalty = Penalty()
    """Penalty on large weights, added to the loss."""
    sampling: Literal["uniform", "balanced"] = "uniform"
    """Sampling of training examples: uniform (each once per epoch) or balanced (every class of the
    first head equally often, regardless of its size)."""
    augmentation: Augmentation = Augmentation()
    """Random changes to training images."""
    mean: tuple[float, ...] = (0.0,)
    """Mean to subtract from pixels (0 to 1): one number, or one per channel."""
    std: tuple[PositiveFloat, ...] = (1.0,)
    """Standard deviation to divide pixels by after that: one number, or one per channel."""
    accumulate: PositiveInt = 1
    """Split each batch into this many parts and accumulate their gradients, to save memory. Batch
    norm normalises each part separately and updates its running statistics with each."""
    shard_parameters: bool = False
    """Shard large parameters, their moments and moving averages over the devices, which gather them
    only during a step (FSDP)."""
    selection: Selection = Selection()
    """Choice of the reported checkpoint, and early stopping."""
    evaluation: Evaluation = Evaluation()
    """Evaluation of the model."""
    eval_every_epochs: PositiveFloat = 1.0
    """Epochs between evaluations on the validation split, each followed by a checkpoint."""
    log_every_steps: PositiveInt = 100
    """Steps between training rows in metrics.jsonl."""
    keep_checkpoints: Annotated[int, Range(minimum=2)] = 2
    """Number of the latest checkpoints to keep besides the best; at least 2, as the latest may be
    incomplete if the machine stops."""
    callbacks: tuple[Callback, ...] = ()
    """Custom code to call during training; set in Python."""
    loggers: tuple[Annotated[Logger, TYPED], ...] = (TensorBoard(),)
    """Loggers of metrics besides metrics.jsonl: any of tensorboard, wandb and mlflow."""

    @property
    def fitted_task(self) -> FittedTask:
        """The task of an experiment bound to its data (`trained.bind_to_dataset`)."""
        assert isinstance(self.task, FittedTask), "only a bound experiment knows its data"
        return self.task

    def check(self) -> None:
        super().check()
        if self.batch_size % self.accumulate:
            raise UsageError(
                f"--accumulate is {self.accumulate}, which does not divide --batch-size="
                f"{self.batch_size}: choose a divisor"
            )
        if self.selection.metric not in self.task.metrics:
            raise UsageError(
                f"--selection.metric is {self.selection.metric}, which this task does not have: "
                f"choose {' or '.join(self.task.metrics)}"
            )
        parts = (self.data, self.model, self.task, self.optimizer, self.augmentation)
        for part in (*parts, *self.callbacks):
            if hasattr(part, "check"):
                part.check()
        self.pretrained.check(self.model)
        if self.sampling == "balanced" and self.augmentation.copies > 1:
            raise UsageError(
                "--sampling=balanced cannot be combined with --augmentation.choose=copies, which "
                "trains on every copy once per epoch"
            )
        if self.task.needs_pixels and (self.transfer.cache_after or self.transfer.fit_after):
            field = "cache-after" if self.transfer.cache_after else "fit-after"
            raise UsageError(f"--transfer.{field} replaces images, which this task needs")
        if not self.epochs and not self.transfer.fit_after:
            raise UsageError(
                "--epochs is 0: must be above 0, unless --transfer.fit-after fits the head"
            )
        if self.transfer.fit_after and self.transfer.cache_after not in (
            "",
            self.transfer.fit_after,
        ):
            raise UsageError(
                f"--transfer.fit-after is {self.transfer.fit_after} and --transfer.cache-after "
                f"{self.transfer.cache_after}: name the same layer, or omit the latter"
            )
        plain = Augmentation(mirror=self.augmentation.mirror, mixup=self.augmentation.mixup)
        if self.transfer.cache_after and self.augmentation != plain:
            raise UsageError(
                "--transfer.cache-after computes the features of each image and its mirror image "
                "once: all augmentation except mirror and mixup must be off"
            )

    @property
    def evaluates_images(self) -> bool:
        """Return whether evaluation uses views of an image that are not cached."""
        evaluation = self.evaluation
        return bool(evaluation.shift) or (evaluation.mirror and not self.augmentation.mirror)

    @property
    def direction(self) -> Direction:
        """The direction of the selection metric."""
        return self.task.metrics[self.selection.metric]
