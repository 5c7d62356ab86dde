"""Folders and archives of images: one folder per class, or photographs without labels."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np

from cnn_research.core.config import register_config
from cnn_research.core.errors import UsageError, UserError
from cnn_research.core.ranges import PositiveInt
from cnn_research.data.dataset import UNKNOWN_CLASS, Examples
from cnn_research.data.images import ENDINGS, decode, is_named_as_image, printable, resized, turned
from cnn_research.data.prepare.files import (
    SPLIT_FOLDERS,
    Plan,
    Record,
    folders_in,
    names_below,
    stem_of,
)
from cnn_research.data.prepare.layout import seen_through, split_folders
from cnn_research.data.prepare.splits import SPLITS
from cnn_research.data.prepare.understood import NAMED, left_out
from cnn_research.data.sources.loading import ImageFiles, Origin, Share, from_scikit_learn


@register_config
@dataclasses.dataclass(frozen=True)
class ImageFolder(ImageFiles):
    """A folder or archive of images, `<split>/<class>/*` or `<class>/*`; prepared on first use.

    Splits are train, validation, test and target. Validation and test splits without a folder are
    drawn from train. target, another domain to evaluate on, needs a folder; predictions for images
    in it whose class is in no other split count as wrong.
    """

    kind: ClassVar = "image_folder"

    def plan(self, folder: Path, shown: str) -> Plan:
        return self.grouped(plan_folder(folder, shown), shown)


@register_config
@dataclasses.dataclass(frozen=True)
class Photos(ImageFiles):
    """Photographs without labels: all images in a folder or an archive.

    Those whose orientation differs from `image_size`'s are rotated by 90 degrees instead of
    squeezed. A file is in the same split at every size.
    """

    kind: ClassVar = "photos"
    by_name: ClassVar = True

    path: str = ""
    """Folder or archive, prepared on first use; empty for tiles of scikit-learn's two sample
    photographs: as many as fit, at least four of each."""
    image_size: tuple[PositiveInt, PositiveInt] = (321, 481)
    """Height and width to which images are resized."""
    test: Share = 0.2
    """Fraction of train held out for the test split; 0 for none."""

    @property
    def description(self) -> str:
        which = stem_of(self.path) if self.path else "tiles of scikit-learn's photographs"
        return f"{which}, {self.shape}"

    def plan(self, folder: Path, shown: str) -> Plan:
        return self.grouped(plan_photos(folder, shown), shown)

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
    """Plan `<split>/<class>/*` or `<class>/*` in `root`; errors call it `shown`.

    A single folder around everything is ignored, as is a repeated one, `train/train/<class>/*`.
    Classes that only the split `target` has are `UNKNOWN_CLASS`. `class_of` turns a folder's name
    into a class. If any files have image extensions, folders without such files, for example of
    annotations, are not classes. Images of a split outside class folders are skipped.

    Raises:
        UsageError: it is a table instead of a folder.
        UserError: there are no folders of images, only one class, split folders beside other
            folders, or splits with unknown names.
    """
    if root.is_file():
        raise UsageError(f"{shown} is a table, not a folder: use --experiment=image_table")
    root, names, images = _unwrapped(root)
    seen = seen_through(names, images)
    splits = split_folders([seen[name] for name in images], shown)
    depth = 1 if splits else 0
    kept = {
        name: as_if
        for name, as_if in seen.items()
        if as_if.count("/") > depth and (not splits or as_if.partition("/")[0] in splits)
    }
    if not kept:
        raise _no_folders(images, shown)
    class_of = functools.cache(class_of)  # for few folders and many files
    rows = []
    for name, as_if in kept.items():
        top, inner, *_ = as_if.split("/", 2)
        split, folder = (splits[top], inner) if splits else ("train", top)
        rows.append((name, split, class_of(folder)))
    images_kept = kept.keys() & images
    with_images = {of for name, _, of in rows if name in images_kept}
    homes = {name.removesuffix(_below(as_if, depth)) for name, as_if in kept.items()}
    beside = {class_of(folder) for home in homes for folder in folders_in(root / home)}
    without = sorted(beside - with_images)
    if splits:
        tops = {name.partition("/")[0] for name in images}
        without += sorted(printable(top) for top in folders_in(root) if top not in tops)
    rows = [row for row in rows if row[2] in with_images]
    classes = _classes({(split, of) for _, split, of in rows}, shown, without)
    labels = {of: {"label": UNKNOWN_CLASS} for of in with_images}
    labels |= {of: {"label": at} for at, of in enumerate(classes)}
    return Plan(
        records=[
            Record(f"{root}/{name}", printable(name), split, labels[of]) for name, split, of in rows
        ],
        class_names={"label": classes},
        layout=_layout(splits, {split for _, split, _ in rows})
        + _further({_below(as_if, depth) for as_if in kept.values()}),
        left_out=left_out(
            images_in_no_class_folder=sorted(map(printable, set(images) - images_kept)),
            folders_without_images=without,
        ),
    )


def _below(name: str, depth: int) -> str:
    """Return a name relative to its folder at that depth."""
    return name.split("/", depth)[depth]


def _further(names: Collection[str]) -> str:
    """Describe folders inside class folders, if there are any; `names` start with a class."""
    inner = sorted({printable(name.split("/", 2)[1]) for name in names if name.count("/") > 1})
    more = ", ..." * (len(inner) > NAMED)
    return f"; folders inside these ({', '.join(inner[:NAMED])}{more}) are not classes" * bool(
        inner
    )


def _no_folders(images: Sequence[str], shown: str) -> UserError:
    """Make the error for images that are not in class folders."""
    tops = sorted({name.partition("/")[0] for name in images if "/" in name})
    first = f"it has {', '.join(images[:NAMED])}" if images else "it is empty"
    where = f"images are directly in {', '.join(tops)}" if tops else first
    return UserError(
        f"{shown} has no folders of images ({printable(where)}): it needs one per class, "
        "<class>/* or <split>/<class>/*"
    )


def _layout(splits: Mapping[str, str], labelled: Collection[str]) -> str:
    """Describe the top-level folders: the splits, and which of them have labels."""
    named = (
        f"{printable(top)} ({split if split in labelled else 'no labels'})"
        for top, split in sorted(splits.items())
    )
    if splits:
        return f"splits {', '.join(named)}, with one folder per class"
    return "one folder per class"


def _unwrapped(root: Path) -> tuple[Path, list[str], list[str]]:
    """Return the innermost folder with all images, its files, and its image files.

    If no file has an image extension, all count as images.
    """
    names = names_below(root)
    images = [name for name in names if is_named_as_image(name)] or names
    while (wrapper := _wrapper(images)) is not None:
        root = root / wrapper
        inside = f"{wrapper}/"
        names, images = (
            [name.removeprefix(inside) for name in each if name.startswith(inside)]
            for each in (names, images)
        )
    return root, names, images


def _classes(
    pairs: Collection[tuple[str, str]], shown: str, without: Sequence[str]
) -> tuple[str, ...]:
    """Return the sorted classes, from pairs of split and class; errors list folders `without`
    images.

    Raises `UserError` if there are fewer than two to train on, or a split has none of those.
    """
    of = {split: {of for name, of in pairs if name == split} for split in SPLITS}
    if not of["train"]:
        raise UserError(f"{shown}: the split 'train' has no class folders with images")
    train = class_names(of["train"], shown, without)
    for split in ("validation", "test"):
        if of[split] and not of[split] & of["train"]:
            raise UserError(
                f"{shown}: no class of '{split}' ({', '.join(sorted(of[split])[:3])}) is in "
                f"'train' ({', '.join(train[:3])}): use the same folder names, at the same depth"
            )
    return tuple(sorted(of["train"] | of["validation"] | of["test"]))


def plan_photos(root: Path, shown: str) -> Plan:
    """Plan all images below `root`, which are recognised by their extensions.

    Raises:
        UserError: there are none; the error calls it `shown`.
    """
    names = names_below(root)
    kept = [name for name in names if os.path.splitext(name)[1].lower() in ENDINGS]
    if not kept:
        raise UserError(f"{shown} contains no images")
    return Plan(
        records=[Record(f"{root}/{name}", printable(name), "train", {}) for name in kept],
        class_names={},
        layout="photographs without labels",
        left_out=left_out(
            files_that_are_not_named_as_images=sorted(map(printable, set(names) - set(kept)))
        ),
    )


def class_names(names: Iterable[str], shown: str, without: Sequence[str] = ()) -> tuple[str, ...]:
    """Return the distinct `names`, sorted.

    If there is only one, raise `UserError`, with `shown` and the folders `without` images.
    """
    classes = tuple(sorted(set(names)))
    if len(classes) == 1:
        others = ", ".join(without[:NAMED])
        beside = f" (no file in {others} has an image extension)" if without else ""
        raise UserError(
            f"{shown} has only one class, '{classes[0]}'{beside}: it needs one folder per class"
        )
    return classes


def _wrapper(names: Sequence[str]) -> str | None:
    """Return the single folder around all others, unless it is a split."""
    tops = {name.partition("/")[0] for name in names if "/" in name}
    nested = any(name.count("/") > 1 for name in names)
    top = next(iter(tops)) if len(tops) == 1 else "train"
    return top if nested and top.lower() not in SPLIT_FOLDERS else None
