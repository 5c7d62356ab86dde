"""Labels that may be wrong: the images of a split, ranked by what a network makes of their labels.

The score is the self-confidence of confident learning (Northcutt, Jiang and Chuang 2021,
"Confident Learning: Estimating Uncertainty in Dataset Labels", JAIR 70): the probability of the
label. It is only to be trusted for images that the network was not trained on, as a network learns
wrong labels by heart. Their normalised margin, the probability of the label minus the largest of
another class, is as good for good networks, and worse for poor ones (`benchmarks.wrong_labels`).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cnn_research.core.errors import UsageError
from cnn_research.core.run_folder import REPORT_FOLDER

if TYPE_CHECKING:
    import pandas

RANKING = "label_ranking"
"""Stem of the files in a run's report."""
SCORE = "probability of label"
COLUMNS = ("file", "label", "answer", SCORE, "probability of answer")


def ranking(
    probabilities: np.ndarray, labels: np.ndarray, class_names: Sequence[str], names: Sequence[str]
) -> pandas.DataFrame:
    """A row for each image, those first whose label is least probable; the index is its place.

    Args:
        probabilities: float64 `[examples, classes]`.
        labels: int `[examples]`, each a class.
        names: of the images.
    """
    import pandas

    answers, rows = probabilities.argmax(axis=1), np.arange(len(labels))
    every = np.array(class_names)
    values = (
        *(names, every[labels], every[answers]),
        *(probabilities[rows, labels], probabilities[rows, answers]),
    )
    table = pandas.DataFrame(dict(zip(COLUMNS, values, strict=True)))
    return table.sort_values(SCORE, kind="stable")


def write_ranking(table: pandas.DataFrame, file: Path) -> None:
    """Write a ranking as CSV."""
    table.to_csv(file, index=False, lineterminator="\n", float_format="%.9g")


def rankings_of(run: Path) -> list[Path]:
    """The rankings in a run's report, of each head and split; none where labels are no classes."""
    return sorted((run / REPORT_FOLDER).glob(f"{RANKING}*.csv"))


def merged(runs: Sequence[Path]) -> pandas.DataFrame:
    """The rankings of several runs' reports as one, with a column `run`.

    Of k folds, each of which is tested on what the others train on, it ranks all images by networks
    that were not trained on them. Raises `UsageError` for a run without a ranking.
    """
    import pandas

    tables = []
    for run in runs:
        files = rankings_of(run)
        if not files:
            raise UsageError(
                f"{run} has no {REPORT_FOLDER}/{RANKING}.csv, the ranking of a classifier's "
                "labels: train there first, or write its report again with --mode=evaluate"
            )
        for file in files:
            table = pandas.read_csv(file, dtype=dict.fromkeys(COLUMNS[:3], str), na_filter=False)
            tables.append(table.assign(run=run.name + file.stem.removeprefix(RANKING)))
    return pandas.concat(tables).sort_values(SCORE, kind="stable")
