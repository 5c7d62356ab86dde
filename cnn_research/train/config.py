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
    """The state of a run to report, and early stopping, by figures of the validation split."""

    metric: str = "accuracy"
    """Validation metric that ranks states: accuracy, loss, MAE, or another that the task declares.
    """
    report: Literal["last", "best"] = "last"
    """Checkpoint to report and to evaluate on the test split: the last, or the best by `metric`."""
    patience: NonNegativeInt = 0
    """Stop after this many evaluations without a better one; 0 trains all epochs."""


@register_config
@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Evaluation of a trained model; the figures do not depend on the batch size."""

    batch_size: PositiveInt = 500
    """Images in one forward pass, over all devices."""
    mirror: bool = False
    """Average the probabilities of each image and its mirror image."""
    shift: NonNegativeInt = 0
    """Average also over the image moved by this many pixels up and left, and down and right."""


@register_config
@dataclasses.dataclass(frozen=True, kw_only=True)
class Training(Experiment):
    """A training of a model on a data set."""

    resumable_fields: ClassVar = (
        "data.path",  # the same images elsewhere: their content is compared
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
    """Training examples in a step, over all devices."""
    seed: Seed = 0
    """Seed of initial parameters, batch order, augmentation and dropout."""
    pretrained: Pretrained = Pretrained()
    """Weights that training starts from."""
    transfer: Transfer = Transfer()
    """Layers that learn, from when on, and how fast."""
    task: Task = Classification()
    """Meaning of the network's outputs, and the loss."""
    optimizer: OptimizerConfig = Optimizer()
    """Update of the parameters from their gradients."""
    penalty: Penalty = Penalty()
    """Regularisation of large weights, added to the objective."""
    sampling: Literal["uniform", "balanced"] = "uniform"
    """Choice of training examples: each once an epoch; or so that every class (of the first head)
    comes equally often, however few examples it has."""
    augmentation: Augmentation = Augmentation()
    """Random changes to training images."""
    mean: tuple[float, ...] = (0.0,)
    """Subtracted from pixels, which are 0 to 1: one number, or one for each channel."""
    std: tuple[PositiveFloat, ...] = (1.0,)
    """Divides pixels, after the mean was subtracted: one number, or one for each channel."""
    accumulate: PositiveInt = 1
    """Split each batch into this many parts, computed one after the other in the memory of one
    part. Batch norm sees each part by itself, and updates its running statistics with each."""
    shard_parameters: bool = False
    """Divide every large parameter, its moments and averages among the devices, which gather it
    only while a step needs it (FSDP)."""
    selection: Selection = Selection()
    """State of the run to report, and early stopping."""
    evaluation: Evaluation = Evaluation()
    """Evaluation of the model."""
    eval_every_epochs: PositiveFloat = 1.0
    """Epochs between evaluations on the validation split; each is followed by a checkpoint."""
    log_every_steps: PositiveInt = 100
    """Steps between training rows in metrics.jsonl."""
    keep_checkpoints: Annotated[int, Range(minimum=2)] = 2
    """Number of the newest checkpoints to keep, beside the best: at least 2, since the newest may
    be cut short when the machine stops."""
    callbacks: tuple[Callback, ...] = ()
    """Code of one's own that training calls, given in Python."""
    loggers: tuple[Annotated[Logger, TYPED], ...] = (TensorBoard(),)
    """What shows the numbers of metrics.jsonl: any of tensorboard, wandb and mlflow."""

    @property
    def fitted_task(self) -> FittedTask:
        """The task of an experiment that is bound to its data (`trained.bind_to_dataset`)."""
        assert isinstance(self.task, FittedTask), "only a bound experiment knows its data"
        return self.task

    def check(self) -> None:
        super().check()
        if self.batch_size % self.accumulate:
            raise UsageError(
                f"--accumulate is {self.accumulate}, which does not divide --batch-size="
                f"{self.batch_size}: take a divisor"
            )
        if self.selection.metric not in self.task.metrics:
            raise UsageError(
                f"--selection.metric is {self.selection.metric}, which this task does not have: "
                f"take {' or '.join(self.task.metrics)}"
            )
        parts = (self.data, self.model, self.task, self.optimizer, self.augmentation)
        for part in (*parts, *self.callbacks):
            if hasattr(part, "check"):
                part.check()
        self.pretrained.check(self.model)
        if self.sampling == "balanced" and self.augmentation.copies > 1:
            raise UsageError(
                "--sampling=balanced does not go with --augmentation.choose=copies, which trains "
                "on every copy once an epoch"
            )
        if self.task.needs_pixels and (self.transfer.cache_after or self.transfer.fit_after):
            field = "cache-after" if self.transfer.cache_after else "fit-after"
            raise UsageError(f"--transfer.{field} leaves no images, and this task looks at them")
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
                f"{self.transfer.cache_after}: name the same layer, or leave the latter out"
            )
        plain = Augmentation(mirror=self.augmentation.mirror, mixup=self.augmentation.mixup)
        if self.transfer.cache_after and self.augmentation != plain:
            raise UsageError(
                "--transfer.cache-after computes what an image and its mirror image come to once: "
                "other augmentation, except for mixup, must be off"
            )

    @property
    def evaluates_images(self) -> bool:
        """Return whether an evaluation takes other views of an image than are cached of it."""
        evaluation = self.evaluation
        return bool(evaluation.shift) or (evaluation.mirror and not self.augmentation.mirror)

    @property
    def direction(self) -> Direction:
        """Direction of the selection's metric, as the task declares it."""
        return self.task.metrics[self.selection.metric]
