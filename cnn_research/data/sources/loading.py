"""From a source to a `Dataset`: files are planned, decoded, split and stored as arrays.

A source is a registered config whose fields decide everything about what is loaded.
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
"""Fields of files of images that decide, beside sizes and seed, which are in which split."""

Share = Annotated[float, Range(minimum=0, below=1)]
"""A fraction that leaves something."""


@dataclasses.dataclass(frozen=True)
class Origin:
    """Origin of a source's examples.

    Attributes:
        decode: decodes every example; its argument is an empty folder for arrays that outgrow
            memory.
        home: folder of the decoded arrays; None where decoding takes no time.
        fingerprint: returns that of the files, which takes seconds where there are many; arrays
            decoded from other files are decoded again.
        key: of the choice and split of examples; each choice has its own arrays.
    """

    name: str
    decode: Callable[[Path], Decoded]
    home: Path | None = None
    fingerprint: Callable[[], str] = str
    key: str = ""

    def is_decoded(self) -> bool:
        """Return whether the arrays are there, of the files as they are now."""
        if self.home is None:
            return True
        folder = cache.arrays_folder(self.home, self.key)
        return folder.is_dir() and cache.read(folder, self.fingerprint()) is not None


class Source(abc.ABC):
    """Base of data configs that describe the origin of their examples; `load` does the rest."""

    split_seed: int

    @property
    @abc.abstractmethod
    def description(self) -> str:
        """In a few words."""

    @property
    @abc.abstractmethod
    def sizes(self) -> Mapping[str, float]:
        """Number (int) or fraction (float) of examples for `validation` and `test`, as in
        `assign`."""

    @property
    def drawing(self) -> Mapping[str, Any]:
        """How splits are drawn, as the keywords of `assign`."""
        return {}

    @abc.abstractmethod
    def origin(self) -> Origin:
        """Describe the origin of the examples."""

    def load(self) -> Dataset:
        """Load the images in splits; memory maps where their arrays are on the disk.

        Raises:
            UsageError: a field out of range, or more is held out than there is.
            UserError: files that are absent, damaged or not of this kind.
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
    """Examples that ship with scikit-learn: nothing is stored."""

    def decode_all(_: Path) -> Decoded:
        import sklearn

        return decode(), {"version": f"scikit-learn {sklearn.__version__}"}

    return Origin(name, decode_all)


# Prepared by `python -m cnn_research.data prepare` ------------------------------------------------


