"""Shares that add up to 1, from a network's logits."""

from __future__ import annotations

import numpy as np


def softmax(logits: np.ndarray) -> np.ndarray:
    """float64 `[..., classes]`, of float32 logits of that shape."""
    below_largest = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    powers = np.exp(below_largest)
    return powers / powers.sum(axis=-1, keepdims=True)
