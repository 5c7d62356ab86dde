"""The page that a run ends with, and `python -m cnn_research.report RUN...`: tables over runs."""

from __future__ import annotations

import argparse
import csv
import dataclasses
import io
import json
import math
import os
import statistics
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cnn_research.core.config import from_dict, to_dict
from cnn_research.core.errors import UsageError, UserError, run_command
from cnn_research.core.metrics import Direction, best, direction_of
from cnn_research.core.metrics_log import by_epoch, read_metrics
from cnn_research.core.run_folder import (
    CONFIG,
    EVALUATED,
    EVALUATION,
    RUN,
    SWEEP,
    evaluated_config,
    read_json,
    whole_folder,
    write_json,
    write_text,
)
from cnn_research.data.images import printable
from cnn_research.report.html import as_html, write_page
from cnn_research.report.markdown import markdown_table, number
from cnn_research.tasks.task import Predictions, file_suffixes

REPORT_FOLDER = "report"

UNCOMPARED = ("step", "correct", "count", "wall_seconds")
"""Numbers of a run that no table compares."""

MOST_ACCURACIES = 2
"""Where runs have more accuracies, tables compare those alone."""

OUTPUTS = (".md", ".csv", ".xlsx", ".html", ".json")
WIDEST_COLUMN = 60
"""Characters; longer texts in a spreadsheet take several lines."""


# The report of one run ---------------------------------------------------------------------------


def write_report(
    workdir: Path,
    *,
    title: str,
    figures: Mapping[str, Mapping[str, Any]],
    predictions: Mapping[str, Mapping[str, Predictions]],
    images: Mapping[str, np.ndarray],
    history: Sequence[Mapping[str, Any]],
    directions: Mapping[str, Direction],
    params: Mapping[str, Any],
) -> Path:
    """Writes `report/` with its page and figures; the folder is complete, or it is not there.

    What was run is read from the workdir's config.json and run.json, and left out where those
    say nothing.

    Args:
        workdir: the run's folder; an earlier report in it is replaced.
        title: the heading of the page.
        figures: of each split, as evaluation.json has them: numbers, and the heads' own under
            their names where there are several.
        predictions: of each split, for each head; files are named after the head where there are
            several, and after the split from the second on.
        images: of each split, uint8 `[examples, height, width, channels]`, in the order of the
            predictions; a split without any shows none.
        history: rows of metrics.jsonl; without any there are no curves.
        directions: of each metric that has one.
        params: nested dicts of arrays, or of anything with a shape.

    Returns:
        The path of report.html; beside it is report.md.

    Raises:
        UserError: a head has no labels, or images and predictions differ in number.
    """
    run, config = read_json(workdir / RUN), evaluated_config(workdir)
    parts = [f"# {title}", "\n".join(_what_was_run(config, run))]
    folder = workdir / REPORT_FOLDER
    with whole_folder(folder) as partial:
        for number_, (split, heads) in enumerate(predictions.items()):
            suffix = f"_{split}" if number_ else ""
            parts += _evaluation(partial, suffix, split, figures[split], heads, images, run)
        if history:
            parts += _training(partial, history, directions)
        parts += ["## Parameters", parameters_table(params)]
        page = write_page(partial, parts, config)
    return folder / page.name


def _what_was_run(config: Mapping[str, Any], run: Mapping[str, Any]) -> Iterator[str]:
    command = run.get("command")
    machine = run.get("machine") or {}
    changed = "" if run.get("commit_is_clean", True) else ", with the changes in source.diff"
    seconds = run.get("wall_seconds")
    for name, value in (
        ("Experiment", config.get("name")),
        ("Document", run.get("document")),
        ("Data", run.get("data", {}).get("name")),
        ("Command", f"`{' '.join(map(printable, command))}`" if command else None),
        ("Commit", run.get("commit", "") + changed),
        ("Machine", ", ".join(f"{key}: {value}" for key, value in machine.items())),
        ("Devices", ", ".join(run.get("devices", []))),
        ("Started", run.get("started")),
        ("Time", None if seconds is None else duration(seconds)),
        ("Seed", run.get("seed")),
    ):
        if value not in (None, ""):
            yield f"- {name}: {value}"


