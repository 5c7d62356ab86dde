"""Photographs as people have them: which weights are taken, what is done with them, and why.

The weights are random, of a small network, in a file of this test.
"""

from __future__ import annotations

import dataclasses
import itertools
import time
from pathlib import Path

import huggingface_hub
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import flagsaver
from PIL import Image
from safetensors.numpy import save_file

from cnn_research.cli import fields
from cnn_research.cli import main as cli
from cnn_research.core import run_folder as folders
from cnn_research.core.errors import UsageError, UserError
from cnn_research.core.experiment import lookup
from cnn_research.data.augmentation.config import Augmentation
from cnn_research.data.sources.folder import ImageFolder
from cnn_research.data.sources.survey import Survey, survey
from cnn_research.models import named_weights, registry
from cnn_research.models.flops import cost
from cnn_research.models.named_weights import NAMED, Family, NamedWeights
from cnn_research.models.registry import Architecture
from cnn_research.models.resnet import ResNet
from cnn_research.models.resnet9 import ResNet9
from cnn_research.models.weights import fetch
from cnn_research.models.weights.fetch import Fetched, HubFile
from cnn_research.train import auto_pretrained, session
from cnn_research.train.auto_mirror import may_mirror
from cnn_research.train.speed import PRETRAINED, planned_operations, step_flops
from cnn_research.train.transfer import Transfer
from tests.test_pretrained import torch_arrays

pytestmark = pytest.mark.usefixtures("no_report")

NETWORK = ResNet((1, 1))
FAMILY = Family("fc", "avgpool", frozen=("conv1", "layer1", "*bn*"))


@dataclasses.dataclass(frozen=True)
class OfThisMachine:
    """A file in place of a package's."""

    path: Path
    place = "installed"

    def found(self) -> Path:
        return self.path

    def fetch(self) -> Fetched:
        return Fetched(self.path, "a package", "1.0")


def file_of(model: ResNet, path: Path) -> Path:
    variables = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    save_file(torch_arrays(variables), path)
    return path


@pytest.fixture(scope="module")
def good_file(tmp_path_factory) -> Path:
    return file_of(NETWORK.clone(num_classes=7), tmp_path_factory.mktemp("weights") / "good")


@pytest.fixture
def has(monkeypatch, tmp_path):
    """Lets the table have these weights alone: name -> (top-1, source)."""
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "data"))

    def table(**rows):
        found = {}
        for name, (top1, source) in rows.items():
            monkeypatch.setitem(
                registry._ARCHITECTURES, name, Architecture(NETWORK, (64, 64, 3), "")
            )
            found[name] = NamedWeights(name, FAMILY, source, 1.0, top1, 0.9, image_size=64)
        for module in (named_weights, auto_pretrained):
            monkeypatch.setattr(module, "NAMED", found)

    return table


def make_photographs(root: Path, size=(80, 72), **splits: int) -> Path:
    """Two classes of noise, so many images each; width and height as in Pillow."""
    random = np.random.default_rng(0)
    for split, count in splits.items():
        for label, number in itertools.product(("cat", "dog"), range(count)):
            (root / split / label).mkdir(parents=True, exist_ok=True)
            pixels = random.integers(0, 256, (size[1], size[0], 3), np.uint8)
            Image.fromarray(pixels).save(root / split / label / f"{number}.png")
    return root


@pytest.fixture(scope="module")
def photographs(tmp_path_factory) -> Path:
    return make_photographs(tmp_path_factory.mktemp("photos"), train=8, validation=25, test=4)


def chosen(root, *words):
    default = lookup("image_folder").experiment()
    experiment, said = fields.with_suggestions(default, [f"--data.path={root}", *words])
    experiment.check()
    return experiment, said


def minutes(share: float, images: int = 74) -> str:
    """A budget of so many times what one view of all images costs."""
    operations = images * cost(NETWORK, (64, 64, 3)).flops
    return f"--budget={share * operations / planned_operations(1, PRETRAINED)}"


# What is chosen ----------------------------------------------------------------------------------


