"""Estimate the disk space and time that decoding image files needs."""

from __future__ import annotations

import dataclasses
from typing import Any

from cnn_research.core.run_folder import cores
from cnn_research.data.sources.loading import ImageFiles
from cnn_research.data.sources.survey import survey


@dataclasses.dataclass(frozen=True)
class Footprint:
    """Images that `load` has yet to decode, bytes of their arrays, and estimated seconds."""

    images: int
    bytes: int
    seconds: float


def footprint(source: Any) -> Footprint | None:
    """Estimate the footprint of a source of image files; None if there is nothing to decode.

    Raises the errors of `survey`.
    """
    if not isinstance(source, ImageFiles) or source.origin().is_decoded():
        return None
    seen = survey(source.located())
    seconds = seen.images * seen.seconds / cores()
    return Footprint(seen.images, seen.images * source.bytes_of_image, seconds)
