"""What image files take before they can be loaded, known before any is decoded."""

from __future__ import annotations

import dataclasses
from typing import Any

from cnn_research.core.run_folder import cores
from cnn_research.data.sources.loading import ImageFiles
from cnn_research.data.sources.survey import survey


@dataclasses.dataclass(frozen=True)
class Footprint:
    """Images that `load` has yet to decode, bytes of their arrays, and about how many seconds."""

    images: int
    bytes: int
    seconds: float


def footprint(source: Any) -> Footprint | None:
    """The footprint of a source of image files; None where there is nothing to decode.

    Raises `UserError` as `survey`.
    """
    if not isinstance(source, ImageFiles) or source.origin().is_decoded():
        return None
    seen = survey(source.located())
    seconds = seen.images * seen.seconds / cores()
    return Footprint(seen.images, seen.images * source.bytes_of_image, seconds)
