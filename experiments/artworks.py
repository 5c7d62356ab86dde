"""Document 002's question, who painted this?, answered by transfer as document 001 proposes it.

A network that was trained on ImageNet's photographs, a new output layer, and only the last layers
retrained. The images are a folder with a folder per artist, the weights MobileNetV1's (1.0, 224
pixels) in Keras' layout:

python launch.py --experiment=artworks_linear --data.path=FOLDER --pretrained.source=FILE
"""

import dataclasses

from cnn_research.data.augment import Augmentation
from cnn_research.data.sources import ImageFolder
from cnn_research.experiment import register
from cnn_research.models import MobileNetV1
from cnn_research.optimizers import Optimizer
from cnn_research.pretrained import Pretrained
from cnn_research.tasks.classification import Classification
from cnn_research.training import Evaluation, Selection, Training
from cnn_research.transfer import Transfer

# Document 002's best validation accuracy, of a network that it trained from scratch.
BEST = {"validation accuracy": 0.38}

LINEAR = Training(
    # The paintings are of 256 pixels: no pixel is lost, and the map is of 8x8 instead of 7x7.
    data=ImageFolder(path="", image_size=(256, 256), validation=0.1, test=0.2),
    # The weights at hand end before the last 1x1 convolution.
    model=MobileNetV1(last="conv_dw_13", dropout=0.2),
    pretrained=Pretrained(
        source="mobilenet_v1.npz", fresh=("predictions", "dense_1", "conv_pw_13*")
    ),
    transfer=Transfer(cache_after="pool"),
    task=Classification(label_smoothing=0.1),
    optimizer=Optimizer(
        name="adamw", learning_rate=3e-3, weight_decay=0.1, schedule="cosine", warmup=0.05
    ),
    augmentation=Augmentation(mirror=True),
    evaluation=Evaluation(mirror=True),
    mean=(0.5,),
    std=(0.5,),
    epochs=60,
    batch_size=128,
    selection=Selection(report="best"),
)


@register(document="002", data="artworks", document_results=BEST)
def artworks_linear() -> Training:
    """A linear layer on what a frozen MobileNetV1 makes of paintings by 50 artists.

    python launch.py --experiment=artworks_linear --data.path=FOLDER --pretrained.source=FILE

    The frozen part is computed once, in minutes; the training then takes seconds.
    """
    return LINEAR


@register(document="002", data="artworks", document_results=BEST)
def artworks_finetuned() -> Training:
    """MobileNetV1's last blocks fine-tuned on paintings by 50 artists, after the new head.

    python launch.py --experiment=artworks_finetuned --data.path=FOLDER --pretrained.source=FILE

    Three epochs for the head alone, then the last two convolutions too, at a tenth of its rate.
    """
    return dataclasses.replace(
        LINEAR,
        transfer=Transfer(
            cache_after="conv_dw_12_bn",
            unfreeze=(("conv_pw_12*", 3), ("conv_dw_13*", 3)),
            rates=(("conv_*", 0.1),),
        ),
        epochs=20,
    )
