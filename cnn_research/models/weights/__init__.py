"""Weight files of other libraries, read into plain arrays."""

from __future__ import annotations

import dataclasses
from typing import Literal

import numpy as np


@dataclasses.dataclass(frozen=True)
class Weights:
    """Contents of a weight file."""

    arrays: dict[tuple[str, str], np.ndarray]
    """By (layer, weight). The layer is named as in the file; the weight as in flax: kernel, bias,
    scale, mean, var."""
    layout: Literal["torch", "keras"]
    """Layout of kernels: PyTorch's `[out, in, height, width]` and `[out, in]`, or Keras' `[height,
    width, in, out]` and `[in, out]`, which are flax's."""
    sha256: str = ""
    """Checksum of the file, or of what stands for it."""
    repository: str = ""
    """Repository of the hub, or package, that the file is of; empty for other files."""
    revision: str = ""
    """Commit of that repository, or version of that package."""
