"""The tables of README.md, from results/*.json: `python -m benchmarks.readme_tables [--check]`.

README.md says where a table goes with `<!-- table: accuracy -->` and `<!-- end -->`; what is
between them is replaced. A number in the README is thus one that a results file holds, with the
command, commit and machine that it came from.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from cnn_research.errors import UsageError, UserError, one_line
from cnn_research.markdown import markdown_table, number
from cnn_research.report import (
    Group,
    Run,
    change_log,
    duration,
    log_as_markdown,
    mean_and_deviation,
)

ROOT = Path(__file__).resolve().parent.parent
TABLE = re.compile(r"(<!-- table: (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)

Results = Mapping[str, Mapping[str, Any]]
"""The contents of each results file, by its name without `.json`."""


def accuracy(results: Results) -> str:
    """Test figures over seeds beside the document's, from `cnn_research.report --output`."""
    header = (
        "experiment",
        "runs",
        "document",
        "accuracy",
        "precision",
        "recall",
        "F1",
        "fastest run",
    )
    rows = []
    for name, result in results.items():
        figures = result.get("figures", {})
        # The log's rows, of document 003, have tables of their own.
        if "accuracy" not in figures or name.startswith(("cifar10_exercise_", "products_")):
            continue
        theirs = result["document_results"].get("test accuracy")
        shown = ("accuracy", "macro precision", "macro recall", "macro F1")
        rows.append(
            (
                name,
                str(len(result["seeds"])),
                "" if theirs is None else f"{theirs:.4f}",
                *(mean_and_deviation(figures.get(n, {}).get("values", [])) for n in shown),
                duration(min(result["wall_seconds_of_runs"])),
            )
        )
    return markdown_table(header, rows)


def regression(results: Results) -> str:
    """Test errors over seeds beside those of always saying the training mean."""
    shown = ("MAE", "MAE of the training mean", "RMSE", "RMSE of the training mean", "R2")
    rows = [
        (
            name,
            str(len(result["seeds"])),
            *(mean_and_deviation(result["figures"][figure]["values"]) for figure in shown),
            duration(min(result["wall_seconds_of_runs"])),
        )
        for name, result in results.items()
        if "MAE" in result.get("figures", {})
    ]
    return markdown_table(("experiment", "runs", *shown, "fastest run"), rows)


def speed(results: Results) -> str:
    """Milliseconds a training step beside PyTorch's fastest mode, from train_speed.json."""
    rows = []
    for model, result in results.get("train_speed", {}).get("models", {}).items():
        medians = {mode: f"{m['median']:.1f}" for mode, m in result["milliseconds_a_step"].items()}
        mode, ratio = result["best_of_pytorch"], result["times_as_fast"]
        times_as_fast = f"{ratio['median']:.2f} ({ratio['min']:.2f} to {ratio['max']:.2f})"
        kept = result.get("pytorch_with_kept_memory")
        times_with_kept = f"{kept['times_as_fast']['median']:.2f}" if kept else "the same"
        rows.append(
            (model, medians["jax"], f"{medians[mode]} ({mode})", times_as_fast, times_with_kept)
        )
    header = ("model", "ours, ms", "PyTorch, ms (mode)", "times as fast")
    return markdown_table((*header, "if PyTorch keeps memory too"), rows)


def robustness(results: Results) -> str:
    """Every row of any results file that says what was asked for and what was measured."""
    rows = [
        (
            row["what"],
            row["target"],
            row["measured"] + ("" if row.get("met", True) else " (missed)"),
        )
        for result in results.values()
        for row in result.get("rows", [])
        if {"what", "target", "measured"} <= row.keys()
    ]
    return markdown_table(("what", "target", "measured"), rows)


def cifar10_changes(results: Results) -> str:
    """The log of document 003's exercise, a change a row."""
    groups = groups_of(results, "cifar10_exercise")
    return log_as_markdown(change_log(groups)) if groups else ""


def groups_of(results: Results, prefix: str) -> list[Group]:
    """The runs of every results file whose name begins so."""
    groups = []
    for name, result in sorted(results.items()):
        if name.startswith(prefix):
            figures = {figure: told["values"] for figure, told in result["figures"].items()}
            runs = [
                Run(
                    folder=Path(name),
                    config=result["config"],
                    record={**result, "wall_seconds": seconds},
                    figures={figure: values[index] for figure, values in figures.items()},
                )
                for index, seconds in enumerate(result["wall_seconds_of_runs"])
            ]
            groups.append(Group(name, runs))
    return groups


