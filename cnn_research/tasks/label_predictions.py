"""Predicted label sets of a split's images: their metrics and their part of a report."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import expit

from cnn_research.report.interval import interval, interval_text
from cnn_research.report.markdown import markdown_table, number
from cnn_research.report.names import LONGEST_NAME, short_names
from cnn_research.report.pictures import MOST_LISTED, Shown, pictures_table
from cnn_research.tasks.calibration import CalibratedPredictions, Reliability, temperature

FEWEST_IMAGES = 5
"""Labels of fewer validation images than this keep the threshold 0.5."""


@dataclasses.dataclass(frozen=True, eq=False)
class LabelPredictions(CalibratedPredictions):
    """Predicted labels of all examples of a split, for one head."""

    logits: np.ndarray
    """float32 `[examples, labels]`."""
    labels: np.ndarray
    """int8 `[examples, labels]`, 1 for the labels of an example."""
    class_names: tuple[str, ...]
    """Name of each label."""
    trained: np.ndarray
    """int `[labels]`, number of training examples with each label."""
    thresholds: tuple[float, ...] | None = None
    """Probability from which each label counts as predicted, chosen on the validation split; None
    for 0.5."""

    def __len__(self) -> int:
        return len(self.labels)

    @functools.cached_property
    def probabilities(self) -> np.ndarray:
        """Probability of each label, float64 `[examples, labels]`, with the temperature."""
        return expit(self.logits.astype(np.float64) / (self.temperature or 1))

    @functools.cached_property
    def predicted(self) -> np.ndarray:
        """Predicted labels, bool `[examples, labels]`, by the thresholds."""
        return self.probabilities >= (0.5 if self.thresholds is None else self.thresholds)

    def metrics(self) -> dict[str, float | int]:
        """Compute the metrics of an evaluation; average precision and F1 are scikit-learn's.

        The mean average precision (mAP) is over the labels that occur in the split; that of a
        random order is added. Macro F1 also includes labels that are only predicted.
        """
        present, rows = np.flatnonzero(self.labels.any(axis=0)), self.by_label
        metrics: dict[str, float | int] = {
            "loss": self.loss,
            "mAP": float(np.mean([rows[at]["average precision"] for at in present])),
            "mAP by chance": float(self.labels[:, present].mean()),
            "macro F1": float(np.mean([row["F1"] for row in rows if row["shown"]])),
            "micro F1": float(_f1(self.labels, self.predicted)),
            "F1 at 0.5": float(_f1(self.labels, self.logits > 0)),
            "exact match": float((self.labels == self.predicted).all(axis=1).mean()),
            **self.calibration_metrics(),
        }
        if len(present) < len(self.class_names):
            metrics["absent labels count"] = len(self.class_names) - len(present)
        return {**metrics, "count": len(self)}

    @functools.cached_property
    def by_label(self) -> list[dict[str, Any]]:
        """Metrics of each label; `shown` is whether it occurs among labels or predictions."""
        from sklearn.metrics import average_precision_score

        rows = []
        for at, name in enumerate(self.class_names):
            true, predicted = self.labels[:, at] == 1, self.predicted[:, at]
            hits, images, positives = (int(x.sum()) for x in (true & predicted, true, predicted))
            ap = average_precision_score(true, self.logits[:, at]) if images else float("nan")
            rows.append(
                {
                    "label": name,
                    "trained on": int(self.trained[at]),
                    "images": images,
                    "average precision": float(ap),
                    "threshold": 0.5 if self.thresholds is None else self.thresholds[at],
                    "precision": hits / max(positives, 1),
                    "recall": hits / max(images, 1),
                    "F1": float(_f1(true, predicted)),
                    "shown": bool(images or positives),
                }
            )
        return rows

    def text(self) -> str:
        """Metrics of each label, then of all."""
        return f"{self._table()}\n{super().text()}"

    def verdict(self, groups: np.ndarray | None) -> str:
        """The mean average precision compared with a random order, and the exact-match rate with
        its interval."""
        metrics, exact = self.metrics(), (self.labels == self.predicted).all(axis=1)
        text = (
            f"On {len(self):,} {self.split} images, the mean average precision of the labels is "
            f"{metrics['mAP']:.3f}, compared with {metrics['mAP by chance']:.3f} by chance; "
            f"{exact.mean():.1%} of the images get exactly the right labels"
        )
        return f"{text}{interval_text(interval(exact, groups), '.1%', exact, groups)}."

    def page(self, folder: Path, suffix: str, shown: Shown | None) -> Iterator[str]:
        """Show the metrics of each label, lowest F1 first; calibration; mistakes."""
        counted = zip(self.class_names, self.trained, strict=True)
        untrained = [name for name, count in counted if not count]
        if untrained:
            yield f"Labels without training images: {', '.join(untrained)}."
        yield (
            "mAP is the labels' mean average precision: images are ranked by the label's "
            "probability, and the precision is averaged over the ranking; `mAP by chance` is that "
            "of a random order. A label counts as predicted if its probability reaches the "
            "threshold with the highest F1 on the validation images (0.5 if fewer than "
            f"{FEWEST_IMAGES} of them have the label)."
        )
        yield self._table()
        yield from self.calibration_page(folder, suffix)
        if shown is not None:
            yield from self._mistakes(folder, suffix, shown)

    def _table(self) -> str:
        rows = sorted((row for row in self.by_label if row["shown"]), key=lambda row: row["F1"])
        columns = [name for name in rows[0] if name != "shown"]
        return markdown_table(columns, [[_cell(row[name]) for name in columns] for row in rows])

    def _mistakes(self, folder: Path, suffix: str, shown: Shown) -> Iterator[str]:
        """Show the most confident mistakes: labels that were wrongly predicted, or missed."""
        names = short_names(self.class_names, LONGEST_NAME)
        sure = np.where(self.predicted, self.probabilities, 1 - self.probabilities)
        sure = np.where(self.predicted == self.labels, -1, sure)
        order = np.argsort(-sure, axis=None, kind="stable")[:MOST_LISTED]
        worst = [divmod(int(at), len(names)) for at in order if sure.flat[at] >= 0]
        if not worst:
            yield "All labels are predicted correctly."
            return
        yield "The mistakes of which the network is most certain; some true labels may be wrong."
        rows = [
            (
                names[label],
                "predicted" if self.predicted[image, label] else "not predicted",
                f"{self.probabilities[image, label]:.1%}",
                "; ".join(names[at] for at in np.flatnonzero(self.labels[image])) or "none",
            )
            for image, label in worst
        ]
        columns = ("label", "prediction", "probability", "true labels")
        places = [image for image, _ in worst]
        yield pictures_table(shown, places, folder, f"mistakes{suffix}", columns, rows)

    def common_classes(self, most: int) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
        """Yield name, members (bool `[examples]`) and probability (float64) of common labels."""
        counts = self.labels.sum(axis=0)
        for index in np.sort(np.argsort(-counts, kind="stable")[:most]):
            if counts[index]:
                members = self.labels[:, index] == 1
                yield self.class_names[index], members, self.probabilities[:, index]

    def calibration(self) -> dict[str, Any]:
        """Fit the temperature, if there are enough examples, then each label's threshold for the
        highest F1."""
        logits = self.logits.astype(np.float64)

        def mean_loss(at: float) -> float:
            losses = np.logaddexp(0, logits / at) - self.labels * logits / at
            return float(losses.sum(axis=1).mean())

        fitted = temperature(mean_loss, len(self))
        warm = dataclasses.replace(self, temperature=fitted)
        thresholds = [
            best_threshold(probabilities, true) if true.sum() >= FEWEST_IMAGES else 0.5
            for probabilities, true in zip(warm.probabilities.T, self.labels.T, strict=True)
        ]
        return {**({} if fitted is None else {"temperature": fitted}), "thresholds": thresholds}

    def reliability(self) -> Reliability:
        """Reliability of the probabilities of all labels of all examples."""
        return Reliability(self.probabilities.ravel(), self.labels.ravel() == 1)


def best_threshold(probabilities: np.ndarray, true: np.ndarray) -> float:
    """Find the threshold with the highest F1, halfway between two probabilities; on ties, highest.

    Both are `[examples]`; `true` must not be all 0.
    """
    order = np.argsort(-probabilities, kind="stable")
    falling, hits = probabilities[order], np.cumsum(true[order])
    f1 = 2 * hits / (np.arange(1, len(true) + 1) + hits[-1])
    following = np.append(falling[1:], 0.0)
    # Examples of equal probability are predicted together.
    best = int(np.argmax(np.where(falling > following, f1, -1)))
    return float((falling[best] + following[best]) / 2)


def _f1(true: np.ndarray, predicted: np.ndarray) -> np.floating:
    """F1 over all elements of two arrays of 0 and 1; 0 if neither has a 1."""
    return 2 * (true * predicted).sum() / max(true.sum() + predicted.sum(), 1)


def _cell(value: Any) -> str:
    return value if isinstance(value, str) else number(value)
