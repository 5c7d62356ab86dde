"""The classifier lecture's claims about pooling, tested on Fashion-MNIST.

Prepare the data once with `python -m cnn_research.data prepare fashion_mnist`.
"""

from cnn_research.core.experiment import register
from cnn_research.data.sources.official import FashionMnist
from cnn_research.models.convnet import ConvNet
from cnn_research.train.config import Training
from cnn_research.train.optimizers import Optimizer
from cnn_research.workflows.pooling_study import PoolingStudy

from .documents import CLASSIFIERS

CLASSIFIER = Training(
    data=FashionMnist(),
    model=ConvNet(dense=(100,), dense_activation="relu"),
    optimizer=Optimizer(name="adam", learning_rate=1e-3),
    epochs=5,
    batch_size=100,
)
"""The Fashion-MNIST paper's convolutions with a smaller head."""


@register(document=CLASSIFIERS, data="Fashion-MNIST")
def pooling_types() -> PoolingStudy:
    """The same classifier with max, average and min pooling: which is better?

    python launch.py --experiment=pooling_types

    Nine trainings, about ten minutes on two cores.
    """
    return PoolingStudy(training=CLASSIFIER)


@register(document=CLASSIFIERS, data="Fashion-MNIST")
def translation() -> PoolingStudy:
    """Accuracy on shifted images, with pooling and with strides instead.

    python launch.py --experiment=translation

    Six trainings, about ten minutes on two cores.
    """
    return PoolingStudy(training=CLASSIFIER, pooling=("max", "stride"), largest_shift=8)
