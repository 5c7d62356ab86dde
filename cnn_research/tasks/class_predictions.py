"""Predicted classes of a split's images: figures, and what a report shows of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.special import log_softmax, softmax

from cnn_research.core.errors import UserError
from cnn_research.data.dataset import MISSING, UNKNOWN_CLASS
from cnn_research.report.markdown import markdown_table
from cnn_research.report.page import Predictions
from cnn_research.report.plots import (
    VERBATIM,
    image_grid,
    no_mistakes,
    saved,
    shortened,
    show_image,
)
from cnn_research.tasks.calibration import (
    Reliability,
    calibration_metrics,
    calibration_page,
    temperature,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_PAIRS = 10
MOST_MISTAKES = 24
MOST_CLASSES_WITH_COUNTS = 30
CONFUSED_ROWS, CONFUSED_COLUMNS = 6, 3
TOP, MANY_CLASSES = 5, 10
"""With more than so many classes, whether the label is among the first five answers counts, too."""
UNKNOWN_CLASS_NAME = "(unseen)"
"""Name in reports of all labels that training has not seen."""


@dataclasses.dataclass(frozen=True, eq=False)
class ClassPredictions(Predictions):
    """Predicted classes of every example of a split, for one head."""

    logits: np.ndarray
    """float32 `[examples, classes]`."""
    labels: np.ndarray
    """int32 `[examples]`; -1 where not known: such an example is left out; -2 for a label that is
    none of the classes: no answer to it is right."""
    class_names: tuple[str, ...]
    trained: np.ndarray | None = None
    """bool `[classes]`, whether a class had training examples; None: all had."""
    temperature: float | None = None
    """Fitted to validation: probabilities are of the logits divided by it. None: not fitted."""

    def __len__(self) -> int:
        return len(self.labels)

    def metrics(self) -> dict[str, float | int]:
        """The metrics of an evaluation; `correct` of `count` examples is the accuracy, exactly.

        Precision, recall and F1 are scikit-learn's, over the classes that occur as a label or a
        prediction; 0 where a class is never predicted. Where training has not seen all labels,
        such labels count as wrong, and the accuracy on the others stands beside.

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
        metrics |= calibration_metrics(*self._reliability())
        if not seen.all():
            metrics["unseen"] = int((~seen).sum())
        return {**metrics, "correct": correct, "count": len(labels)}

    def text(self) -> str:
        """scikit-learn's classification report with four digits, as the library prints it."""
        return self._sklearn_report(as_text=True)

    def page(self, folder: Path, suffix: str, images: np.ndarray | None) -> Iterator[str]:
        """The classification report, the confusion matrix and the worst mistakes."""
        # Labels of no known class first: they lower every figure that follows.
        labels, _ = self.known()
        unseen = int((~self._seen(labels)).sum())
        if unseen:
            yield (
                f"{unseen:,} of {len(labels):,} labels are of classes without training examples: "
                f"every answer to them counts as wrong; {UNKNOWN_CLASS_NAME} stands for them below."
            )
        text = self.text()
        (folder / f"classification_report{suffix}.txt").write_text(text, encoding="utf-8")
        yield f"```\n{text}```"
        yield from calibration_page(folder, suffix, *self._reliability(), self.temperature)

        matrix = self.confusion_counts()
        figure = confusion_matrix_plot(matrix, self.class_names)
        alt = "Confusion matrix: true classes down, predicted ones across"
        yield saved(figure, folder / f"confusion_matrix{suffix}.png", alt)
        pairs = _most_confused(matrix)
        if pairs:
            yield "The pairs confused most often:"
            header = ("true class", "predicted", "times", "share of the true class")
            names, totals = self.class_names, matrix.sum(axis=1)
            rows = [
                (names[a], names[b], str(matrix[a, b]), f"{matrix[a, b] / totals[a]:.1%}")
                for a, b in pairs
            ]
            yield markdown_table(header, rows)
        # All that follows shows images: first the commonest confusions, then the surest mistakes.
        if images is None:
            return
        predicted = self.logits.argmax(axis=1)
        if pairs:
            figure = confusions_plot(images, self.labels, predicted, pairs, self.class_names)
            alt = "Images of the confused pairs, beside those of the predicted class"
            yield saved(figure, folder / f"confusions{suffix}.png", alt)
        figure = mistakes_plot(
            images,
            np.where(self.labels == UNKNOWN_CLASS, len(self.class_names), self.labels),
            predicted,
            self.probabilities().max(axis=1),
            (*self.class_names, UNKNOWN_CLASS_NAME),
        )
        yield "The mistakes made with most confidence, with the probability of the wrong class:"
        alt = "Images of the surest mistakes, with answer and true class"
        yield saved(figure, folder / f"mistakes{suffix}.png", alt)

    def common_classes(self, most: int) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
        """Name, membership (bool `[known]`), probability (float64) of the classes with most
        labels."""
        known = self.labels != MISSING
        labels, shares = self.labels[known], self.probabilities()[known]
        counts = np.bincount(labels[labels >= 0], minlength=len(self.class_names))
        for index in np.sort(np.argsort(-counts, kind="stable")[:most]):
            if counts[index]:
                yield self.class_names[index], labels == index, shares[:, index]

    def probabilities(self) -> np.ndarray:
        """Of each class, float64 `[examples, classes]`, with the temperature."""
        return softmax(self.logits.astype(np.float64) / (self.temperature or 1), axis=-1)

    def calibration(self) -> dict[str, Any]:
        """The temperature that fits the labels best, where there are enough."""
        known = self.labels >= 0
        labels, logits = self.labels[known, None], self.logits[known].astype(np.float64)

        def mean_loss(at: float) -> float:
            logs = log_softmax(logits / at, axis=-1)
            return -float(np.take_along_axis(logs, labels, axis=1).mean())

        found = temperature(mean_loss, len(labels))
        return {} if found is None else {"temperature": found}

    def _reliability(self) -> tuple[Reliability, Reliability | None]:
        """That of the answers; and without the temperature, where one was fitted."""
        labels, predicted = self.known()
        known, right = self.labels != MISSING, labels == predicted
        now = Reliability(self.probabilities()[known].max(axis=1), right)
        if self.temperature is None:
            return now, None
        plain = dataclasses.replace(self, temperature=None)
        return now, plain._reliability()[0]

    def _among_first(self) -> np.ndarray:
        """True where the label is among the first five answers, bool `[known]`."""
        known = self.labels != MISSING
        labels, logits = self.labels[known], self.logits[known]
        own = np.take_along_axis(logits, np.maximum(labels, 0)[:, None], axis=1)
        # Of equal outputs the first class comes first, as in the answer itself.
        earlier = np.arange(logits.shape[1]) < labels[:, None]
        ahead = ((logits > own) | ((logits == own) & earlier)).sum(axis=1)
        return (ahead < TOP) & (labels != UNKNOWN_CLASS)

    def known(self) -> tuple[np.ndarray, np.ndarray]:
        """Labels and predicted classes, int `[known]` each, of the examples with a label."""
        known = self.labels != MISSING
        return self.labels[known], self.logits[known].argmax(axis=1)

    def _seen(self, labels: np.ndarray) -> np.ndarray:
        """True where training has seen the label, bool `[known]`."""
        trained = np.ones(len(self.class_names), bool) if self.trained is None else self.trained
        return (labels != UNKNOWN_CLASS) & trained[labels]

    def confusion_counts(self) -> np.ndarray:
        """int64 `[classes, classes]`: how often each true class (row) was predicted as each."""
        classes = len(self.class_names)
        labels, predicted = self.known()
        cells = (labels * classes + predicted)[labels != UNKNOWN_CLASS]
        return np.bincount(cells, minlength=classes**2).reshape(classes, classes)

    def _sklearn_report(self, *, as_text: bool) -> Any:
        from sklearn import metrics

        labels, predicted = self.known()
        if not labels.size:
            raise UserError(f"split {self.split}: no example has a label to evaluate against")
        names = (*self.class_names, UNKNOWN_CLASS_NAME)
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


