"""Experiments that draw pictures instead of training."""

from cnn_research.galleries.augmentations import Augmentations
from cnn_research.galleries.features import Features
from cnn_research.galleries.filters import Filters
from cnn_research.galleries.pooling import PoolingPyramid

__all__ = ["Augmentations", "Features", "Filters", "PoolingPyramid"]
