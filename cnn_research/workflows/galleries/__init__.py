"""Experiments that draw pictures instead of training."""

from cnn_research.workflows.galleries.augmentations import Augmentations
from cnn_research.workflows.galleries.features import Features
from cnn_research.workflows.galleries.filters import Filters
from cnn_research.workflows.galleries.pooling import PoolingPyramid
