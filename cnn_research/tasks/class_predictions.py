"""What came of a classification: figures, scikit-learn's report, the confusions and mistakes."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from cnn_research.core.errors import UserError
from cnn_research.data.dataset import MISSING, UNSEEN
from cnn_research.report.markdown import markdown_table

MOST_PAIRS = 10
UNSEEN_NAME = "(unseen)"
"""What reports call all labels that training has not seen."""


@dataclasses.dataclass(frozen=True, eq=False)
class ClassPredictions:
    """What a model said about every example of a split, for one head.

    Attributes:
        split: `test`, or `validation` where there is no test split.
        logits: float32 `[examples, classes]`.
        labels: int32 `[examples]`; -1 where not known: such an example is left out; -2 for a label
            that is none of the classes: no answer to it is right.
        class_names: one for each class.
        loss: mean over the examples with a label that is one of the classes.
        trained: bool `[classes]`, whether a class had training examples; None: all had.
    """

    split: str
    logits: np.ndarray
    labels: np.ndarray
    class_names: tuple[str, ...]
    loss: float
    trained: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def figures(self) -> dict[str, float | int]:
        """The figures of an evaluation; `correct` of `count` examples is the accuracy, exactly.

        Precision, recall and F1 are scikit-learn's, over the classes that occur as a label or a
        prediction; 0 where a class is never predicted. Where training has not seen all labels,
        such labels count as wrong, and the accuracy on the others stands beside.

        Raises:
            UserError: no example has a label.
        """
        averages = self._sklearn_report(as_text=False)
        labels, predicted = self.known()
        correct = int((labels == predicted).sum())
        figures: dict[str, float | int] = {"loss": self.loss, "accuracy": correct / len(labels)}
        seen = self._seen(labels)
        if not seen.all():
            hits = labels[seen] == predicted[seen]
            figures["accuracy of seen labels"] = float(hits.mean()) if hits.size else float("nan")
        for average in ("macro", "weighted"):
            for name, key in (("precision", "precision"), ("recall", "recall"), ("F1", "f1-score")):
                figures[f"{average} {name}"] = float(averages[f"{average} avg"][key])
        if not seen.all():
            figures["unseen"] = int((~seen).sum())
        return {**figures, "correct": correct, "count": len(labels)}

    def text(self) -> str:
        """scikit-learn's classification report with four digits, as the library prints it."""
        return self._sklearn_report(as_text=True)

    def page(self, folder: Path, suffix: str, images: np.ndarray | None) -> Iterator[str]:
        """The classification report, the confusion matrix and the worst mistakes."""
        from cnn_research.report import plots as figures

        labels, _ = self.known()
        unseen = int((~self._seen(labels)).sum())
        if unseen:
            yield (
                f"{unseen:,} of {len(labels):,} labels are of classes without training examples: "
                f"every answer to them counts as wrong; {UNSEEN_NAME} stands for them below."
            )
        text = self.text()
        (folder / f"classification_report{suffix}.txt").write_text(text, encoding="utf-8")
        yield f"```\n{text}```"

        matrix = self.confusion_counts()
        name = f"confusion_matrix{suffix}.png"
        figures.confusion_matrix(matrix, self.class_names).savefig(folder / name)
        yield f"![Confusion matrix: true classes down, predicted ones across]({name})"
        pairs = _most_confused(matrix)
        if pairs:
            yield "The pairs confused most often:"
            header = ("true class", "predicted", "times", "share of the true class")
            rows = [
                (
                    self.class_names[true],
                    self.class_names[predicted],
                    str(matrix[true, predicted]),
                    f"{matrix[true, predicted] / matrix[true].sum():.1%}",
                )
                for true, predicted in pairs
            ]
            yield markdown_table(header, rows)
        if images is None:
            return
        predicted = self.logits.argmax(axis=1)
        if pairs:
            name = f"confusions{suffix}.png"
            figures.confusions(images, self.labels, predicted, pairs, self.class_names).savefig(
                folder / name
            )
            yield f"![Images of the confused pairs, beside those of the predicted class]({name})"
        name = f"mistakes{suffix}.png"
        figures.mistakes(
            images,
            np.where(self.labels == UNSEEN, len(self.class_names), self.labels),
            predicted,
            _probabilities(self.logits).max(axis=1),
            (*self.class_names, UNSEEN_NAME),
        ).savefig(folder / name)
        yield "The mistakes made with most confidence, with the probability of the wrong class:"
        yield f"![Images of the surest mistakes, with answer and true class]({name})"

    def common_classes(self, most: int) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
        """Of the classes with most labels: name, which examples are of it, and its probability;
        bool and float64 `[known]`."""
        known = self.labels != MISSING
        labels, shares = self.labels[known], _probabilities(self.logits[known])
        counts = np.bincount(labels[labels >= 0], minlength=len(self.class_names))
        for index in np.sort(np.argsort(-counts, kind="stable")[:most]):
            if counts[index]:
                yield self.class_names[index], labels == index, shares[:, index]

    def known(self) -> tuple[np.ndarray, np.ndarray]:
        """Labels and predicted classes, int `[known]` each, of the examples with a label."""
        known = self.labels != MISSING
        return self.labels[known], self.logits[known].argmax(axis=1)

    def _seen(self, labels: np.ndarray) -> np.ndarray:
        """Whether training has seen each label, bool `[known]`."""
        trained = np.ones(len(self.class_names), bool) if self.trained is None else self.trained
        return (labels != UNSEEN) & trained[labels]

    def confusion_counts(self) -> np.ndarray:
        """int64 `[classes, classes]`: how often each true class (row) was predicted as each."""
        classes = len(self.class_names)
        matrix = np.zeros((classes, classes), np.int64)
        labels, predicted = self.known()
        np.add.at(matrix, (labels[labels != UNSEEN], predicted[labels != UNSEEN]), 1)
        return matrix

    def _sklearn_report(self, *, as_text: bool) -> Any:
        from sklearn import metrics

        labels, predicted = self.known()
        if not labels.size:
            raise UserError(f"split {self.split}: no example has a label to evaluate against")
        names = (*self.class_names, UNSEEN_NAME)
        labels = np.where(labels == UNSEEN, len(self.class_names), labels)
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
    rows, columns = np.unravel_index(order, matrix.shape)
    return [
        (true, predicted)
        for true, predicted in zip(rows.tolist(), columns.tolist(), strict=True)
        if confusions[true, predicted]
    ]


def _probabilities(logits: np.ndarray) -> np.ndarray:
    """The softmax of each row, float64 `[examples, classes]`."""
    shares = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    return shares / shares.sum(axis=1, keepdims=True)
