"""Assignment of examples to splits: drawn by content and seed, so that nothing straddles."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from absl import logging

from cnn_research.core.errors import UsageError, UserError
from cnn_research.data.dataset import UNKNOWN_CLASS, Examples, occurring
from cnn_research.data.prepare.drawing import Drawing, nothing_drawn, units_of
from cnn_research.data.prepare.shared import (
    groups_report,
    likenesses,
    near_duplicates_report,
)

SPLITS = ("train", "validation", "test", "target")


def assign(
    examples: Examples,
    sizes: Mapping[str, float],
    seed: int,
    *,
    together: bool = False,
    fold: tuple[int, int] | None = None,
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Ascending indices of every split, and a report (JSON values) on the assignment.

    Splits that the source gives stay unchanged. Otherwise `validation` and `test` are drawn from
    `train`: `sizes` has how many examples (int) or which fraction of `train` (float), 0 for none.
    Each class, where there are classes, is drawn from in proportion, and never all of it.

    Copies of one image move together, and draws depend on the pixels (or names) and the seed alone:
    the order of files does not matter. With `together`, or where the examples have groups, near
    duplicates and groups move together, too. `fold` (k, n) makes the test the k-th of n equal
    parts. Splits that are given may share near duplicates: those are in the report.

    `target` is only ever given; an image of it that another split has too is left out, whatever the
    labels, so that its evaluation uses no trained image.

    Raises:
        UserError: there is nothing to train on, nothing can be drawn, or every image of `target` is
            elsewhere too.
        UsageError: more is to be drawn than there is, or folds of a test that is given.
    """
    given = {name: np.flatnonzero(examples.given == name) for name in SPLITS}
    if not given["train"].size:
        raise UserError("there are no examples to train on: the split 'train' is empty")
    counts = _counts(sizes, given)
    alike = likenesses(examples)
    units = units_of(examples, given["train"], alike.pairs if together else alike.pairs[:0])
    drawing = None
    if together or fold or examples.groups is not None:
        drawing = Drawing(examples, units, seed)
    indices = _indices(examples, given, counts, seed, drawing, fold)
    copies: dict[str, Any] = {}
    if given["target"].size:
        indices["target"], copies = _without_copies(examples, given["target"], indices)
    single: list[str] = []
    drawn: dict[str, Any] = {name: len(indices[name]) for name in indices if not given[name].size}
    if drawn:
        single = _single(examples, given["train"], units)
        drawn |= {"seed": seed, "stratified_by": examples.first_head}
    report: dict[str, Any] = {
        "examples": {name: len(chosen) for name, chosen in indices.items()},
        "given_by_the_source": [name for name in SPLITS if given[name].size],
        "drawn_from_train": drawn,
        "duplicates": _duplicates(examples, indices),
        "near_duplicates": near_duplicates_report(examples, indices, alike, together=together),
        "content": {name: _content(examples, chosen) for name, chosen in indices.items()},
    }
    if examples.groups is not None:
        report["groups"] = groups_report(examples, indices)
    return indices, {**report, **_warnings(examples, indices, report, copies, single)}


def _indices(
    examples: Examples,
    given: Mapping[str, np.ndarray],
    counts: Mapping[str, int],
    seed: int,
    drawing: Drawing | None,
    fold: tuple[int, int] | None,
) -> dict[str, np.ndarray]:
    """Ascending indices of every split but `target`: those that are given, and drawn ones.

    Without a `drawing`, splits are drawn by copies of single images.
    """
    if fold and given["test"].size:
        raise UsageError(
            "--data.folds draws the test from the images, but the data have a test split of their "
            "own: leave out --folds, or provide only train"
        )
    indices = {"train": given["train"]}
    # The test first, so that whether there is a validation split changes nothing of it.
    for name in ("test", "validation"):
        if given[name].size:
            indices[name] = given[name]
            continue
        if drawing and fold and name == "test":
            indices[name] = drawing.deal(*fold)
        elif not counts.get(name, 0):
            continue
        elif drawing:
            indices[name] = drawing.draw(counts[name])
        else:
            indices[name] = _draw(examples, indices["train"], counts[name], seed)
        indices["train"] = np.setdiff1d(indices["train"], indices[name])
    return {name: indices[name] for name in SPLITS if name in indices}


