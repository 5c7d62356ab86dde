"""One's own images: a folder with a folder per class, or a CSV file with a column of images.

python launch.py --experiment=image_folder --data.path=FOLDER
python launch.py --experiment=image_table --data.path=FILE.csv --data.label=COLUMN
"""

from cnn_research.data.augment import Augmentation
from cnn_research.data.sources import ImageFolder, ImageTable
from cnn_research.experiment import register
from cnn_research.models import ConvNet
from cnn_research.optimizers import Optimizer
from cnn_research.training import Selection, Training


def small_network(data: ImageFolder | ImageTable) -> Training:
    """Trains a small network on any data, and reports its best epoch."""
    return Training(
        data=data,
        model=ConvNet(
            features=(32, 64, 128),
            padding=(1, 1, 1),
            dense=(128,),
            dense_activation="relu",
            dropout=0.3,
        ),
        optimizer=Optimizer(
            name="adamw", learning_rate=1e-3, weight_decay=1e-2, schedule="cosine", warmup=0.05
        ),
        augmentation=Augmentation(mirror=True, shift=4),
        epochs=20,
        batch_size=64,
        selection=Selection(report="best"),
    )


@register(data="your folder")
def image_folder() -> Training:
    """A small convolutional network on a folder of images, `<split>/<class>/*` or `<class>/*`.

    python launch.py --experiment=image_folder --data.path=FOLDER

    Reports the epoch with the best validation accuracy.
    """
    return small_network(ImageFolder(path=""))


@register(data="your CSV")
def image_table() -> Training:
    """A small convolutional network on the images and one label column of a CSV file.

    python launch.py --experiment=image_table --data.path=FILE.csv --data.label=COLUMN \\
        --task.head=COLUMN

    Reports the epoch with the best validation accuracy.
    """
    return small_network(ImageTable(path=""))
