"""Galleries of filters, pooling, augmentations, and the features of trained networks."""

from cnn_research.core.experiment import register
from cnn_research.workflows.galleries.augmentations import Augmentations
from cnn_research.workflows.galleries.features import Features
from cnn_research.workflows.galleries.filters import Filters
from cnn_research.workflows.galleries.pooling import PoolingPyramid

from .documents import CONVOLUTION, PAINTERS


@register(document=CONVOLUTION, data="photographs")
def filters() -> Filters:
    """Photographs and a one-dimensional signal filtered with kernels, and colour channels.

    python launch.py --experiment=filters
    python launch.py --experiment=filters --image=FILE --kernel="0 -1 0; -1 5 -1; 0 -1 0" --stride=2

    Ten seconds on two cores. Identity, sharpen, mean blur, Gaussian blur, Laplacian and Sobel as
    in the convolution lecture (Arévalo); each picture shows the formula of the output size.
    """
    return Filters()


@register(document=CONVOLUTION, data="photographs")
def pooling_pyramid() -> PoolingPyramid:
    """Photographs pooled by maximum, average and minimum, three times.

    python launch.py --experiment=pooling_pyramid
    python launch.py --experiment=pooling_pyramid --image=FILE

    Ten seconds on two cores.
    """
    return PoolingPyramid()


@register(document=PAINTERS, data="photographs")
def augmentations() -> Augmentations:
    """Each augmentation on its own; the painters paper's six as in its figure 12.

    python launch.py --experiment=augmentations
    python launch.py --experiment=augmentations --image=FILE --augmentation.fill=reflect

    Half a minute on two cores. Mixup and CutMix mix each photograph with the other.
    """
    return Augmentations()


@register(document=CONVOLUTION, data="a run's")
def features() -> Features:
    """A trained run's filters, feature maps, top-activating images and Grad-CAM.

    python launch.py --experiment=features --run=FOLDER
    python launch.py --experiment=features --run=FOLDER --target-class=Coat --layers=12

    Half a minute on two cores for a network of a few layers, longer for a deep one.
    """
    return Features()
