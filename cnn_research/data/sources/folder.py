"""Folders and archives of images: a folder per class, or photographs without labels."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np

from cnn_research.core.config import register_config
from cnn_research.core.errors import UsageError, UserError
from cnn_research.core.ranges import PositiveInt
from cnn_research.data.dataset import UNKNOWN_CLASS, Examples
from cnn_research.data.images import ENDINGS, decode, is_named_as_image, printable, resized, turned
from cnn_research.data.prepare.files import SPLIT_FOLDERS, Plan, Record, names_below, stem_of
from cnn_research.data.sources.loading import ImageFiles, Origin, Share, from_scikit_learn


@register_config
@dataclasses.dataclass(frozen=True)
class ImageFolder(ImageFiles):
    """A folder or archive of images, `<split>/<class>/*` or `<class>/*`; prepared on first use.

    Splits are train, validation, test and target. Validation and test are drawn from train where
    they have no folder. target, another domain to evaluate on, needs a folder; there, images of a
    class that no other split has count as wrong.
    """

    kind: ClassVar = "image_folder"

    def plan(self, folder: Path, shown: str) -> Plan:
        return plan_folder(folder, shown)


@register_config
@dataclasses.dataclass(frozen=True)
class Photos(ImageFiles):
    """Photographs without labels: every image in a folder or an archive.

    Those whose orientation differs from that of `image_size` are rotated by 90 degrees, so that
    none is squeezed. A file is in the same split at every size.
    """

    kind: ClassVar = "photos"
    by_name: ClassVar = True

    path: str = ""
    """A folder or archive, prepared on first use; empty for pieces of the two photographs that ship
    with scikit-learn: as many as fit side by side, at least four of each."""
    image_size: tuple[PositiveInt, PositiveInt] = (321, 481)
    """Height and width of every image that the network is given."""
    test: Share = 0.2
    """Fraction of train held out for the test; 0 for none."""

    @property
    def description(self) -> str:
        which = stem_of(self.path) if self.path else "scikit-learn's photographs, in pieces"
        return f"{which}, {self.shape}"

    def plan(self, folder: Path, shown: str) -> Plan:
        return plan_photos(folder, shown)

    def pixels(self, file: Path) -> np.ndarray:
        return resized(turned(decode(file, None), self.image_size), self.image_size, self.fit)

    def origin(self) -> Origin:
        if self.path:
            return super().origin()
        self.check()
        return from_scikit_learn("sample_photographs", self._samples)

    def _samples(self) -> Examples:
        from sklearn.datasets import load_sample_images

        bunch = load_sample_images()
        names, pieces = [], []
        for file, photograph in zip(bunch.filenames, bunch.images, strict=True):
            sides = photograph.shape[:2]
            rows, columns = (max(2, a // b) for a, b in zip(sides, self.image_size, strict=True))
            height, width = sides[0] // rows, sides[1] // columns
            for row, column in itertools.product(range(rows), range(columns)):
                part = photograph[row * height :, column * width :][:height, :width]
                pieces.append(resized(turned(part, self.image_size), self.image_size, self.fit))
                names.append(f"{Path(file).name} {row},{column}")
        return Examples(np.stack(pieces), {}, {}, np.array(names), np.full(len(names), "train"))


def plan_folder(root: Path, shown: str, class_of: Callable[[str], str] = printable) -> Plan:
    """The records of `<split>/<class>/*` or `<class>/*` in `root`; errors name it `shown`.

    A single folder around everything is looked through. Classes that only the split `target` has
    are `UNKNOWN_CLASS`. `class_of` makes a class of a folder's name. Where files are named as
    images, a folder without any, as of annotations, is not a class.

    Raises:
        UsageError: a table instead of a folder.
        UserError: no folders of images, one class only, or folders of splits and others together,
            or of splits that are not named as such.
    """
    if root.is_file():
        raise UsageError(f"{shown} is a table, not a folder: use --experiment=image_table")
    root, names = _unwrapped(root)
    tops = {name.partition("/")[0] for name in names if "/" in name}
    splits = {top: SPLIT_FOLDERS[top.lower()] for top in tops if top.lower() in SPLIT_FOLDERS}
    # A class may be called 'train', beside 'bus' and 'tram': alone it is not a split.
    has_splits = "train" in splits.values() and (len(set(splits.values())) > 1 or len(tops) == 1)
    if has_splits and tops - splits.keys():
        raise UserError(
            f"{shown} has split folders ({', '.join(sorted(splits))}) and others beside them "
            f"({printable(sorted(tops - splits.keys())[0])}): move the others elsewhere"
        )
    depth = 1 if has_splits else 0
    kept = [name for name in names if name.count("/") > depth]
    if not kept:
        raise UserError(
            f"{shown} has no folders of images: it needs one per class, as <class>/* or "
            "<split>/<class>/*"
        )
    class_of = functools.cache(class_of)  # there are few folders and many files
    found = []
    for name in kept:
        top, inner, *_ = name.split("/", 2)
        split, folder = (splits[top], inner) if has_splits else ("train", top)
        found.append((name, split, class_of(folder)))
    all_classes = {of for _, _, of in found}
    images = [item for item in found if is_named_as_image(item[0])] or found
    with_images = {of for _, _, of in images}
    found = [item for item in found if item[2] in with_images]
    if not has_splits:
        _check_for_unknown_splits([name for name, _, _ in images], shown)
    classes = class_names((of for _, split, of in found if split != "target"), shown)
    labels = {of: {"label": UNKNOWN_CLASS} for of in all_classes}
    labels |= {of: {"label": at} for at, of in enumerate(classes)}
    return Plan(
        records=[
            Record(f"{root}/{name}", printable(name), split, labels[of])
            for name, split, of in found
        ],
        class_names={"label": classes},
        notes={
            "files_outside_class_folders": len(names) - len(kept),
            "folders_without_images": len(all_classes - with_images),
        },
    )


def _unwrapped(root: Path) -> tuple[Path, list[str]]:
    """The folder inside those that stand alone around everything, and the files below it."""
    names = names_below(root)
    while (wrapper := _wrapper(names)) is not None:
        root = root / wrapper
        inside = f"{wrapper}/"
        names = [name.removeprefix(inside) for name in names if name.startswith(inside)]
    return root, names


def _check_for_unknown_splits(names: Sequence[str], shown: str) -> None:
    """An error where the folders at the top all have the same folders in them, two or more."""
    below: dict[str, set[str]] = {}
    for name in names:
        if name.count("/") < 2:
            return
        top, inner, _ = name.split("/", 2)
        below.setdefault(top, set()).add(inner)
    first, *others = below.values()
    if others and len(first) > 1 and all(inner == first for inner in others):
        raise UserError(
            f"{shown} has the same folders in each of {printable(', '.join(sorted(below)))}, which "
            "look like splits with names that are not known: rename them to train, validation and "
            "test; or, if they are classes, move their images out of the inner folders"
        )


def plan_photos(root: Path, shown: str) -> Plan:
    """Records of every image below `root`, by file extension.

    Raises:
        UserError: there is none; names `shown`.
    """
    names = names_below(root)
    kept = [name for name in names if os.path.splitext(name)[1].lower() in ENDINGS]
    if not kept:
        raise UserError(f"{shown} has no images in it")
    return Plan(
        records=[Record(f"{root}/{name}", printable(name), "train", {}) for name in kept],
        class_names={},
        notes={"other_files": len(names) - len(kept)},
    )


def class_names(names: Iterable[str], shown: str) -> tuple[str, ...]:
    """The different ones of `names`, sorted; an error that names `shown` if there is only one."""
    classes = tuple(sorted(set(names)))
    if len(classes) == 1:
        raise UserError(
            f"{shown} has one class only, '{classes[0]}': it needs a folder for each class"
        )
    return classes


def _wrapper(names: Sequence[str]) -> str | None:
    """The one folder that holds all the others, if there is one and it is not a split."""
    tops = {name.partition("/")[0] for name in names if "/" in name}
    nested = any(name.count("/") > 1 for name in names)
    top = next(iter(tops)) if len(tops) == 1 else "train"
    return top if nested and top.lower() not in SPLIT_FOLDERS else None