def from_prepared(
    source: Source, home: Path, title: str, read: Callable[[Path, Path], Decoded], advice: str
) -> Origin:
    """Origin of the data prepared in `home` (`<name>/<version>`), once for all choices of fields.

    `read(folder, scratch)` decodes it. Errors name it `title` and add `advice` on preparing it.
    Raises `UserError` if it is not prepared.
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
    """Have `write(folder)` fill the folder of prepared files in `home`, unless it is there."""
    if not cache.write_once(home / cache.PREPARED, write):
        print(
            f"already prepared in {home}; to prepare it again, first `python -m cnn_research.data "
            f"remove {home.relative_to(cache.data_dir())}`"
        )


# Files of images ---------------------------------------------------------------------------------


LATER_FIELDS: Mapping[str, Any] = {"fit": "stretch", "separator": "", "columns": "heads"}
"""Fields of such sources that they did not have at first, and the values that stand for that."""


@dataclasses.dataclass(frozen=True)
class ImageFiles(Source):
    """Files of images below a path, decoded on first use: the base of such sources.

    Attributes:
        kind: the folder of such sources, for their arrays and prepared files.
        prepared: whether files are prepared once for all choices of fields, and read where `path`
            is empty.
        by_name: as in `Examples`.
    """

    kind: ClassVar[str]
    prepared: ClassVar[bool] = False
    by_name: ClassVar[bool] = False

    path: str = ""
    """The folder, or a .tar, .tar.gz, .tar.xz or .zip archive of it."""
    image_size: tuple[PositiveInt, PositiveInt] = (64, 64)
    """Height and width of every image that the network is given."""
    fit: Fit = "stretch"
    """How an image of another shape comes to that size: `stretch` changes its proportions, `crop`
    cuts off both ends of what is too long, `pad` puts grey at both sides of what is too short."""
    validation: Share = 0.1
    """Fraction of train held out for validation, where the source has none; 0 for none."""
    test: Share = 0.1
    """Fraction of train held out for the test, where the source has none; 0 for none."""
    split_seed: Seed = 0
    """Seed of the choice of held-out examples."""
    group: str = ""
    """A regular expression that finds in a file's name, `class/p07_12.jpg`, the group of images
    that must stay on one side of drawn splits, such as those of a patient or a film: '(p[0-9]+)_'.
    The first part in parentheses that matches identifies the group. A file without a match is a
    group of its own."""
    near_duplicates: Literal["list", "together"] = "list"
    """Whether images that are nearly the same (saved again, resized, mirrored) are only listed, or
    also kept together on one side of drawn splits, whose classes are then in the same proportions
    as far as numbers allow."""
    folds: NonNegativeInt = 0
    """Divide the examples into this many equal parts, of which `fold` is the test; 0 to hold out
    the fraction `test`."""
    fold: NonNegativeInt = 0
    """The part that is the test, numbered from 0."""
    on_bad_image: Literal["stop", "skip"] = "stop"
    """On a file that is not an image: stop and name it, or skip and count it."""

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
                f"--data.folds is {self.folds} and --data.fold {self.fold}: there must be two "
                "folds or more, and they are numbered from 0"
            )
        if self.folds and self.validation + 1 / self.folds >= 1:
            raise UsageError(
                f"--data.validation is {self.validation}, and one example in {self.folds} is for "
                "the test: together they must leave examples to train on"
            )
        if not self.folds and self.validation + self.test >= 1:
            raise UsageError(
                f"--data.validation is {self.validation} and --data.test {self.test}: together "
                "they must be below 1, so that examples are left to train on"
            )

    @abc.abstractmethod
    def plan(self, folder: Path, shown: str) -> Plan:
        """Assign the files in `folder` to examples; errors call it `shown`; opens no image."""

    def planned(self, folder: Path, shown: str) -> Plan:
        """The plan, made once until `load` is done or a folder or table changes."""
        return _planned(self.plain(), folder, shown, folders_state(folder))

    def plain(self) -> Self:
        """The source without what changes nothing of a plan or survey: path, sizes and splits."""
        own = dataclasses.fields(ImageFiles)
        defaults: dict[str, Any] = {f.name: f.default for f in own if f.name != "group"}
        return dataclasses.replace(self, **defaults)

    def load(self) -> Dataset:
        try:
            return super().load()
        finally:
            _planned.cache_clear()  # of a million images it takes much memory

    def grouped(self, plan: Plan, shown: str) -> Plan:
        """The plan with the group of each file that `group` finds in its name.

        Raises `UsageError`, which calls the source `shown`, for what is no regular expression, or
        finds no two groups.
        """
        if not self.group:
            return plan
        try:
            pattern = re.compile(self.group)
        except re.error as error:
            raise UsageError(
                f"--data.group='{self.group}' is not a regular expression ({error}): write one "
                "such as '(p[0-9]+)_'"
            ) from None
        found = [pattern.search(record.name) for record in plan.records]
        groups = [
            next(filter(None, part.groups() or (part[0],)), "") if part else "" for part in found
        ]
        example = f"file names of {shown}, such as '{plan.records[0].name}'"
        check_groups(groups, f"--data.group='{self.group}'", example)
        records = [
            dataclasses.replace(record, group=group)
            for record, group in zip(plan.records, groups, strict=True)
        ]
        return dataclasses.replace(plan, records=records)

    def state_of(self, path: Path) -> str:
        """Another text whenever a file that is read below `path` has changed."""
        if not path.is_dir():
            return fingerprint_of([path], path)
        return fingerprint_of([f"{path}/{name}" for name in names_below(path)], path)

    @property
    def bytes_of_image(self) -> int:
        """Bytes of a decoded image."""
        return math.prod((*self.image_size, 3))

    def located(self) -> Self:
        """The source with the path of its files, where those are the prepared ones."""
        if self.path or not self.prepared:
            return self
        (path,) = (self.home() / cache.PREPARED).iterdir()
        return dataclasses.replace(self, path=str(path))

    def check_space(self, images: int, features: int = 0) -> None:
        """Raise `UserError` if the disk has no room to decode so many images.

        `features` are the bytes of what is computed from them, and cached, later.
        """
        arrays = images * self.bytes_of_image
        caching = " and caching features of them" if features else ""
        what = f"decoding {images:,} images at {self.shape}{caching}"
        # All examples are on the disk twice until they are in their splits.
        needed = max(2 * arrays, arrays + features)
        cache.require_space(needed, what, "take a smaller --data.image-size")

    def pixels(self, file: Path) -> np.ndarray:
        """The image in a file, uint8 `[*image_size, 3]`."""
        return decode(file, self.image_size, self.fit)

    # Files that are prepared once

    @classmethod
    def home(cls) -> Path:
        return cache.data_dir() / cls.kind / "2.0.0"

    def prepare(self, given: str | None) -> Self:
        """Copy the folder or archive `given` to the prepared data; return the source to load
        from."""
        if not self.prepared:
            return dataclasses.replace(self, path=given or self.path)
        path = existing(given or "")
        if is_table(path):
            raise UsageError(
                f"{printable(path)} is copied with its images: name the folder or archive of both"
            )

        def write(folder: Path) -> None:
            with opened(path) as root:
                self.plan(root, printable(path))  # refuses other data before they are copied
            cache.require_space(bytes_below(path), f"copying {printable(path)}")
            try:
                if path.is_dir():
                    shutil.copytree(path, folder / path.name, ignore_dangling_symlinks=True)
                else:
                    shutil.copy2(path, folder)
            except shutil.Error as error:
                file, _, reason = error.args[0][0]
                raise UserError(f"{printable(file)} cannot be copied: {reason}") from error
            os.sync()  # once, for what may be 20,000 files

        prepare_once(self.home(), write)
        return self

    def origin(self) -> Origin:
        self.check()
        if self.prepared and not self.path:
            advice = "where PATH is the folder or archive, or name that with --data.path"
            return from_prepared(self, self.home(), self.kind, self._decode_prepared, advice)
        path = existing(self.path)
        drawn = (*self.sizes, "split_seed", *KEPT_TOGETHER)
        fields = {name: v for name, v in dataclasses.asdict(self).items() if name not in drawn}
        for name, default in LATER_FIELDS.items():
            if fields.get(name) == default:  # arrays keep the name that they had without the field
                del fields[name]
        fields["path"] = printable(path)
        name = stem_of(str(path))
        config = f"{re.sub(r'[^A-Za-z0-9]+', '_', name)}-{cache.key_of(fields)}"
        home = cache.data_dir() / self.kind / config / "1.0.0"
        fingerprint = functools.cache(lambda: self.state_of(path))
        decode = functools.partial(self._decode, path, fingerprint)
        values = {name: getattr(self, name) for name in KEPT_TOGETHER}
        chosen = {name: value for name, value in values.items() if value not in ("", 0, "list")}
        # Without any of them, arrays keep the name that they had before there were these fields.
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
        if root != path:  # an archive's files are there no more
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
    """The plan of a folder or table in this state."""
    return source.plan(folder, shown)
