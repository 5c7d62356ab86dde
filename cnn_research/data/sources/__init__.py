"""Sources of images: one small config per source, with `load()` to a `Dataset`.

A source's fields are all that decides what is loaded, so a run's config names its data
completely. Nothing heavy is imported before `load()`.
"""

from cnn_research.data.sources.artworks import Artworks
from cnn_research.data.sources.clusters import Clustered
from cnn_research.data.sources.crops import Crops
from cnn_research.data.sources.folder import ImageFolder, Photos
from cnn_research.data.sources.official import Cifar10, FashionMnist
from cnn_research.data.sources.palettes import Palettes
from cnn_research.data.sources.scikit_learn import Digits
from cnn_research.data.sources.synthetic import Synthetic
from cnn_research.data.sources.table import ImageTable, Products
