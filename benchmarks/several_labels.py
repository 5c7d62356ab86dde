"""Several labels per image: products by type, colour and season in one cell.

    python -m benchmarks.several_labels FOLDER --output results/several_labels.json

FOLDER has `products.csv` and `images/`, as in the products' archive. A table of images and `tags`,
such as `Tshirts;Blue;Winter`, is written, and the default command must recognise that a cell has
several labels. Then the run is exported and served, and the response must have all labels with
their thresholds.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.results import flag, measurement, python, row, watched
from cnn_research.core import run_folder as folders
from tests.serving import Server, exchange, request

COLUMNS = ("type", "colour", "season")
TAGS, SEPARATOR = "tags", ";"
FEWEST = 10
"""Labels of fewer images are omitted."""


def tagged(folder: Path, scratch: Path, images: int) -> tuple[Path, list[Path]]:
    """Write the table with `tags` of the first `images` (0 for all); return their files."""
    import pandas

    products = pandas.read_csv(folder / "products.csv", dtype=str, keep_default_na=False)
    products = products[: images or None]
    files = [folder.absolute() / "images" / f"{name}.jpg" for name in products["id"]]
    tags = products[list(COLUMNS)].agg(SEPARATOR.join, axis=1)
    table = scratch / "tagged.csv"
    pandas.DataFrame({"image": files, TAGS: tags}).to_csv(table, index=False)
    return table, files


def served(export: Path, file: Path) -> list[dict[str, Any]]:
    """The server's response for an image."""
    with Server(export) as server:
        status, values = exchange(server.port, request(file.read_bytes()))
    if status != 200:
        raise RuntimeError(f"the server responds {status}: {values}")
    return values["predictions"][0]["answers"][TAGS]


@measurement(
    flag("folder", type=Path, help="products.csv and images/"),
    flag("--images", type=int, default=0, help="only the first so many, to try it out"),
    flag("--words", nargs="*", default=[], help="further words of the training, without dashes"),
    what="products by type, colour and season in one cell, by image_table as it is",
    target="mean average precision as measured; thresholds in the export, all labels answered",
    seeds=[0],
)
def main(options):
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        table, files = tagged(options.folder, scratch, options.images)
        workdir, where = scratch / "run", {"TFDS_DATA_DIR": str(scratch / "data")}
        fixed = [f"--data.path={table}", f"--data.label={TAGS}", f"--data.min-examples={FEWEST}"]
        words = [*fixed, f"--workdir={workdir}", *(f"--{word}" for word in options.words)]
        trained = watched("launch.py", "--experiment=image_table", *words, environment=where)
        python("launch.py", "--mode=export", f"--workdir={workdir}", environment=where)
        evaluation = folders.read_json(workdir / folders.EVALUATION)
        (head,) = folders.read_json(workdir / "export" / "export.json")["heads"]
        answers = served(workdir / "export", files[0])
    figures = evaluation["test"]
    recognised = any(line.strip().startswith("--data.separator=") for _, line in trained.lines)
    labels, thresholds = head["classes"], head["thresholds"]
    limits = dict(zip(labels, thresholds, strict=True))
    whole = {each["label"]: each["threshold"] for each in answers} == limits
    chosen = sum(threshold != 0.5 for threshold in thresholds)
    precision = f"{figures['mAP']:.4f}, {figures['mAP by chance']:.4f} in a random order"
    f1 = ", ".join(f"{name} {figures[name]:.4f}" for name in ("macro F1", "micro F1"))
    rows = [
        row("products, three labels in a cell: recognised", "yes", str(recognised), recognised),
        row("products, mean average precision", "-", precision, True),
        row("products, F1 at thresholds from validation", "-", f1, True),
        row(
            "products, thresholds in the export",
            "one for each label",
            f"{len(thresholds)} for {len(labels)} labels, {chosen} of them chosen",
            len(thresholds) == len(labels) and chosen > 0,
        ),
        row(
            "products, labels that the server answers with their thresholds",
            "all",
            f"{len(answers)} of {len(labels)}",
            whole,
        ),
    ]
    return rows, {
        "test": figures,
        "minutes": trained.seconds / 60,
        "gigabytes": trained.gigabytes,
        "labels": limits,
        "chosen": [line for _, line in trained.lines if line.startswith("  --")],
    }


if __name__ == "__main__":
    sys.exit(main())
