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


def from_scratch(data: ImageFolder | ImageTable) -> Training:
    """A small residual network; the suggestions say how large, how long, or which other instead."""
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
    """The best network for a folder of images, `<split>/<class>/*` or `<class>/*`, in ten minutes.

    python launch.py --experiment=image_folder --data.path=FOLDER

    Photographs get the best known pretrained network that this machine has or can download, and
    that the budget allows: a head is fitted to what it computes, and where time is left, its last
    blocks are trained on. Small images, and all where there are no weights, train a small residual
    network from scratch. Sizes, augmentation, class weights and epochs are chosen, too. All choices
    are printed; fields on the command line override them. It takes about ten minutes on two cores
    (very large sets take longer); `--budget=MINUTES` gives it others, and `--pretrained=none` no
    weights.
    """
    return from_scratch(ImageFolder(path=""))


@register(data="your CSV", suggest_fields=suggest_fields)
def image_table() -> Training:
    """The best network for the images that a CSV file names, and columns of labels.

    python launch.py --experiment=image_table --data.path=FILE.csv --data.label=COLUMN

    Several columns of classes make a head each; `--data.number=COLUMN` is estimated instead.
    Other fields are chosen from the data, as for `image_folder`.
    """
    return from_scratch(ImageTable(path=""))