def _counts(sizes: Mapping[str, float], given: Mapping[str, np.ndarray]) -> dict[str, int]:
    """Number of training examples to draw for each split that is not given."""
    total = len(given["train"])
    counts = {
        name: round(size * total) if isinstance(size, float) else size
        for name, size in sizes.items()
        if not given[name].size
    }
    if min([*counts.values(), 0]) < 0 or sum(counts.values()) >= total:
        wanted = " and ".join(f"{count} for {name}" for name, count in counts.items())
        raise UsageError(
            f"{wanted} cannot be drawn from {total} examples and leave some to train on: ask for "
            "fewer"
        )
    return counts


def _warnings(
    examples: Examples,
    indices: Mapping[str, np.ndarray],
    report: Mapping[str, Any],
    copies: Mapping[str, Any],
    single: Sequence[str],
) -> dict[str, Any]:
    """Log what is unusual about the splits, and return it for the report."""
    found: dict[str, Any] = {}
    if across := report["duplicates"]["across_splits"]:
        logging.warning("images that are in two splits: %s", duplicates_line(across))
    if copies:
        logging.warning("left out of target: %s", copies_line(copies))
        found["left_out_of_target"] = copies
    if single:
        logging.warning("classes of a single image, which is in train: %s", ", ".join(single))
        found["classes_of_a_single_image"] = single
    if untrained := _untrained(examples, indices):
        logging.warning("classes without training examples: %s", untrained)
        found["classes_without_training_examples"] = untrained
    if "target" in indices:
        unseen = {head: examples.labels[head][indices["target"]] for head in examples.class_names}
        counts = {head: int(np.sum(labels == UNKNOWN_CLASS)) for head, labels in unseen.items()}
        found["target_examples_of_unseen_classes"] = counts
    return found


def duplicates_line(across: Mapping[str, Any]) -> str:
    return "; ".join(
        f"{found['images']} in {pair}, the first {' = '.join(found['first'][0])}"
        for pair, found in across.items()
    )


def copies_line(copies: Mapping[str, Any]) -> str:
    first = " = ".join(copies["first"][0])
    return f"{copies['images']} images that another split has too, the first {first}"


def _without_copies(
    examples: Examples, target: np.ndarray, others: Mapping[str, np.ndarray]
) -> tuple[np.ndarray, dict[str, Any]]:
    """The indices in `target` whose pixels are not in `others`, and a report on the rest."""
    digests = examples.digests
    elsewhere = {digests[index]: int(index) for chosen in others.values() for index in chosen}
    pairs = [(elsewhere[digests[index]], index) for index in target if digests[index] in elsewhere]
    if len(pairs) == len(target):
        raise UserError(
            f"each of the {len(target)} images of the split 'target' is in another split too: "
            "there is nothing to evaluate on"
        )
    first = [[str(examples.names[index]) for index in pair] for pair in pairs[:5]]
    rest = np.setdiff1d(target, [index for _, index in pairs])
    return rest, {"images": len(pairs), "first": first} if pairs else {}


def _draw(examples: Examples, pool: np.ndarray, count: int, seed: int) -> np.ndarray:
    """`count` of the indices in `pool`, each class in proportion, copies of an image together."""
    labels = examples.strata
    copies: dict[bytes, list[int]] = defaultdict(list)
    for index in pool:
        copies[examples.digests[index]].append(int(index))
    key = str(seed).encode()
    groups: dict[int, list[list[int]]] = defaultdict(list)

    def drawn(digest: bytes) -> bytes:
        name = min(str(examples.names[index]) for index in copies[digest])
        what = name.encode() if examples.by_name else digest
        return hashlib.blake2b(what, key=key).digest()

    for digest in sorted(copies, key=drawn):
        groups[int(labels[copies[digest][0]])].append(copies[digest])
    quotas = _apportion({c: sum(map(len, m)) for c, m in sorted(groups.items())}, count)
    chosen: list[int] = []
    for label, quota in quotas.items():
        for group in groups[label]:
            if len(group) <= quota:
                chosen += group
                quota -= len(group)
    if not chosen:
        units = [unit for units in groups.values() for unit in units]
        raise nothing_drawn(units, count, len(groups))
    return np.sort(np.array(chosen, dtype=np.int64))


