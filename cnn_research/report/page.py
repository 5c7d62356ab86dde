"""A run's page, `report/report.html`, and the interface of the predictions that it shows."""

from __future__ import annotations

import abc
import dataclasses
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cnn_research.core.errors import UserError
from cnn_research.core.metrics import Direction, by_name, flat
from cnn_research.core.metrics_log import by_epoch
from cnn_research.core.progress import duration
from cnn_research.core.run_folder import (
    REPORT_FOLDER,
    RUN,
    atomic_directory,
    effective_attempts,
    evaluated_config,
    read_json,
)
from cnn_research.data.images import printable
from cnn_research.report.data_section import data_section, shared_with
from cnn_research.report.html import write_page
from cnn_research.report.markdown import markdown_table, number
from cnn_research.report.names import legend, pictured
from cnn_research.report.pictures import Shown

LONGEST_SUFFIX = 40
"""Characters of up to four bytes, so that a file's name has at most 255 bytes."""


@dataclasses.dataclass(frozen=True, eq=False)
class Predictions(abc.ABC):
    """A model's predictions for all examples of a split, for one head, with the true labels."""

    split: str
    """`test`, or `validation` if there is no test split."""
    loss: float = dataclasses.field(kw_only=True)
    """Mean over the labelled examples."""

    def calibration(self) -> dict[str, Any]:
        """Fit parameters to the validation split, as JSON values.

        They are fields of predictions on other splits (`dataclasses.replace`), and of the head's
        description for `decode`.
        """
        return {}

    @abc.abstractmethod
    def __len__(self) -> int:
        """Number of examples, labelled or not."""

    @abc.abstractmethod
    def metrics(self) -> dict[str, float | int]:
        """Compute metrics on labelled examples; raise `UserError` if there are none."""

    def text(self) -> str:
        """Text that a run prints at its end: the metrics, one per line."""
        return "".join(
            f"{value:>12,} {name}\n" if isinstance(value, int) else f"{value:>12.4f} {name}\n"
            for name, value in self.metrics().items()
        )

    def verdict(self, groups: np.ndarray | None) -> str:
        """Summarise the quality of the predictions in one sentence; "" if there is no measure.

        It has an interval over images or, if given, over `groups` `[examples]`, and a baseline that
        does not use the images.
        """
        return ""

    @abc.abstractmethod
    def page(self, folder: Path, suffix: str, shown: Shown | None) -> Iterator[str]:
        """Yield the parts of the report's page below the metrics, in Markdown.

        Writes their files to `folder`, with `suffix` at the end of the stems of their names. The
        images are in the order of the predictions; without them, parts with images are omitted.
        """

    def common_classes(self, most: int) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
        """Yield name, membership (bool `[labelled]`) and probability (float64) of the `most`
        commonest classes."""
        yield from ()


def file_suffixes(heads: Sequence[str]) -> dict[str, str]:
    """Make each head's suffix of file names: `_` and its name, or "" if there is only one head.

    Characters that are unsafe in file names become `_`; names that differ at most in case are
    numbered.
    """
    if len(heads) == 1:
        return {heads[0]: ""}
    suffixes: dict[str, str] = {}
    for head in heads:
        plain = suffix = "_" + re.sub(r"[^\w.=+-]+", "_", head)[:LONGEST_SUFFIX]
        number = 1
        while suffix.lower() in map(str.lower, suffixes.values()):
            number += 1
            suffix = f"{plain}-{number}"
        suffixes[head] = suffix
    return suffixes


def write_report(
    workdir: Path,
    *,
    title: str,
    metrics: Mapping[str, Mapping[str, Any]],
    predictions: Mapping[str, Mapping[str, Predictions]],
    shown: Mapping[str, Shown],
    history: Sequence[Mapping[str, Any]],
    directions: Mapping[str, Direction],
    params: Mapping[str, Any],
    unlabelled: Mapping[str, int],
) -> Path:
    """Write `report/` with its page and figures, atomically; return the path of report.html.

    Facts are read from config.json and run.json in the workdir, if they exist. Metrics are per
    split, as in evaluation.json, predictions per split and head, images per split in the same
    order. Files are named after the head if there are several, and after the split from the second
    on. `history` has rows of metrics.jsonl; without any there are no curves. `params` are nested
    dicts of arrays, or of anything with a shape. `unlabelled` has the number of images without a
    label, by split and head. Raises `UserError` if a head has no labels, or the numbers of images
    and predictions differ.
    """
    run, config = read_json(workdir / RUN), evaluated_config(workdir)
    data = run.get("data", {})
    parts = [f"# {title}", *_verdicts(predictions, metrics, shown, config, data)]
    parts.append("\n".join(_run_facts(config, run)))
    folder = workdir / REPORT_FOLDER
    with atomic_directory(folder) as partial:
        for number_, (split, heads) in enumerate(predictions.items()):
            suffix = f"_{split}" if number_ else ""
            parts += _evaluation(partial, suffix, split, metrics[split], heads, shown, run)
        parts += data_section(partial, data, unlabelled)
        parts += _choices(run)
        if history:
            parts += _training(partial, history, directions)
        parts += ["## Parameters", parameters_table(params)]
        page = write_page(partial, parts, config)
    return folder / page.name


