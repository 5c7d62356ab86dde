"""The painters paper (García Criado and Hidalgo Aguilar): who painted this?

Prepare the data once:

python -m cnn_research.data prepare artworks --source=FOLDER_OR_ARCHIVE

The paper's three networks classify paintings by 50 artists. The others do what the convolution
lecture (Arévalo) proposes: take a network trained on ImageNet, give it a new output layer, and
retrain only the last layers. The weights are MobileNetV1's (1.0, 224 pixels) in Keras' layout.

The paper does not give the number of epochs, the batch size, the learning rate, the ranges of its
augmentations or the strength of Red 2's regularisation; it splits the images into training and
validation. We use 20 epochs, batches of 32, Adam at 0.001, Keras' usual ranges, and an alpha of 1
for both penalties. The paper's networks hold out a fifth of the paintings for validation, the
others a tenth for validation and a fifth for testing.
"""

import dataclasses

from cnn_research.core.experiment import register
from cnn_research.data.augmentation.config import Augmentation
from cnn_research.data.sources.artworks import Artworks
from cnn_research.models.convnet import ConvNet
from cnn_research.models.mobilenet import MobileNetV1
from cnn_research.models.pretrained import Pretrained
from cnn_research.models.resnet9 import ResNet9
from cnn_research.tasks.classification import Classification
from cnn_research.train.config import Evaluation, Selection, Training
from cnn_research.train.optimizers import Optimizer, Penalty
from cnn_research.train.transfer import Transfer

from .documents import PAINTERS

CHANGES = Augmentation(
    choose="one", rotation=30.0, flip=True, mirror=True, zoom=(0.8, 1.2), left=0.2, right=0.2,
    fill="edge",
)  # fmt: skip
"""The paper's six: rotation, horizontal and vertical flips, zoom, and shifts to the left and right.

In each epoch an image gets one of them, or none, at random. `artworks_red1_copies` follows the
paper, where an epoch has every image unchanged and once with each augmentation.
"""

NO_PENALTY = Penalty()


def red(
    features: tuple[int, ...], pool: tuple[bool, ...] = (), penalty: Penalty = NO_PENALTY
) -> Training:
    """One of the paper's networks: 3x3 convolutions, 2x2 pools, and a linear layer."""
    return Training(
        data=Artworks(image_size=(244, 244), validation=0.2, test=0.0),
        model=ConvNet(
            features=features,
            padding=(1,) * len(features),
            pool=pool,
            batch_norm=False,
            dense=(),
        ),
        penalty=penalty,
        optimizer=Optimizer(name="adam", learning_rate=1e-3),
        augmentation=CHANGES,
        evaluation=Evaluation(batch_size=64),
        epochs=20,
        batch_size=32,
    )


def figures(training: float, validation: float) -> dict[str, float]:
    """The paper's accuracies by the names of ours."""
    return {"training accuracy": training, "validation accuracy": validation}


@register(document=PAINTERS, data="artworks", document_results=figures(0.62, 0.38))
def artworks_red1() -> Training:
    """The painters paper's network Red 1: three convolutions, 5,853,298 parameters.

    python launch.py --experiment=artworks_red1
    """
    return red((32, 64, 128))


@register(document=PAINTERS, data="artworks", document_results=figures(0.62, 0.38))
def artworks_red1_copies() -> Training:
    """Red 1 on seven copies of each image, as in the paper: unchanged, and once per augmentation.

    python launch.py --experiment=artworks_red1_copies

    Two epochs have as many steps as fourteen of `artworks_red1`, and reach the same validation
    accuracy, 0.388, after 48 minutes on one busy core.
    """
    training = red((32, 64, 128))
    copies = dataclasses.replace(training.augmentation, choose="copies")
    return dataclasses.replace(training, augmentation=copies, epochs=2, eval_every_epochs=0.5)


@register(document=PAINTERS, data="artworks", document_results=figures(0.59, 0.37))
def artworks_red2() -> Training:
    """The painters paper's Red 2: the network of Red 1, regularised by the elastic net.

    python launch.py --experiment=artworks_red2

    An hour and a quarter on two cores.
    """
    return red((32, 64, 128), penalty=Penalty(l1=1.0, l2=1.0))


