"""The page, in `report/`, of an experiment that is not a single training."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from cnn_research.core import run_folder as folders
from cnn_research.core.config import to_dict
from cnn_research.core.experiment import Experiment
from cnn_research.report.html import write_page

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclasses.dataclass(frozen=True)
class Page:
    """A page that is being written: its folder, Markdown so far, and names of pictures."""

    folder: Path
    parts: list[str]
    pictures: list[str] = dataclasses.field(default_factory=list)

    def text(self, markdown: str) -> None:
        self.parts.append(markdown)

    def picture(self, name: str, figure: Figure, caption: str) -> None:
        """Add a picture as `name.png`, above its caption."""
        figure.savefig(self.folder / f"{name}.png")
        self.pictures.append(name)
        self.parts.append(f"![{name.replace('_', ' ')}]({name}.png)\n\n{caption}")


@contextlib.contextmanager
def new_page(experiment: Experiment, workdir: Path, title: str) -> Iterator[Page]:
    """Yield a page to fill; once complete, it replaces an earlier one in `workdir`."""
    with folders.atomic_directory(workdir / folders.REPORT_FOLDER) as partial:
        page = Page(partial, [f"# {title}"])
        yield page
        written = write_page(partial, page.parts, to_dict(experiment))
    print(f"Report: {workdir / folders.REPORT_FOLDER / written.name}")
