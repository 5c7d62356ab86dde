"""The one way from a source to a `Dataset`: its files are planned, decoded and split, and kept.

A source is a registered config whose fields are all that decides what is loaded. It says where its
examples come from, an `Origin`; `load` does the rest.
"""

from __future__ import annotations

import abc
import dataclasses
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Protocol, Self

import numpy as np

from cnn_research.core.errors import UsageError, UserError
from cnn_research.core.ranges import PositiveInt, Range, Seed, check_ranges
from cnn_research.data.dataset import Dataset, Examples
from cnn_research.data.images import decode, printable
from cnn_research.data.prepare import cache
from cnn_research.data.prepare.files import Plan, content_of, existing, opened, stem_of
from cnn_research.data.prepare.splits import assign

Decoded = tuple[Examples, dict[str, Any]]
"""Examples before they are split, and JSON values for the provenance."""

PREPARED = "prepared"
"""The folder of what is prepared once for all choices of fields, beside the kept arrays."""

Share = Annotated[float, Range(minimum=0, below=1)]
"""A fraction that leaves something."""


@dataclasses.dataclass(frozen=True)
class Origin:
    """Origin of a source's examples.

    Attributes:
        decode: decodes every example; its argument is an empty folder for arrays that outgrow
            memory.
        home: folder of the decoded arrays; None where decoding takes no time.
        fingerprint: of the files; arrays decoded from other files are decoded again.
        key: of the choice and split of examples; arrays of each choice are kept.
    """

    name: str
    decode: Callable[[Path], Decoded]
    home: Path | None = None
    fingerprint: str = ""
    key: str = ""


class Source(Protocol):
    """Interface of a data config for `load`."""

    @property
    def description(self) -> str:
        """In a few words."""

    @property
    def split_seed(self) -> int:
        """Decide which examples are held out."""

    @property
    def sizes(self) -> Mapping[str, float]:
        """Number (int) or fraction (float) of examples for `validation` and `test`, as in
        `assign`."""

    def origin(self) -> Origin:
        """Describe the origin of the examples."""


def load(source: Source) -> Dataset:
    """Load a source in splits; memory maps where its arrays are on the disk.

    Raises:
        UsageError: a field out of range, or more is held out than there is.
        UserError: files that are absent, damaged or not of this kind.
    """
    check_ranges(source, "data.")
    sizes, origin = source.sizes, source.origin()

    def examples_in_splits(scratch: Path) -> tuple[Examples, dict[str, np.ndarray], dict[str, Any]]:
        examples, facts = origin.decode(scratch)
        indices, report = assign(examples, sizes, source.split_seed)
        return examples, indices, {"source": source.description, **facts, **report}

    def build(folder: Path) -> None:
        with cache.scratch(folder.with_name("examples")) as scratch:
            cache.write(folder, origin.fingerprint, origin.name, *examples_in_splits(scratch))

    if origin.home is not None:
        return cache.load(origin.home, origin.fingerprint, origin.key, build)
    examples, indices, provenance = examples_in_splits(Path())
    splits = {name: examples.take(chosen) for name, chosen in indices.items()}
    return Dataset(origin.name, splits, examples.class_names, provenance)


def from_scikit_learn(name: str, decode: Callable[[], Examples]) -> Origin:
    """Examples that ship with scikit-learn: nothing is prepared or kept."""

    def decode_all(_: Path) -> Decoded:
        import sklearn

        return decode(), {"version": f"scikit-learn {sklearn.__version__}"}

    return Origin(name, decode_all)


# What `python -m cnn_research.data prepare` keeps -------------------------------------------------


def from_prepared(
    source: Source, home: Path, title: str, read: Callable[[Path, Path], Decoded], advice: str = ""
) -> Origin:
    """Origin of the data prepared in `home` (`<name>/<version>`), once for all choices of fields.

    `read(folder, scratch)` decodes it. Errors name it `title` and add `advice` on preparing it.
    Raises `UserError` if it is not prepared.
    """
    name, folder = home.parent.name, home / PREPARED
    if not folder.is_dir():
        interrupted = cache.unfinished(folder).is_dir()
        state = "only half prepared (it was interrupted)" if interrupted else "not prepared"
        from_files = "where PATH is the folder or archive, or name that with --data.path"
        raise UserError(
            f"{title} is {state} in {cache.data_dir()}: run `python -m cnn_research.data prepare "
            f"{name} --source=PATH` {advice or from_files}"
        )

    def decode(scratch: Path) -> Decoded:
        examples, facts = read(folder, scratch)
        return examples, {"version": home.name, **facts}

    key = cache.key_of(dataclasses.asdict(source))  # type: ignore[call-overload]
    return Origin(name, decode, home, str(folder.stat().st_mtime_ns), key)


def prepare_once(home: Path, write: Callable[[Path], None]) -> None:
    """Call `write(folder)`, which makes a folder in `home`, unless it is there."""
    with cache.lock(home):
        if (home / PREPARED).is_dir():
            print(f"already prepared in {home}; delete that folder to prepare it again")
        else:
            write(home / PREPARED)