def test_the_best_weights_at_hand_are_taken_and_their_last_blocks_trained(
    has, good_file, photographs
):
    has(poor=(70.0, OfThisMachine(good_file)), good=(80.0, OfThisMachine(good_file)))
    found, said = chosen(photographs)
    assert found.pretrained.name == "good" and found.pretrained.fresh == ("fc",)
    assert (found.model, found.data.image_size, found.data.fit) == (NETWORK, (64, 64), "crop")
    assert found.mean == NAMED["resnet18"].pixels.mean
    assert found.transfer == Transfer(freeze=FAMILY.frozen, fit_after="avgpool")
    assert found.epochs == 10 and found.optimizer.learning_rate == 1e-4
    assert (found.selection.report, found.selection.metric) == ("best", "loss")
    assert found.augmentation == Augmentation(mirror=True, crop=(0.5, 1.0))
    assert found.evaluation.mirror and found.evaluation.batch_size == 32
    assert found.selection.patience == 0 and found.task.label_smoothing == 0
    assert "the best available that the budget allows: 80.0 % on ImageNet, installed, " in said
    assert "--transfer.freeze conv1 layer1 '*bn*'" in said
    assert "belongs to the weights good" in said
    assert all(len(line.split("  ")) >= 2 for line in said.splitlines()[1:]), "each has a reason"


def test_the_budget_says_what_there_is_time_for(has, good_file, photographs):
    has(good=(80.0, OfThisMachine(good_file)))
    found, said = chosen(photographs, minutes(2.1))
    assert (found.epochs, found.augmentation.mirror) == (0, True)
    assert found.transfer == Transfer(cache_after="avgpool", fit_after="avgpool")
    assert "only the head: " in said and "minutes are too few for the last blocks" in said
    found, said = chosen(photographs, minutes(1.1))
    assert not found.augmentation.mirror and not found.evaluation.mirror
    assert "the budget allows one view per image" in said
    found, said = chosen(photographs, minutes(1.1), "--augmentation.mirror")
    assert found.evaluation.mirror and "the fastest available for " in said
    found, said = chosen(photographs, minutes(0.1))
    assert found.pretrained.name == "good" and "the fastest available for " in said
    few, more = (chosen(photographs, minutes(share))[0].epochs for share in (12, 30))
    assert 3 <= few < more


def test_few_validation_images_say_nothing_of_more_training(has, good_file, tmp_path):
    has(good=(80.0, OfThisMachine(good_file)))
    found, said = chosen(make_photographs(tmp_path / "few", train=12))
    assert found.epochs == 0 and "2 validation images are too few to train more" in said
    assert found.batch_size == 10 and found.selection.report == "last"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("--epochs=0", {"epochs": 0, "transfer.cache_after": "avgpool"}),
        ("--epochs=2", {"epochs": 2, "transfer.cache_after": "", "selection.report": "best"}),
        (
            "--epochs=0 --augmentation.crop 0.5 1",
            {"transfer.cache_after": "", "transfer.fit_after": "avgpool"},
        ),
        ("--epochs=0 --evaluation.shift=1", {"transfer.cache_after": ""}),
        ("--epochs=0 --augmentation.no-mirror --evaluation.mirror", {"transfer.cache_after": ""}),
        (
            "--pretrained=good --epochs=2 --transfer.freeze conv1",
            {"transfer.freeze": ("conv1",), "transfer.fit_after": "avgpool"},
        ),
        (
            "--pretrained=good --transfer.cache-after=layer1.0",
            {"transfer.fit_after": "layer1.0", "transfer.cache_after": "layer1.0", "epochs": 0},
        ),
        ("--pretrained=good", {"epochs": 10, "transfer.freeze": FAMILY.frozen}),
        ("--data.image-size 72 96", {"data.image_size": (72, 96), "pretrained.name": "good"}),
        ("--mean=0.4 --data.fit=pad", {"mean": (0.4,), "data.fit": "pad"}),
        ("--transfer.penalties 1 0.1", {"transfer.penalties": (1, 0.1), "epochs": 10}),
        ("--selection.metric=accuracy", {"selection.metric": "accuracy"}),
        # From scratch
        ("--data.image-size 24 32", {"pretrained.name": "", "augmentation.shift": 2}),
        ("--pretrained=none", {"pretrained.name": "", "augmentation.crop": (0.4, 1.0)}),
        ("--model=resnet18_small", {"pretrained.name": "", "model.small": True}),
        ("--model.features 8 8", {"pretrained.name": "", "model.features": (8, 8)}),
        ("--pretrained=good --transfer.fit-after=", {"transfer.fit_after": "", "model": NETWORK}),
    ],
)
def test_what_is_named_feeds_what_depends_on_it(has, good_file, photographs, words, expected):
    has(good=(80.0, OfThisMachine(good_file)))
    found, said = chosen(photographs, *words.split())
    for path, value in expected.items():
        actual = found
        for part in path.split("."):
            actual = getattr(actual, part)
        assert actual == value, path
    for word in words.split():
        if word.startswith("--") and not word.startswith(("--pretrained", "--model=")):
            assert f"  {word.partition('=')[0]}" not in said, "what is typed is not suggested"