def painters(results: Results) -> str:
    """Document 002's networks: accuracy in training and validation, beside the document's."""
    header = ("experiment", "runs", "training", "document", "validation", "document", "macro F1")
    rows = []
    for group in groups_of(results, "artworks_red"):
        values, theirs = group.values(), group.document
        cells = [group.name, str(len(group.runs))]
        for name in ("training accuracy", "validation accuracy"):
            cells += [mean_and_deviation(values[name]), number(theirs.get(name))]
        rows.append((*cells, mean_and_deviation(values["validation macro F1"])))
    return markdown_table(header, rows)


def products_log(results: Results) -> str:
    """Document 003's training log: accuracies of each head on source and target, and its own."""
    heads = ("material", "type", "brand", "")
    names = [f"{head} accuracy".strip() for head in heads]
    header = ["run", "pixels", *(f"{head or 'mean'}" for head in heads)]
    header += [f"target {head or 'mean'}" for head in heads] + ["mean, seen labels"]
    rows = []
    for group in groups_of(results, "products_"):
        if "accuracy" not in group.runs[0].figures:
            continue  # a regression
        values, theirs = group.values(), group.document
        pixels = "x".join(map(str, group.runs[0].config["data"]["image_size"]))
        shown = [*names, *(f"target {name}" for name in names)]
        means = [_mean(values.get(name)) for name in (*shown, "target accuracy of seen labels")]
        rows.append([group.name, pixels, *means])
        if theirs:
            said = (number(theirs.get(name)) for name in shown)
            rows.append(["- the document", "", *said, ""])
    return markdown_table(header, rows)


def _mean(values: Sequence[float] | None) -> str:
    return f"{statistics.fmean(values):.3f}" if values else ""


def architectures(results: Results) -> str:
    """A training step of each architecture, from architectures.json."""
    rows = []
    for name, found in results.get("architectures", {}).get("figures", {}).items():
        size = "x".join(map(str, found["image_shape"]))
        if "failed" in found:
            rows.append((name, size, "", found["failed"], ""))
            continue
        rows.append(
            (
                name,
                size,
                f"{found['parameters']:,}",
                f"{found['steps_per_second']:.2f}",
                f"{found['peak_bytes'] / 1e9:.1f}",
            )
        )
    header = ("network", "images", "parameters", "steps a second, batch 8", "peak memory, GB")
    return markdown_table(header, rows)


def studies(results: Results) -> str:
    """Test accuracy of each kind of pooling, on images moved sideways by some pixels."""
    shown = (0, 2, 4, 8)
    rows = []
    for name, result in results.items():
        study = result.get("figures", {}).get("study")
        if study is None:
            continue
        for kind, seeds in study["accuracy"].items():
            cells = [
                [
                    statistics.fmean(values[study["shifts"].index(way)] for way in (-shift, shift))
                    for values in seeds
                ]
                if shift in study["shifts"]
                else []
                for shift in shown
            ]
            rows.append((name, kind, str(len(seeds)), *map(mean_and_deviation, cells)))
    moved = [f"moved by {shift}" for shift in shown if shift]
    return markdown_table(("experiment", "pooling", "runs", "test accuracy", *moved), rows)


TABLES: Mapping[str, Callable[[Results], str]] = {
    "accuracy": accuracy,
    "architectures": architectures,
    "cifar10_changes": cifar10_changes,
    "painters": painters,
    "products_log": products_log,
    "regression": regression,
    "speed": speed,
    "robustness": robustness,
    "studies": studies,
}


def with_tables(readme: str, results: Results) -> str:
    """The README with its tables made anew.

    Raises:
        UsageError: it names a table that there is not, or does not end one.
    """

    def table(match: re.Match[str]) -> str:
        start, name, end = match.groups()
        if name not in TABLES:
            raise UsageError(f"README.md: no table is named '{name}'; there is {', '.join(TABLES)}")
        return f"{start}{TABLES[name](results)}\n{end}"

    if readme.count("<!-- table:") != readme.count("<!-- end -->"):
        raise UsageError("README.md: not every '<!-- table: NAME -->' has its '<!-- end -->'")
    return TABLE.sub(table, readme)


def main(arguments: Sequence[str] | None = None, root: Path = ROOT) -> int:
    """The command; returns its exit code: 1 if `--check` finds the README out of date."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.readme_tables")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if out of date")
    check = parser.parse_args(arguments).check
    path = root / "README.md"
    try:
        old = path.read_text(encoding="utf-8")
        results = {
            file.stem: json.loads(file.read_text(encoding="utf-8"))
            for file in sorted((root / "results").glob("*.json"))
        }
        new = with_tables(old, results)
    except UserError as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return error.exit_code
    if check and new != old:
        print("README.md is out of date: run `python -m benchmarks.readme_tables`", file=sys.stderr)
        return 1
    if new != old:
        path.write_text(new, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
