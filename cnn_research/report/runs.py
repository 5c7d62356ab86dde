"""Read runs from their folders, group them, and make tables over groups."""

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
"""Numbers of a run that tables do not compare."""

MOST_ACCURACIES = 2
"""With more accuracies than this, tables compare only accuracies."""


@dataclasses.dataclass(frozen=True)
class Run:
    """A finished run: the contents of its files that tables need."""

    folder: Path
    config: Mapping[str, Any]
    record: Mapping[str, Any]
    metrics: Mapping[str, float]
    directions: Mapping[str, Direction] = dataclasses.field(default_factory=dict)
    """Directions of the metrics, as declared by the task when the run was evaluated."""

    @property
    def experiment(self) -> str:
        return self.config.get("name") or "unnamed"


@dataclasses.dataclass(frozen=True)
class Group:
    """Finished runs of one experiment whose configs differ only in seeds."""

    name: str
    runs: Sequence[Run]

    @property
    def seeds(self) -> list[int]:
        return [run.config.get("seed", 0) for run in self.runs]

    def values(self) -> dict[str, list[float]]:
        """Values of each metric that all runs have, and of `wall_seconds`, in order of runs."""
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
        """Best value of several runs; None for a metric without a declared direction."""
        values, direction = self.values().get(name, ()), direction_of(name, self.directions)
        return best(values, direction) if direction and len(values) > 1 else None

    @property
    def directions(self) -> dict[str, Direction]:
        return {name: d for run in self.runs for name, d in run.directions.items()}

    @property
    def document(self) -> dict[str, float]:
        """Metrics reported by the document, by the names of ours; empty if there are none."""
        return by_name(self.runs[0].record.get("document_results") or {})


def read_run(folder: Path) -> Run | None:
    """Read the run of a folder; None before its evaluation.

    Raises `UsageError` if it is not a run folder.
    """
    config = evaluated_config(folder)
    if not config:
        raise UsageError(f"{folder} is not a run folder: it has no readable {CONFIG}")
    evaluation = read_json(folder / EVALUATION)
    metrics = by_name({name: evaluation.get(name, {}) for name in ("training", *EVALUATED)})
    if not metrics:
        return None
    directions = evaluation.get("metric_directions", {})
    return Run(folder, config, read_json(folder / RUN), metrics, directions)


def run_folders(folder: Path) -> list[Path]:
    """Find the folders of runs: the folder itself, or those in a sweep (in order) or of replicas.

    Raises `UsageError` if there are none.
    """
    if (folder / CONFIG).exists():
        return [folder]
    below = (f"*/{CONFIG}", f"runs/*/{CONFIG}")
    runs = sorted(file.parent for pattern in below for file in folder.glob(pattern))
    if not runs:
        raise UsageError(
            f"{folder} is not a run folder and contains none: it has no {CONFIG}, which is not "
            "written if a run fails to load its data"
        )
    listed = [run["name"] for run in read_json(folder / SWEEP).get("runs", ())]
    runs.sort(key=lambda run: listed.index(run.name) if run.name in listed else len(listed))
    return runs


def stage_folders(folder: Path) -> list[Path]:
    """Folders of the stages of a pipeline or study, in order; empty for any other run."""
    stages = [file.parent for file in sorted(folder.glob(f"*/{RUN}"))]  # exports have none
    order = list(read_json(folder / RUN).get("stages", ()))
    return sorted(stages, key=lambda s: order.index(s.name) if s.name in order else len(order))


def is_finished(folder: Path) -> bool:
    """Return whether a training or pipeline is finished, or a gallery has its page."""
    record = read_json(folder / RUN)
    if "finished" in record:
        return bool(record["finished"])
    return "wall_seconds" in record or (folder / REPORT_FOLDER).exists()


def group_runs(runs: Iterable[Run]) -> list[Group]:
    """Group runs by experiment and config without seeds; sort each group by seed.

    The names of several groups of one experiment contain the fields in which they differ.
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
    """Remove the seeds of the run and the split, and the fold, from a config (JSON values)."""
    rest = {name: value for name, value in config.items() if name != "seed"}
    if isinstance(rest.get("data"), dict):
        rest["data"] = {
            name: v for name, v in rest["data"].items() if name not in ("split_seed", "fold")
        }
    return rest


def compared_metrics(groups: Sequence[Group]) -> list[str]:
    """List the metrics that tables show.

    Counts, weighted averages and, if there are test metrics, training and validation metrics are
    omitted, and so is all but accuracies if there are many. Each run's evaluation.json has them.
    """
    names = [
        name
        for name in dict.fromkeys(name for group in groups for name in group.values())
        if name.split()[-1] not in UNCOMPARED and "weighted " not in name
    ]
    tested = [name for name in names if name.split()[0] not in ("training", "validation")] or names
    accuracies = [name for name in tested if "accuracy" in name and "top-5" not in name]
    # With several heads or splits, a table has no room for more.
    return accuracies if len(accuracies) > MOST_ACCURACIES else tested


def as_markdown(groups: Sequence[Group]) -> str:
    """Make a table of each group's mean ± standard deviation, above the document's metrics."""
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
            rows.append(["- reported by the document", "", *metrics, ""])
    return markdown_table(["experiment", "runs", *shown, "time per run"], rows)


def results(group: Group, name: str) -> dict[str, Any]:
    """Content of `--output=FILE.json`: metrics over seeds, and all that reproducing them needs."""
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
    """Format values as `0.8951 ± 0.0021` (n - 1); a single value has no deviation, none is ""."""
    if len(values) < 2:
        return number(values[0]) if values else ""
    return f"{statistics.fmean(values):.4f} ± {statistics.stdev(values):.4f}"


def _one_or_all(values: Iterable[Any]) -> Any:
    """Return the value if all are equal, otherwise the list of distinct ones."""
    different: list[Any] = []
    for value in values:
        if value not in different:
            different.append(value)
    return different[0] if len(different) == 1 else different