def _evaluation(
    folder: Path,
    suffix: str,
    split: str,
    figures: Mapping[str, Any],
    predictions: Mapping[str, Predictions],
    images: Mapping[str, np.ndarray],
    run: Mapping[str, Any],
) -> Iterator[str]:
    """The sections of one split; writes its files."""
    theirs = _by_name(run.get("document_results") or {})
    where = "" if split == "test" else f"{split} "
    yield f"## Result on the {split} split"
    yield _figures_table(figures, theirs, where)
    endings = file_suffixes(list(predictions))
    for head, predicted in predictions.items():
        shown = images.get(split)
        if shown is not None and len(shown) != len(predicted):
            raise UserError(
                f"report: {len(shown)} images but {len(predicted)} predictions; "
                "they must be of the same examples, in the same order"
            )
        if len(predictions) == 1:
            yield from predicted.page(folder, suffix, shown)
            continue
        yield f"### {head}, {split} split"
        if head not in figures:
            yield "No image of this split has a known label of this head: it is left out."
            continue
        yield _figures_table(figures[head], theirs, f"{where}{head} ")
        yield from predicted.page(folder, f"{endings[head]}{suffix}", shown)


def _figures_table(ours: Mapping[str, Any], theirs: Mapping[str, float], prefix: str) -> str:
    """Figures, beside the document's where it has any under the prefix and their names."""
    rows = [
        (name, number(value), number(theirs.get(f"{prefix}{name}")))
        for name, value in ours.items()
        if not isinstance(value, Mapping)
    ]
    if any(document for _, _, document in rows):
        return markdown_table(("", "this run", "document"), rows)
    return markdown_table(("", "this run"), [row[:2] for row in rows])


def _training(
    folder: Path, history: Sequence[Mapping[str, Any]], directions: Mapping[str, Direction]
) -> Iterator[str]:
    from cnn_research.report import plots as figures

    epochs = by_epoch(history)
    figures.training_curves(epochs, directions).savefig(folder / "curves.png")
    names = figures.curve_names(epochs, directions)
    yield "## Training"
    yield (
        "Training figures are means over the examples of an epoch, while the network was learning "
        "(with dropout and augmentation, where it has them); validation figures were taken at the "
        "epoch's end."
    )
    yield f"![Curves of {', '.join(names)} by epoch](curves.png)"
    columns = [
        (split, name)
        for name in names
        for split in ("train", "validation")
        if any(name in epoch[split] for epoch in epochs)
    ]
    yield markdown_table(
        ("epoch", *(f"{'training' if s == 'train' else s} {name}" for s, name in columns)),
        [
            (str(e["epoch"]), *(number(e[split].get(name)) for split, name in columns))
            for e in epochs
        ],
    )


def parameters_table(params: Mapping[str, Any]) -> str:
    """A Markdown table of nested parameters: path, shape and count of each, and the total."""
    rows, total = [], 0
    for path, array in _flat(params, "/"):
        count = math.prod(array.shape)
        total += count
        rows.append((path, " x ".join(map(str, array.shape)) or "scalar", f"{count:,}"))
    return markdown_table(("parameter", "shape", "count"), [*rows, ("total", "", f"{total:,}")])


# Tables over runs --------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Run:
    """One finished run: its folder's files, as far as a table reads them."""

    folder: Path
    config: Mapping[str, Any]
    record: Mapping[str, Any]
    figures: Mapping[str, float]
    directions: Mapping[str, Direction] = dataclasses.field(default_factory=dict)
    """Of the metrics, as the task declared them when the run was evaluated."""

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
        names = [n for n in self.runs[0].figures if all(n in run.figures for run in self.runs)]
        values = {name: [float(run.figures[name]) for run in self.runs] for name in names}
        if all("wall_seconds" in run.record for run in self.runs):
            values["wall_seconds"] = [float(run.record["wall_seconds"]) for run in self.runs]
        return values

    @property
    def directions(self) -> dict[str, Direction]:
        """Of the metrics, by name."""
        return {name: d for run in self.runs for name, d in run.directions.items()}

    @property
    def document(self) -> dict[str, float]:
        """The document's figures by the names of ours; empty where it gives none."""
        return _by_name(self.runs[0].record.get("document_results") or {})


def read_run(folder: Path) -> Run | None:
    """The run of a folder, or None if it has not been evaluated yet.

    Raises:
        UsageError: the folder holds no run.
    """
    config = evaluated_config(folder)
    if not config:
        raise UsageError(f"{folder} is not a run's folder: it has no {CONFIG} that can be read")
    evaluation = read_json(folder / EVALUATION)
    figures = _by_name({name: evaluation.get(name, {}) for name in ("training", *EVALUATED)})
    if not figures:
        return None
    directions = evaluation.get("metric_directions", {})
    return Run(folder, config, read_json(folder / RUN), figures, directions)


