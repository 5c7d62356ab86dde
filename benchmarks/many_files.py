"""A dry run for half a million image files, and the time of its parts.

    python -m benchmarks.many_files --output results/many_files.json

The files are hard links to a few hundred small images, in a folder that is removed at the end.
"""

from __future__ import annotations

import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.results import flag, in_process, launch, measurement, peak_gigabytes, row

CLASSES, EACH = 510, 1000
MOST_SECONDS = 10.0


def make(root: Path) -> None:
    """Write `root/<class>/<file>`; file systems allow about 60,000 links per file."""
    random = np.random.default_rng(0)
    originals = root.with_name("originals")
    originals.mkdir()
    for number in range(CLASSES):
        pixels = random.integers(0, 256, (24, 32, 3), np.uint8).repeat(4, 0).repeat(4, 1)
        Image.fromarray(pixels).save(originals / f"{number}.jpg", quality=60)
    for number in range(CLASSES):
        folder = root / f"class {number}"
        folder.mkdir(parents=True)
        for at in range(EACH):
            original = originals / f"{(7 * number + at) % CLASSES}.jpg"
            os.link(original, folder / f"{at}.jpg")


def parts(path: str) -> dict[str, float]:
    """Measure the processor time and memory of the parts of a dry run and a training."""
    from cnn_research.data.prepare.files import names_below
    from cnn_research.data.sources.folder import ImageFolder
    from cnn_research.data.sources.survey import survey

    source, folder = ImageFolder(path), Path(path)

    def seconds(call: Callable[[], object]) -> float:
        before = time.process_time()
        call()
        return time.process_time() - before

    found = {
        "list": seconds(lambda: names_below(folder)),
        "plan": seconds(lambda: source.plan(folder, path)),
        "survey": seconds(lambda: survey(source)),
        "survey again": seconds(lambda: survey(source)),
        "fingerprint": seconds(lambda: source.state_of(folder)),
    }
    return found | {"gigabytes": peak_gigabytes(resource.getrusage(resource.RUSAGE_SELF))}


@measurement(
    flag("--folder", help="where the files are made (default: the system's temporary folder)"),
    what=f"dry run of image_folder on {CLASSES * EACH:,} image files that are not decoded",
    target=f"under {MOST_SECONDS:g} s",
)
def main(options):
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        root = Path(folder, "images")
        make(root)
        seconds = launch("image_folder", Path(folder, "run"), f"--data.path={root}", "--dry-run")
        figures = in_process(parts, str(root))
    what = f"disk, time and memory that {CLASSES * EACH:,} image files will take, by a dry run"
    measured = f"{seconds:.1f} s"
    target = f"under {MOST_SECONDS:g} s"
    return [row(what, target, measured, seconds < MOST_SECONDS)], {"dry run": seconds} | figures


if __name__ == "__main__":
    sys.exit(main())
