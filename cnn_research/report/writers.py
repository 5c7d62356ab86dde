"""Writes a run's metrics to metrics.jsonl and its loggers."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from absl import logging

from cnn_research.core.errors import UserError, one_line
from cnn_research.core.metrics_log import METRICS_FILE, metrics_line, numbers_of, read_metrics
from cnn_research.report.loggers import Events, Logger, Mirror, TensorBoard


class MetricsWriter:
    """Writes a run's metrics; a context manager.

    The reference is `metrics.jsonl`: one JSON object per line, `{"step", <extra>, "split",
    <values>}`, flushed after each line. Values that are not finite are written as the strings
    "NaN", "Infinity" and "-Infinity"; `read_metrics` converts them back.

    Loggers mirror it. One that fails later is closed with a warning; training continues.
    """

    def __init__(
        self,
        workdir: Path,
        *,
        restored_step: int | None,
        evaluated_step: int | None = None,
        loggers: Sequence[Logger] = (TensorBoard(),),
        config: Any = None,
        enabled: bool = True,
    ):
        """Open the files, and drop rows after the restored step.

        Args:
            restored_step: the step of the checkpoint that the run resumes from; None for a new run.
            evaluated_step: the checkpoint's last evaluation; rows of a later evaluation are
                dropped, as it is repeated. With None, all rows up to `restored_step` stay.
            config: the experiment, for the loggers.
            enabled: False in all processes but the first, which do not write.

        Raises:
            UserError: if a line of metrics.jsonl other than the last is damaged, or a logger
                cannot be opened.
        """
        self._mirrors: list[Mirror] = []
        self._rows: TextIO | None = None
        if not enabled:
            return
        workdir.mkdir(parents=True, exist_ok=True)
        last = -1 if restored_step is None else restored_step
        evaluated = last if evaluated_step is None else evaluated_step
        path = workdir / METRICS_FILE
        written = read_metrics(workdir)
        # All rows but training rows belong to evaluations.
        kept = [r for r in written if r["step"] <= (last if r["split"] == "train" else evaluated)]
        if path.exists():
            replacement = path.with_suffix(".tmp")
            replacement.write_text("".join(map(metrics_line, kept)), encoding="utf-8")
            os.replace(replacement, path)
        self._rows = path.open("a", encoding="utf-8")
        self._has: dict[Mirror, set[tuple]] = {}
        for logger in loggers:
            mirror = _opened(logger, workdir, config, evaluated)
            self._mirrors.append(mirror)
            self._has[mirror] = {_key(row) for row in written if row["step"] <= mirror.last_kept}
        for row in kept:
            self._show(row)

    @property
    def events(self) -> Events | None:
        """TensorBoard's event files; None without TensorBoard or if this process does not write."""
        return next((mirror for mirror in self._mirrors if isinstance(mirror, Events)), None)

    def write(self, step: int, split: str, values: Mapping[str, float], **extra: Any) -> None:
        """Append a row of `values`, which are Python, NumPy or JAX scalars, and log them.

        `extra` has JSON values of the row that loggers do not show (`epoch`, `count`).
        """
        if self._rows is None:
            return
        numbers = {name: float(value) for name, value in values.items()}
        row = {"step": step, **extra, "split": split, **numbers}
        self._rows.write(metrics_line(row))
        self._rows.flush()
        self._show(row)

    def report(self, page: Path, results: Mapping[str, float]) -> None:
        """Log the report and its metrics once, at the end of a run, under names that `write` does
        not use (`test/accuracy`)."""
        numbers = {name: float(value) for name, value in results.items()}
        self._tell(lambda mirror: mirror.report(page, numbers))

    def close(self, *, failed: bool = False) -> None:
        """Close the files; may be called twice."""
        self._tell(lambda mirror: mirror.close(failed=failed))
        self._mirrors.clear()
        if self._rows is not None:
            self._rows.close()
            self._rows = None

    def __enter__(self) -> MetricsWriter:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self.close(failed=kind is not None)

    def _show(self, row: Mapping[str, Any]) -> None:
        """Log a row to the mirrors that do not have it; services keep rows that they received."""
        step, split, numbers, key = row["step"], row["split"], numbers_of(row), _key(row)
        self._tell(lambda mirror: key in self._has[mirror] or mirror.write(step, split, numbers))

    def _tell(self, what: Callable[[Mirror], Any]) -> None:
        for mirror in list(self._mirrors):
            try:
                what(mirror)
            except Exception as error:  # of a service or its network
                self._mirrors.remove(mirror)
                logging.warning(
                    "%s failed and stops logging this run (metrics.jsonl is complete): %s",
                    type(mirror).__name__,
                    one_line(error),
                )


def _opened(logger: Logger, workdir: Path, config: Any, last_kept: int) -> Mirror:
    try:
        return logger.open(workdir, config, last_kept)
    except Exception as error:
        name = type(logger).__name__
        raise UserError(
            f"--loggers: {name} cannot be opened: {one_line(error)}; correct or remove it"
        ) from error


def _key(row: Mapping[str, Any]) -> tuple:
    """Identify a row by its step, split and names."""
    return row["step"], row["split"], *row