def run_folders(folder: Path) -> list[Path]:
    """The folder of a run, or those of the runs in it, as a sweep or replicas leave them.

    A sweep's runs are in the order that it says.

    Raises:
        UsageError: there is none.
    """
    if (folder / CONFIG).exists():
        return [folder]
    below = (f"*/{CONFIG}", f"runs/*/{CONFIG}")
    found = sorted(file.parent for pattern in below for file in folder.glob(pattern))
    listed = [run["name"] for run in read_json(folder / SWEEP).get("runs", ())]
    found.sort(key=lambda run: listed.index(run.name) if run.name in listed else len(listed))
    if not found:
        raise UsageError(f"{folder} is not a run's folder, and holds none: it has no {CONFIG}")
    return found


def group_runs(runs: Iterable[Run]) -> list[Group]:
    """Runs by experiment and by config without its seeds, each group by rising seed.

    Where an experiment has several groups, their names say in which fields they differ.
    """
    by_config: dict[tuple[str, str], list[Run]] = {}
    for run in runs:
        key = (run.experiment, json.dumps(unseeded(run.config), sort_keys=True))
        by_config.setdefault(key, []).append(run)
    groups = []
    for (experiment, config), members in by_config.items():
        siblings = [dict(_flat(json.loads(c))) for e, c in by_config if e == experiment]
        differing = [
            f"{path}={printable(str(value))}"
            for path, value in _flat(json.loads(config))
            if any(path not in other or other[path] != value for other in siblings)
        ]
        name = f"{experiment} ({', '.join(differing)})" if differing else experiment
        groups.append(Group(name, sorted(members, key=lambda run: run.config.get("seed", 0))))
    return sorted(groups, key=lambda group: group.name)


def unseeded(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config as JSON values without what only chance depends on: the run's seed, the split's,
    and which fold is the test."""
    rest = {name: value for name, value in config.items() if name != "seed"}
    if isinstance(rest.get("data"), dict):
        rest["data"] = {
            name: v for name, v in rest["data"].items() if name not in ("split_seed", "fold")
        }
    return rest


def compared_figures(groups: Sequence[Group]) -> list[str]:
    """The names of the figures that tables show.

    Counts, weighted averages and, beside test figures, those on training and validation data are
    left out, and all but accuracies where there are many: they are in each run's evaluation.json.
    """
    names = [
        name
        for name in dict.fromkeys(name for group in groups for name in group.values())
        if name.split()[-1] not in UNCOMPARED and "weighted " not in name
    ]
    tested = [name for name in names if name.split()[0] not in ("training", "validation")] or names
    accuracies = [name for name in tested if "accuracy" in name]
    # Of several heads, or several splits, a table has no room for more.
    return accuracies if len(accuracies) > MOST_ACCURACIES else tested


def as_markdown(groups: Sequence[Group]) -> str:
    """Each group's mean ± standard deviation, and below it the document's figures, if any."""
    shown = compared_figures(groups)
    rows = []
    for group in groups:
        values = group.values()
        seconds = values.get("wall_seconds")
        rows.append(
            [
                group.name,
                str(len(group.runs)),
                *(mean_and_deviation(values.get(name, [])) for name in shown),
                duration(statistics.fmean(seconds)) if seconds else "",
            ]
        )
        if group.document.keys() & set(shown):
            figures = (number(group.document.get(name)) for name in shown)
            rows.append(["- as the document gives it", "", *figures, ""])
    return markdown_table(["experiment", "runs", *shown, "time of a run"], rows)


def as_csv(groups: Sequence[Group]) -> str:
    """For a spreadsheet: a row for each group, with means and deviations in columns of numbers."""
    shown = [*compared_figures(groups), "wall_seconds"]
    columns = [column for name in shown for column in (name, f"{name} std")]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["experiment", "runs", *columns])
    for group in groups:
        values = [group.values().get(name) for name in shown]
        numbers = [n for found in values for n in (_mean(found), _deviation(found))]
        writer.writerow([group.name, len(group.runs), *numbers])
    return text.getvalue()


def results(group: Group, name: str) -> dict[str, Any]:
    """What `--output` writes of a group: figures over seeds, and all that it takes to repeat."""
    records = [run.record for run in group.runs]
    config = unseeded(group.runs[0].config)
    return {
        "name": name,
        "what": f"{group.name}: figures of the evaluation, over {len(records)} run(s)",
        "experiment": group.runs[0].experiment,
        "document": records[0].get("document"),
        "document_results": records[0].get("document_results") or {},
        "command": [record.get("command") for record in records],
        "data": _one_or_all(record.get("data") for record in records),
        "parameters": _one_or_all(record.get("parameters") for record in records),
        "commit": _one_or_all(record.get("commit") for record in records),
        "commit_is_clean": all(record.get("commit_is_clean", True) for record in records),
        "machine": _one_or_all(record.get("machine") for record in records),
        "versions": _one_or_all(record.get("versions") for record in records),
        "date": max(str(record.get("started", ""))[:10] for record in records),
        "wall_seconds": sum(record.get("wall_seconds", 0) for record in records),
        "wall_seconds_of_runs": [record.get("wall_seconds") for record in records],
        "seeds": group.seeds,
        "config": config,
        "figures": {
            figure: {
                "mean": statistics.fmean(values),
                "std": statistics.stdev(values) if len(values) > 1 else None,
                "values": values,
            }
            for figure, values in group.values().items()
        },
    }


# The log of changes ------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Log:
    """What was changed and what came of it: a row for each config, the first one's at the top.

    Attributes:
        columns: their names; where configs were run with several seeds, a figure's deviation and
            best value stand in the next columns, `FIGURE std` and `FIGURE best`.
        rows: texts and numbers, None for what is not known.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[str | float | None]]


