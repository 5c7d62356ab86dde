"""Writes metrics.jsonl while a run is under way, and TensorBoard events that mirror it."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from cnn_research.core.metrics_log import METRICS_FILE, metrics_line, read_metrics
from cnn_research.data.images import printable

if TYPE_CHECKING:
    from tensorboardX import SummaryWriter

EVENTS_FOLDER = "events"
REPORT = "report"
"""The sub-run of what a report shows; replaced when it is written again."""
AT_EVALUATIONS = ("validation", "parameters")
"""The sub-runs of what is written at evaluations."""


class MetricsWriter:
    """Writes a run's metrics; a context manager.

    `metrics.jsonl` is the truth: one JSON object a line, `{"step", <extra>, "split", <values>}`,
    on its way to the disk as soon as it is written. A value that is not finite is written as the
    string "NaN", "Infinity" or "-Infinity"; `read_metrics` gives the number back.

    `events/` is a mirror for TensorBoard. Each split is a sub-run (`events/train`,
    `events/validation`) with the same tags, because TensorBoard draws one chart for each tag and
    one line for each sub-run: training and validation loss share a chart.
    `events/parameters` has their histograms, `events/report` what the report shows.
    """

    def __init__(
        self,
        workdir: Path,
        *,
        restored_step: int | None,
        evaluated_step: int | None = None,
        enabled: bool = True,
    ):
        """Open the files, and drop what was written after the step that was restored.

        Args:
            restored_step: the step of the checkpoint that the run resumes from; None starts anew.
            evaluated_step: the checkpoint's last evaluation; the row of a later one is dropped, as
                it is repeated. None: all rows up to `restored_step` stay.
            enabled: False in all processes but the first, which do not write.

        Raises:
            UserError: a line of metrics.jsonl other than its last is damaged.
        """
        self.enabled = enabled
        self._writers: dict[str, SummaryWriter] = {}
        self._rows: TextIO | None = None
        if not enabled:
            return
        workdir.mkdir(parents=True, exist_ok=True)
        self._last_step = -1 if restored_step is None else restored_step
        self._last_evaluated = self._last_step if evaluated_step is None else evaluated_step
        path = workdir / METRICS_FILE
        if path.exists():
            rows = [
                row
                for row in read_metrics(workdir)
                if row["step"] <= self._last_kept(row.get("split"))
            ]
            replacement = path.with_suffix(".tmp")
            replacement.write_text("".join(map(metrics_line, rows)), encoding="utf-8")
            os.replace(replacement, path)
        self._rows = path.open("a", encoding="utf-8")
        self._events = workdir / EVENTS_FOLDER
        # Now rather than at the first write to each: if this run is killed before it writes
        # there, the steps that it took back stay hidden all the same.
        for folder in sorted(self._events.glob("*")):
            if folder.is_dir() and folder.name != REPORT:
                self.sub_run(folder.name)

    def write(self, step: int, split: str, values: Mapping[str, float], **extra: Any) -> None:
        """Append one row, and its `values`, Python, NumPy or JAX scalars, to the split's charts.

        `extra` has JSON values that belong in the row but make no chart (`epoch`, `count`).
        """
        if self._rows is None:
            return
        numbers = {name: float(value) for name, value in values.items()}
        self._rows.write(metrics_line({"step": step, **extra, "split": split, **numbers}))
        self._rows.flush()
        for name, value in numbers.items():
            self.sub_run(split).add_scalar(name, value, step)

    def hparams(self, flat_config: Mapping[str, Any], metrics: Mapping[str, float]) -> None:
        """Add the run to TensorBoard's table of hyperparameters: once, at the end of a run.

        The config is by path (`optimizer.learning_rate`), the metrics under tags that `write` does
        not use (`test/accuracy`).
        """
        from tensorboardX.summary import hparams

        plain = {
            path: value if isinstance(value, bool | int | float) else printable(str(value))
            for path, value in flat_config.items()
        }
        numbers = {name: float(value) for name, value in metrics.items()}
        # Its first part says which columns there are; without it TensorBoard finds them itself, and
        # shows those first in which runs differ.
        _, *summaries = hparams(plain, numbers)
        self.sub_run(REPORT)  # which clears an earlier report's, these too
        writer = self.sub_run(f"{REPORT}/hparams")
        for summary in summaries:
            writer.file_writer.add_summary(summary)
        for name, value in numbers.items():
            writer.add_scalar(name, value)

    def close(self) -> None:
        """Close the files; a second call does nothing."""
        for writer in self._writers.values():
            writer.close()
        self._writers.clear()
        if self._rows is not None:
            self._rows.close()
            self._rows = None

    def __enter__(self) -> MetricsWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def sub_run(self, name: str) -> SummaryWriter:
        """The writer of a sub-run's events, made at its first use; of an enabled writer only."""
        if name not in self._writers:
            from tensorboardX import SummaryWriter

            if name == REPORT:
                shutil.rmtree(self._events / REPORT, ignore_errors=True)
            self._writers[name] = SummaryWriter(
                logdir=str(self._events / name),
                # A TensorBoard that has read an earlier report forgets it.
                purge_step=0 if name == REPORT else self._last_kept(name) + 1,
                flush_secs=10,
                # A full disk ends the thread that empties the queue: a full one would wait for it.
                max_queue=1000,
                # File names count whole seconds: a run restarted within one would overwrite.
                filename_suffix=f".{time.time_ns()}",
            )
        return self._writers[name]

    def _last_kept(self, sub_run: str | None) -> int:
        """The last step of which what the sub-run has still counts."""
        return self._last_evaluated if sub_run in AT_EVALUATIONS else self._last_step
