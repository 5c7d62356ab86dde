"""The part of a report on its data: the splits, and what was left out or is odd, and why."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from cnn_research.data.prepare import shared
from cnn_research.report.markdown import markdown_table

SKIPPED = "skipped.txt"
MOST_SKIPPED = 20
MOST_NAMED = 10
MANY_SHARED = 0.005
"""Share of a split's images: as many pairs with others may change its figures' third digit."""


def data_section(
    folder: Path, data: Mapping[str, Any], unlabelled: Mapping[str, int]
) -> Iterator[str]:
    """The part in Markdown, from the `data` of run.json; nothing where that has no splits.

    Numbers above 0 that sources note, such as `files_of_the_same_name`, are shown by their names.
    `unlabelled` is the number of images without a label, by what lacks it. Writes `skipped.txt` to
    `folder` if files were skipped.
    """
    if "examples" not in data:
        return
    yield "## Data"
    if "understood" in data:
        yield f"```\n{data['understood']}\n```"
    drawn, given = data.get("drawn_from_train", {}), data.get("given_by_the_source", ())
    rows = []
    for split, count in data["examples"].items():
        origin = "given" if split in given else ""
        if split in drawn:
            by = drawn.get("stratified_by")
            origin = f"drawn with seed {drawn.get('seed')}" + f", stratified by {by}" * bool(by)
        elif split == "train" and drawn:
            origin = "the rest"
        rows.append((split, f"{count:,}", origin))
    yield markdown_table(("split", "images", "origin"), rows)
    lines = [*_left_out(data, unlabelled), *_oddities(data), *shared.lines(data)]
    yield "\n".join(f"- {line}" for line in lines) or "Nothing was left out."
    skipped = data.get("skipped", ())
    if skipped:
        (folder / SKIPPED).write_text("\n".join(skipped) + "\n", encoding="utf-8")
        more = f"\n... and {len(skipped) - MOST_SKIPPED:,} more" * (len(skipped) > MOST_SKIPPED)
        yield f"Files that could not be used (all are listed in {SKIPPED}):"
        yield "```\n" + "\n".join(skipped[:MOST_SKIPPED]) + more + "\n```"


def shared_with(split: str, data: Mapping[str, Any]) -> str:
    """A sentence on images of a split that another split has, too, or nearly; "" for a few."""
    pairs = data.get("near_duplicates", {}).get("across_splits")
    if pairs is None:
        copies = data.get("duplicates", {}).get("across_splits", {})
        pairs = {pair: found["images"] for pair, found in copies.items()}
    count = sum(number for pair, number in pairs.items() if split in pair.split(" and "))
    if count < MANY_SHARED * data.get("examples", {}).get(split, 0) or not count:
        return ""
    return (
        f"Results on new images may be worse: of {count:,} pairs of the same or nearly the same "
        f"image, one is in {split} and one in another split."
    )


def _left_out(data: Mapping[str, Any], unlabelled: Mapping[str, int]) -> Iterator[str]:
    if data.get("skipped"):
        yield f"left out, files that could not be used: {len(data['skipped']):,}"
    for reason, found in data.get("left_out", {}).items():
        yield f"left out, {reason}: {found['count']:,}, the first {found['first'][0]}"
    for name, value in data.items():
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            yield f"{name.replace('_', ' ')}: {value:,}"
    for what, count in unlabelled.items():
        yield f"images without a label, {what}: {count:,}"
    if copies := data.get("left_out_of_target"):
        yield f"left out of target, images that are also in another split: {copies['images']:,}"


def _oddities(data: Mapping[str, Any]) -> Iterator[str]:
    """What makes figures better or worse than they should be."""
    duplicates = data.get("duplicates", {})
    for pair, found in duplicates.get("across_splits", {}).items():
        first = " = ".join(found["first"][0])
        yield f"the same image in {pair}: {found['images']:,}, the first {first}"
    if copies := duplicates.get("extra_copies"):
        yield f"copies of another image: {copies:,}"
    if conflicts := duplicates.get("images_with_conflicting_labels"):
        yield f"images whose copies have another label: {conflicts:,}"
    if single := data.get("classes_of_a_single_image"):
        yield f"classes of a single image, which is in train: {_listed(single)}"
    if dark := data.get("dark_images"):
        above = f"no pixel above {dark['brightest_pixel_of_255']} of 255"
        yield f"dark images, with {above}: {dark['count']:,}, the first {dark['first']}"
    for head, names in data.get("classes_without_training_examples", {}).items():
        yield f"classes without training examples, {head}: {_listed(names)}"
    for head, count in data.get("target_examples_of_unseen_classes", {}).items():
        if count:
            yield f"images of target whose class, {head}, no other split has: {count:,}"


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - MOST_NAMED:,} more" * (len(names) > MOST_NAMED)
    return ", ".join(names[:MOST_NAMED]) + more