def change_log(groups: Sequence[Group]) -> Log:
    """The log of configs in the order given; changes are against the first.

    It shows accuracies on validation and test data, or all compared figures where there is no
    accuracy, with the document's beside those that it gives; where there is one accuracy, `gain` is
    what it has on test data over the first's.
    """
    compared = compared_figures(groups)
    names = [name for name in compared if "accuracy" in name] or compared
    measured = [group.values() for group in groups]
    figures = {}
    for name in names:
        beside = any(f"validation {name}" in values for values in measured)
        if beside:
            figures[f"validation {name}"] = f"validation {name}"
        figures[f"test {name}" if beside else name] = name
    repeated = any(len(group.runs) > 1 for group in groups)
    gained = "accuracy" if names == ["accuracy"] else None
    columns = ["experiment", "change"]
    given = {name for group in groups for name in group.document}
    for title, name in figures.items():
        columns += [title, *([f"{title} std", f"{title} best"] if repeated else [])]
        columns += [f"document: {name}"] if name in given else []
    columns += ["gain"] if gained else []
    columns += ["epochs", "parameters", "runs", "wall_seconds", "data"]
    rows = []
    for group, values in zip(groups, measured, strict=True):
        record, config = group.runs[0].record, _of_this_version(group.runs[0].config)
        row: list[str | float | None] = [group.runs[0].experiment]
        row.append("; ".join(_changes(_of_this_version(groups[0].runs[0].config), config)))
        for name in figures.values():
            row.append(_mean(values.get(name)))
            if repeated:
                row += [_deviation(values.get(name)), _best(name, values.get(name), group)]
            row += [group.document.get(name)] if name in given else []
        if gained:
            ours, first = _mean(values.get(gained)), _mean(measured[0].get(gained))
            row.append(None if ours is None or first is None else ours - first)
        row += [config.get("epochs"), record.get("parameters"), len(group.runs)]
        row += [_mean(values.get("wall_seconds")), (record.get("data") or {}).get("name")]
        rows.append(row)
    return Log(columns, rows)


