"""Load a source to a `Dataset`: plan its files, decode, split and store them as arrays.

A source is a registered config whose fields determine all that is loaded.
"""

from __future__ import annotations

import abc
import dataclasses
import functools
import math
import os
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

import numpy as np

from cnn_research.core.errors import UsageError, UserError
from cnn_research.core.files import bytes_below
from cnn_research.core.ranges import NonNegativeInt, PositiveInt, Range, Seed, check_ranges
from cnn_research.data.dataset import Dataset, Examples
from cnn_research.data.images import Fit, decode, printable
from cnn_research.data.prepare import cache
from cnn_research.data.prepare.files import (
    Plan,
    check_groups,
    existing,
    fingerprint_of,
    folders_state,
    is_table,
    names_below,
    opened,
    stem_of,
)
from cnn_research.data.prepare.splits import assign
from cnn_research.data.prepare.understood import say, understood

Decoded = tuple[Examples, dict[str, Any]]
"""Examples before they are split, and JSON values for the provenance."""

KEPT_TOGETHER = ("group", "near_duplicates", "folds", "fold")
"""Fields of `ImageFiles` that determine the splits, beside sizes and seed."""

Share = Annotated[float, Range(minimum=0, below=1)]
"""A fraction below 1."""


@dataclasses.dataclass(frozen=True)
class Origin:
    """Origin of a source's examples.

    Attributes:
        decode: decodes all examples; its argument is an empty folder for arrays larger than memory.
        home: folder of the decoded arrays; None if decoding takes no time.
        fingerprint: computes the files' fingerprint, which takes seconds for many files; if it
            changes, they are decoded again.
        key: identifies the selection and splits of examples; each has its own arrays.
    """

    name: str
    decode: Callable[[Path], Decoded]
    home: Path | None = None
    fingerprint: Callable[[], str] = str
    key: str = ""

    def is_decoded(self) -> bool:
        """Return whether the arrays exist and match the current files."""
        if self.home is None:
            return True
        folder = cache.arrays_folder(self.home, self.key)
        return folder.is_dir() and cache.read(folder, self.fingerprint()) is not None


class Source(abc.ABC):
    """Base of data configs, which describe the origin of their examples; `load` does the rest."""

    split_seed: int

    @property
    @abc.abstractmethod
    def description(self) -> str:
        """Short description."""

    @property
    @abc.abstractmethod
    def sizes(self) -> Mapping[str, float]:
        """Number (int) or fraction (float) of examples for `validation` and `test`."""

    @property
    def drawing(self) -> Mapping[str, Any]:
        """Keyword arguments of `assign`: how splits are drawn."""
        return {}

    @abc.abstractmethod
    def origin(self) -> Origin:
        """Describe the origin of the examples."""

    def load(self) -> Dataset:
        """Load the images in splits, as memory maps if their arrays are on disk.

        Raises:
            UsageError: a field is out of range, or more is held out than there is.
            UserError: files are missing, damaged or of another kind.
        """
        check_ranges(self, "data.")
        origin = self.origin()
        fingerprint = origin.fingerprint()

        def examples_in_splits(scratch: Path) -> tuple[Examples, dict[str, np.ndarray], Any]:
            examples, facts = origin.decode(scratch)
            indices, report = assign(examples, self.sizes, self.split_seed, **self.drawing)
            return examples, indices, {"source": self.description, **facts, **report}

        def build(folder: Path) -> None:
            with cache.scratch(folder.with_name("examples")) as scratch:
                cache.write(folder, fingerprint, origin.name, *examples_in_splits(scratch))

        if origin.home is not None:
            return cache.load(origin.home, fingerprint, origin.key, build)
        examples, indices, provenance = examples_in_splits(Path())
        splits = {name: examples.take(chosen) for name, chosen in indices.items()}
        return Dataset(origin.name, splits, examples.class_names, provenance)


