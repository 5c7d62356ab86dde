"""Schedule of a training: steps, phases of unfreezing and evaluations, without JAX."""

from __future__ import annotations

import dataclasses
import math

from cnn_research.data.batches import epochs_to_steps
from cnn_research.data.dataset import Dataset
from cnn_research.train.config import Training


@dataclasses.dataclass(frozen=True)
class Plan:
    """The course of a training, which follows from its config and the size of its data alone.

    An epoch has `examples` examples; `phases` are the epochs at which other layers begin to learn.
    """

    batch_size: int
    examples: int
    last_step: int
    eval_every_epochs: float
    phases: tuple[float, ...] = (0.0,)

    @classmethod
    def of(cls, experiment: Training, dataset: Dataset) -> Plan:
        # As many as an epoch sees: with copies, or windows cut from it, each image several times.
        per_image = experiment.augmentation.copies * dataset.windows
        examples = len(dataset.splits["train"]) * per_image
        return cls(
            batch_size=experiment.batch_size,
            examples=examples,
            last_step=epochs_to_steps(experiment.epochs, experiment.batch_size, examples),
            eval_every_epochs=experiment.eval_every_epochs,
            phases=tuple(experiment.transfer.phases()),
        )

    def step_at(self, epoch: float) -> int:
        """The number of steps after which so many epochs are complete; 0 before the first."""
        return epochs_to_steps(epoch, self.batch_size, self.examples)

    def epoch_at(self, step: int) -> float:
        """The number of epochs that so many steps complete."""
        return step * self.batch_size / self.examples

    def next_evaluation(self, after: int) -> int:
        """The first step after `after` at which an evaluation is due; the last step at most."""
        # No more often than after every step.
        every = max(self.eval_every_epochs, self.batch_size / self.examples)
        done = math.floor(self.epoch_at(after) / every)
        due = (self.step_at(number * every) for number in (done, done + 1, done + 2))
        return min([self.last_step, *(step for step in due if step > after)])

    def evaluation_due(self, step: int, evaluated: int) -> bool:
        """Return whether to evaluate at a step; `evaluated` is the last step that was."""
        return step > evaluated and step >= self.next_evaluation(evaluated)

    def evaluations_left(self, step: int) -> int:
        """The number of evaluations that are due after a step."""
        count = 0
        while step < self.last_step:
            step, count = self.next_evaluation(step), count + 1
        return count

    def phase_at(self, step: int, due: int) -> tuple[float, int]:
        """The phase that a step is in, and the step at which the next begins; `due` at most."""
        starts = {epoch: self.step_at(epoch) for epoch in self.phases}
        phase = max(epoch for epoch, start in starts.items() if start <= step)
        return phase, min([due, *(start for start in starts.values() if start > step)])
