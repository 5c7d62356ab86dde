"""Decoded arrays on disk: written once, atomically, and opened as memory maps."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging
from filelock import FileLock, Timeout

from cnn_research.core.errors import UserError
from cnn_research.core.files import free_bytes, release, size_text
from cnn_research.core.preemption import raise_if_interrupted
from cnn_research.core.progress import Tally
from cnn_research.data.dataset import Dataset, Examples, Split

FORMAT = 2
"""Version of the file format; folders of other versions are rebuilt."""

PREPARED = "prepared"
"""Folder, beside the arrays, of files prepared once for all field values."""
INDEX = "index.json"
"""Description of a folder's contents; its modification time is that of the folder's last use."""
UNPACKED = "unpacked"
"""Folder of the files of archives while they are read."""
PART = 1 << 26
"""Bytes of images that are copied at once."""


def data_dir() -> Path:
    """Folder of prepared data, by TFDS's convention; the variable is read at every call."""
    return Path(os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()


def key_of(value: Any) -> str:
    """Hash a JSON value to a short name for a folder that depends on it."""
    return hashlib.blake2b(json.dumps(value, sort_keys=True).encode(), digest_size=5).hexdigest()


def require_space(needed: float, what: str, *smaller: str) -> None:
    """Raise `UserError` if the disk of `data_dir()` has less than `needed` bytes free for `what`.

    `smaller` are further ways to need less.
    """
    free = free_bytes(data_dir())
    if needed <= free:
        return
    ways = [
        "remove data you no longer need (`python -m cnn_research.data list` lists it)",
        "set TFDS_DATA_DIR to a folder on another disk",
        *smaller,
    ]
    raise UserError(
        f"{what} needs {size_text(needed)} in {data_dir()}, but only {size_text(free)} are free: "
        f"{', '.join(ways[:-1])}, or {ways[-1]}"
    )


def lock_of(folder: Path) -> FileLock:
    """Return the lock of a folder, a file next to it, as Windows cannot lock folders."""
    return FileLock(folder.with_name(f"{folder.name}.lock"))


@contextlib.contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Let one process at a time write `folder`; the others wait."""
    turn = lock_of(folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        try:
            turn.acquire(timeout=0)
        except Timeout:
            logging.info("waiting for another process that is preparing %s", folder)
            turn.acquire()
    except OSError as error:
        raise UserError(
            f"{folder.parent} cannot be written ({error.strerror}): set TFDS_DATA_DIR to a folder "
            "that can"
        ) from error
    try:
        yield
    finally:
        turn.release()


def read(folder: Path, fingerprint: str) -> Dataset | None:
    """Open the data set in `folder` as memory maps; None if absent, damaged or of other data."""
    try:
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        if (index["format"], index["fingerprint"]) != (FORMAT, fingerprint):
            logging.info("%s is out of date: its source has changed; rebuilding it", folder)
            return None
        for file, size in index["files"].items():
            if (folder / file).stat().st_size != size:
                logging.warning("%s is damaged: rebuilding the arrays", folder / file)
                return None
        splits = {
            split: Split(
                images=np.load(folder / f"{split}.images.npy", mmap_mode="r"),
                labels={
                    head: np.load(folder / f"{split}.labels{number}.npy", mmap_mode="r")
                    for number, head in enumerate(index["class_names"])  # in the order of labels
                },
                names=np.load(folder / f"{split}.names.npy", mmap_mode="r"),
                groups=(
                    np.load(folder / f"{split}.groups.npy", mmap_mode="r")
                    if f"{split}.groups.npy" in index["files"]
                    else None
                ),
            )
            for split in index["splits"]
        }
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        logging.warning("%s is damaged (%s): rebuilding the arrays", folder, error)
        return None
    return Dataset(
        name=index["name"],
        splits=splits,
        class_names={
            head: tuple(names) for head, names in index["class_names"].items() if names is not None
        },
        provenance=index["provenance"],
    )


def write(
    folder: Path,
    fingerprint: str,
    name: str,
    examples: Examples,
    indices: Mapping[str, np.ndarray],
    provenance: Mapping[str, Any],
) -> None:
    """Write every split of `examples` to `folder`, which appears only once it is complete."""
    step = max(1, PART // examples.images[:1].nbytes)
    total = sum(map(len, indices.values()))
    with scratch(folder) as temporary, Tally("writing images", total) as tally:
        for split, chosen in indices.items():
            header = {
                "descr": "|u1",
                "fortran_order": False,
                "shape": (len(chosen), *examples.images.shape[1:]),
            }
            with open(temporary / f"{split}.images.npy", "wb") as file:
                np.lib.format.write_array_header_1_0(file, header)
                for start in range(0, len(chosen), step):
                    raise_if_interrupted()
                    rows = chosen[start : start + step]
                    file.write(examples.images[rows])
                    release(examples.images)
                    tally.advance(len(rows))
            for number, labels in enumerate(examples.labels.values()):
                np.save(temporary / f"{split}.labels{number}.npy", labels[chosen])
            np.save(temporary / f"{split}.names.npy", examples.names[chosen])
            if examples.groups is not None:
                np.save(temporary / f"{split}.groups.npy", examples.groups[chosen])
        index = {
            "format": FORMAT,
            "fingerprint": fingerprint,
            "name": name,
            "splits": list(indices),
            # A head of numbers has null.
            "class_names": {head: examples.class_names.get(head) for head in examples.labels},
            "provenance": dict(provenance),
            "files": {path.name: path.stat().st_size for path in sorted(temporary.iterdir())},
        }
        (temporary / INDEX).write_text(json.dumps(index, indent=1), encoding="utf-8")
        publish(temporary, folder)


def publish(temporary: Path, folder: Path) -> None:
    """Rename a complete folder to `folder`, and replace an older one."""
    for file in filter(Path.is_file, temporary.iterdir()):
        with open(file, "r+b") as written:  # Windows flushes no file that is open for reading
            os.fsync(written.fileno())
    shutil.rmtree(folder, ignore_errors=True)
    temporary.rename(folder)


def mark_used(folder: Path) -> None:
    """Record the last use of a folder with an index."""
    with contextlib.suppress(OSError):  # it may belong to another user
        os.utime(folder / INDEX)


def unfinished(folder: Path) -> Path:
    """Path at which `folder` is written until it is complete."""
    return folder.with_name(f".{folder.name}.incomplete")


@contextlib.contextmanager
def held(folder: Path) -> Iterator[None]:
    """Mark a folder as in use; the mark ends with the process, however that ends."""
    mark = lock_of(folder)
    with contextlib.suppress(OSError):  # a network's disk may not lock files
        mark.acquire()
    try:
        yield
    finally:
        mark.release()


def is_held(folder: Path) -> bool:
    """Return whether a process, perhaps this one, marks a folder as in use, or may do so."""
    mark = lock_of(folder)
    if not Path(mark.lock_file).exists():
        return False
    try:
        with mark.acquire(timeout=0):
            return False
    except OSError:  # it is held, or the disk cannot say
        return True


def discard(folder: Path) -> None:
    """Remove a folder that may be marked as in use, and is not."""
    shutil.rmtree(folder, ignore_errors=True)
    Path(lock_of(folder).lock_file).unlink(missing_ok=True)


@contextlib.contextmanager
def unpacking() -> Iterator[Path]:
    """An empty folder for the files of an archive, gone at the end.

    Those that killed processes have left are removed.
    """
    home = data_dir() / UNPACKED
    with contextlib.ExitStack() as stack:
        with lock(home):  # until it is held, a new folder looks like one that was left
            for left in filter(Path.is_dir, home.glob("*")):
                if not is_held(left):
                    discard(left)
            home.mkdir(exist_ok=True)
            folder = Path(tempfile.mkdtemp(dir=home))
            stack.callback(discard, folder)
            stack.enter_context(held(folder))
        yield folder


@contextlib.contextmanager
def scratch(folder: Path) -> Iterator[Path]:
    """A fresh folder beside `folder`, gone at the end whatever happens; call it under `lock`."""
    temporary = unfinished(folder)
    shutil.rmtree(temporary, ignore_errors=True)  # left by a process that was killed
    temporary.mkdir(parents=True)
    try:
        with held(temporary):
            yield temporary
    finally:
        discard(temporary)


def write_once(folder: Path, write: Callable[[Path], None]) -> bool:
    """Let `write(temporary)` fill `folder` if it does not exist; return whether it was written."""
    with lock(folder):
        if folder.is_dir():
            return False
        with scratch(folder) as temporary:
            write(temporary)
            publish(temporary, folder)
        return True


def arrays_folder(home: Path, key: str) -> Path:
    """Folder of the arrays with this key, of the data in `home`."""
    return home / "arrays" / key


def load(home: Path, fingerprint: str, key: str, build: Callable[[Path], None]) -> Dataset:
    """Open the arrays `key` of the data in `home`; call `build(folder)` to build them if needed."""
    folder = arrays_folder(home, key)
    dataset = read(folder, fingerprint)
    if dataset is None:
        with lock(home):
            dataset = read(folder, fingerprint)  # another process may have built them meanwhile
            if dataset is None:
                for other in folder.parent.glob("*"):  # of an earlier state of the source
                    if read(other, fingerprint) is None:
                        shutil.rmtree(other, ignore_errors=True)
                build(folder)
                dataset = read(folder, fingerprint)
    if dataset is None:
        raise UserError(f"{folder} was written but cannot be read back: check the disk")
    mark_used(folder)
    return dataset
