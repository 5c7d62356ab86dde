"""Weight files of other libraries, read into plain arrays."""

from __future__ import annotations

import dataclasses
from typing import Literal

import numpy as np


@dataclasses.dataclass(frozen=True)
class Weights:
    """Contents of a weight file."""

    arrays: dict[tuple[str, str], np.ndarray]
    """By (layer, weight): the layer's name in the file, and the weight's in flax (kernel, bias,
    scale, mean, var)."""
    layout: Literal["torch", "keras"]
    """Layout of kernels: PyTorch's `[out, in, height, width]` and `[out, in]`, or that of Keras and
    flax, `[height, width, in, out]` and `[in, out]`."""
    sha256: str = ""
    """Checksum of the file; for a run, that of its checkpoint's list of checksums."""
    repository: str = ""
    """Repository of the hub, or package; empty for other files."""
    revision: str = ""
    """Commit of that repository, or version of that package."""
