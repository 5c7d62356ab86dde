"""Predicted classes of a split's images: their metrics and their part of a report."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.special import log_softmax, softmax

from cnn_research.core.errors import UserError
from cnn_research.data.dataset import MISSING, UNKNOWN_CLASS
from cnn_research.report.interval import interval, interval_text
from cnn_research.report.label_errors import RANKING, ranking, write_ranking
from cnn_research.report.markdown import markdown_table
from cnn_research.report.names import (
    LONGEST_NAME,
    can_be_drawn,
    legend,
    pictured,
    short_names,
    shortened,
)
from cnn_research.report.pictures import MOST_LISTED, Shown, pictures_table
from cnn_research.report.plots import image_grid, no_mistakes, saved
from cnn_research.tasks.calibration import CalibratedPredictions, Reliability, temperature
from cnn_research.tasks.confusion import confusions_plot, matrix_parts, most_confused

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure

MOST_MISTAKES = 24
"""Number of images in a figure."""
LONGEST_IN_PICTURES = 24
"""Characters of a class's name."""
TOP, MANY_CLASSES = 5, 10
"""Top-5 accuracy is measured with more than this many classes."""
UNKNOWN_CLASS_NAME = "(unseen)"
"""Name in reports for all labels without training examples."""


@dataclasses.dataclass(frozen=True, eq=False)
class ClassPredictions(CalibratedPredictions):
    """Predicted classes of all examples of a split, for one head."""

    logits: np.ndarray
    """float32 `[examples, classes]`."""
    labels: np.ndarray
    """int32 `[examples]`; -1 for unlabelled examples, which are ignored; -2 for labels that are
    none of the classes, for which every prediction is wrong."""
    class_names: tuple[str, ...]
    training_counts: np.ndarray | None = None
    """int `[classes]`, number of training examples; None if all classes have some."""

    def __len__(self) -> int:
        return len(self.labels)

    def metrics(self) -> dict[str, float | int]:
        """Compute the metrics of an evaluation; the accuracy is exactly `correct` / `count`.

        Precision, recall and F1 are scikit-learn's, over the classes that occur as a label or a
        prediction; they are 0 for a class that is never predicted. Labels without training examples
        count as wrong; if there are any, the accuracy on the others is added.

        Raises:
            UserError: no example has a label.
        """
        averages = self._sklearn_report(as_text=False)
        labels, predicted = self.known()
        correct = int((labels == predicted).sum())
        metrics: dict[str, float | int] = {"loss": self.loss, "accuracy": correct / len(labels)}
        seen = self._seen(labels)
        if not seen.all():
            hits = labels[seen] == predicted[seen]
            metrics["accuracy of seen labels"] = float(hits.mean()) if hits.size else float("nan")
        if len(self.class_names) > MANY_CLASSES:
            metrics["top-5 accuracy"] = float(self._among_first().mean())
        for average in ("macro", "weighted"):
            for name, key in (("precision", "precision"), ("recall", "recall"), ("F1", "f1-score")):
                metrics[f"{average} {name}"] = float(averages[f"{average} avg"][key])
        metrics |= self.calibration_metrics()
        if not seen.all():
            metrics["unseen"] = int((~seen).sum())
        return {**metrics, "correct": correct, "count": len(labels)}

    def text(self) -> str:
        """scikit-learn's classification report with four digits."""
        return self._sklearn_report(as_text=True)

    def verdict(self, groups: np.ndarray | None) -> str:
        """The accuracy with its interval, compared with always predicting the commonest class."""
        labels, predicted = self.known()
        hits = labels == predicted
        groups = None if groups is None else groups[self.labels != MISSING]
        limits = interval(hits, groups)
        text = f"Of {hits.size:,} {self.split} images, {hits.mean():.1%} are classified correctly"
        text += interval_text(limits, ".1%", hits, groups)
        if self.training_counts is None:
            return f"{text}."
        commonest = int(self.training_counts.argmax())
        guessed = float((labels == commonest).mean())
        name = short_names(self.class_names, LONGEST_NAME)[commonest]
        text += f"; always predicting '{name}', the most common class in training, would give "
        text += f"{guessed:.1%}"
        if limits is not None and limits[0] <= guessed:
            text += ", and these images do not show that the network is better"
        return f"{text}."

    def page(self, folder: Path, suffix: str, shown: Shown | None) -> Iterator[str]:
        """Show the classification report, the confusion matrix and the worst mistakes."""
        # Unseen labels first, as they lower all metrics that follow.
        labels, _ = self.known()
        unseen = int((~self._seen(labels)).sum())
        if unseen:
            yield (
                f"{unseen:,} of {len(labels):,} labels are of classes without training examples. "
                "Predictions for them always count as wrong; these classes are called "
                f"{UNKNOWN_CLASS_NAME} below."
            )
        text = self.text()
        (folder / f"classification_report{suffix}.txt").write_text(text, encoding="utf-8")
        short = short_names(self.class_names, LONGEST_NAME)
        # Without a mark, numbers beside an Arabic or Hebrew name would be shown in another order.
        marked = [s if can_be_drawn(s) else f"{s}\N{LEFT-TO-RIGHT MARK}" for s in short]
        yield f"```\n{self._sklearn_report(as_text=True, names=marked)}```"
        yield from self.calibration_page(folder, suffix)

        matrix = self.confusion_counts()
        in_pictures = pictured(self.class_names, LONGEST_IN_PICTURES)
        yield from matrix_parts(folder, suffix, matrix, self.class_names, in_pictures)
        if explained := legend(self.class_names, in_pictures):
            yield explained
        pairs = most_confused(matrix)
        if pairs:
            yield "The pairs confused most often:"
            header = ("true class", "predicted", "times", "share of the true class")
            totals = matrix.sum(axis=1)
            rows = [
                (short[a], short[b], str(matrix[a, b]), f"{matrix[a, b] / totals[a]:.1%}")
                for a, b in pairs
            ]
            yield markdown_table(header, rows)
        # Parts with images: the commonest confusions, then the most confident mistakes.
        if shown is None:
            return
        predicted = self.logits.argmax(axis=1)
        if pairs:
            figure = confusions_plot(shown.images, self.labels, predicted, pairs, in_pictures)
            alt = "Images of the confused pairs, beside those of the predicted class"
            yield saved(figure, folder / f"confusions{suffix}.png", alt)
        figure = mistakes_plot(
            shown.images,
            np.where(self.labels == UNKNOWN_CLASS, len(self.class_names), self.labels),
            predicted,
            self.probabilities().max(axis=1),
            (*in_pictures, UNKNOWN_CLASS_NAME),
        )
        figure.savefig(folder / f"mistakes{suffix}.png")
        yield from self._mistakes(folder, suffix, shown)

    def _mistakes(self, folder: Path, suffix: str, shown: Shown) -> Iterator[str]:
        """Show the most confident mistakes in a table; write the ranking of all labels."""
        ranked = self.ranking([shown.name(place) for place in range(len(self))])
        write_ranking(ranked, folder / f"{RANKING}{suffix}.csv")
        mistakes = ranked[ranked["label"] != ranked["prediction"]]
        if mistakes.empty:
            yield "No image with a label of a known class is misclassified."
            return
        listed = f"The first {MOST_LISTED} of " if len(mistakes) > MOST_LISTED else ""
        yield (
            f"{listed}{len(mistakes):,} mistakes, with probabilities P. The labels that the "
            "network considers least probable come first; some of these may be wrong. "
            f"{RANKING}{suffix}.csv ranks all {len(ranked):,} labels by their probability "
            "(Northcutt et al. 2021)."
        )
        first = mistakes[:MOST_LISTED]
        names = dict(zip(self.class_names, short_names(self.class_names, LONGEST_NAME)))
        rows = [
            (names[label], f"{own:.1%}", names[predicted], f"{sure:.1%}")
            for _, label, predicted, own, sure in first.itertuples(index=False, name=None)
        ]
        columns = ("label", "P(label)", "prediction", "P(prediction)")
        places = first.index.to_list()
        yield pictures_table(shown, places, folder, f"mistakes{suffix}", columns, rows)

    def ranking(self, names: Sequence[str]) -> pandas.DataFrame:
        """Rank the images whose label is one of the classes, as `label_errors.ranking` does.

        `names` are those of all images; the index of the table has their positions in the split.
        """
        places = np.flatnonzero(self.labels >= 0)
        probabilities = self.probabilities()[places]
        named = [names[place] for place in places.tolist()]
        ranked = ranking(probabilities, self.labels[places], self.class_names, named)
        return ranked.set_index(places[ranked.index])

    def common_classes(self, most: int) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
        """Yield name, members (bool `[labelled]`) and probability (float64) of common classes."""
        known = self.labels != MISSING
        labels, shares = self.labels[known], self.probabilities()[known]
        counts = np.bincount(labels[labels >= 0], minlength=len(self.class_names))
        for index in np.sort(np.argsort(-counts, kind="stable")[:most]):
            if counts[index]:
                yield self.class_names[index], labels == index, shares[:, index]

    def probabilities(self) -> np.ndarray:
        """Probability of each class, float64 `[examples, classes]`, with the temperature."""
        return softmax(self.logits.astype(np.float64) / (self.temperature or 1), axis=-1)

    def calibration(self) -> dict[str, Any]:
        """Fit the temperature, if there are enough labels."""
        known = self.labels >= 0
        labels, logits = self.labels[known, None], self.logits[known].astype(np.float64)

        def mean_loss(at: float) -> float:
            logs = log_softmax(logits / at, axis=-1)
            return -float(np.take_along_axis(logs, labels, axis=1).mean())

        fitted = temperature(mean_loss, len(labels))
        return {} if fitted is None else {"temperature": fitted}

    def reliability(self) -> Reliability:
        """Reliability of the predicted classes."""
        labels, predicted = self.known()
        sure = self.probabilities().max(axis=1)[self.labels != MISSING]
        return Reliability(sure, labels == predicted)

    def _among_first(self) -> np.ndarray:
        """Whether the label is among the five most probable classes, bool `[labelled]`."""
        known = self.labels != MISSING
        labels, logits = self.labels[known], self.logits[known]
        own = np.take_along_axis(logits, np.maximum(labels, 0)[:, None], axis=1)
        # Ties go to the first class, as in the prediction itself.
        earlier = np.arange(logits.shape[1]) < labels[:, None]
        ahead = ((logits > own) | ((logits == own) & earlier)).sum(axis=1)
        return (ahead < TOP) & (labels != UNKNOWN_CLASS)

    def known(self) -> tuple[np.ndarray, np.ndarray]:
        """Labels and predicted classes of the labelled examples, int `[labelled]` each."""
        known = self.labels != MISSING
        return self.labels[known], self.logits[known].argmax(axis=1)

    def _seen(self, labels: np.ndarray) -> np.ndarray:
        """Whether the label has training examples, bool `[labelled]`."""
        known = labels != UNKNOWN_CLASS
        return known if self.training_counts is None else known & (self.training_counts[labels] > 0)

    def confusion_counts(self) -> np.ndarray:
        """Confusion matrix, int64 `[classes, classes]`: true classes are rows."""
        classes = len(self.class_names)
        labels, predicted = self.known()
        cells = (labels * classes + predicted)[labels != UNKNOWN_CLASS]
        return np.bincount(cells, minlength=classes**2).reshape(classes, classes)

    def _sklearn_report(self, *, as_text: bool, names: Sequence[str] | None = None) -> Any:
        from sklearn import metrics

        labels, predicted = self.known()
        if not labels.size:
            raise UserError(f"split {self.split}: no example has a label to evaluate against")
        names = (*(names or self.class_names), UNKNOWN_CLASS_NAME)
        labels = np.where(labels == UNKNOWN_CLASS, len(self.class_names), labels)
        present = np.union1d(labels, predicted)
        return metrics.classification_report(
            labels,
            predicted,
            labels=present,
            target_names=[names[index] for index in present],
            digits=4,
            output_dict=not as_text,
            zero_division=0,
        )


def mistakes_plot(
    images: np.ndarray,
    labels: np.ndarray,
    predictions: np.ndarray,
    probabilities: np.ndarray,
    class_names: Sequence[str],
) -> Figure:
    """Draw up to 24 most confident mistakes, the worst first.

    Images are uint8 `[examples, height, width, channels]`, of which few are read; labels and
    predictions int `[examples]` (-1 for unlabelled examples); probabilities, float `[examples]`,
    are those of the predicted classes.
    """
    wrong = np.flatnonzero((labels != MISSING) & (predictions != labels))
    # A stable sort: on ties the earlier example comes first.
    worst = wrong[np.argsort(-probabilities[wrong], kind="stable")][:MOST_MISTAKES]
    if not worst.size:
        return no_mistakes()
    titles = [
        f"{shortened(class_names[predictions[index]], 15)}, {probabilities[index]:.0%}\n"
        f"true: {shortened(class_names[labels[index]], 16)}"
        for index in worst
    ]
    return image_grid(images[worst], titles)
