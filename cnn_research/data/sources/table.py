"""Tables of images, with one image per row."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import ClassVar

from cnn_research.core.config import register_config
from cnn_research.core.errors import UsageError
from cnn_research.core.ranges import PositiveInt
from cnn_research.data.images import printable
from cnn_research.data.prepare.files import Plan, fingerprint_of, is_table
from cnn_research.data.prepare.tables import find_table, read_table
from cnn_research.data.sources.label_sets import Columns
from cnn_research.data.sources.loading import ImageFiles
from cnn_research.data.sources.rows import plan_rows


@register_config
@dataclasses.dataclass(frozen=True)
class ImageTable(ImageFiles):
    """A CSV file with one image per row and columns of classes or numbers; prepared on first use.

    An empty cell is a missing label. A column `split` (train, validation, test, target) is used if
    there is one; validation and test splits that it does not mention are drawn from train.

    The split `target` is another domain to evaluate on; the others are the source domain. Its rows
    are given by `target` or the column `split`. Classes are those of the source domain: predictions
    for other classes in the target count as wrong, and images that are also in the source are
    excluded from the target.
    """

    kind: ClassVar = "image_table"

    path: str = ""
    """CSV file, or a folder or archive that contains one."""
    image: str = "image"
    """Column with the image's path relative to the CSV file, or a pattern of columns such as
    'images/{id}.jpg'."""
    label: tuple[str, ...] = ("label",)
    """Columns of classes, one head per column; splits are stratified by the first."""
    separator: str = ""
    """Separator of several labels in a cell of the only `label` column, such as ';'; an empty cell
    means no labels. Empty for one class per cell."""
    columns: Columns = "heads"
    """Meaning of several `label` columns: `heads`, each with its own classes; `labels` of one head,
    1 if an image has the label, else 0; or `classes` of one head, 1 for the image's class."""
    number: tuple[str, ...] = ()
    """Columns of numbers to predict (regression), one head per column."""
    group: str = ""
    """Column that identifies groups: images of one group, such as a patient's or a film's, are
    never in two random splits. A row with an empty cell is its own group."""
    min_examples: PositiveInt = 1
    """Classes with fewer rows count as missing labels."""
    rows: tuple[str, ...] = ()
    """Conditions that select rows, all of which must be met: COLUMN OP VALUE, such as 'year<=2012'
    or 'gender=Women', where OP is one of <= >= < > = !=. Numbers are compared as numbers; an empty
    cell meets no condition."""
    target: tuple[str, ...] = ()
    """Conditions that assign rows to the split `target`, all of which must be met."""

    @property
    def description(self) -> str:
        heads = ", ".join((*self.label, *self.number))
        return f"{super().description}, labels {heads}"

    @property
    def several_labels(self) -> bool:
        """Whether an image may have any number of labels."""
        return bool(self.separator) or self.columns == "labels"

    def check(self) -> None:
        super().check()
        if self.separator and (len(self.label) != 1 or self.columns != "heads"):
            raise UsageError(
                f"--data.separator is for labels in the cells of one column, but --data.label "
                f"names {len(self.label)} and --data.columns is {self.columns}: omit one of them"
            )
        if self.columns != "heads" and len(self.label) < 2:
            raise UsageError(
                f"--data.columns={self.columns} is for several columns of 0 and 1: name them all, "
                "such as --data.label cat dog"
            )

    def plan(self, folder: Path, shown: str) -> Plan:
        table = find_table(folder, shown)
        return plan_rows(read_table(table, shown), shown, table.parent, self)

    def state_of(self, path: Path) -> str:
        files: list[str | Path] = [path]
        if path.is_dir() or is_table(path):
            shown = printable(path)
            table = find_table(path, shown)
            files = [table, *(record.path for record in self.planned(path, shown).records)]
        return fingerprint_of(files, path)


@register_config
@dataclasses.dataclass(frozen=True)
class Products(ImageTable):
    """19,298 catalogue photographs, 60 wide and 80 high, with product attributes and year.

    Prepared once by `python -m cnn_research.data prepare products`, for any labels and rows. By
    default the source domain is the catalogue up to 2012, and the target domain that from 2015 on.
    """

    kind: ClassVar = "products"
    prepared: ClassVar = True

    path: str = ""
    """CSV file, or a folder or archive that contains one, prepared on first use; empty for the
    prepared products."""
    image: str = "images/{id}.jpg"
    """Column with the image's path relative to the CSV file, or a pattern of columns."""
    label: tuple[str, ...] = ("material", "type", "brand")
    """Columns of classes, one head per column; splits are stratified by the first."""
    min_examples: PositiveInt = 10
    """Classes with fewer rows count as missing labels."""
    rows: tuple[str, ...] = ("year<=2012",)
    """Conditions that select the rows of the source domain, all of which must be met."""
    target: tuple[str, ...] = ("year>=2015",)
    """Conditions that assign rows to the split `target`, all of which must be met."""
    image_size: tuple[PositiveInt, PositiveInt] = (80, 60)
    """Height and width to which images are resized."""

    @property
    def description(self) -> str:
        if self.path:
            return super().description
        return dataclasses.replace(self, path="products").description
