"""Assign examples to splits by content and seed, so that copies are never in two splits."""

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
    """Return the ascending indices of every split, and a report on them (JSON values).

    The source's own splits stay unchanged. Otherwise `validation` and `test` are drawn from
    `train`: `sizes` has their number of examples (int) or fraction of `train` (float), 0 for none.
    Classes are drawn in proportion, but never all examples of one.

    Copies of an image stay together. Draws depend only on the pixels (or names) and the seed, not
    on the order of files. Groups, and with `together` near duplicates, stay together, too. `fold`
    (k, n) makes the k-th of n equal parts the test split. The source's own splits may share near
    duplicates; the report lists them.

    `target` is never drawn. Images that also occur in another split are excluded from it, whatever
    their labels, so that it contains no training images.

    Raises:
        UserError: there are no training examples, no examples can be drawn, or all images of
            `target` occur elsewhere.
        UsageError: more examples are requested than there are, or folds although there is a test
            split.
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
    """Ascending indices of every split but `target`, given or drawn.

    Without a `drawing`, only copies of an image are kept together.
    """
    if fold and given["test"].size:
        raise UsageError(
            "--data.folds draws the test split, but the data has its own: omit --data.folds, or "
            "provide only train"
        )
    indices = {"train": given["train"]}
    # The test split first, so that it does not depend on the validation split.
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
            f"drawing {wanted} from {total} examples leaves none to train on: choose fewer"
        )
    return counts


def _warnings(
    examples: Examples,
    indices: Mapping[str, np.ndarray],
    report: Mapping[str, Any],
    copies: Mapping[str, Any],
    single: Sequence[str],
) -> dict[str, Any]:
    """Log unusual properties of the splits, and return them for the report."""
    facts: dict[str, Any] = {}
    if across := report["duplicates"]["across_splits"]:
        logging.warning("images that are in two splits: %s", duplicates_line(across))
    if copies:
        logging.warning("excluded from target: %s", copies_line(copies))
        facts["left_out_of_target"] = copies
    if single:
        logging.warning("classes with a single image, kept in train: %s", ", ".join(single))
        facts["classes_of_a_single_image"] = single
    if untrained := _untrained(examples, indices):
        logging.warning("classes without training examples: %s", untrained)
        facts["classes_without_training_examples"] = untrained
    if "target" in indices:
        unseen = {head: examples.labels[head][indices["target"]] for head in examples.class_names}
        counts = {head: int(np.sum(labels == UNKNOWN_CLASS)) for head, labels in unseen.items()}
        facts["target_examples_of_unseen_classes"] = counts
    return facts


def duplicates_line(across: Mapping[str, Any]) -> str:
    return "; ".join(
        f"{copies['images']} in {pair}, the first {' = '.join(copies['first'][0])}"
        for pair, copies in across.items()
    )


def copies_line(copies: Mapping[str, Any]) -> str:
    first = " = ".join(copies["first"][0])
    return f"{copies['images']} images that are also in another split, the first {first}"


def _without_copies(
    examples: Examples, target: np.ndarray, others: Mapping[str, np.ndarray]
) -> tuple[np.ndarray, dict[str, Any]]:
    """Return the indices in `target` whose pixels are not in `others`, and report the rest."""
    digests = examples.digests
    elsewhere = {digests[index]: int(index) for chosen in others.values() for index in chosen}
    pairs = [(elsewhere[digests[index]], index) for index in target if digests[index] in elsewhere]
    if len(pairs) == len(target):
        raise UserError(
            f"all {len(target)} images of the split 'target' are also in another split: there is "
            "nothing to evaluate on"
        )
    first = [[str(examples.names[index]) for index in pair] for pair in pairs[:5]]
    rest = np.setdiff1d(target, [index for _, index in pairs])
    return rest, {"images": len(pairs), "first": first} if pairs else {}


def _draw(examples: Examples, pool: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Draw `count` indices from `pool`, classes in proportion, copies of an image together."""
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
    """Divide `count` among classes in proportion, but never all examples of one."""
    total = sum(population.values())
    exact = {label: count * size / total for label, size in population.items()}
    quotas = {label: int(share) for label, share in exact.items()}
    by_remainder = sorted(population, key=lambda label: (quotas[label] - exact[label], label))
    spare = [label for label in by_remainder if quotas[label] + 1 < population[label]]
    for label in spare[: count - sum(quotas.values())]:
        quotas[label] += 1
    return quotas


def _duplicates(examples: Examples, indices: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Count images with the same pixels, those in two splits, and those with different labels."""
    places: dict[bytes, list[tuple[str, int]]] = defaultdict(list)
    for split, chosen in indices.items():
        for index in chosen:
            places[examples.digests[index]].append((split, int(index)))
    # Missing labels are equal, unlike NaN.
    every = [np.zeros(len(examples.images)), *examples.labels.values()]  # there may be no labels
    labels = np.nan_to_num(np.column_stack(every).astype(float), nan=-np.inf)
    conflicts = 0
    across: dict[str, dict[str, Any]] = {}
    for copies in places.values():
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
        "extra_copies": sum(map(len, places.values())) - len(places),
        "images_with_conflicting_labels": int(conflicts),
        "across_splits": across,
    }


def _content(examples: Examples, chosen: np.ndarray) -> str:
    """Digest of a split's pixels and labels, the same on every machine."""
    digest = hashlib.blake2b(digest_size=16)
    for index in chosen:
        digest.update(examples.digests[index])
    for head, labels in examples.labels.items():
        little_endian = labels.dtype.newbyteorder("<")
        digest.update(head.encode() + labels[chosen].astype(little_endian).tobytes())
    return digest.hexdigest()


def _single(examples: Examples, pool: np.ndarray, units: np.ndarray) -> list[str]:
    """Classes of the first head with only one unit in `pool`, such as an image and its copies."""
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
    """Per head, the classes that occur in another split but not in train."""
    untrained = {}
    for head, class_names in examples.class_names.items():
        labels = examples.labels[head]
        everywhere = np.concatenate([labels[chosen] for chosen in indices.values()])
        missing = np.setdiff1d(occurring(everywhere), occurring(labels[indices["train"]]))
        if missing.size:
            untrained[head] = [class_names[label] for label in missing]
    return untrained
