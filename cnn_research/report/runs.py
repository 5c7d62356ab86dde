"""Runs and groups of them, read from their folders, and tables over groups."""

from __future__ import annotations

import dataclasses
import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from cnn_research.core.errors import UsageError
from cnn_research.core.metrics import Direction, best, by_name, direction_of, flat
from cnn_research.core.progress import duration
from cnn_research.core.run_folder import (
    CONFIG,
    EVALUATED,
    EVALUATION,
    REPORT_FOLDER,
    RUN,
    SWEEP,
    effective_attempts,
    evaluated_config,
    read_json,
)
from cnn_research.data.images import printable
from cnn_research.report.markdown import markdown_table, number

UNCOMPARED = ("step", "correct", "count", "wall_seconds", "calibration")
"""Numbers of a run that no table compares."""

MOST_ACCURACIES = 2
"""With more accuracies than this, tables compare them alone."""


@dataclasses.dataclass(frozen=True)
class Run:
    """One finished run: its folder's files, as far as a table reads them."""

    folder: Path
    config: Mapping[str, Any]
    record: Mapping[str, Any]
    metrics: Mapping[str, float]
    directions: Mapping[str, Direction] = dataclasses.field(default_factory=dict)
    """Directions of the metrics, as the task declared them when the run was evaluated."""

    @property
    def experiment(self) -> str:
        return self.config.get("name") or "unnamed"


@dataclasses.dataclass(frozen=True)
class Group:
    """Finished runs of one experiment whose configs differ in the seed only."""

    name: str
    runs: Sequence[Run]

    @property
    def seeds(self) -> list[int]:
        return [run.config.get("seed", 0) for run in self.runs]

    def values(self) -> dict[str, list[float]]:
        """Per figure that every run has, and for `wall_seconds`, the values in order of runs."""
        names = [n for n in self.runs[0].metrics if all(n in run.metrics for run in self.runs)]
        values = {name: [float(run.metrics[name]) for run in self.runs] for name in names}
        if all("wall_seconds" in run.record for run in self.runs):
            values["wall_seconds"] = [float(run.record["wall_seconds"]) for run in self.runs]
        return values

    def mean(self, name: str) -> float | None:
        values = self.values().get(name)
        return statistics.fmean(values) if values else None

    def deviation(self, name: str) -> float | None:
        """Standard deviation with n - 1; None for one run."""
        values = self.values().get(name, ())
        return statistics.stdev(values) if len(values) > 1 else None

    def best(self, name: str) -> float | None:
        """The best of several runs; None for a metric without a declared direction."""
        values, direction = self.values().get(name, ()), direction_of(name, self.directions)
        return best(values, direction) if direction and len(values) > 1 else None

    @property
    def directions(self) -> dict[str, Direction]:
        return {name: d for run in self.runs for name, d in run.directions.items()}

    @property
    def document(self) -> dict[str, float]:
        """The document's metrics by the names of ours; empty where it gives none."""
        return by_name(self.runs[0].record.get("document_results") or {})


def read_run(folder: Path) -> Run | None:
    """The run of a folder, None before its evaluation; a `UsageError` if it is not a run folder."""
    config = evaluated_config(folder)
    if not config:
        raise UsageError(f"{folder} is not a run's folder: it has no {CONFIG} that can be read")
    evaluation = read_json(folder / EVALUATION)
    metrics = by_name({name: evaluation.get(name, {}) for name in ("training", *EVALUATED)})
    if not metrics:
        return None
    directions = evaluation.get("metric_directions", {})
    return Run(folder, config, read_json(folder / RUN), metrics, directions)


def run_folders(folder: Path) -> list[Path]:
    """Folder of a run, or those of the runs in it, from a sweep (in its order) or replicas.

    Raises `UsageError` if there is none.
    """
    if (folder / CONFIG).exists():
        return [folder]
    below = (f"*/{CONFIG}", f"runs/*/{CONFIG}")
    runs = sorted(file.parent for pattern in below for file in folder.glob(pattern))
    if not runs:
        raise UsageError(
            f"{folder} is not a run's folder, and contains none: it has no {CONFIG}, which a run "
            "that failed on its data does not write"
        )
    listed = [run["name"] for run in read_json(folder / SWEEP).get("runs", ())]
    runs.sort(key=lambda run: listed.index(run.name) if run.name in listed else len(listed))
    return runs


def stage_folders(folder: Path) -> list[Path]:
    """The runs of a pipeline's or a study's stages, in order; empty for any other run."""
    stages = [file.parent for file in sorted(folder.glob(f"*/{RUN}"))]  # an export has none
    order = list(read_json(folder / RUN).get("stages", ()))
    return sorted(stages, key=lambda s: order.index(s.name) if s.name in order else len(order))


def is_finished(folder: Path) -> bool:
    """True for a finished training or pipeline, and for an experiment that only draws a page."""
    record = read_json(folder / RUN)
    if "finished" in record:
        return bool(record["finished"])
    return "wall_seconds" in record or (folder / REPORT_FOLDER).exists()


