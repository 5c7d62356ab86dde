"""The one way from a source to a `Dataset`: its files are planned, decoded and split, and kept.

A source is a registered config whose fields are all that decides what is loaded. It says where its
examples come from, an `Origin`; `load` does the rest.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Protocol, Self

import numpy as np

from cnn_research.core.errors import UsageError, UserError
from cnn_research.core.ranges import PositiveInt, Range, Seed, check_ranges
from cnn_research.data.dataset import Dataset
from cnn_research.data.images import decode, printable
from cnn_research.data.prepare import cache
from cnn_research.data.prepare.files import Plan, content_of, existing, opened, stem_of
from cnn_research.data.prepare.splits import Examples, assign

Decoded = tuple[Examples, dict[str, Any]]
"""Examples before they are split, and JSON values for the provenance."""

Share = Annotated[float, Range(minimum=0, below=1)]
"""A fraction that leaves something."""


@dataclasses.dataclass(frozen=True)
class Origin:
    """Where the examples of a source come from.

    Attributes:
        name: of the data set.
        decode: every example; its argument is an empty folder for arrays that outgrow memory.
        home: the folder of what is prepared, where decoded arrays are kept, too; None where
            decoding takes no time, and nothing is kept.
        fingerprint: of the files: arrays that were decoded from others are decoded again.
        key: of what is chosen from them, and how it is split; arrays of each choice are kept.
        prepare: writes the records in `home`, if need be.
    """

    name: str
    decode: Callable[[Path], Decoded]
    home: Path | None = None
    fingerprint: str = ""
    key: str = ""
    prepare: Callable[[], None] = lambda: None


class Source(Protocol):
    """What `load` asks a config of data."""

    @property
    def description(self) -> str:
        """In a few words."""

    @property
    def split_seed(self) -> int:
        """Decides which examples are held out."""

    @property
    def sizes(self) -> Mapping[str, float]:
        """How many training examples `validation` and `test` are given: a number (int) or a
        fraction (float), for `assign`."""

    def origin(self) -> Origin:
        """Where the examples come from."""


def load(source: Source) -> Dataset:
    """The examples of a source in splits; memory maps where they are kept on the disk.

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
        origin.prepare()  # before there is a folder inside of `home`, which this may move away
        with cache.scratch(folder.with_name("records")) as scratch:
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


# Records that `python -m cnn_research.data prepare` writes ---------------------------------------


def from_records(
    source: Source, home: Path, title: str, read: Callable[[Path, Path], Decoded], advice: str = ""
) -> Origin:
    """The records in `home`, prepared once for all choices of fields.

    Args:
        source: whose fields the kept arrays depend on.
        home: their folder, `<data set>/<version>`.
        title: what errors call the data set.
        read: decodes the records in `home`, called as `read(home, scratch)`.
        advice: how to prepare, where it is not simply from files.

    Raises:
        UserError: they are not prepared, or not in this format.
    """
    name, info = home.parent.name, home / "dataset_info.json"
    if not info.is_file():
        interrupted = any(home.parent.glob("incomplete.*"))
        state = "only half prepared (it was interrupted)" if interrupted else "not prepared"
        from_files = "where PATH is the folder or archive, or name that with --data.path"
        raise UserError(
            f"{title} is {state} in {cache.data_dir()}: run `python -m cnn_research.data prepare "
            f"{name} --source=PATH` {advice or from_files}"
        )
    content = info.read_bytes()
    facts = json.loads(content)
    if facts.get("fileFormat") != "array_record" or not facts.get("disableShuffling"):
        raise UserError(
            f"{home} was prepared by another program, in another format or order: set "
            "TFDS_DATA_DIR to another folder and prepare it there"
        )

    def decode(scratch: Path) -> Decoded:
        examples, facts = read(home, scratch)
        return examples, {"version": home.name, **facts}

    key = cache.key_of(dataclasses.asdict(source))  # type: ignore[call-overload]
    return Origin(name, decode, home, hashlib.sha256(content).hexdigest(), key)