def test_without_weights_one_line_says_what_would_be_better(has, photographs, tmp_path):
    has()
    found, said = chosen(photographs)
    assert isinstance(found.model, ResNet9) and found.transfer == Transfer()
    (line,) = [line for line in said.splitlines() if "--pretrained.name=" in line]
    assert "from scratch: no pretrained weights are available; for better results" in line
    assert found.selection.patience == 0 and "patience" not in said
    small = make_photographs(tmp_path / "small", (32, 24), train=8)
    assert "24x32 pixels are too few for pretrained weights" in chosen(small)[1]


# Where weights are -------------------------------------------------------------------------------


def test_weights_of_the_hub_are_fetched_if_it_answers(has, good_file, photographs, monkeypatch):
    here, away = OfThisMachine(good_file), HubFile("timm/tiny")
    has(near=(70.0, here), far=(80.0, away))
    monkeypatch.setattr(HubFile, "found", lambda self: None)
    monkeypatch.setattr(auto_pretrained, "hub_answers", lambda: False)
    found, said = chosen(photographs)
    assert found.pretrained.name == "near" and said.count("the hub cannot be reached") == 1
    monkeypatch.setattr(auto_pretrained, "hub_answers", lambda: True)
    monkeypatch.setattr(HubFile, "fetch", lambda self: Fetched(good_file, "timm/tiny", "c"))
    assert chosen(photographs)[0].pretrained.name == "far"
    # A download is part of the budget, also once it is done: the same command, the same choice.
    assert chosen(photographs, minutes(2.1))[0].pretrained.name == "near"
    monkeypatch.setattr(HubFile, "found", lambda self: good_file)
    assert chosen(photographs, minutes(2.1))[0].pretrained.name == "near"


def test_a_download_that_fails_is_said_and_tried_once(has, good_file, photographs, monkeypatch):
    has(a=(90.0, HubFile("timm/a")), b=(80.0, HubFile("timm/b")), c=(7.0, OfThisMachine(good_file)))
    tried = []

    def fails(self):
        tried.append(self.repository)
        raise UserError("cannot download model.safetensors: no luck")

    monkeypatch.setattr(HubFile, "found", lambda self: None)
    monkeypatch.setattr(auto_pretrained, "hub_answers", lambda: True)
    monkeypatch.setattr(HubFile, "fetch", fails)
    found, said = chosen(photographs)
    assert found.pretrained.name == "c" and tried == ["timm/a"]
    assert "cannot download model.safetensors: no luck" in said


def test_weights_that_do_not_fit_are_left_out(has, good_file, photographs, tmp_path):
    other = OfThisMachine(file_of(ResNet((1,)), tmp_path / "other"))
    has(other=(90.0, other), good=(80.0, OfThisMachine(good_file)))
    found, said = chosen(photographs)
    assert found.pretrained.name == "good" and "other does not fit ResNet" in said


