"""Images and labels: what a data set is, the sources it comes from, and preparing it once."""

from cnn_research.data.dataset import MISSING, UNKNOWN_CLASS, Dataset, Split
from cnn_research.data.sources import (
    Artworks,
    Cifar10,
    Clustered,
    Crops,
    Digits,
    FashionMnist,
    ImageFolder,
    ImageTable,
    Palettes,
    Photos,
    Products,
    Synthetic,
)