def prepare_once(home: Path, write: Callable[[], None]) -> None:
    """Writes records in `home`, unless they are there; processes that ask at once wait."""
    with cache.lock(home):
        if (home / "dataset_info.json").exists():
            print(f"already prepared in {home}; delete that folder to prepare it again")
        else:
            write()


# Files of images ---------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class ImageFiles:
    """Files of images below a path, prepared on first use: what all such sources share.

    Attributes:
        kind: what preparation calls the records, and the folder they are in.
        layout: tells apart sources of one kind that make other examples of the same files.
        by_name: as in `Examples`.
    """

    kind: ClassVar[str]
    layout: ClassVar[str] = ""
    by_name: ClassVar[bool] = False

    path: str = ""
    """The folder, or a .tar, .tar.gz, .tar.xz or .zip archive of it."""
    image_size: tuple[PositiveInt, PositiveInt] = (64, 64)
    """Height and width to which every image is stretched."""
    validation: Share = 0.1
    """Which fraction of train is held out for validation, where the source has none; 0 for none."""
    test: Share = 0.1
    """Which fraction of train is held out for the test, where the source has none; 0 for none."""
    split_seed: Seed = 0
    """Decides which examples are held out."""
    on_bad_image: Literal["stop", "skip"] = "stop"
    """What to do with a file that is no image: stop and name it, or leave it out and count it."""

    @property
    def description(self) -> str:
        """In a few words."""
        return f"images of {stem_of(self.path)}, {self.shape}"

    @property
    def shape(self) -> str:
        """Height, width and channels, for people."""
        return f"{self.image_size[0]}x{self.image_size[1]}x3"

    @property
    def sizes(self) -> dict[str, float]:
        return {"validation": self.validation, "test": self.test}

    def check(self) -> None:
        """Raises `UsageError` for fields that contradict each other."""
        if self.validation + self.test >= 1:
            raise UsageError(
                f"--data.validation is {self.validation} and --data.test {self.test}: together "
                "they must be below 1, so that examples are left to train on"
            )

    def plan(self, folder: Path, shown: str) -> Plan:
        """Which files in `folder` are which examples; errors call it `shown`; opens no image."""
        raise NotImplementedError

    def state_of(self, path: Path) -> str:
        """Another text whenever a file that is read below `path` has changed."""
        return content_of(path)

    def pixels(self, file: Path) -> np.ndarray:
        """An image as it is prepared, uint8 `[height, width, 3]`."""
        return decode(file, self.image_size)

    def prepare(self, given: str | None) -> Self:
        """The source with the path `given`; `load` prepares it."""
        return dataclasses.replace(self, path=given or self.path)

    def origin(self) -> Origin:
        self.check()
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

        def prepare() -> None:
            from cnn_research.data.prepare import builders

            if not builders.is_prepared(home, fingerprint):
                with opened(path) as root:
                    plan = self.plan(root, printable(path))
                    builders.prepare_images(
                        home, plan, self.pixels, self.image_size, self.on_bad_image, fingerprint
                    )

        def decode_all(scratch: Path) -> Decoded:
            from cnn_research.data.prepare import builders

            examples, facts = builders.read(home, scratch)
            examples = dataclasses.replace(examples, by_name=self.by_name)
            return examples, {"path": printable(path.name), **facts}

        key = cache.key_of([self.sizes, self.split_seed])
        return Origin(name, decode_all, home, fingerprint, key, prepare)


def prepare_from_files(
    home: Path,
    given: str | None,
    plan: Callable[[Path, str], Plan],
    pixels: Callable[[Path], np.ndarray],
    on_bad_image: str,
) -> None:
    """Prepares all images of the folder or archive `given` in `home`, each at a size of its own."""
    from cnn_research.data.prepare import builders

    path = existing(given or "")

    def write() -> None:
        with opened(path) as root:
            found = plan(root, printable(path))
            notes = {**found.notes, "path": printable(path.name)}
            found = dataclasses.replace(found, notes=notes)
            builders.prepare_images(home, found, pixels, None, on_bad_image, content_of(path))

    prepare_once(home, write)
