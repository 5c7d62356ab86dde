"""Prepare a data set once; list or remove prepared and cached data.

  python -m cnn_research data prepare fashion_mnist --source=FOLDER
  python -m cnn_research data prepare cifar10 --source=cifar-10-binary.tar.gz
  python -m cnn_research data prepare artworks --source=FOLDER_OR_ARCHIVE
  python -m cnn_research data prepare products --source=FOLDER_OR_ARCHIVE
  python -m cnn_research data prepare image_folder --source=FOLDER_OR_ARCHIVE \\
      --image-size 64 64
  python -m cnn_research data prepare image_table --source=TABLE.csv \\
      --image=file --label kind brand
  python -m cnn_research data list
  python -m cnn_research data remove NAME ...

Without --source, fashion_mnist and cifar10 are downloaded. The source of
cifar10 may also be the address of a mirror, or a folder or archive of image
files. All other flags are fields of the data set: `prepare NAME --help` shows
them.

Prepared data and all caches (decoded images, features of frozen networks,
surveys of archives) are in the folder $TFDS_DATA_DIR, by default
~/tensorflow_datasets. `remove` takes names that `list` shows, or the folders
above them.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time

from absl import logging

from cnn_research.core.config import asks_for_help, did_you_mean, parse_fields
from cnn_research.core.errors import UsageError, run_command
from cnn_research.core.files import free_bytes, size_text
from cnn_research.core.ranges import check_ranges
from cnn_research.core.terminal import show
from cnn_research.data.dataset import Dataset
from cnn_research.data.prepare import cache, inventory, shared
from cnn_research.data.prepare.splits import copies_line, duplicates_line
from cnn_research.data.sources.artworks import Artworks
from cnn_research.data.sources.folder import ImageFolder
from cnn_research.data.sources.loading import ImageFiles
from cnn_research.data.sources.official import Cifar10, FashionMnist
from cnn_research.data.sources.table import ImageTable, Products

Preparable = FashionMnist | Cifar10 | ImageFiles

SOURCES: dict[str, type[Preparable]] = {
    "fashion_mnist": FashionMnist,
    "cifar10": Cifar10,
    "artworks": Artworks,
    "products": Products,
    "image_folder": ImageFolder,
    "image_table": ImageTable,
}
DOWNLOADED = ("fashion_mnist", "cifar10")
"""Data sets that need no --source."""


def main(words: list[str]) -> None:
    logging.set_verbosity(logging.ERROR)  # the report repeats the warnings
    # `prepare NAME --help` shows the fields of that data set.
    if not words or (asks_for_help(words[-1]) and not SOURCES.keys() & set(words)):
        print(__doc__, end="")
    elif words[0] == "list" and len(words) == 1:
        show(listing())
    elif words[0] == "remove" and len(words) > 1:
        remove(words[1:])
    elif words[0] == "prepare":
        prepare(words[1:])
    else:
        raise UsageError(f"unknown command '{' '.join(words)}': use prepare, list or remove NAME")


def prepare(words: list[str]) -> None:
    """Prepare the data set given by `words` (a name, --source and fields), and print a report."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--source", nargs="?", const="")
    options, fields = parser.parse_known_args(words)
    name = fields.pop(0) if fields and not fields[0].startswith("-") else ""
    if name not in SOURCES:
        hint = did_you_mean(name, list(SOURCES)) or f": {', '.join(SOURCES)}"
        raise UsageError((f"unknown data set '{name}'" if name else "name a data set") + hint)
    optional = options.source is None and name in DOWNLOADED
    if not (options.source or optional or any(map(asks_for_help, fields))):
        raise UsageError(f"{name} needs --source=PATH, a folder, archive or table")
    source = parse_fields(SOURCES[name](), fields, f"python -m cnn_research data prepare {name}")
    check_ranges(source)
    start = time.monotonic()
    source = source.prepare(options.source)
    dataset = source.load()
    show(_report(name, source, dataset, time.monotonic() - start))


def listing() -> str:
    """List prepared and cached data: names, as `remove` accepts them, and descriptions."""
    entries, home = inventory.entries(), cache.data_dir()
    if not entries:
        return f"nothing is prepared in {home}"
    total = size_text(sum(entry.bytes for entry in entries))
    lines = [f"in {home}, {total}, {size_text(free_bytes(home))} free:"]
    for entry in entries:
        day = time.strftime("%Y-%m-%d", time.localtime(entry.used))
        lines.append(f"  {entry.name}: {size_text(entry.bytes)}, last used {day}\n    {entry.text}")
    return "\n".join(lines)


def remove(names: list[str]) -> None:
    """Remove the entries with these names, or in folders with these names."""
    for entry in inventory.chosen(names):
        inventory.remove(entry)
        print(f"removed {entry.name}: {size_text(entry.bytes)}", flush=True)


def _report(name: str, source: Preparable, dataset: Dataset, seconds: float) -> str:
    provenance = dataset.provenance
    across = provenance["duplicates"]["across_splits"]
    height, width, channels = dataset.image_shape
    splits = ", ".join(f"{split} {len(part):,}" for split, part in dataset.splits.items())
    heads = ", ".join(
        f"{head}: {len(names)} classes" for head, names in dataset.class_names.items()
    )
    lines = [
        f"{name} is ready in {cache.data_dir()} ({seconds:.1f} s)",
        f"  {splits}; {height}x{width}x{channels}; {heads}",
        f"  duplicates across splits: {duplicates_line(across) or 'none'}",
    ]
    lines += [f"  {line}" for line in shared.lines(provenance)]
    if "left_out_of_target" in provenance:
        lines.append(f"  excluded from target: {copies_line(provenance['left_out_of_target'])}")
    if single := provenance.get("classes_of_a_single_image"):
        lines.append(f"  classes with a single image, kept in train: {', '.join(single)}")
    for head, names in provenance.get("classes_without_training_examples", {}).items():
        lines.append(f"  classes without training examples: {head} {', '.join(names)}")
    unseen = provenance.get("target_examples_of_unseen_classes", {})
    if any(unseen.values()):
        counts = ", ".join(f"{head} {count:,}" for head, count in unseen.items())
        lines.append(f"  target examples of classes missing in the source: {counts}")
    skipped = provenance.get("skipped", [])
    if skipped:
        lines.append(f"  skipped {len(skipped)} unusable images, the first: {skipped[0]}")
    return "\n".join([*lines, f"  in an experiment: data={_short(source)}"])


def _short(source: Preparable) -> str:
    """Format a source as code, with the fields that differ from their defaults."""
    fields = [
        f"{field.name}={getattr(source, field.name)!r}"
        for field in dataclasses.fields(source)
        if getattr(source, field.name) != field.default
    ]
    return f"{type(source).__name__}({', '.join(fields)})"


if __name__ == "__main__":
    sys.exit(run_command(main))