def from_scikit_learn(name: str, decode: Callable[[], Examples]) -> Origin:
    """Make the origin of examples included in scikit-learn, of which nothing is stored."""

    def decode_all(_: Path) -> Decoded:
        import sklearn

        return decode(), {"version": f"scikit-learn {sklearn.__version__}"}

    return Origin(name, decode_all)


# Prepared by `python -m cnn_research.data prepare` ------------------------------------------------


def from_prepared(
    source: Source, home: Path, title: str, read: Callable[[Path, Path], Decoded], advice: str
) -> Origin:
    """Make the origin of data prepared once in `home` (`<name>/<version>`) for all field values.

    `read(folder, scratch)` decodes it. Raises `UserError`, which calls it `title` and adds `advice`
    on preparing it, if it is not prepared.
    """
    name, folder = home.parent.name, home / cache.PREPARED
    if not folder.is_dir():
        raise UserError(
            f"{title} is not prepared in {cache.data_dir()}: run `python -m cnn_research.data "
            f"prepare {name} --source=PATH` {advice}"
        )

    def decode(scratch: Path) -> Decoded:
        examples, facts = read(folder, scratch)
        return examples, {"version": home.name, **facts}

    key = cache.key_of(dataclasses.asdict(source))  # type: ignore[call-overload]
    return Origin(name, decode, home, lambda: str(folder.stat().st_mtime_ns), key)


def prepare_once(home: Path, write: Callable[[Path], None]) -> None:
    """Let `write(folder)` fill the folder of prepared files in `home` if it does not exist."""
    if not cache.write_once(home / cache.PREPARED, write):
        print(
            f"already prepared in {home}; to prepare it again, first run `python -m "
            f"cnn_research.data remove {home.relative_to(cache.data_dir()).as_posix()}`"
        )


# Files of images ---------------------------------------------------------------------------------


LATER_FIELDS: Mapping[str, Any] = {"fit": "stretch", "separator": "", "columns": "heads"}
"""Fields added later, with the values that do not change the names of older caches."""


