"""`python -m cnn_research.report RUN...`: tables over runs."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from cnn_research.core.errors import UsageError, one_line, run_command
from cnn_research.core.files import write_text
from cnn_research.core.metrics_log import read_metrics
from cnn_research.core.run_folder import REPORT_FOLDER, RUN, read_json, write_json
from cnn_research.core.terminal import show
from cnn_research.report.change_log import (
    change_log,
    log_as_html,
    log_as_markdown,
    write_log_as_xlsx,
)
from cnn_research.report.html import HTML
from cnn_research.report.label_errors import merged, write_ranking
from cnn_research.report.runs import (
    Group,
    as_markdown,
    group_runs,
    is_finished,
    read_run,
    results,
    run_folders,
    stage_folders,
)

OUTPUTS = (".md", ".csv", ".xlsx", ".html", ".json")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m cnn_research.report",
        description="Compare runs: mean and standard deviation over seeds, one row per config.",
    )
    parser.add_argument(
        "runs",
        nargs="+",
        type=Path,
        metavar="RUN",
        help="folder of a run, or of several runs: a sweep, replicas, or the stages of a pipeline",
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help="also write FILE.md, FILE.csv, FILE.xlsx or, with curves, FILE.html: what each config "
        "changes compared with the first run's, and its results; or FILE.json: the metrics of runs "
        "of one config, and all that is needed to reproduce them",
    )
    parser.add_argument(
        "--labels",
        type=Path,
        metavar="FILE.csv",
        help="merge the runs' rankings of possibly wrong labels; with the runs of all folds of a "
        "cross-validation, every image is ranked by a network that was not trained on it",
    )
    options = parser.parse_args(arguments)
    if options.labels is not None:
        return run_command(lambda _: _rank_labels(options.runs, options.labels))
    return run_command(lambda _: _compare(options.runs, options.output))


def _rank_labels(folders: Sequence[Path], output: Path) -> None:
    runs, faults = _all_runs(folders)
    if faults:
        raise faults[0]
    ranked = merged(runs)
    output.parent.mkdir(parents=True, exist_ok=True)
    write_ranking(ranked, output)
    print(f"wrote {len(ranked):,} labels, the most likely wrong ones first: {output}")


def _compare(folders: Sequence[Path], output: Path | None) -> None:
    if output is not None and output.suffix not in OUTPUTS:
        raise UsageError(f"--output is {output}: its name must end in {', '.join(OUTPUTS)}")
    runs, faults = _all_runs(folders)
    stages = {folder: stage_folders(folder) for folder in runs}
    read = []
    for folder in [each for run, below in stages.items() for each in below or [run]]:
        try:
            read.append((folder, read_run(folder)))
        except UsageError as error:
            faults.append(error)
    if not read:
        raise faults[0]
    groups = group_runs(run for _, run in read if run is not None)
    if output is not None:
        order = [folder for folder, _ in read]
        _write(output, sorted(groups, key=lambda g: min(order.index(r.folder) for r in g.runs)))
    if groups:
        show(as_markdown(groups))
    for fault in faults:
        print(f"skipped: {one_line(fault)}", file=sys.stderr)
    pipelines = [folder for folder, below in stages.items() if below and not is_finished(folder)]
    for folder in [*pipelines, *(folder for folder, run in read if run is None)]:
        print(_why_missing(folder), file=sys.stderr)
    for group in groups:
        draws = {(r.config.get("seed"), str(r.config.get("data"))) for r in group.runs}
        if len(draws) < len(group.runs):
            print(
                f"note: {group.name} has runs with the same seed {group.seeds}, so the standard "
                "deviation is not over seeds",
                file=sys.stderr,
            )


def _all_runs(folders: Sequence[Path]) -> tuple[list[Path], list[UsageError]]:
    """Find the folders of all runs, and the errors of folders without runs.

    Raises `UsageError` for a folder that does not exist.
    """
    # Resolved, so that a folder given twice is one run.
    runs: dict[Path, Path] = {}
    faults: list[UsageError] = []
    for folder in folders:
        try:
            runs |= {run.resolve(): run for run in run_folders(folder)}
        except UsageError as error:
            if not folder.exists():
                raise
            faults.append(error)
    return list(runs.values()), faults


def _why_missing(folder: Path) -> str:
    """Explain why a folder has no row."""
    page = folder / REPORT_FOLDER / HTML
    if is_finished(folder):
        reason = f"its page is {page}" if page.exists() else "it was trained, but not evaluated"
        return f"no metrics: {folder} ({reason})"
    record = read_json(folder / RUN)
    if "finished" in record:
        return f"unfinished: {folder} ({len(record.get('stages', ()))} stages complete)"
    step = max((row["step"] for row in read_metrics(folder)), default=0)
    return f"unfinished: {folder} (step {step})"


def _write(output: Path, groups: Sequence[Group]) -> None:
    """Write `--output`, with the groups in the order of their runs."""
    if not groups:
        raise UsageError(f"no run is finished: there is nothing to write to {output}")
    if output.suffix == ".json" and len(groups) != 1:
        raise UsageError(
            f"--output {output} needs finished runs of one config, not of {len(groups)}: name only "
            "those runs, or write all of them as .md, .csv, .xlsx or .html"
        )
    output.parent.mkdir(parents=True, exist_ok=True)
    if output.suffix == ".json":
        write_json(output, results(groups[0], output.stem))
    elif output.suffix == ".xlsx":
        write_log_as_xlsx(change_log(groups), output)
    elif output.suffix == ".html":
        write_text(output, log_as_html(change_log(groups), groups))
    elif output.suffix == ".csv":
        write_text(output, change_log(groups).to_csv(index=False))
    else:
        write_text(output, log_as_markdown(change_log(groups)).rstrip("\n") + "\n")


if __name__ == "__main__":
    sys.exit(main())
