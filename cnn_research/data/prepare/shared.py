"""Report what splits have in common: near duplicates, groups, and images with two labels."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from cnn_research.data.dataset import Examples
from cnn_research.data.prepare.drawing import units_of
from cnn_research.data.prepare.likeness import Likenesses, near_duplicates

MOST_LISTED = 1000
"""Maximum number of pairs listed by name."""
FILE = "near_duplicates.csv"
COLUMNS = (
    *("image", "split", "label", "other image", "its split", "its label"),
    *("difference", "mirrored"),
)


def likenesses(examples: Examples) -> Likenesses:
    """Find near duplicates among the distinct images of a data set."""
    return near_duplicates(examples.images, np.unique(_first_copies(examples)))


def near_duplicates_report(
    examples: Examples, indices: Mapping[str, np.ndarray], alike: Likenesses, *, together: bool
) -> dict[str, Any]:
    """Report near duplicates and exact copies as JSON values.

    These are their number, the largest group that they form, and the pairs in two splits or with
    two labels by name, most similar first. Mirror images may legitimately have another label.
    """
    split_of = np.full(len(examples.images), "", object)
    for split, chosen in indices.items():
        split_of[chosen] = split
    firsts = _first_copies(examples)
    copies = np.flatnonzero(firsts != np.arange(len(firsts)))
    pairs = np.concatenate([np.stack([firsts[copies], copies], axis=1), alike.pairs])
    mirrored = np.concatenate([np.zeros(len(copies), bool), alike.mirrored])
    differences = np.concatenate([np.zeros(len(copies)), alike.differences])
    splits = split_of[pairs]
    there = (splits != "").all(axis=1)
    across = there & (splits[:, 0] != splits[:, 1])
    labels = there & ~mirrored & _labels_differ(examples, pairs)
    listed = np.flatnonzero(across | labels)[:MOST_LISTED]
    units = units_of(examples, np.arange(len(examples.images)), alike.pairs)
    return {
        "together": together,
        "pairs": len(alike.pairs),
        "largest_group": int(np.bincount(units).max()),
        "across_splits": dict(Counter(" and ".join(sorted(pair)) for pair in splits[across])),
        "with_two_labels": int(labels.sum()),
        "listed": [
            [
                *(_described(examples, split_of, pairs[at, 0])),
                *(_described(examples, split_of, pairs[at, 1])),
                round(float(differences[at]), 3),
                bool(mirrored[at]),
            ]
            for at in listed
        ],
    }


def _first_copies(examples: Examples) -> np.ndarray:
    """Index of the first example with the same pixels as each, int64 `[examples]`."""
    first: dict[bytes, int] = {}
    firsts = [first.setdefault(digest, at) for at, digest in enumerate(examples.digests)]
    return np.array(firsts, np.int64)


def _labels_differ(examples: Examples, pairs: np.ndarray) -> np.ndarray:
    """Whether both of a pair are labelled, and differently, in some head; bool `[pairs]`."""
    differ = np.zeros(len(pairs), bool)
    for head in examples.class_names:
        labels = examples.labels[head].reshape(len(examples.images), -1)
        known = labels.min(axis=1) >= 0
        _, which = np.unique(labels, axis=0, return_inverse=True)
        one, other = which.ravel()[pairs].T
        differ |= known[pairs].all(axis=1) & (one != other)
    return differ


def _described(examples: Examples, split_of: np.ndarray, index: int) -> tuple[str, str, str]:
    """An example's name, split and classes."""
    classes = []
    for head, names in examples.class_names.items():
        label = examples.labels[head][index]
        known = np.flatnonzero(label == 1) if label.ndim else [label] * int(label >= 0)
        classes.append(", ".join(names[each] for each in known))
    return str(examples.names[index]), split_of[index], "; ".join(classes)


def groups_report(examples: Examples, indices: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Report the number of groups, and those in two splits, as JSON values."""
    assert examples.groups is not None, "only for examples with groups"
    splits: dict[str, set[str]] = {}
    for split, chosen in indices.items():
        for group in set(map(str, examples.groups[chosen])) - {""}:
            splits.setdefault(group, set()).add(split)
    shared = sorted(group for group, names in splits.items() if len(names) > 1)
    return {
        "groups": len(splits),
        "in_two_splits": len(shared),
        "first_in_two_splits": shared[:3],
    }


# As text -----------------------------------------------------------------------------------------


def as_csv(provenance: Mapping[str, Any]) -> str:
    """Write the listed pairs as CSV; empty if there are none."""
    rows = provenance.get("near_duplicates", {}).get("listed")
    if not rows:
        return ""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([COLUMNS, *rows])
    return text.getvalue()


def lines(provenance: Mapping[str, Any], where: str = "") -> Iterator[str]:
    """Yield sentences on groups and near duplicates; `where` is the file with all pairs."""
    if groups := provenance.get("groups"):
        first = ", ".join(groups["first_in_two_splits"])
        shared = (
            f"{groups['in_two_splits']:,} are in two of the data set's own splits, such as {first}"
        )
        yield f"Of {groups['groups']:,} groups, {shared if first else 'none is in two splits'}."
    alike = provenance.get("near_duplicates", {})
    if alike.get("pairs") or alike.get("listed"):
        kept = ", which stay together" if alike["together"] else ""
        across = alike["across_splits"]
        between = ", ".join(f"{count:,} between {pair}" for pair, count in across.items())
        yield (
            f"{alike['pairs']:,} pairs of images are nearly identical, in groups of at "
            f"most {alike['largest_group']:,}{kept}; across splits: {between or 'none'}."
        )
    if count := alike.get("with_two_labels"):
        yield f"{count:,} pairs show the same picture with different labels."
    if alike.get("listed"):
        one, split, label, other, its_split, its_label, *_ = alike["listed"][0]
        first = f"{one} ({split} {label}) and {other} ({its_split} {its_label})"
        yield f"The first: {' '.join(first.split())}{where and f'; all: {where}'}."
