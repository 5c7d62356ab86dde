"""A report's section on the data: splits, skipped items and anomalies, with reasons."""

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
"""Fraction of a split's images from which pairs with other splits may affect its metrics."""


def data_section(
    folder: Path, data: Mapping[str, Any], unlabelled: Mapping[str, int]
) -> Iterator[str]:
    """Yield the section in Markdown from the `data` of run.json; nothing if it has no splits.

    Non-zero counts noted by sources, such as `files_of_the_same_name`, are shown by their names.
    `unlabelled` has the number of images without a label, by split and head. Writes `skipped.txt`
    to `folder` if files were skipped.
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
    yield "\n".join(f"- {line}" for line in lines) or "Nothing was skipped."
    skipped = data.get("skipped", ())
    if skipped:
        (folder / SKIPPED).write_text("\n".join(skipped) + "\n", encoding="utf-8")
        more = f"\n... and {len(skipped) - MOST_SKIPPED:,} more" * (len(skipped) > MOST_SKIPPED)
        yield f"Unusable files (complete list: {SKIPPED}):"
        yield "```\n" + "\n".join(skipped[:MOST_SKIPPED]) + more + "\n```"


def shared_with(split: str, data: Mapping[str, Any]) -> str:
    """Warn of images of a split that another split also has, exactly or nearly; "" for a few."""
    pairs = data.get("near_duplicates", {}).get("across_splits")
    if pairs is None:
        copies = data.get("duplicates", {}).get("across_splits", {})
        pairs = {pair: each["images"] for pair, each in copies.items()}
    count = sum(number for pair, number in pairs.items() if split in pair.split(" and "))
    if count < MANY_SHARED * data.get("examples", {}).get(split, 0) or not count:
        return ""
    return (
        f"Results on new images may be worse: in {count:,} pairs of identical or nearly identical "
        f"images, one image is in {split} and the other in another split."
    )


def _left_out(data: Mapping[str, Any], unlabelled: Mapping[str, int]) -> Iterator[str]:
    if data.get("skipped"):
        yield f"skipped, unusable files: {len(data['skipped']):,}"
    for reason, items in data.get("left_out", {}).items():
        yield f"skipped, {reason}: {items['count']:,}, the first {items['first'][0]}"
    for name, value in data.items():
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            yield f"{name.replace('_', ' ')}: {value:,}"
    for what, count in unlabelled.items():
        yield f"images without a label, {what}: {count:,}"
    if copies := data.get("left_out_of_target"):
        yield f"excluded from target, images that are also in another split: {copies['images']:,}"


def _oddities(data: Mapping[str, Any]) -> Iterator[str]:
    """Yield anomalies that make metrics better or worse than they should be."""
    duplicates = data.get("duplicates", {})
    for pair, copies in duplicates.get("across_splits", {}).items():
        first = " = ".join(copies["first"][0])
        yield f"the same image in {pair}: {copies['images']:,}, the first {first}"
    if extra := duplicates.get("extra_copies"):
        yield f"copies of another image: {extra:,}"
    if conflicts := duplicates.get("images_with_conflicting_labels"):
        yield f"images whose copies have another label: {conflicts:,}"
    if single := data.get("classes_of_a_single_image"):
        yield f"classes with a single image, kept in train: {_listed(single)}"
    if dark := data.get("dark_images"):
        above = f"no pixel above {dark['brightest_pixel_of_255']} of 255"
        yield f"dark images, with {above}: {dark['count']:,}, the first {dark['first']}"
    for head, names in data.get("classes_without_training_examples", {}).items():
        yield f"classes without training examples, {head}: {_listed(names)}"
    for head, count in data.get("target_examples_of_unseen_classes", {}).items():
        if count:
            yield f"images in target whose class ({head}) is in no other split: {count:,}"


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - MOST_NAMED:,} more" * (len(names) > MOST_NAMED)
    return ", ".join(names[:MOST_NAMED]) + more
