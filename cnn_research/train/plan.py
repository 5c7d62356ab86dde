"""Schedule of a training: steps, phases of unfreezing and evaluations, without JAX."""

from __future__ import annotations

import dataclasses
import math

from cnn_research.data.batches import epochs_to_steps
from cnn_research.data.dataset import Dataset
from cnn_research.train.config import Training


@dataclasses.dataclass(frozen=True)
class Plan:
    """Schedule of a training, determined by its config and the size of its data.

    An epoch has `examples` examples; at the epochs in `phases`, further layers start to learn.
    """

    batch_size: int
    examples: int
    last_step: int
    eval_every_epochs: float
    phases: tuple[float, ...] = (0.0,)

    @classmethod
    def of(cls, experiment: Training, dataset: Dataset) -> Plan:
        # With copies or windows, an epoch contains each image several times.
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
        """Return the number of steps in a number of epochs."""
        return epochs_to_steps(epoch, self.batch_size, self.examples)

    def epoch_at(self, step: int) -> float:
        """Return the number of epochs in a number of steps."""
        return step * self.batch_size / self.examples

    def next_evaluation(self, after: int) -> int:
        """Return the step of the first evaluation after step `after`, at most the last step."""
        # At most once per step.
        every = max(self.eval_every_epochs, self.batch_size / self.examples)
        done = math.floor(self.epoch_at(after) / every)
        due = (self.step_at(number * every) for number in (done, done + 1, done + 2))
        return min([self.last_step, *(step for step in due if step > after)])

    def evaluation_due(self, step: int, evaluated: int) -> bool:
        """Return whether to evaluate at a step; `evaluated` is the last evaluated step."""
        return step > evaluated and step >= self.next_evaluation(evaluated)

    def evaluations_left(self, step: int) -> int:
        """Count the evaluations after a step."""
        count = 0
        while step < self.last_step:
            step, count = self.next_evaluation(step), count + 1
        return count

    def phase_at(self, step: int, due: int) -> tuple[float, int]:
        """Return the phase of a step, and the step at which the next one starts, at most `due`."""
        starts = {epoch: self.step_at(epoch) for epoch in self.phases}
        phase = max(epoch for epoch, start in starts.items() if start <= step)
        return phase, min([due, *(start for start in starts.values() if start > step)])