def group_runs(runs: Iterable[Run]) -> list[Group]:
    """Runs by experiment and by config without its seeds, each group by rising seed.

    Where an experiment has several groups, their names have the fields in which they differ.
    """
    by_config: dict[tuple[str, str], list[Run]] = {}
    for run in runs:
        key = (run.experiment, json.dumps(unseeded(run.config), sort_keys=True))
        by_config.setdefault(key, []).append(run)
    groups = []
    for (experiment, config), members in by_config.items():
        siblings = [dict(flat(json.loads(c))) for e, c in by_config if e == experiment]
        differing = [
            f"{path}={printable(str(value))}"
            for path, value in flat(json.loads(config))
            if any(path not in other or other[path] != value for other in siblings)
        ]
        name = f"{experiment} ({', '.join(differing)})" if differing else experiment
        groups.append(Group(name, sorted(members, key=lambda run: run.config.get("seed", 0))))
    return sorted(groups, key=lambda group: group.name)


def unseeded(config: Mapping[str, Any]) -> dict[str, Any]:
    """Config as JSON values without the seeds of run and split and the fold of the test."""
    rest = {name: value for name, value in config.items() if name != "seed"}
    if isinstance(rest.get("data"), dict):
        rest["data"] = {
            name: v for name, v in rest["data"].items() if name not in ("split_seed", "fold")
        }
    return rest


def compared_metrics(groups: Sequence[Group]) -> list[str]:
    """The names of the metrics that tables show.

    Counts, weighted averages and, beside test metrics, those on training and validation data are
    left out, and all but accuracies where there are many: they are in each run's evaluation.json.
    """
    names = [
        name
        for name in dict.fromkeys(name for group in groups for name in group.values())
        if name.split()[-1] not in UNCOMPARED and "weighted " not in name
    ]
    tested = [name for name in names if name.split()[0] not in ("training", "validation")] or names
    accuracies = [name for name in tested if "accuracy" in name and "top-5" not in name]
    # Of several heads, or several splits, a table has no room for more.
    return accuracies if len(accuracies) > MOST_ACCURACIES else tested


def as_markdown(groups: Sequence[Group]) -> str:
    """Each group's mean ± standard deviation, and below it the document's metrics, if any."""
    shown = compared_metrics(groups)
    rows = []
    for group in groups:
        values = group.values()
        seconds = group.mean("wall_seconds")
        rows.append(
            [
                group.name,
                str(len(group.runs)),
                *(mean_and_deviation(values.get(name, [])) for name in shown),
                duration(seconds) if seconds else "",
            ]
        )
        if group.document.keys() & set(shown):
            metrics = (number(group.document.get(name)) for name in shown)
            rows.append(["- as the document gives it", "", *metrics, ""])
    return markdown_table(["experiment", "runs", *shown, "time of a run"], rows)


def results(group: Group, name: str) -> dict[str, Any]:
    """Values for `--output=FILE.json`: metrics over seeds, and all that it takes to repeat them."""
    records = [run.record for run in group.runs]
    attempts = [attempt for record in records for attempt in effective_attempts(record)]
    config = unseeded(group.runs[0].config)
    return {
        "name": name,
        "what": f"{group.name}: metrics of the evaluation, over {len(records)} run(s)",
        "experiment": group.runs[0].experiment,
        "document": records[0].get("document"),
        "document_results": records[0].get("document_results") or {},
        "command": [attempt["command"] for attempt in attempts],
        "data": _one_or_all(record.get("data") for record in records),
        "parameters": _one_or_all(record.get("parameters") for record in records),
        "commit": _one_or_all(attempt["commit"] for attempt in attempts),
        "commit_is_clean": all(attempt["commit_is_clean"] for attempt in attempts),
        "machine": _one_or_all(attempt["machine"] for attempt in attempts),
        "versions": _one_or_all(attempt["versions"] for attempt in attempts),
        "date": max((attempt["started"][:10] for attempt in attempts), default=""),
        "wall_seconds": sum(record.get("wall_seconds", 0) for record in records),
        "wall_seconds_of_runs": [record.get("wall_seconds") for record in records],
        "seeds": group.seeds,
        "metric_directions": group.directions,
        "config": config,
        "figures": {
            name: {"mean": group.mean(name), "std": group.deviation(name), "values": values}
            for name, values in group.values().items()
        },
    }


def mean_and_deviation(values: Sequence[float]) -> str:
    """`0.8951 ± 0.0021`, the deviation with n - 1; one value has none, and no value is ""."""
    if len(values) < 2:
        return number(values[0]) if values else ""
    return f"{statistics.fmean(values):.4f} ± {statistics.stdev(values):.4f}"


def _one_or_all(values: Iterable[Any]) -> Any:
    """The value, if all are equal; otherwise each different one, in a list."""
    different: list[Any] = []
    for value in values:
        if value not in different:
            different.append(value)
    return different[0] if len(different) == 1 else different
