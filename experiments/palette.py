"""The palette paper (Jaramillo Ruiz 2023): from the colours of crops to the palette of an image.

The commands name a folder or an archive of photographs. Without one, pieces of the two photographs
that ship with scikit-learn are used, which suffices only for trying it out.
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
    # The paper uses gradient descent; with momentum alone it needs twice as many epochs.
    optimizer=Optimizer(
        name="adam", learning_rate=1e-2, schedule="cosine", warmup=0.05, ema_decay=0.999
    ),
    # A crop and its mirror images have one histogram.
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

    About 45 minutes on two cores for 140 photographs. On crops of others it closes 0.886 of the gap
    between the mean histogram's cross-entropy and the entropy, the lower bound.
    """
    return SS_CNN


@register(document=PALETTE, data="products")
def colour_names() -> Purification:
    """Phase 2 of the palette paper: 11 colour names, learned from a catalogue's noisy labels.

    python launch.py --experiment=colour_names --ss-cnn.data.source.path=photos.tar.xz

    The products are prepared once, with `python -m cnn_research.data prepare products`. Ten minutes
    on two cores: 0.90 of 253 photographs, the mean over names, where voting of pixels has 0.58.
    """
    return Purification(
        # Features for names need less than the last per cent of the histograms' cross-entropy.
        ss_cnn=dataclasses.replace(SS_CNN, epochs=12),
        naming=Training(
            data=Crops(
                # Navy blue is common, and not one of the 11 basic terms.
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

    The self-supervised network is trained first, or taken from the run that
    `--training.pretrained.source` names (with `--training.pretrained.fresh head`). The head can be
    trained on other images, and on more: thousands of paintings, for palettes of photographs.
    So trained, in 45 minutes and 20 more on two cores, its palettes of held-out photographs are
    1.02 times as far from the pixels as those of k-means with ten starts.
    """
    return TwoStage(pretraining=SS_CNN, training=HEAD, fresh=("head",))


@register(document=PALETTE, data="photographs")
def palette_covering() -> Training:
    """The palette's head, trained further to leave no pixel far from every colour.

    python launch.py --experiment=palette_covering --data.path=IMAGES

    People choose accents, which cover little: so the fourth power of distances is what counts, and
    the head sees the pixels, because an estimated histogram loses what is rare. It starts from the
    run of `palette` in `runs/palette`, which comes first, or from
    `--pretrained.source=FOLDER/training`. Ten minutes on two cores.
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
    """The palette's head, trained further on palettes that people made.

    python launch.py --experiment=palette_people --data.path=palettes.tar.xz

    It starts from the run of `palette_covering` in `runs/palette_covering`, which comes first, or
    from `--pretrained.source=FOLDER`. A minute on two cores. Over five folds its palettes differ
    from people's by 11.2 CIEDE2000 in the mean, those of k-means in CIELAB by 11.9.
    """
    return dataclasses.replace(
        HEAD,
        data=Palettes(),
        model=PaletteNet(pixel_features=64, residual_refiner=16),
        task=Palette(target="people"),
        # 100 images: of the network, only what moves its colours is trained.
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
