"""The change log: one row per config, with its changes and results."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cnn_research.core.config import from_dict, to_dict
from cnn_research.core.errors import UserError
from cnn_research.core.metrics_log import by_epoch, read_metrics
from cnn_research.core.progress import duration
from cnn_research.data.images import printable
from cnn_research.report.html import as_html
from cnn_research.report.markdown import markdown_table, number
from cnn_research.report.runs import Group, compared_metrics

if TYPE_CHECKING:
    from pandas import DataFrame

WIDEST_COLUMN = 60
"""Characters per line of a spreadsheet's cell."""


def change_log(groups: Sequence[Group]) -> DataFrame:
    """Make the log of configs, in order, with their changes compared with the first.

    It shows validation and test accuracies, or all compared metrics if there are none, beside those
    reported by the document. If there is only one accuracy, `gain` is the difference in test
    accuracy from the first config. If configs were run with several seeds, columns `METRIC std` and
    `METRIC best` follow.
    """
    from pandas import DataFrame

    titles = _titles(groups)
    repeated = any(len(group.runs) > 1 for group in groups)
    documented = {name for group in groups for name in group.document}
    first = groups[0]
    before = _of_this_version(first.runs[0].config)
    rows = []
    for group in groups:
        record, config = group.runs[0].record, _of_this_version(group.runs[0].config)
        row: dict[str, str | float | None] = {"experiment": group.runs[0].experiment}
        row["change"] = "; ".join(_changes(before, config))
        for title, name in titles.items():
            row[title] = group.mean(name)
            if repeated:
                row |= {f"{title} std": group.deviation(name), f"{title} best": group.best(name)}
            if name in documented:
                row[f"document: {name}"] = group.document.get(name)
        if {*titles.values()} in ({"accuracy"}, {"accuracy", "validation accuracy"}):
            ours, firsts = group.mean("accuracy"), first.mean("accuracy")
            row["gain"] = None if ours is None or firsts is None else ours - firsts
        row |= {"epochs": config.get("epochs"), "parameters": record.get("parameters")}
        row |= {"runs": len(group.runs), "wall_seconds": group.mean("wall_seconds")}
        row["data"] = (record.get("data") or {}).get("name")
        rows.append(row)
    return DataFrame(rows, dtype=object)  # keeps integers beside missing values


def _titles(groups: Sequence[Group]) -> dict[str, str]:
    """Metrics of the log, by the titles of their columns."""
    compared = compared_metrics(groups)
    measured = {name for group in groups for name in group.values()}
    titles: dict[str, str] = {}
    for name in [name for name in compared if "accuracy" in name] or compared:
        validated = f"validation {name}" in measured
        titles |= {f"validation {name}": f"validation {name}"} if validated else {}
        titles[f"test {name}" if validated else name] = name
    return titles


def _of_this_version(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Add the defaults of newer fields to a config; return it unchanged if that fails.

    Otherwise a field that an older version did not have would appear as a change.
    """
    try:
        return to_dict(from_dict(config))
    except (UserError, LookupError):
        return config


def _changes(before: Mapping[str, Any], after: Mapping[str, Any], path: str = "") -> Iterator[str]:
    """Yield each field that differs, as `model.dropout 0.0 -> 0.3`."""
    for name in dict.fromkeys([*before, *after]):
        old, new = before.get(name, "absent"), after.get(name, "absent")
        if old == new or (not path and name in ("name", "seed")):
            continue
        if "absent" in (old, new) and "class" in before and before["class"] == after.get("class"):
            continue  # a field that only one of the versions has
        if isinstance(old, Mapping) and isinstance(new, Mapping) and old["class"] == new["class"]:
            yield from _changes(old, new, f"{path}{name}.")
        else:
            yield f"{path}{name} {_value(old)} -> {_value(new)}"


def _value(value: Any) -> str:
    """Format a field's value; a nested config becomes its class."""
    if isinstance(value, Mapping):
        return value["class"]
    if isinstance(value, list):
        return printable(" ".join(map(str, value))) or "()"
    return printable(str(value))


def log_as_markdown(log: DataFrame) -> str:
    """Format the log as a table, with deviations, best values and durations."""
    rows = log.to_dict("records")
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

    header = ["time per run" if name == "wall_seconds" else name for name in shown]
    return markdown_table(header, [[cell(row, name) for name in shown] for row in rows])


def write_log_as_xlsx(log: DataFrame, file: Path) -> None:
    """Write the log as a spreadsheet, with a frozen header and filters."""
    from openpyxl.styles import Alignment
    from pandas import ExcelWriter

    formats = {"gain": "+0.0000;-0.0000;0.0000", "wall_seconds": "0.0", "parameters": "#,##0"}
    temporary = file.with_name(f"{file.name}.tmp")
    with temporary.open("wb") as opened, ExcelWriter(opened, engine="openpyxl") as writer:
        log.to_excel(writer, sheet_name="log", index=False, freeze_panes=(1, 1))
        sheet = writer.sheets["log"]
        for header, *cells in sheet.iter_cols():
            texts = [cell for cell in cells if isinstance(cell.value, str)]
            longest = max(len(cell.value) for cell in (header, *texts))
            sheet.column_dimensions[header.column_letter].width = min(longest, WIDEST_COLUMN) + 3
            for cell in cells:
                cell.alignment = Alignment(vertical="top", wrap_text=cell in texts)
                whole = isinstance(cell.value, int)
                cell.number_format = formats.get(header.value, "General" if whole else "0.0000")
            for cell in texts:
                cell.data_type = "s"  # even if it starts with '=', like a formula
        sheet.auto_filter.ref = sheet.dimensions
    os.replace(temporary, file)


def log_as_html(log: DataFrame, groups: Sequence[Group]) -> str:
    """Make a self-contained page with the log and the curves of each config's runs."""
    from cnn_research.report import plots

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
            figure, file = plots.compared_curves(curves, directions), Path(folder, "curves.png")
            parts += [
                "## Curves",
                plots.saved(figure, file, f"Curves of {len(curves)} configs by epoch"),
            ]
            parts.append(
                "Validation metrics if there are any, otherwise training metrics. Lines are means "
                "over the runs of a config; the shaded areas range from the lowest to the highest."
            )
        return as_html("\n\n".join(parts) + "\n", Path(folder))