@pytest.mark.parametrize("how", ["answers", "refuses", "is silent"])
def test_the_hub_is_waited_for_a_few_seconds(how, monkeypatch):
    class Api:
        def model_info(self, repository, timeout):
            if how == "refuses":
                raise OSError("no network")
            if how == "is silent":
                time.sleep(1)
            return "a model"

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setattr(fetch, "ANSWER_SECONDS", 0.2)
    fetch.hub_answers.cache_clear()
    began = time.monotonic()
    assert fetch.hub_answers() is (how == "answers")
    assert time.monotonic() - began < 0.9
    fetch.hub_answers.cache_clear()


@pytest.mark.parametrize(
    "name",
    [
        "resnet18",
        pytest.param("convnext_atto", marks=pytest.mark.slow),
        pytest.param("mobilenet_v3_small", marks=pytest.mark.slow),
    ],
)
def test_every_family_has_last_blocks(name):
    model, frozen = NAMED[name].model, NAMED[name].family.frozen
    variables = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 64, 64, 3)))
    Transfer(freeze=frozen).check_layers(variables["params"])
    least, most = (step_flops(model, (64, 64, 3), freeze) for freeze in (frozen, ()))
    forward = cost(model, (64, 64, 3)).flops
    assert forward < least < 0.75 * most and 2.5 * forward < most < 3.6 * forward


# Mirrors -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "mirror"),
    [
        ("cat dog", True),
        ("001.Albatross 002.Warbler", True),
        ("n02085620-Chihuahua n02085782-Spaniel", True),
        ("bright dark", True),
        ("turn_left stop", False),
        ("stop turnRight", False),
        ("Pfeil-links Pfeil-rechts", False),
        ("giro.izquierda giro.derecha", False),
        ("speed_limit_30 yield", False),
        ("Tempolimit30 Vorfahrt", False),
        ("a b c space", False),
        ("00000 00001 00042", False),
        ("20 30 stop", False),
        ("letter_a letter_b", False),
    ],
)
def test_names_of_classes_that_have_a_left_and_a_right(names, mirror):
    classes = {"label": dict.fromkeys(names.split(), 9)}
    seen = Survey(splits={}, classes=classes, height=9, width=9, shapes=(1.0, 1.0))
    assert may_mirror(seen)[0] is mirror


@pytest.mark.parametrize(
    ("counts", "mirror"), [((0, 0), True), ((50, 40), True), ((9, 0), True), ((40, 9), False)]
)
def test_more_mirror_images_have_to_be_known_less_well_than_by_chance(counts, mirror):
    seen = Survey({}, {}, height=9, width=9, shapes=(1.0, 1.0), mirrored=counts)
    found, why = may_mirror(seen)
    assert found is mirror and f"{counts[0]} mirror images fit their class less well" in why


@pytest.mark.parametrize("kind", ["signs", "pets", "numbers"])
def test_a_few_images_tell_whether_left_and_right_matter(kind, tmp_path, monkeypatch):
    """A bright stripe at a place that depends on the class; for pets, at either side."""
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "data"))
    random, rows = np.random.default_rng(1), ["image,number"]
    for label, number in itertools.product(range(4), range(45)):
        pixels = random.integers(0, 120, (32, 32, 3), np.uint8)
        pixels[:, 3 * label + 2 : 3 * label + 5] += 120
        if kind == "pets" and number % 2:
            pixels = pixels[:, ::-1]
        file = tmp_path / kind / f"class{'xyzw'[label]}" / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(file)
        rows.append(f"{file},{label / 7}")
    (tmp_path / "table.csv").write_text("\n".join(rows))
    words = [f"--data.path={tmp_path / kind}"]
    if kind == "numbers":
        words = [f"--data.path={tmp_path / 'table.csv'}", "--data.number=number"]
    name = "image_table" if kind == "numbers" else "image_folder"
    found, said = fields.with_suggestions(lookup(name).experiment(), words)
    assert found.augmentation.mirror is found.evaluation.mirror is (kind == "pets")
    assert ("left and right matter: in a sample, " in said) is (kind != "pets")
    if kind == "signs":
        worse, better = survey(ImageFolder(path=str(tmp_path / kind))).mirrored
        assert worse > 30 and better < 5


