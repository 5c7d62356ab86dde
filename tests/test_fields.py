"""Fields that are out of range or do not fit together are refused in a line, before any data."""

import dataclasses
import io
import sys

import pytest

from cnn_research.cli.fields import with_model, with_overrides
from cnn_research.cli.run import run
from cnn_research.core.errors import UsageError
from cnn_research.core.experiment import lookup
from cnn_research.core.ranges import check_ranges
from cnn_research.models.registry import architectures


def refusal(model: str, words: list[str]) -> str:
    """What a training with these words on its command line says of them."""
    experiment, rest = with_model(
        lookup("fashion_mnist_cnn").experiment(), [f"--model={model}", *words]
    )
    experiment = with_overrides(experiment, rest)
    object.__setattr__(experiment, "data", None)  # which is not there to be read
    with pytest.raises(UsageError) as error:
        experiment.check()
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("model", "words", "message"),
    [
        (
            "wide_resnet28_10",
            "--model.depth=27",
            "--model.depth is 27: must be 6 n + 4, such as 16",
        ),
        ("wide_resnet28_10", "--model.depth=4", "--model.depth is 4: must be 6 n + 4"),
        ("wide_resnet28_10", "--model.width=0", "--model.width is 0: must be above 0"),
        ("resnet20_cifar", "--model.depth=21", "--model.depth is 21: must be 6 n + 2, such as 20"),
        ("resnet20_cifar", "--model.features 16 32", "--model.features is 16 32: must be three"),
        ("resnet20_cifar", "--model.features 64 32 16", "--model.features is 64 32 16: must be"),
        ("resnet9", "--model.features 32 64", "must have one entry per stage"),
        ("resnet9", "--model.features 32 64 -1", "--model.features is -1: must be above 0"),
        ("resnet9", "--model.pool", "must have one entry per stage"),
        ("resnet18", "--model.blocks 2 0 2 2", "--model.blocks is 0: must be above 0"),
        ("resnet18", "--model.blocks", "must have one entry per stage"),
        ("convnet", "--model.features 8", "must have one entry per convolution"),
        ("convnet", "--model.kernel-size=0", "--model.kernel-size is 0: must be above 0"),
        ("convnet", "--model.padding 1 -1", "--model.padding is -1: must be 0 or more"),
        ("convnet", "--model.dropout=1.5", "--model.dropout is 1.5: must be 0 or more and below 1"),
        ("convnet", "--model.dense 0", "--model.dense is 0: must be above 0"),
        ("airbench", "--model.features", "must have one entry per block"),
        ("airbench", "--model.output-scale=0", "--model.output-scale is 0.0: must be above 0"),
        ("vgg16", "--model.hidden=-5", "--model.hidden is -5: must be above 0"),
        ("vgg16", "--model.dropout=1", "--model.dropout is 1.0: must be 0 or more and below 1"),
        ("alexnet", "--model.hidden=0", "--model.hidden is 0: must be above 0"),
        ("mobilenet_v1", "--model.width=0.001", "--model.width is 0.001: must be"),
        ("googlenet", "--model.auxiliary-weight=-1", "--model.auxiliary-weight is -1.0: must be 0"),
        ("inception_v3", "--model.dropout=-0.1", "--model.dropout is -0.1: must be 0 or more"),
        ("lenet5", "--model.num-classes=0", "--model.num-classes is 0: must be above 0"),
        ("ss_cnn", "--model.features", "must have one entry per convolution"),
    ],
)
def test_fields_that_make_no_network_are_refused(model, words, message):
    assert message in refusal(model, words.split())


def test_depths_outside_of_the_known_are_no_option():
    with pytest.raises(UsageError, match="depth"):
        with_overrides(
            with_model(lookup("digits_cnn").experiment(), ["--model=vgg16"])[0],
            ["--model.depth=12"],
        )


def test_every_number_of_every_network_has_a_range_and_its_defaults_fit():
    for architecture in architectures().values():
        model = architecture.model
        check_ranges(model)
        if hasattr(model, "check"):
            model.check()
        for field in dataclasses.fields(model):
            value = getattr(model, field.name)
            first = value[0] if isinstance(value, tuple) and value else value
            if isinstance(first, int | float) and not isinstance(first, bool):
                if "Literal" in str(field.type):  # the parser lets nothing else through
                    continue
                wrong = (-1,) if isinstance(value, tuple) else -1
                with pytest.raises(UsageError, match=f"{field.name.replace('_', '-')} is -1"):
                    check_ranges(model.clone(**{field.name: wrong}))


@pytest.mark.parametrize(
    ("name", "words", "message"),
    [
        ("digits_cnn", "--data.validation=-1", "--data.validation is -1: must be 0 or more"),
        ("fashion_mnist_mlp", "--data.validation=60000", "must be from 0 to 59999"),
        ("image_folder", "--data.validation=0.6 --data.test=0.5", "their sum must be below 1"),
        ("image_folder", "--data.image-size 0 8", "--data.image-size is 0: must be above 0"),
        ("image_table", "--data.min-examples=0", "--data.min-examples is 0: must be above 0"),
        (
            "artworks_red1",
            "--data.image-size 300 300",
            "prepared with at most 256: choose a smaller size",
        ),
        ("artworks_red1", "--data.split-seed=-1", "--data.split-seed is -1: must be from 0"),
        ("cifar10_exercise", "--data.validation=1", "--data.validation is 1.0: must be 0 or more"),
        ("palette_ss_cnn", "--data.clusters=257", "--data.clusters is 257: must be from 2 to 256"),
        (
            "palette_ss_cnn",
            "--data.source.test=-0.1",
            "--data.source.test is -0.1: must be 0 or more",
        ),
        ("cifar10_best", "--augmentation.crop 0.5 0.2", "the lower number must be first"),
    ],
)
def test_fields_of_data_that_make_no_sense_are_refused(name, words, message, monkeypatch):
    experiment = with_overrides(lookup(name).experiment(), words.split())
    monkeypatch.setattr(type(experiment.data), "load", lambda _: pytest.fail("data was read"))
    with pytest.raises(UsageError) as error:
        run(experiment, "nowhere")
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1"])
def test_wrong_values_are_one_sentence_on_any_terminal(encoding, monkeypatch):
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding))
    with pytest.raises(UsageError) as error:
        with_overrides(lookup("image_folder").experiment(), ["--data.fit=fill"])
    assert str(error.value).startswith("invalid choice 'fill' for argument '--data.fit'. Expected")
    assert str(error.value).endswith("'pad'); --help shows all fields")
