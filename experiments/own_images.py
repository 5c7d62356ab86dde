"""Your own images: a folder with a folder per class, or a CSV file with a column of images.

python launch.py --experiment=image_folder --data.path=FOLDER
python launch.py --experiment=image_table --data.path=FILE.csv --data.label=COLUMN
"""

from cnn_research.core.experiment import register
from cnn_research.data.sources.folder import ImageFolder
from cnn_research.data.sources.table import ImageTable
from cnn_research.models.resnet9 import ResNet9
from cnn_research.train.auto_config import suggest_fields
from cnn_research.train.config import Training
from cnn_research.train.optimizers import Optimizer


def residual_network(data: ImageFolder | ImageTable) -> Training:
    """A small residual network; its size and the length of training follow from the data."""
    return Training(
        data=data,
        model=ResNet9(),
        optimizer=Optimizer(
            name="adamw", learning_rate=3e-3, weight_decay=0.05, schedule="linear", warmup=0.2
        ),
        mean=(0.5,),
        std=(0.25,),
        batch_size=64,
    )


@register(data="your folder", suggest_fields=suggest_fields)
def image_folder() -> Training:
    """A small residual network on a folder of images, `<split>/<class>/*` or `<class>/*`.

    python launch.py --experiment=image_folder --data.path=FOLDER

    Image size, network, augmentation, class weights, epochs and early stopping are chosen from the
    data and printed; fields on the command line override them. A training takes about ten minutes
    on two cores at most (longer for very large sets: four epochs at least), and reports the epoch
    with the best validation accuracy.
    """
    return residual_network(ImageFolder(path=""))


@register(data="your CSV", suggest_fields=suggest_fields)
def image_table() -> Training:
    """A small residual network on the images that a CSV file names, and columns of labels.

    python launch.py --experiment=image_table --data.path=FILE.csv --data.label=COLUMN

    Several columns of classes make a head each; `--data.number=COLUMN` is estimated instead.
    Other fields are chosen from the data, as for `image_folder`.
    """
    return residual_network(ImageTable(path=""))
