"""Deliberately wrong labels of CIFAR-10, and their positions in a report's ranking of labels.

    python -m benchmarks.wrong_labels --images ../data/cifar10 --output results/wrong_labels.json

2% of the training and test labels are changed to another random class. The network is that of
`cifar10_best` with half its filters and half its batch size, so that an hour is enough. Trained on
all training images, it ranks the test labels. For the training labels, one network per fold ranks
the fold that it was not trained on, and the rankings are merged. Both are the report's
`label_ranking.csv`, by the label's probability; the normalised margin, the other usual score, is
measured, too.
"""

from __future__ import annotations

import dataclasses
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.results import flag, measurement, row
from cnn_research.core.config import register_config
from cnn_research.core.experiment import lookup
from cnn_research.core.ranges import Seed
from cnn_research.data.dataset import Dataset
from cnn_research.data.sources.loading import Share
from cnn_research.data.sources.official import Cifar10
from cnn_research.report.label_errors import merged

EXPERIMENT = "cifar10_best"
FIRST = 0.05
"""Fraction of a ranking in which wrong labels are counted: 500 of 10,000."""
TARGET = 0.6
"""Fraction of all wrong labels that must be in it."""


@register_config
@dataclasses.dataclass(frozen=True)
class Mislabelled(Cifar10):
    """CIFAR-10 with some wrong labels; if `folds` is set, a training fold is the test split."""

    validation: Share = 0.0
    wrong: Share = 0.02
    """Fraction of the labels of each split that are changed."""
    wrong_seed: Seed = 0
    folds: int = 0
    """Number of folds of the training images; 0 for the official test split."""
    fold: int = 0
    """Fold that is the test split."""

    def load(self) -> Dataset:
        found = super().load()
        splits = {
            name: dataclasses.replace(split, labels={"label": self._changed(split.labels["label"])})
            for name, split in found.splits.items()
        }
        if self.folds:
            train = splits["train"]
            of = np.arange(len(train)) % self.folds  # all classes, even if images are sorted
            parts = {"train": of != self.fold, "test": of == self.fold}
            splits = {name: train.take(np.flatnonzero(part)) for name, part in parts.items()}
        sizes = {name: len(split) for name, split in splits.items()}
        provenance = {**found.provenance, "content": None, "examples": sizes}
        return dataclasses.replace(found, splits=splits, provenance=provenance)

    def _changed(self, labels: np.ndarray) -> np.ndarray:
        rng, changed = np.random.default_rng(self.wrong_seed), np.array(labels)
        places = rng.choice(len(labels), round(self.wrong * len(labels)), replace=False)
        changed[places] = (changed[places] + rng.integers(1, 10, len(places))) % 10
        return changed


def changed_files(path: str, split: str) -> set[str]:
    """Names of a split's images with changed labels."""
    official, wrong = (kind(path, validation=0.0).load() for kind in (Cifar10, Mislabelled))
    labels = [dataset.splits[split].labels["label"] for dataset in (official, wrong)]
    names = official.splits[split].names
    assert names is not None
    return set(names[labels[0] != labels[1]].tolist())


def ranked(path: str, workdir: Path, epochs: float, **fold: int) -> Path:
    """Train on changed labels; the run's report has the ranking of the test labels."""
    from cnn_research.train.loop import train

    best: Any = lookup(EXPERIMENT).experiment()
    optimizer = dataclasses.replace(best.optimizer, learning_rate=best.optimizer.learning_rate / 2)
    smaller = dataclasses.replace(
        best,
        data=Mislabelled(path, **fold),
        model=best.model.clone(features=tuple(width // 2 for width in best.model.features)),
        optimizer=optimizer,
        batch_size=best.batch_size // 2,
        epochs=epochs,
    )
    train(smaller, workdir)
    return workdir


def found_first(runs: list[Path], wrong: set[str]) -> dict[str, Any]:
    """Fraction of the wrong labels that are among the first of the runs' rankings, by score."""
    table = merged(runs)
    first = round(FIRST * len(table))
    margins = table["probability of label"] - table["probability of prediction"]  # of mistakes
    orders = {
        "probability": table,
        "normalised margin": table.iloc[np.argsort(margins, kind="stable")],
    }
    shares = {
        name: int(t["file"][:first].isin(wrong).sum()) / len(wrong) for name, t in orders.items()
    }
    return {"images": len(table), "first": first, "wrong": len(wrong), "share found": shares}


@measurement(
    flag(
        "--images", default="", help="folder or archive of image files; the official data without"
    ),
    flag("--epochs", type=float, default=4),
    flag("--folds", type=int, default=4, help="of the training images; 0 for the test alone"),
    what="wrong labels that were put into CIFAR-10, 2 % of the training and of the test labels",
    target=f"{TARGET:.0%} of them among the first {FIRST:.0%} of the ranking",
    seeds=[0],
)
def main(options):
    figures = {}
    with tempfile.TemporaryDirectory() as temporary:
        scratch = Path(temporary)
        run = ranked(options.images, scratch / "all", options.epochs)
        figures["test"] = found_first([run], changed_files(options.images, "test"))
        if options.folds:
            runs = [
                ranked(
                    *(options.images, scratch / f"fold-{fold}", options.epochs),
                    **{"folds": options.folds, "fold": fold},
                )
                for fold in range(options.folds)
            ]
            figures["train"] = found_first(runs, changed_files(options.images, "train"))
    rows = []
    for split, found in figures.items():
        share, first = found["share found"]["probability"], found["first"]
        rows.append(
            row(
                f"wrong labels of {split} among the first {first:,} of {found['images']:,}",
                f"{TARGET:.0%} of {found['wrong']:,} or more",
                f"{share:.1%}",
                share >= TARGET,
            )
        )
    return rows, {"epochs": options.epochs, "folds": options.folds, **figures}


if __name__ == "__main__":
    sys.exit(main())
