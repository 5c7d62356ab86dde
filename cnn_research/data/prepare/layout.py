"""Find out which top-level folders of images are splits, by their names and contents."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from cnn_research.core.errors import UserError
from cnn_research.data.images import printable
from cnn_research.data.prepare.files import SPLIT_FOLDERS

UNLABELLED = frozenset(("pred", "predict", "prediction", "predictions", "unlabeled", "unlabelled"))
"""Words in the names of folders of unlabelled images, beside splits."""


def seen_through(names: Sequence[str], images: Sequence[str]) -> dict[str, str]:
    """Map each name to one without a repeated top-level folder.

    `train/train/cat/1.jpg` becomes `train/cat/1.jpg` if all images of `train` are in `train/train`.
    """

    def is_twice(as_if: str) -> bool:
        top, *rest = as_if.split("/", 2)
        return len(rest) == 2 and (rest[0].lower() == top.lower() or _is_split(top, rest[0]))

    seen = {name: name for name in names}
    while True:
        tops = {top: True for name in images if (top := seen[name].partition("/")[0])}
        for name in images:
            tops[seen[name].partition("/")[0]] &= is_twice(seen[name])
        if not any(tops.values()):
            return seen
        for name, as_if in seen.items():
            top, _, rest = as_if.partition("/")
            if tops.get(top) and is_twice(as_if):
                seen[name] = f"{top}/{rest.partition('/')[2]}"


def _is_split(*folders: str) -> bool:
    """Return whether all folders are named like the same split."""
    splits = {SPLIT_FOLDERS.get(folder.lower()) for folder in folders}
    return len(splits) == 1 and None not in splits


def split_folders(names: Iterable[str], shown: str) -> dict[str, str]:
    """Map each top-level folder that is a split to its split; empty if they are classes.

    `names` are those of all images. Folders such as `seg_train` count if all share folders with the
    training split. A folder of unlabelled images, such as `pred` or `test1`, may be beside them.
    """
    inner: dict[str, set[str]] = {}  # "" for images that are in no inner folder
    for name in names:
        top, *rest = name.split("/", 2)
        if rest:
            inner.setdefault(top, set()).add(rest[0] if len(rest) == 2 else "")
    exact = {top: SPLIT_FOLDERS[top.lower()] for top in inner if top.lower() in SPLIT_FOLDERS}
    # 'train' may be a class, beside 'bus' and 'tram': a single name is hardly a split.
    several = len(set(exact.values())) > 1 or len(inner) == 1
    if "train" in exact.values() and (several or _has_classes(next(iter(exact)), inner)):
        splits = exact
    elif not (splits := _by_word(inner)):
        _check_for_unknown_splits(inner, shown)
        return {}
    for other in sorted(inner.keys() - splits.keys()):
        if inner[other] != {""} or not _may_lack_labels(other):
            raise UserError(
                f"{shown} has split folders ({', '.join(sorted(splits))}) and other folders "
                f"({printable(other)}): move the other folders elsewhere"
            )
    return splits


def _words(folder: str) -> list[str]:
    return re.findall("[a-z]+", folder.lower())


def _may_lack_labels(folder: str) -> bool:
    """Return whether a folder is named like unlabelled images, or like a split."""
    return not (UNLABELLED | SPLIT_FOLDERS.keys()).isdisjoint(_words(folder))


def _has_classes(train: str, inner: Mapping[str, set[str]]) -> bool:
    """Return whether `train` has several inner folders, shared by the others that have any."""
    others = [folders for top, folders in inner.items() if top != train]
    classes = inner[train]
    return len(classes - {""}) > 1 and all(
        folders == {""} or not folders.isdisjoint(classes - {""}) for folders in others
    )


def _by_word(inner: Mapping[str, set[str]]) -> dict[str, str]:
    """Recognise splits by a word in the folders' names, such as `seg_train` and `seg_test`.

    `inner` has the contents of each folder. Empty if they do not look like splits.
    """
    splits = {}
    for top, folders in inner.items():
        named = {SPLIT_FOLDERS[word] for word in _words(top) if word in SPLIT_FOLDERS}
        if len(named) == 1 and folders != {""}:
            splits[top] = named.pop()
    of = {split: inner[top] - {""} for top, split in splits.items()}
    train = of.get("train", set())
    clear = len(of) == len(splits) > 1 and all(len(each & train) > 1 for each in of.values())
    return splits if clear else {}


def _mentions(folder: str, split: str) -> bool:
    """Return whether a folder's name starts with a split's, or contains it as a word."""
    return folder.lower().startswith(split) or split in _words(folder)


def _check_for_unknown_splits(inner: Mapping[str, set[str]], shown: str) -> None:
    """Raise `UserError` if the top-level folders look like splits that were not recognised.

    They do if all contain the same folders, or two or more of them.
    """
    below = {top: folders for top, folders in inner.items() if "" not in folders}
    named = {
        next((split for name, split in SPLIT_FOLDERS.items() if _mentions(top, name)), "")
        for top in inner
    }
    single = all(len(folders) == 1 for folders in below.values())
    if single and len(named) > 1 and "train" in named and "" not in named:
        raise UserError(
            f"{shown} has splits with a single class each ({printable(', '.join(sorted(inner)))}): "
            "put the class folders into split folders, <split>/<class>/*"
        )
    if not below:
        return
    most, *others = sorted(below.values(), key=len, reverse=True)
    tops = printable(", ".join(sorted(below)))
    rest = sorted(inner.keys() - below.keys())
    if rest and all(map(_may_lack_labels, rest)):
        raise UserError(
            f"{shown} has unlabelled images ({printable(', '.join(rest))}) beside folders of "
            f"folders ({tops}): name the folder that contains the classes"
        )
    if not rest and all(top.lower() in SPLIT_FOLDERS for top in below):
        raise UserError(
            f"{shown} has the splits {tops} but no 'train': rename one, or name a folder that "
            "contains classes"
        )
    every = set().union(*below.values())
    known = {SPLIT_FOLDERS.get(folder.lower()) for folder in every}
    if len(known) > 1 and {"train"} <= known and None not in known:
        raise UserError(
            f"{shown} has split folders ({', '.join(sorted(every))}) inside each of {tops}: "
            "put the classes inside the splits instead, <split>/<class>/*"
        )
    if others and all(len(folders) > 1 and folders <= most for folders in others):
        raise UserError(
            f"{shown} has the same folders, or some of them, in each of {tops}, which look "
            "like splits with unknown names: rename them to train, validation and test or, if "
            "they are classes, move the images out of the inner folders"
        )
