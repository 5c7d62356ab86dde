"""Tables of images: a CSV file with one image per row."""

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

    An empty cell is a label that is not known. A column `split` (train, validation, test, target)
    is used if there is one; validation and test are drawn from train where it does not mention
    them.

    The split `target` is another domain to evaluate on, and the others are the source: `target`
    says which rows are its own, or the column `split`. Classes are those of the source; in the
    target a label that is none of them is counted as wrong, and an image that the source has too is
    left out.
    """

    kind: ClassVar = "image_table"

    path: str = ""
    """The CSV file, or a folder or archive with one in it."""
    image: str = "image"
    """The column with the image's path as seen from the CSV file, or a pattern of columns such
    as 'images/{id}.jpg'."""
    label: tuple[str, ...] = ("label",)
    """The columns with classes, each a head of its own; splits are stratified by the first."""
    separator: str = ""
    """What separates several labels in a cell of the one column of `label`, such as ';'; an empty
    cell has no label. Empty: a cell is one class."""
    columns: Columns = "heads"
    """What several columns in `label` are: `heads`, each with its own classes; the `labels` of one
    head, 1 where an image has the label and 0 where not; or the `classes` of one head, of which
    each image has the one whose column is 1."""
    number: tuple[str, ...] = ()
    """The columns with numbers to estimate, each a head of its own."""
    group: str = ""
    """The column that identifies the group of images that must stay on one side of drawn splits,
    such as those of a patient or a film. A row in which it is empty is a group of its own."""
    min_examples: PositiveInt = 1
    """A class that has fewer rows counts as not known."""
    rows: tuple[str, ...] = ()
    """Conditions that a row must meet, all of them: COLUMN OP VALUE, such as 'year<=2012' or
    'gender=Women', where OP is one of <= >= < > = !=. Numbers compare as numbers, and an empty cell
    meets none."""
    target: tuple[str, ...] = ()
    """Conditions that make a row part of the split `target` instead, all of them."""

    @property
    def description(self) -> str:
        heads = ", ".join((*self.label, *self.number))
        return f"{super().description}, labels {heads}"

    @property
    def several_labels(self) -> bool:
        """Whether an image has any number of labels."""
        return bool(self.separator) or self.columns == "labels"

    def check(self) -> None:
        super().check()
        if self.separator and (len(self.label) != 1 or self.columns != "heads"):
            raise UsageError(
                f"--data.separator is for labels in the cells of one column, but --data.label "
                f"names {len(self.label)} and --data.columns is {self.columns}: leave one of them "
                "out"
            )
        if self.columns != "heads" and len(self.label) < 2:
            raise UsageError(
                f"--data.columns={self.columns} is for several columns of 0 and 1: name them all, "
                "as in --data.label cat dog"
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
    """19,298 catalogue photographs, 60 wide and 80 high, with what is sold and when.

    Prepared once by `python -m cnn_research.data prepare products`, for any labels and rows. The
    source is the catalogue up to 2012 and the target the one from 2015 on, unless the fields say
    otherwise.
    """

    kind: ClassVar = "products"
    prepared: ClassVar = True

    path: str = ""
    """The CSV file, or a folder or archive with one, prepared on first use; empty for the prepared
    products."""
    image: str = "images/{id}.jpg"
    """The column with the image's path as seen from the CSV file, or a pattern of columns."""
    label: tuple[str, ...] = ("material", "type", "brand")
    """The columns with classes, each a head of its own; splits are stratified by the first."""
    min_examples: PositiveInt = 10
    """A class that has fewer rows counts as not known."""
    rows: tuple[str, ...] = ("year<=2012",)
    """Conditions that a row must meet to be in the source."""
    target: tuple[str, ...] = ("year>=2015",)
    """Conditions that make a row part of the split `target` instead."""
    image_size: tuple[PositiveInt, PositiveInt] = (80, 60)
    """Height and width of every image that the network is given."""

    @property
    def description(self) -> str:
        if self.path:
            return super().description
        return dataclasses.replace(self, path="products").description
