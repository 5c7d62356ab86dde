"""Your own images: a folder with one subfolder per class, or a CSV file with a column of images.

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
    """A small residual network, whose fields are then chosen from the data."""
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

    Photographs use the best known pretrained network that is available and within the time budget:
    a head is fitted to its features and, if time is left, the last blocks are fine-tuned. For small
    images, or without weights, a small residual network is trained from scratch. Sizes,
    augmentation, class weights and epochs are chosen, too. All choices are printed; fields on the
    command line override them. Takes about ten minutes on two cores (longer for very large sets);
    change that with `--budget=MINUTES`, and train from scratch with `--pretrained=none`.
    """
    return from_scratch(ImageFolder(path=""))


@register(data="your CSV", suggest_fields=suggest_fields)
def image_table() -> Training:
    """The best network for images and labels listed in a CSV file, in ten minutes.

    python launch.py --experiment=image_table --data.path=FILE.csv --data.label=COLUMN

    Several columns of classes become one head each; use `--data.number=COLUMN` for regression.
    Other fields are chosen from the data, as for `image_folder`.
    """
    return from_scratch(ImageTable(path=""))