# The budget on the command line, and patience ----------------------------------------------------


@pytest.mark.parametrize(
    ("experiment", "word", "message"),
    [
        ("image_folder", "--budget=ten", "--budget is 'ten': must be a number of minutes above 0"),
        ("image_folder", "--budget=0", "--budget is '0': must be a number"),
        ("image_folder", "--budget=nan", "--budget is 'nan': must be a number"),
        ("image_folder", "--budget", "--budget is '': must be a number"),
        ("image_folder", "--budgt=9", "unknown field --budgt (did you mean 'budget'?)"),
        ("digits_cnn", "--budget=9", "digits_cnn has no time budget: set --epochs"),
    ],
)
def test_a_budget_that_makes_no_sense_is_refused(experiment, word, message):
    with pytest.raises(UsageError) as error:
        fields.with_suggestions(lookup(experiment).experiment(), [word])
    assert message in str(error.value) and "\n" not in str(error.value)


def test_patience_under_a_schedule_that_anneals_is_warned_of(monkeypatch):
    said = []
    monkeypatch.setattr(session.logging, "warning", lambda text, *_: said.append(text))
    for name, words in (
        ("digits_cnn", []),
        ("digits_cnn", ["--selection.patience=3", "--optimizer.schedule=constant"]),
        ("digits_cnn", ["--selection.patience=3"]),
    ):
        assert not said
        session.warn_of_patience(fields.with_overrides(lookup(name).experiment(), words))
    assert len(said) == 1 and "use 0" in said[0]


# Runs --------------------------------------------------------------------------------------------


def run(*words):
    with flagsaver.flagsaver():
        cli.main(cli.parse_flags(["launch.py", *words]))


@pytest.mark.slow
def test_the_head_alone_from_estimate_to_result(has, good_file, tmp_path, capsys):
    has(good=(80.0, OfThisMachine(good_file)))
    root = make_photographs(tmp_path / "few", train=12)
    workdir = tmp_path / "run"
    words = ("--experiment=image_folder", f"--data.path={root}", f"--workdir={workdir}")
    run(*words, "--dry-run")
    said = capsys.readouterr().err
    assert " for features, " in said and " for fitting, " in said
    assert "Computing" not in said and not workdir.exists()
    assert not (tmp_path / "data" / "features").exists()
    run(*words)
    said = capsys.readouterr().err
    assert said.index("Expected: ") < said.index("Computing") < said.index("Head fitted")
    assert folders.read_json(workdir / folders.RUN)["pretrained"]["name"] == "good"
    assert set(folders.read_json(workdir / folders.EVALUATION)) >= {"validation", "test"}
    run(*words)
    assert "training is complete" in capsys.readouterr().err
    # Views that are not cached are computed of the images.
    run("--mode=evaluate", f"--workdir={workdir}", "--evaluation.shift=1")
    run("--mode=export", f"--workdir={workdir}", "--evaluation.shift=1")
    assert (workdir / "export" / "SHA256SUMS").exists()


@pytest.mark.slow
def test_the_last_blocks_from_the_fitted_head_on(has, good_file, photographs, tmp_path, capsys):
    has(good=(80.0, OfThisMachine(good_file)))
    workdir = tmp_path / "run"
    words = ("--experiment=image_folder", f"--data.path={photographs}", f"--workdir={workdir}")
    run(*words, "--epochs=2")
    said = capsys.readouterr().err
    assert " for features, " in said and " ms per step, " in said
    history = (workdir / "metrics.jsonl").read_text()
    assert '"step": 0' in history or '"step":0' in history
    run("--mode=predict", f"--workdir={workdir}", f"--input={photographs / 'test' / 'cat'}")
    run("--mode=export", f"--workdir={workdir}")
    assert (workdir / "export" / "SHA256SUMS").exists()
