"""The palette paper (Jaramillo Ruiz 2023): from the colours of crops to the palette of an image.

The commands need a folder or an archive of photographs. Without one, tiles of scikit-learn's two
sample photographs are used, which are only enough to try the commands.
"""

import dataclasses

from cnn_research.core.experiment import register
from cnn_research.data.augmentation.config import Augmentation
from cnn_research.data.sources.clusters import Clustered
from cnn_research.data.sources.crops import Crops
from cnn_research.data.sources.folder import Photos
from cnn_research.data.sources.palettes import Palettes
from cnn_research.data.sources.table import Products
from cnn_research.models.palette_net import PaletteNet
from cnn_research.models.pretrained import Pretrained
from cnn_research.models.ss_cnn import SSCNN
from cnn_research.tasks.classification import Classification
from cnn_research.tasks.histogram import Histogram
from cnn_research.tasks.palette import Palette
from cnn_research.train.config import Evaluation, Selection, Training
from cnn_research.train.optimizers import Optimizer
from cnn_research.train.transfer import Transfer
from cnn_research.workflows.palette.purification import Purification
from cnn_research.workflows.two_stage import TwoStage

from .documents import PALETTE

SS_CNN = Training(
    data=Clustered(source=Photos(), clusters=128, window=(37, 37)),
    model=SSCNN(),
    task=Histogram(),
    # The paper uses gradient descent; with momentum only, twice as many epochs are needed.
    optimizer=Optimizer(
        name="adam", learning_rate=1e-2, schedule="cosine", warmup=0.05, ema_decay=0.999
    ),
    # A crop and its mirror images have the same histogram.
    augmentation=Augmentation(mirror=True, flip=True),
    selection=Selection(metric="loss"),
    evaluation=Evaluation(batch_size=520, mirror=True),
    epochs=100,
    batch_size=128,
    eval_every_epochs=4,
)


@register(document=PALETTE, data="photographs")
def palette_ss_cnn() -> Training:
    """Phase 1 of the palette paper: a crop's colour histogram, learned without labels.

    python launch.py --experiment=palette_ss_cnn --data.source.path=photos.tar.xz

    About 45 minutes on two cores for 140 photographs. On crops of other photographs it closes 0.886
    of the gap between the mean histogram's cross-entropy and the entropy, the lower bound.
    """
    return SS_CNN


@register(document=PALETTE, data="products")
def colour_names() -> Purification:
    """Phase 2 of the palette paper: 11 colour names, learned from a catalogue's noisy labels.

    python launch.py --experiment=colour_names --ss-cnn.data.source.path=photos.tar.xz

    Prepare the products once with `python -m cnn_research.data prepare products`. Ten minutes on
    two cores; balanced accuracy 0.90 on 253 photographs, compared with 0.58 by a vote of pixels.
    """
    return Purification(
        # Features for names do not need the last per cent of the histograms' cross-entropy.
        ss_cnn=dataclasses.replace(SS_CNN, epochs=12),
        naming=Training(
            data=Crops(
                # Navy blue is common, but not one of the 11 basic terms.
                source=Products(
                    label=("colour",),
                    rows=("colour!=Navy Blue",),
                    target=(),
                    min_examples=390,
                    test=0.0,
                ),
                test_list="experiments/colour_names_test.csv",
                validation_list="experiments/colour_names_validation.csv",
            ),
            model=SSCNN(),
            task=Classification(head="colour", class_weights="balanced"),
            optimizer=Optimizer(name="adam", learning_rate=1e-3, schedule="cosine"),
            epochs=10,
            batch_size=512,
        ),
    )


HEAD = Training(
    data=Photos(image_size=(128, 128)),
    model=PaletteNet(),
    task=Palette(),
    transfer=Transfer(freeze=("conv*", "fc")),
    optimizer=Optimizer(name="adam", learning_rate=1e-3, schedule="cosine", clip_norm=5.0),
    augmentation=Augmentation(mirror=True, brightness=0.3, contrast=0.3, saturation=0.5),
    selection=Selection(metric="loss"),
    evaluation=Evaluation(batch_size=50),
    epochs=12,
    batch_size=16,
)


@register(document=PALETTE, data="photographs")
def palette() -> TwoStage:
    """Ten colours from an image in one forward pass, trained on the images' own pixels.

    python launch.py --experiment=palette --workdir=runs/palette
        --pretraining.data.source.path=PHOTOS --training.data.path=IMAGES

    The self-supervised network is trained first, or loaded from the run
    `--training.pretrained.source` (with `--training.pretrained.fresh head`). The head can be
    trained on other and more images, such as thousands of paintings for palettes of photographs.
    Trained on these, in 45 and 20 minutes on two cores, its palettes of held-out photographs are
    1.02 times as far from the pixels as those of k-means with ten starts.
    """
    return TwoStage(pretraining=SS_CNN, training=HEAD, fresh=("head",))


@register(document=PALETTE, data="photographs")
def palette_covering() -> Training:
    """The palette's head, fine-tuned so that no pixel is far from all colours.

    python launch.py --experiment=palette_covering --data.path=IMAGES

    People choose accents, which cover little of an image. Therefore the loss is the fourth power of
    distances, and the head's inputs include the pixels, because predicted histograms lose rare
    colours. It starts from the run of `palette` in `runs/palette`, which must be trained first, or
    from `--pretrained.source=FOLDER/training`. Ten minutes on two cores.
    """
    return dataclasses.replace(
        HEAD,
        task=Palette(difference="lab", power=4.0),
        model=PaletteNet(pixel_features=64),
        pretrained=Pretrained("runs/palette/training", fresh=("head/pixels", "head/accents")),
        epochs=5,
    )


@register(document=PALETTE, data="palettes")
def palette_people() -> Training:
    """The palette's head, fine-tuned on palettes made by people.

    python launch.py --experiment=palette_people --data.path=palettes.tar.xz

    It starts from the run of `palette_covering` in `runs/palette_covering`, which must be trained
    first, or from `--pretrained.source=FOLDER`. One minute on two cores. Over five folds its
    palettes differ from people's by 11.2 CIEDE2000 on average, those of k-means in CIELAB by 11.9.
    """
    return dataclasses.replace(
        HEAD,
        data=Palettes(),
        model=PaletteNet(pixel_features=64, residual_refiner=16),
        task=Palette(target="people"),
        # With only 100 images, only the layers that move colours are trained.
        pretrained=Pretrained("runs/palette_covering", fresh=("head/retouch",)),
        transfer=Transfer(
            freeze=(
                "conv*",
                "fc",
                "head/hidden*",
                "head/pixels",
                "head/accents",
                "head/colours_dense",
                "head/widths",
                "head/reaches",
            )
        ),
        optimizer=Optimizer(name="adam", learning_rate=3e-3, schedule="cosine", clip_norm=5.0),
        augmentation=Augmentation(mirror=True),
        epochs=60,
        batch_size=10,
        eval_every_epochs=10,
    )
