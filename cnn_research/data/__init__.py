"""Images and labels: what a data set is, the sources it comes from, and preparing it once."""

from cnn_research.data.dataset import MISSING, UNSEEN, Dataset, Split
from cnn_research.data.sources import (
    Artworks,
    Cifar10,
    Digits,
    FashionMnist,
    ImageFolder,
    ImageTable,
    Photos,
    Products,
    Synthetic,
)
from cnn_research.data.sources.clusters import Clustered
from cnn_research.data.sources.crops import Crops
from cnn_research.data.sources.palettes import Palettes

__all__ = [
    "MISSING",
    "UNSEEN",
    "Artworks",
    "Cifar10",
    "Clustered",
    "Crops",
    "Dataset",
    "Digits",
    "FashionMnist",
    "ImageFolder",
    "ImageTable",
    "Palettes",
    "Photos",
    "Products",
    "Split",
    "Synthetic",
]