def _most_confused(matrix: np.ndarray) -> list[tuple[int, int]]:
    """(true class, predicted class) of the confusions that occur most often."""
    confusions = matrix - np.diag(np.diag(matrix))
    order = np.argsort(-confusions, axis=None, kind="stable")[:MOST_PAIRS]
    return [divmod(place, len(matrix)) for place in order.tolist() if confusions.flat[place]]


def confusion_matrix_plot(matrix: np.ndarray, class_names: Sequence[str]) -> Figure:
    """Counts of (true class, predicted class), int `[classes, classes]`; the colours are shares of
    the true class. The figure grows with the classes; it shows the counts of up to 30 of them.
    """
    from matplotlib.colors import PowerNorm
    from matplotlib.figure import Figure

    classes = len(class_names)
    with_counts = classes <= MOST_CLASSES_WITH_COUNTS
    cell = 0.4 if with_counts else 0.17  # inches: four digits, or one line of small type
    font = 8 if with_counts else 6
    names = [shortened(name, 24) for name in class_names]
    margin = 1.2 + 0.012 * font * max(map(len, names))  # the labels, and the bar of colours
    side = max(3.2, cell * classes + margin)
    figure = Figure(figsize=(side + 0.9, side), dpi=144, layout="constrained")
    axes = figure.subplots()
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    # By the square root: a hundredth of a class, once confused, is to be seen.
    scale = PowerNorm(0.5, vmin=0, vmax=1)
    picture = axes.imshow(shares, cmap="Blues", norm=scale)
    _class_ticks(axes, names, font, slanted=with_counts)
    if with_counts:
        for row, column in zip(*np.nonzero(matrix), strict=True):
            colour = "white" if scale(shares[row, column]) > 0.6 else "black"
            text: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": font}
            axes.text(column, row, f"{matrix[row, column]}", **text, color=colour)
    bar = figure.colorbar(picture, ax=axes, shrink=0.6, pad=0.02)
    bar.set_ticks([0, 0.01, 0.05, 0.2, 0.5, 1])
    bar.set_label("share of the true class", fontsize=9)
    bar.ax.tick_params(labelsize=8)
    bar.outline.set_visible(False)
    return figure