@register(document=PAINTERS, data="artworks", document_results=figures(0.49, 0.34))
def artworks_red3() -> Training:
    """The painters paper's Red 3: one convolution more, 5,890,226 parameters.

    python launch.py --experiment=artworks_red3

    An hour and a half on two cores.
    """
    return red((32, 64, 64, 128), pool=(True, False, True, True))


@register(document=PAINTERS, data="artworks", document_results={"validation accuracy": 0.38})
def artworks_best() -> Training:
    """A residual network trained from scratch on random crops of the paintings.

    python launch.py --experiment=artworks_best

    Test accuracy 0.571 after 1 h 46 min on two busy cores. The validation accuracy was still rising
    slowly.
    """
    return Training(
        data=Artworks(image_size=(192, 192), validation=0.1, test=0.2),
        # As with MobileNetV1 below: brushwork is in the lower maps.
        model=ResNet9(
            features=(32, 64, 128, 256, 256),
            pool=(True,) * 5,
            residual=(False, False, False, True, True),
            means="all",
        ),
        task=Classification(label_smoothing=0.1),
        optimizer=Optimizer(
            name="adamw",
            learning_rate=2e-3,
            weight_decay=0.05,
            schedule="linear",
            warmup=0.1,
            ema_decay=0.999,
        ),
        # In a crop of a seventh to a half of a painting at 96 pixels, brushwork is 0.7 to 1.3
        # times as large as in the evaluation of the whole painting.
        augmentation=Augmentation(
            mirror=True, crop=(0.15, 0.5), size=(96, 96), brightness=0.2, contrast=0.2,
            saturation=0.2, cutmix=0.3,
        ),
        evaluation=Evaluation(batch_size=128, mirror=True),
        epochs=50,
        batch_size=64,
        eval_every_epochs=5,
    )  # fmt: skip


# The paper's best validation accuracy, with a network trained from scratch.
BEST = {"validation accuracy": 0.38}

LINEAR = Training(
    # The size of the prepared paintings: no pixel is lost, and the last map is 8x8 instead of 7x7.
    data=Artworks(image_size=(256, 256), validation=0.1, test=0.2),
    # The available weights end before the last 1x1 convolution.
    model=MobileNetV1(last="conv_dw_13", pool="all", standardise=True, dropout=0.0),
    pretrained=Pretrained(
        source="mobilenet_v1.npz", fresh=("predictions", "pool_bn", "dense_1", "conv_pw_13*")
    ),
    transfer=Transfer(cache_after="pool"),
    # Logistic regression with a ridge penalty, by gradient descent.
    optimizer=Optimizer(
        name="sgd", learning_rate=0.01, nesterov=True, weight_decay=1e-2, schedule="cosine"
    ),
    augmentation=Augmentation(mirror=True),
    evaluation=Evaluation(mirror=True),
    mean=(0.5,),
    std=(0.5,),
    epochs=60,
    batch_size=128,
)


@register(document=PAINTERS, data="artworks", document_results=BEST)
def artworks_linear() -> Training:
    """A linear layer on the means of all feature maps of a frozen MobileNetV1.

    python launch.py --experiment=artworks_linear --pretrained.source=FILE

    The frozen part is computed once, in four minutes; the training then takes one minute. Mean test
    accuracy over five splits is 0.786, or 0.70 with the last map only: lower maps capture colours
    and brushwork.
    """
    return LINEAR


@register(document=PAINTERS, data="artworks", document_results=BEST)
def artworks_finetuned() -> Training:
    """MobileNetV1 fine-tuned on paintings by 50 artists: first a new head, then the last blocks.

    python launch.py --experiment=artworks_finetuned --pretrained.source=FILE

    The head is trained alone for ten epochs, then the last two convolutions, too, at a tenth of its
    learning rate. Test accuracy 0.77 over five splits, ten minutes each. The linear layer on all
    maps is better, because brushwork is in lower layers than those fine-tuned here.
    """
    return dataclasses.replace(
        LINEAR,
        transfer=Transfer(
            cache_after="conv_dw_12_out",
            unfreeze=(("conv_pw_12*", 10), ("conv_dw_13*", 10)),
            rates=(("conv_*", 0.1),),
        ),
        model=LINEAR.model.clone(dropout=0.2),
        selection=Selection(report="best"),
        epochs=20,
    )