def _apportion(population: Mapping[int, int], count: int) -> dict[int, int]:
    """Share of `count` per class: in proportion, and never all of its examples."""
    total = sum(population.values())
    exact = {label: count * size / total for label, size in population.items()}
    quotas = {label: int(share) for label, share in exact.items()}
    by_remainder = sorted(population, key=lambda label: (quotas[label] - exact[label], label))
    spare = [label for label in by_remainder if quotas[label] + 1 < population[label]]
    for label in spare[: count - sum(quotas.values())]:
        quotas[label] += 1
    return quotas


def _duplicates(examples: Examples, indices: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Images with the same pixels: how many, which are in two splits, which labels disagree."""
    found: dict[bytes, list[tuple[str, int]]] = defaultdict(list)
    for split, chosen in indices.items():
        for index in chosen:
            found[examples.digests[index]].append((split, int(index)))
    # Two that are not known are equal, and NaN is not.
    every = [np.zeros(len(examples.images)), *examples.labels.values()]  # there may be no labels
    labels = np.nan_to_num(np.column_stack(every).astype(float), nan=-np.inf)
    conflicts = 0
    across: dict[str, dict[str, Any]] = {}
    for copies in found.values():
        if len(copies) == 1:
            continue
        conflicts += len(np.unique(labels[[index for _, index in copies]], axis=0)) > 1
        for split in {split for split, _ in copies[1:]} - {copies[0][0]}:
            pair = across.setdefault(f"{copies[0][0]} and {split}", {"images": 0, "first": []})
            theirs = [index for name, index in copies if name == split]
            pair["images"] += len(theirs)
            if len(pair["first"]) < 5:
                names = (examples.names[copies[0][1]], examples.names[theirs[0]])
                pair["first"].append([str(name) for name in names])
    return {
        "extra_copies": sum(map(len, found.values())) - len(found),
        "images_with_conflicting_labels": int(conflicts),
        "across_splits": across,
    }


def _content(examples: Examples, chosen: np.ndarray) -> str:
    """A digest of a split's pixels and labels: equal on every machine for equal data."""
    digest = hashlib.blake2b(digest_size=16)
    for index in chosen:
        digest.update(examples.digests[index])
    for head, labels in examples.labels.items():
        little_endian = labels.dtype.newbyteorder("<")
        digest.update(head.encode() + labels[chosen].astype(little_endian).tobytes())
    return digest.hexdigest()


def _single(examples: Examples, pool: np.ndarray, units: np.ndarray) -> list[str]:
    """The classes of the first head that have one unit in `pool`, such as an image and copies."""
    head = examples.first_head
    if head is None:
        return []
    labels, rows = examples.labels[head][pool], np.arange(len(pool))
    if labels.ndim == 2:
        rows, labels = np.nonzero(labels)
    different = Counter(label for label, _ in set(zip(labels.tolist(), units[pool][rows].tolist())))
    alone = sorted(label for label, count in different.items() if label >= 0 and count == 1)
    return [examples.class_names[head][label] for label in alone]


def _untrained(examples: Examples, indices: Mapping[str, np.ndarray]) -> dict[str, list[str]]:
    """Per head of classes, those that occur in another split but not in train."""
    untrained = {}
    for head, class_names in examples.class_names.items():
        labels = examples.labels[head]
        everywhere = np.concatenate([labels[chosen] for chosen in indices.values()])
        missing = np.setdiff1d(occurring(everywhere), occurring(labels[indices["train"]]))
        if missing.size:
            untrained[head] = [class_names[label] for label in missing]
    return untrained