def _of_this_version(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The config with the fields that came since, at their defaults; as it is if that fails.

    Without it an option that one run's version did not have yet would read as a change.
    """
    try:
        return to_dict(from_dict(config))
    except (UserError, LookupError):
        return config


def _changes(before: Mapping[str, Any], after: Mapping[str, Any], path: str = "") -> Iterator[str]:
    """Each field that differs, as `model.dropout 0.0 -> 0.3`."""
    for name in dict.fromkeys([*before, *after]):
        old, new = before.get(name, "absent"), after.get(name, "absent")
        if old == new or (not path and name in ("name", "seed")):
            continue
        if isinstance(old, Mapping) and isinstance(new, Mapping) and old["class"] == new["class"]:
            yield from _changes(old, new, f"{path}{name}.")
        else:
            yield f"{path}{name} {_value(old)} -> {_value(new)}"


def _value(value: Any) -> str:
    """A field's value in a few words; a part of a config is its class alone."""
    if isinstance(value, Mapping):
        return value["class"]
    if isinstance(value, list):
        return printable(" ".join(map(str, value))) or "()"
    return printable(str(value))


def log_as_markdown(log: Log) -> str:
    """The log as a table; figures with their deviations and best, times in minutes."""
    rows = [dict(zip(log.columns, row, strict=True)) for row in log.rows]
    shown = [name for name in log.columns if not name.endswith((" std", " best"))]

    def cell(row: Mapping[str, Any], name: str) -> str:
        value, deviation, best = row[name], row.get(f"{name} std"), row.get(f"{name} best")
        if value is None or isinstance(value, str):
            return value or ""
        if name == "wall_seconds":
            return duration(value)
        if name in ("epochs", "parameters", "runs"):
            return f"{value:,}"
        if name == "gain":
            return f"{value:+.4f}"
        if deviation is None:
            return number(value)
        return f"{value:.4f} ± {deviation:.4f} (best {number(best)})"

    header = ["time of a run" if name == "wall_seconds" else name for name in shown]
    return markdown_table(header, [[cell(row, name) for name in shown] for row in rows])


def log_as_csv(log: Log) -> str:
    """The log for a program: numbers as they are."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([log.columns, *log.rows])
    return text.getvalue()


def write_log_as_xlsx(log: Log, file: Path) -> None:
    """The log for a spreadsheet: numbers as numbers, the header in sight, a filter per column."""
    import openpyxl
    from openpyxl.styles import Alignment, Font
    from openpyxl.utils import get_column_letter

    book = openpyxl.Workbook()
    sheet = book.active
    sheet.title = "log"
    for row in (log.columns, *log.rows):
        sheet.append(row)
    formats = {"gain": "+0.0000;-0.0000;0.0000", "wall_seconds": "0.0", "parameters": "#,##0"}
    for number_, name in enumerate(log.columns, start=1):
        letter = get_column_letter(number_)
        header, *cells = sheet[letter]
        header.font = Font(bold=True)
        longest = max(len(str(name)), *(len(c.value) for c in cells if isinstance(c.value, str)), 0)
        sheet.column_dimensions[letter].width = min(longest, WIDEST_COLUMN) + 3
        for found in cells:
            if isinstance(found.value, str):
                found.data_type = "s"  # also where it begins with '=', like a formula
                found.alignment = Alignment(wrap_text=True, vertical="top")
            else:
                found.alignment = Alignment(vertical="top")
                whole = isinstance(found.value, int)
                found.number_format = formats.get(name, "General" if whole else "0.0000")
    sheet.freeze_panes = "B2"
    sheet.auto_filter.ref = sheet.dimensions
    temporary = file.with_name(f"{file.name}.tmp")
    book.save(temporary)
    os.replace(temporary, file)


def log_as_html(log: Log, groups: Sequence[Group]) -> str:
    """One page without other files: the log, and what each config's runs had in each epoch.

    Args:
        log: of the groups.
        groups: in the log's order.
    """
    from cnn_research.report import plots as figures

    names = dict.fromkeys(group.runs[0].experiment for group in groups)
    parts = [f"# {', '.join(names)}", log_as_markdown(log)]
    curves = {
        group.name: [epochs for run in group.runs if (epochs := by_epoch(read_metrics(run.folder)))]
        for group in groups
    }
    curves = {name: runs for name, runs in curves.items() if runs}
    directions = {name: d for group in groups for name, d in group.directions.items()}
    with tempfile.TemporaryDirectory() as folder:
        if curves:
            figures.compared_curves(curves, directions).savefig(Path(folder, "curves.png"))
            parts += ["## Curves", f"![Curves of {len(curves)} configs by epoch](curves.png)"]
            parts.append(
                "Validation figures where there are any, otherwise training's. A line is the mean "
                "of a config's runs, and the shade around it goes from the lowest to the highest."
            )
        return as_html("\n\n".join(parts) + "\n", Path(folder))


# The command -------------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m cnn_research.report",
        description="Mean and standard deviation over the seeds of runs, one row per config.",
    )
    parser.add_argument(
        "runs",
        nargs="+",
        type=Path,
        metavar="RUN",
        help="the folder of a run, or of several: of a sweep, of replicas",
    )
    parser.add_argument(
        "--format", choices=("markdown", "csv"), default="markdown", help="what is printed"
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help="also write FILE.md, FILE.csv, FILE.xlsx or, with curves, FILE.html: the log of what "
        "each config changes against the first run's, and its results; or FILE.json: the figures "
        "of runs of one config with all that it takes to repeat them",
    )
    options = parser.parse_args(arguments)
    return run_command(lambda _: _compare(options.runs, options.format, options.output))


def _compare(folders: Sequence[Path], table_format: str, output: Path | None) -> None:
    if output is not None and output.suffix not in OUTPUTS:
        raise UsageError(f"--output is {output}: its name must end in {', '.join(OUTPUTS)}")
    # One folder given twice would pass for two runs.
    found = {run.resolve(): run for folder in folders for run in run_folders(folder)}.values()
    read = [(folder, read_run(folder)) for folder in found]
    groups = group_runs(run for _, run in read if run is not None)
    if output is not None:
        order = [folder for folder, _ in read]
        _write(output, sorted(groups, key=lambda g: min(order.index(r.folder) for r in g.runs)))
    if groups:
        print(
            (as_csv(groups) if table_format == "csv" else as_markdown(groups)).rstrip("\n"),
            flush=True,
        )
    for folder, run in read:
        if run is None:
            step = max((row["step"] for row in read_metrics(folder)), default=0)
            print(f"unfinished: {folder} (step {step})", file=sys.stderr)
    for group in groups:
        if len(set(group.seeds)) < len(group.seeds):
            print(
                f"note: {group.name} has runs with the same seed {group.seeds}; "
                "their spread is not one over seeds",
                file=sys.stderr,
            )


def _write(output: Path, groups: Sequence[Group]) -> None:
    """Writes `--output`; the groups stand in the order of their runs."""
    if not groups:
        raise UsageError(f"no run is finished: there is nothing to write to {output}")
    if output.suffix == ".json" and len(groups) != 1:
        raise UsageError(
            f"--output {output} takes finished runs of one config, not of {len(groups)}: "
            "give those runs only, or write the log of them all as .md, .csv, .xlsx or .html"
        )
    output.parent.mkdir(parents=True, exist_ok=True)
    if output.suffix == ".json":
        write_json(output, results(groups[0], output.stem))
    elif output.suffix == ".xlsx":
        write_log_as_xlsx(change_log(groups), output)
    elif output.suffix == ".html":
        write_text(output, log_as_html(change_log(groups), groups))
    else:
        as_text = log_as_csv if output.suffix == ".csv" else log_as_markdown
        write_text(output, as_text(change_log(groups)).rstrip("\n") + "\n")


# Small parts -------------------------------------------------------------------------------------


def mean_and_deviation(values: Sequence[float]) -> str:
    """`0.8951 ± 0.0021`, the deviation with n - 1; one value has none, and no value is ""."""
    if len(values) < 2:
        return number(values[0]) if values else ""
    return f"{statistics.fmean(values):.4f} ± {statistics.stdev(values):.4f}"


def _mean(values: Sequence[float] | None) -> float | None:
    return statistics.fmean(values) if values else None


def _deviation(values: Sequence[float] | None) -> float | None:
    return statistics.stdev(values) if values and len(values) > 1 else None


def _best(name: str, values: Sequence[float] | None, group: Group) -> float | None:
    """Of several values; None of a figure whose task declares no direction for it."""
    direction = direction_of(name, group.directions)
    return best(values, direction) if direction and values and len(values) > 1 else None


def duration(seconds: float) -> str:
    """`8.4 s`, `3 min 20 s` or `2 h 5 min`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def _by_name(figures: Mapping[str, Any]) -> dict[str, float]:
    """Nested figures under one name each, `material accuracy`; `test`, the usual split, is left
    out of it, so that `test accuracy` of a document is `accuracy` of ours."""
    return {
        path.removeprefix("test "): value
        for path, value in _flat(figures, " ")
        if isinstance(value, int | float) and not isinstance(value, bool)
    }


def _flat(tree: Mapping[str, Any], separator: str = ".") -> Iterator[tuple[str, Any]]:
    """Leaves with their paths, `optimizer.learning_rate`."""
    for name, value in tree.items():
        if isinstance(value, Mapping):
            for path, leaf in _flat(value, separator):
                yield f"{name}{separator}{path}", leaf
        else:
            yield name, value


def _one_or_all(values: Iterable[Any]) -> Any:
    """The value, if all are equal; otherwise each different one, in a list."""
    different: list[Any] = []
    for value in values:
        if value not in different:
            different.append(value)
    return different[0] if len(different) == 1 else different


if __name__ == "__main__":
    sys.exit(main())
