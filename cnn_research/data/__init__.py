"""Images and labels: what a data set is, the sources it comes from, and preparing it once."""

from cnn_research.data.dataset import MISSING, Dataset, Split
from cnn_research.data.sources import (
    Cifar10,
    Digits,
    FashionMnist,
    ImageFolder,
    ImageTable,
    Synthetic,
)

__all__ = [
    "MISSING",
    "Cifar10",
    "Dataset",
    "Digits",
    "FashionMnist",
    "ImageFolder",
    "ImageTable",
    "Split",
    "Synthetic",
]
