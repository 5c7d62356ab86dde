"""Document 000: from the colours of crops to the palette of an image.

The photographs are named with `--data.source.path=FOLDER_OR_ARCHIVE`; without, the two that ship
with scikit-learn serve.
"""

from cnn_research.data.clusters import Clustered
from cnn_research.data.sources import Photos
from cnn_research.experiment import register
from cnn_research.models import SSCNN
from cnn_research.optimizers import Optimizer
from cnn_research.tasks.histogram import Histogram
from cnn_research.training import Evaluation, Selection, Training


@register(document="000", data="photographs")
def palette_ss_cnn() -> Training:
    """Phase 1: the histogram of a crop's colours, learnt without labels.

    python launch.py --experiment=palette_ss_cnn --data.source.path=photos.tar.xz
    """
    return Training(
        data=Clustered(source=Photos(), clusters=128, window=(37, 37)),
        model=SSCNN(),
        task=Histogram(),
        optimizer=Optimizer(
            name="sgd", learning_rate=0.1, nesterov=True, schedule="cosine", warmup=0.05
        ),
        mean=(0.5,),
        std=(0.25,),
        selection=Selection(metric="loss"),
        evaluation=Evaluation(batch_size=520),
        epochs=40,
        batch_size=128,
        evaluate_every=4,
    )