@dataclasses.dataclass(frozen=True)
class ImageFiles(Source):
    """Base of sources of image files, which are decoded on first use.

    Attributes:
        kind: folder of the arrays and prepared files of such sources.
        prepared: whether files are prepared once for all field values, and used if `path` is empty.
        by_name: as in `Examples`.
    """

    kind: ClassVar[str]
    prepared: ClassVar[bool] = False
    by_name: ClassVar[bool] = False

    path: str = ""
    """Folder, or a .tar, .tar.gz, .tar.xz or .zip archive."""
    image_size: tuple[PositiveInt, PositiveInt] = (64, 64)
    """Height and width to which images are resized."""
    fit: Fit = "stretch"
    """How images with another aspect ratio are resized: `stretch` changes the ratio, `crop` cuts
    off both ends of the longer side, `pad` adds grey at both ends of the shorter side."""
    validation: Share = 0.1
    """Fraction of train held out for validation if the data has no such split; 0 for none."""
    test: Share = 0.1
    """Fraction of train held out for testing if the data has no test split; 0 for none."""
    split_seed: Seed = 0
    """Seed of the choice of held-out examples."""
    group: str = ""
    """Regular expression for the group in a file's name: images of one group, such as a patient's
    or a film's, are never in two random splits. '(p[0-9]+)_' finds p07 in `class/p07_12.jpg`. The
    first matching pair of parentheses is the group. A file without a match is its own group."""
    near_duplicates: Literal["list", "together"] = "list"
    """Treatment of nearly identical images (re-encoded, resized, mirrored): only list them, or also
    keep them together in random splits, whose classes then stay in proportion as far as possible.
    """
    folds: NonNegativeInt = 0
    """Number of folds for cross-validation, of which `fold` is the test split; 0 to hold out the
    fraction `test`."""
    fold: NonNegativeInt = 0
    """Fold that is the test split, from 0."""
    on_bad_image: Literal["stop", "skip"] = "stop"
    """Treatment of files that are not usable images: stop and name one, or skip and count them."""

    @property
    def description(self) -> str:
        return f"images of {stem_of(self.path)}, {self.shape}"

    @property
    def shape(self) -> str:
        return f"{self.image_size[0]}x{self.image_size[1]}x3"

    @property
    def sizes(self) -> dict[str, float]:
        test = 1 / self.folds if self.folds else self.test
        return {"validation": self.validation, "test": test}

    @property
    def drawing(self) -> Mapping[str, Any]:
        fold = (self.fold, self.folds) if self.folds else None
        return {"together": self.near_duplicates == "together", "fold": fold}

    def check(self) -> None:
        """Raise `UsageError` for fields that contradict each other."""
        if self.folds == 1 or (self.fold and self.fold >= self.folds):
            raise UsageError(
                f"--data.folds is {self.folds} and --data.fold {self.fold}: use at least two "
                "folds, and number them from 0"
            )
        if self.folds and self.validation + 1 / self.folds >= 1:
            raise UsageError(
                f"--data.validation is {self.validation}, and one example in {self.folds} is held "
                "out for testing: together they must leave examples to train on"
            )
        if not self.folds and self.validation + self.test >= 1:
            raise UsageError(
                f"--data.validation is {self.validation} and --data.test {self.test}: their sum "
                "must be below 1, to leave examples to train on"
            )

    @abc.abstractmethod
    def plan(self, folder: Path, shown: str) -> Plan:
        """Assign the files in `folder` to examples without opening them; errors call it `shown`."""

    def planned(self, folder: Path, shown: str) -> Plan:
        """Return the plan, which is cached until `load` ends or a folder or table changes."""
        return _planned(self.plain(), folder, shown, folders_state(folder))

    def plain(self) -> Self:
        """Reset the fields that do not affect a plan or survey: path, sizes and splits."""
        own = dataclasses.fields(ImageFiles)
        defaults: dict[str, Any] = {f.name: f.default for f in own if f.name != "group"}
        return dataclasses.replace(self, **defaults)

    def load(self) -> Dataset:
        try:
            return super().load()
        finally:
            _planned.cache_clear()  # for a million images it needs much memory

    def grouped(self, plan: Plan, shown: str) -> Plan:
        """Add to a plan the group that `group` finds in each file's name.

        Raises `UsageError`, which calls the source `shown`, if `group` is not a regular expression
        or finds fewer than two groups.
        """
        if not self.group:
            return plan
        try:
            pattern = re.compile(self.group)
        except re.error as error:
            raise UsageError(
                f"--data.group='{self.group}' is not a regular expression ({error}): an example "
                "is '(p[0-9]+)_'"
            ) from None
        matches = [pattern.search(record.name) for record in plan.records]
        groups = [
            next(filter(None, match.groups() or (match[0],)), "") if match else ""
            for match in matches
        ]
        example = f"file names of {shown}, such as '{plan.records[0].name}'"
        check_groups(groups, f"--data.group='{self.group}'", example)
        records = [
            dataclasses.replace(record, group=group)
            for record, group in zip(plan.records, groups, strict=True)
        ]
        return dataclasses.replace(plan, records=records)

    def state_of(self, path: Path) -> str:
        """Fingerprint of the files below `path`, which changes when one of them does."""
        if not path.is_dir():
            return fingerprint_of([path], path)
        return fingerprint_of([f"{path}/{name}" for name in names_below(path)], path)

    @property
    def bytes_of_image(self) -> int:
        """Size of a decoded image in bytes."""
        return math.prod((*self.image_size, 3))

    def located(self) -> Self:
        """Set the path to that of the prepared files, if they are used."""
        if self.path or not self.prepared:
            return self
        (path,) = (self.home() / cache.PREPARED).iterdir()
        return dataclasses.replace(self, path=str(path))

    def check_space(self, images: int, features: int = 0) -> None:
        """Raise `UserError` if the disk has too little space to decode this many images.

        `features` are the bytes of features that will be computed from them and cached.
        """
        arrays = images * self.bytes_of_image
        caching = " and caching their features" if features else ""
        what = f"decoding {images:,} images at {self.shape}{caching}"
        # All examples are on disk twice until they are split.
        needed = max(2 * arrays, arrays + features)
        cache.require_space(needed, what, "choose a smaller --data.image-size")

    def pixels(self, file: Path) -> np.ndarray:
        """Decode the image in a file, uint8 `[*image_size, 3]`."""
        return decode(file, self.image_size, self.fit)

    # Files that are prepared once

    @classmethod
    def home(cls) -> Path:
        return cache.data_dir() / cls.kind / "2.0.0"

    def prepare(self, given: str | None) -> Self:
        """Copy the folder or archive `given` to the prepared data; return the source to load."""
        if not self.prepared:
            return dataclasses.replace(self, path=given or self.path)
        path = existing(given or "")
        if is_table(path):
            raise UsageError(
                f"{printable(path)} is only a table: name the folder or archive with the table and "
                "its images, which are copied"
            )

        def write(folder: Path) -> None:
            with opened(path) as root:
                self.plan(root, printable(path))  # rejects other data before they are copied
            cache.require_space(bytes_below(path), f"copying {printable(path)}")
            try:
                if path.is_dir():
                    shutil.copytree(path, folder / path.name, ignore_dangling_symlinks=True)
                else:
                    shutil.copy2(path, folder)
            except shutil.Error as error:
                file, _, reason = error.args[0][0]
                raise UserError(f"{printable(file)} cannot be copied: {reason}") from error
            os.sync()  # once for all, as there may be 20,000 files

        prepare_once(self.home(), write)
        return self

    def origin(self) -> Origin:
        self.check()
        if self.prepared and not self.path:
            advice = "with the folder or archive, or name it with --data.path"
            return from_prepared(self, self.home(), self.kind, self._decode_prepared, advice)
        path = existing(self.path)
        drawn = (*self.sizes, "split_seed", *KEPT_TOGETHER)
        fields = {name: v for name, v in dataclasses.asdict(self).items() if name not in drawn}
        for name, default in LATER_FIELDS.items():
            if fields.get(name) == default:  # arrays from before the field keep their name
                del fields[name]
        fields["path"] = printable(path)
        name = stem_of(str(path))
        config = f"{re.sub(r'[^A-Za-z0-9]+', '_', name)}-{cache.key_of(fields)}"
        home = cache.data_dir() / self.kind / config / "1.0.0"
        fingerprint = functools.cache(lambda: self.state_of(path))
        decode = functools.partial(self._decode, path, fingerprint)
        values = {name: getattr(self, name) for name in KEPT_TOGETHER}
        chosen = {name: value for name, value in values.items() if value not in ("", 0, "list")}
        # Without any of these fields, arrays keep the name from before they were introduced.
        key = cache.key_of([self.sizes, self.split_seed, *([chosen] if chosen else [])])
        return Origin(name, decode, home, fingerprint, key)

    def _decode_prepared(self, folder: Path, scratch: Path) -> Decoded:
        (path,) = folder.iterdir()
        return self._decode(path, lambda: self.state_of(path), scratch)

    def _decode(self, path: Path, fingerprint: Callable[[], str], scratch: Path) -> Decoded:
        """Decode the images of a folder, archive or table."""
        from cnn_research.data.prepare.decoding import decode_plan

        with opened(path) as root:
            shown = printable(path)
            plan = self.planned(root, shown)
            text = understood(plan, shown)
            say(text)
            self.check_space(len(plan.records))
            examples, facts = decode_plan(plan, self.pixels, self.on_bad_image, scratch)
        if root != path:  # the unpacked files of an archive are gone
            facts.pop("folder", None)
        examples = dataclasses.replace(examples, by_name=self.by_name)
        return examples, {
            "path": printable(path.name),
            "fingerprint": fingerprint(),
            "understood": text,
            **facts,
        }


@functools.lru_cache(maxsize=1)
def _planned(source: ImageFiles, folder: Path, shown: str, state: object) -> Plan:
    """Plan a folder or table in this state."""
    return source.plan(folder, shown)
