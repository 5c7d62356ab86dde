"""Metrics of train steps: fetched one dispatch behind, checked, summed and written."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import jax
import numpy as np

from cnn_research.core.errors import UserError
from cnn_research.core.progress import Progress
from cnn_research.report.writers import MetricsWriter
from cnn_research.train.config import Training
from cnn_research.train.plan import Plan

LONG = 0.1
"""Duration of a dispatch, in seconds, above which the host's work is negligible."""


class StepMetrics:
    """Collects the metrics of steps, one dispatch behind, so that the device never waits for them.

    The terminal shows means over all runs. All methods raise `UserError` if a metric is not finite.
    """

    def __init__(
        self,
        experiment: Training,
        plan: Plan,
        writers: Sequence[MetricsWriter],
        progress: Progress,
    ):
        self._task, self._plan = experiment.fitted_task, plan
        self._log_every_steps = experiment.log_every_steps
        self._rate = experiment.optimizer.learning_rate_at(plan.last_step)
        self._writers, self._progress = writers, progress
        self._pending: tuple[int, dict[str, jax.Array]] | None = None
        self._row: dict[str, np.ndarray] = {}
        self._epoch: dict[str, np.ndarray] = {}
        self._fetched_at: float | None = None
        self._waited: float | None = None

    def add(self, step: int, metrics: dict[str, jax.Array]) -> None:
        """Add the metrics of a dispatch that ends at `step`; fetch those of the previous one."""
        self._fetch()
        self._pending = step, metrics
        # With long dispatches, queueing gains nothing and needs the memory of two.
        if self._waited is None or self._waited > LONG:
            self._fetch()

    def flush(self, step: int) -> None:
        """Fetch pending metrics, and write the rows up to `step`."""
        self._fetch()
        self._write(step)
        self._fetched_at = None

    def log_epoch(self, step: int, validation: Sequence[Mapping[str, float] | None]) -> None:
        """Print the means of the steps since the last evaluation, and of the runs' `validation`."""
        training = self._means({name: pairs.sum(axis=0) for name, pairs in self._epoch.items()})
        known = [metrics for metrics in validation if metrics]
        names = known[0] if known else {}
        means = {name: float(np.mean([metrics[name] for metrics in known])) for name in names}
        self._progress.evaluated(step, self._plan.epoch_at(step), training, means or None)
        self._epoch = {}

    def _fetch(self) -> None:
        if self._pending is None:
            return
        (step, metrics), self._pending = self._pending, None
        before = time.monotonic()
        values = {name: np.asarray(value, np.float64) for name, value in metrics.items()}
        now = time.monotonic()
        self._waited = now - before
        count = len(next(iter(values.values())))
        # The first dispatch after a start or an evaluation may include a compilation.
        if self._fetched_at is not None:
            self._progress.trained(count, now - self._fetched_at)
        self._fetched_at = now
        for name, pairs in values.items():
            wrong = np.argwhere(~np.isfinite(pairs[..., 0]))
            if wrong.size:
                at, run = wrong[0]
                raise not_finite(name, pairs[at, run, 0], step - count + 1 + int(at))
            self._row[name] = self._row.get(name, 0) + pairs.sum(axis=0)
            self._epoch[name] = self._epoch.get(name, 0) + pairs.sum(axis=0)
        newest = self._means({name: pairs[-1].sum(axis=0) for name, pairs in values.items()})
        self._progress.step(step, newest["loss"])
        if step // self._log_every_steps > (step - count) // self._log_every_steps:
            self._write(step)

    def _write(self, step: int) -> None:
        if not self._row:
            return
        speed = self._progress.images_per_second / len(self._writers)
        facts = {"images_per_second": speed, "learning_rate": float(self._rate(step - 1))}
        for index, writer in enumerate(self._writers):
            row = {name: pairs[index] for name, pairs in self._row.items()}
            writer.write(
                step,
                "train",
                {**self._means(row), **facts},
                epoch=self._plan.epoch_at(step),
                # The number of examples; a head may have labels for fewer.
                count=round(max(count for _, count in row.values())),
            )
        self._row = {}

    def _means(self, sums: Mapping[str, np.ndarray]) -> dict[str, float]:
        return self._task.means(
            {name: (float(total), float(count)) for name, (total, count) in sums.items()}
        )


def not_finite(name: str, value: float, step: int) -> UserError:
    """Create the error for a metric that is not finite, as training has diverged."""
    return UserError(
        f"the {name} is {value} at step {step:,}: training stopped, and earlier checkpoints are "
        "kept; try a lower --optimizer.learning-rate, or --optimizer.clip-norm=1"
    )