def _class_ticks(axes: Axes, names: Sequence[str], font: int, slanted: bool) -> None:
    """Label both axes with the classes, and draw lines between their cells."""
    ticks = np.arange(len(names))
    # Slanted names need room between them; upright ones fit over any column.
    slant: dict[str, Any] = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"}
    if not slanted:
        slant = {"rotation": 90}
    elif max(map(len, names)) <= 3:
        slant = {}
    axes.set_xticks(ticks, names, fontsize=font, **slant, **VERBATIM)
    axes.set_yticks(ticks, names, fontsize=font, **VERBATIM)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    # Lines between the cells, drawn as a grid of minor ticks.
    axes.set_xticks(ticks[1:] - 0.5, minor=True)
    axes.set_yticks(ticks[1:] - 0.5, minor=True)
    axes.grid(which="minor", color="#EEEEEE", linewidth=0.6)
    axes.tick_params(which="minor", length=0)


def mistakes_plot(
    images: np.ndarray,
    labels: np.ndarray,
    predictions: np.ndarray,
    probabilities: np.ndarray,
    class_names: Sequence[str],
) -> Figure:
    """Draw up to 24 mistakes made with most confidence, the worst first.

    Images are uint8 `[examples, height, width, channels]`, of which few are read; labels and
    predictions int `[examples]` (-1, not known, is no mistake); probabilities, float `[examples]`,
    are those of the predicted classes.
    """
    wrong = np.flatnonzero((labels != MISSING) & (predictions != labels))
    # A stable sort: of equal probabilities, the earlier example comes first.
    worst = wrong[np.argsort(-probabilities[wrong], kind="stable")][:MOST_MISTAKES]
    if not worst.size:
        return no_mistakes()
    titles = [
        f"{shortened(class_names[predictions[index]], 15)}, {probabilities[index]:.0%}\n"
        f"true: {shortened(class_names[labels[index]], 16)}"
        for index in worst
    ]
    return image_grid(images[worst], titles)


def confusions_plot(
    images: np.ndarray,
    labels: np.ndarray,
    predictions: np.ndarray,
    pairs: Sequence[tuple[int, int]],
    class_names: Sequence[str],
) -> Figure:
    """Draw a row for each of the first 6 pairs (true class, predicted class).

    Mistaken examples of the true class are on the left, examples of the other one on the right.
    Images are uint8 `[examples, height, width, channels]`, of which few are read; labels and
    predictions int `[examples]`.
    """
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    shown = pairs[:CONFUSED_ROWS]
    size = (1.6 * 2 * CONFUSED_COLUMNS + 0.4, 1.9 * len(shown))
    layout = ConstrainedLayoutEngine(h_pad=0.06, w_pad=0.04)
    figure = Figure(figsize=size, dpi=144, layout=layout)
    rows: Any = figure.subfigures(len(shown), 1, squeeze=False)
    for row, (true, predicted) in zip(rows.ravel(), shown, strict=True):
        left = np.flatnonzero((labels == true) & (predictions == predicted))
        of_other = np.flatnonzero(labels == predicted)
        # Those that were recognised first: a label may be wrong.
        right = of_other[np.argsort(predictions[of_other] != predicted, kind="stable")]
        taken, other = shortened(class_names[true], 28), shortened(class_names[predicted], 34)
        halves = zip(row.subfigures(1, 2), (left, right), (f"{taken}, taken for", other))
        for half, chosen, title in halves:
            half.suptitle(title, fontsize=9, **VERBATIM)
            for axes, place in zip(half.subplots(1, CONFUSED_COLUMNS), range(len(images))):
                axes.set_axis_off()
                if place < len(chosen):
                    show_image(axes, images[chosen[place]])
    return figure