def _verdicts(
    predictions: Mapping[str, Mapping[str, Predictions]],
    metrics: Mapping[str, Mapping[str, Any]],
    shown: Mapping[str, Shown],
    config: Mapping[str, Any],
    data: Mapping[str, Any],
) -> Iterator[str]:
    """Yield one sentence on the quality of the network per split and labelled head."""
    for split, heads in predictions.items():
        for head, predicted in heads.items():
            if len(heads) > 1 and head not in metrics[split]:
                continue
            sentence = predicted.verdict(shown[split].groups if split in shown else None)
            if sentence and split == "validation" and _chose_by_validation(config):
                sentence += (
                    " These images also selected the checkpoint, so expect worse results on new "
                    "ones."
                )
            if sentence:
                yield f"{head}: {sentence}" if len(heads) > 1 else sentence
        if warning := shared_with(split, data):
            yield warning


def _chose_by_validation(config: Mapping[str, Any]) -> bool:
    return config.get("selection", {}).get("report") == "best"


def _choices(run: Mapping[str, Any]) -> Iterator[str]:
    """Yield the settings that were chosen from the data, as printed before the run."""
    chosen = [a["choices"] for a in effective_attempts(run) if a.get("choices")]
    if chosen:
        yield "## Choices"
        yield f"```\n{chosen[-1]}\n```"


def _run_facts(config: Mapping[str, Any], run: Mapping[str, Any]) -> Iterator[str]:
    attempts = effective_attempts(run)
    command = attempts[-1]["command"] if attempts else ()
    machines = (", ".join(f"{k}: {v}" for k, v in a["machine"].items()) for a in attempts)
    seconds = run.get("wall_seconds")

    def listed(values: Iterable[str]) -> str:
        return "; ".join(dict.fromkeys(values))

    for name, value in (
        ("Experiment", config.get("name")),
        ("Document", run.get("document")),
        ("Data", run.get("data", {}).get("name")),
        ("Command", f"`{' '.join(map(printable, command))}`" if command else None),
        ("Commit", listed(map(_commit, attempts))),
        ("Machine", listed(machines)),
        ("Devices", listed(", ".join(attempt["devices"]) for attempt in attempts)),
        ("Started", listed(attempt["started"] for attempt in attempts)),
        ("Time", None if seconds is None else duration(seconds)),
        ("Seed", run.get("seed")),
    ):
        if value not in (None, ""):
            yield f"- {name}: {value}"


def _commit(attempt: Mapping[str, Any]) -> str:
    changes = attempt["source_diff"]
    return attempt["commit"] + (f", with uncommitted changes ({changes})" if changes else "")


def _evaluation(
    folder: Path,
    suffix: str,
    split: str,
    metrics: Mapping[str, Any],
    predictions: Mapping[str, Predictions],
    shown: Mapping[str, Shown],
    run: Mapping[str, Any],
) -> Iterator[str]:
    """Yield the section of one split, and write its files."""
    theirs = by_name(run.get("document_results") or {})
    where = "" if split == "test" else f"{split} "
    yield f"## Result on the {split} split"
    yield _metrics_table(metrics, theirs, where)
    endings = file_suffixes(list(predictions))
    for head, predicted in predictions.items():
        pictures = shown.get(split)
        if pictures is not None and len(pictures.images) != len(predicted):
            raise UserError(
                f"report: {len(pictures.images)} images but {len(predicted)} predictions; "
                "they must be for the same examples, in the same order"
            )
        if len(predictions) == 1:
            yield from predicted.page(folder, suffix, pictures)
            continue
        yield f"### {head}, {split} split"
        if head not in metrics:
            yield "No image of this split has a label of this head, so it is skipped."
            continue
        yield _metrics_table(metrics[head], theirs, f"{where}{head} ")
        yield from predicted.page(folder, f"{endings[head]}{suffix}", pictures)


def _metrics_table(ours: Mapping[str, Any], theirs: Mapping[str, float], prefix: str) -> str:
    """Format metrics as a table, beside those reported by the document under the prefix, if any."""
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
    from cnn_research.report import plots

    epochs = by_epoch(history)
    names = plots.curve_names(epochs, directions)
    yield "## Training"
    yield (
        "Training metrics are means over an epoch, measured while the network was learning, with "
        "any dropout and augmentation; validation metrics were measured at the end of the epoch."
    )
    figure = plots.training_curves(epochs, directions)
    yield plots.saved(figure, folder / "curves.png", f"Curves of {', '.join(names)} by epoch")
    if explained := legend(names, pictured(names, plots.LONGEST_METRIC), "metric"):
        yield explained
    columns = [
        (split, name)
        for name in names
        for split in ("train", "validation")
        if any(name in epoch[split] for epoch in epochs)
    ]
    yield markdown_table(
        ("epoch", *(f"{'training' if s == 'train' else s} {name}" for s, name in columns)),
        [(str(e["epoch"]), *(number(e[split].get(n)) for split, n in columns)) for e in epochs],
    )


def parameters_table(params: Mapping[str, Any]) -> str:
    """Make a Markdown table of nested parameters: path, shape and count, and the total."""
    rows, total = [], 0
    for path, array in flat(params, "/"):
        count = math.prod(array.shape)
        total += count
        rows.append((path, " x ".join(map(str, array.shape)) or "scalar", f"{count:,}"))
    return markdown_table(("parameter", "shape", "count"), [*rows, ("total", "", f"{total:,}")])