# Files of images ---------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class ImageFiles(abc.ABC):
    """Files of images below a path, decoded on first use: what all such sources share.

    Attributes:
        kind: the folder where decoded arrays are kept.
        prepared: the folder of what is prepared once for all choices of fields, and taken where
            `path` is empty; empty where nothing is.
        layout: tells apart sources of one kind that make other examples of the same files.
        by_name: as in `Examples`.
    """

    kind: ClassVar[str]
    prepared: ClassVar[str] = ""
    layout: ClassVar[str] = ""
    by_name: ClassVar[bool] = False

    path: str = ""
    """The folder, or a .tar, .tar.gz, .tar.xz or .zip archive of it."""
    image_size: tuple[PositiveInt, PositiveInt] = (64, 64)
    """Height and width to which every image is stretched."""
    validation: Share = 0.1
    """Fraction of train held out for validation, where the source has none; 0 for none."""
    test: Share = 0.1
    """Fraction of train held out for the test, where the source has none; 0 for none."""
    split_seed: Seed = 0
    """Decides which examples are held out."""
    on_bad_image: Literal["stop", "skip"] = "stop"
    """On a file that is no image: stop and name it, or skip and count it."""

    @property
    def description(self) -> str:
        return f"images of {stem_of(self.path)}, {self.shape}"

    @property
    def shape(self) -> str:
        return f"{self.image_size[0]}x{self.image_size[1]}x3"

    @property
    def sizes(self) -> dict[str, float]:
        return {"validation": self.validation, "test": self.test}

    def check(self) -> None:
        """Raise `UsageError` for fields that contradict each other."""
        if self.validation + self.test >= 1:
            raise UsageError(
                f"--data.validation is {self.validation} and --data.test {self.test}: together "
                "they must be below 1, so that examples are left to train on"
            )

    @abc.abstractmethod
    def plan(self, folder: Path, shown: str) -> Plan:
        """Assign the files in `folder` to examples; errors call it `shown`; opens no image."""

    def state_of(self, path: Path) -> str:
        """Another text whenever a file that is read below `path` has changed."""
        return content_of(path)

    def pixels(self, file: Path) -> np.ndarray:
        """The image in a file, uint8 `[*image_size, 3]`."""
        return decode(file, self.image_size)

    def load(self) -> Dataset:
        """Images are uint8 `[examples, *image_size, 3]`, memory maps; a head per set of labels."""
        return load(self)

    # What is prepared once

    @classmethod
    def home(cls) -> Path:
        return cache.data_dir() / cls.prepared / "1.0.0"

    def plan_to_prepare(self, folder: Path, shown: str) -> Plan:
        """As `plan`, of all images that any choice of fields can ask for."""
        return self.plan(folder, shown)

    def pixels_to_prepare(self, file: Path) -> np.ndarray:
        """The image in a file as it is kept, uint8 `[height, width, 3]`."""
        return decode(file, None)

    def plan_prepared(self, prepared: Plan, folder: Path) -> Plan:
        """Select the prepared images that are examples."""
        return prepared

    def prepare(self, given: str | None) -> Self:
        """Prepare all images of the folder, archive or table `given`; return the source to load
        from."""
        if not self.prepared:
            return dataclasses.replace(self, path=given or self.path)
        path = existing(given or "")

        def write(folder: Path) -> None:
            from cnn_research.data.prepare.decoding import write_plan

            facts = {"path": printable(path.name), "fingerprint": content_of(path)}
            with opened(path) as root:
                plan = self.plan_to_prepare(root, printable(path))
                write_plan(folder, plan, self.pixels_to_prepare, self.on_bad_image, facts)

        prepare_once(self.home(), write)
        return self

    def _read_prepared(self, folder: Path, scratch: Path) -> Decoded:
        from cnn_research.data.prepare.decoding import decode_prepared, read_plan

        plan = self.plan_prepared(read_plan(folder), folder)
        return decode_prepared(folder, plan, self.image_size, scratch)

    def origin(self) -> Origin:
        self.check()
        if self.prepared and not self.path:
            return from_prepared(self, self.home(), self.prepared, self._read_prepared)
        path = existing(self.path)
        fields = dataclasses.asdict(self)
        for drawn in (*self.sizes, "split_seed"):
            del fields[drawn]
        fields["path"] = printable(path)
        if self.layout:
            fields["layout"] = self.layout
        name = stem_of(str(path))
        config = f"{re.sub(r'[^A-Za-z0-9]+', '_', name)}-{cache.key_of(fields)}"
        home = cache.data_dir() / self.kind / config / "1.0.0"
        fingerprint = self.state_of(path)

        def decode_all(scratch: Path) -> Decoded:
            from cnn_research.data.prepare.decoding import decode_plan

            with opened(path) as root:
                plan = self.plan(root, printable(path))
                examples, facts = decode_plan(plan, self.pixels, self.on_bad_image, scratch)
            examples = dataclasses.replace(examples, by_name=self.by_name)
            return examples, {"path": printable(path.name), "fingerprint": fingerprint, **facts}

        key = cache.key_of([self.sizes, self.split_seed])
        return Origin(name, decode_all, home, fingerprint, key)
