"""Find labels that may be wrong: rank images by the probability of their labels.

The score is the self-confidence of confident learning (Northcutt, Jiang and Chuang 2021,
"Confident Learning: Estimating Uncertainty in Dataset Labels", JAIR 70): the probability of the
label. It is reliable only for images that the network was not trained on, as networks memorise
wrong labels. The paper's normalised margin, the probability of the label minus the largest of
another class, is as good for good networks and worse for poor ones (`benchmarks.wrong_labels`).
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
COLUMNS = ("file", "label", "prediction", SCORE, "probability of prediction")


def ranking(
    probabilities: np.ndarray, labels: np.ndarray, class_names: Sequence[str], names: Sequence[str]
) -> pandas.DataFrame:
    """Return one row per image, those with the least probable labels first.

    The index of the table has the images' positions.

    Args:
        probabilities: float64 `[examples, classes]`.
        labels: int `[examples]`, each a class.
        names: names of the images.
    """
    import pandas

    predictions, rows = probabilities.argmax(axis=1), np.arange(len(labels))
    every = np.array(class_names)
    values = (
        *(names, every[labels], every[predictions]),
        *(probabilities[rows, labels], probabilities[rows, predictions]),
    )
    table = pandas.DataFrame(dict(zip(COLUMNS, values, strict=True)))
    return table.sort_values(SCORE, kind="stable")


def write_ranking(table: pandas.DataFrame, file: Path) -> None:
    """Write a ranking as CSV."""
    table.to_csv(file, index=False, lineterminator="\n", float_format="%.9g")


def rankings_of(run: Path) -> list[Path]:
    """Rankings in a run's report, for each head and split; none if labels are not classes."""
    return sorted((run / REPORT_FOLDER).glob(f"{RANKING}*.csv"))


def merged(runs: Sequence[Path]) -> pandas.DataFrame:
    """Merge the rankings of several runs' reports; add a column `run`.

    For the k folds of a cross-validation, all images are ranked by networks that were not trained
    on them. Raises `UsageError` for a run without a ranking.
    """
    import pandas

    tables = []
    for run in runs:
        files = rankings_of(run)
        if not files:
            raise UsageError(
                f"{run} has no {REPORT_FOLDER}/{RANKING}.csv, the ranking of a classifier's "
                "labels: train it first, or write its report again with --mode=evaluate"
            )
        for file in files:
            table = pandas.read_csv(file, dtype=dict.fromkeys(COLUMNS[:3], str), na_filter=False)
            tables.append(table.assign(run=run.name + file.stem.removeprefix(RANKING)))
    return pandas.concat(tables).sort_values(SCORE, kind="stable")
