"""Weights by name: the fields that belong to them, and how their files get here.

No network is used: the hub is a folder, and packages are made as they are needed.
"""

from __future__ import annotations

import dataclasses
import hashlib
import sys
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import numpy as np
import pytest
from safetensors.numpy import save_file

from cnn_research.cli.fields import with_overrides, with_suggestions
from cnn_research.cli.run import run
from cnn_research.core import run_folder as folders
from cnn_research.core.config import flatten
from cnn_research.core.errors import UsageError, UserError
from cnn_research.core.experiment import lookup
from cnn_research.data.sources.folder import ImageFolder
from cnn_research.data.sources.synthetic import Synthetic
from cnn_research.models import named_weights as table
from cnn_research.models.efficientnet import EfficientNet
from cnn_research.models.mlp import MLP
from cnn_research.models.named_weights import NAMED, Family, NamedWeights
from cnn_research.models.pretrained import Pretrained, check_fits, read_pretrained
from cnn_research.models.resnet import ResNet
from cnn_research.models.weights.fetch import HubFile, PackageFile
from cnn_research.train.by_name import with_pretrained
from cnn_research.train.config import Training
from cnn_research.train.transfer import Transfer


def typed(experiment: str, *words: str):
    return with_overrides(lookup(experiment).experiment(), list(words))


# Fields ------------------------------------------------------------------------------------------


def test_a_name_sets_all_that_belongs_to_the_weights():
    found = typed("image_folder", "--pretrained=efficientnet_lite1", "--seed=3")
    before = flatten(typed("image_folder", "--seed=3"))
    after = flatten(found)
    changed = {path: after.get(path) for path in before if after.get(path) != before[path]}
    model = {path for path in before.keys() | after.keys() if path.startswith("model.")}
    assert {path: value for path, value in changed.items() if path not in model} == {
        "data.image_size": (240, 240),
        "data.fit": "crop",
        "mean": (127 / 255,),
        "std": (128 / 255,),
        "pretrained.name": "efficientnet_lite1",
        "pretrained.fresh": ("classifier", "global_pool_bn"),
        "transfer.fit_after": "global_pool",
    }
    assert found.model == EfficientNet(
        lite=True, depth=1.1, variant="tensorflow", pool="all", standardise=True
    )
    found.check()
    assert found == with_pretrained(typed("image_folder", "--seed=3"), "efficientnet_lite1")


@pytest.mark.parametrize("name", NAMED)
@pytest.mark.parametrize("experiment", ["image_table", "artworks_linear"])
def test_every_name_goes_with_any_experiment_whose_images_can_have_its_size(name, experiment):
    if NAMED[name].image_size <= 256:
        typed(experiment, f"--pretrained={name}").check()


def test_what_is_typed_wins_and_feeds_what_depends_on_it():
    words = ["--pretrained", "efficientnet_lite0", "--model.no-standardise", "--mean=0.4"]
    found = typed("image_folder", *words, "--data.image-size", "96", "128", "--data.fit=pad")
    assert found.pretrained.fresh == ("classifier",)
    assert not found.model.standardise and found.model.pool == "all"
    assert (found.data.image_size, found.data.fit) == ((96, 128), "pad")
    assert (found.mean, found.std) == ((0.4,), (128 / 255,))

    words = ["--pretrained=convnext_atto", "--transfer.cache-after=stages.3.blocks.1"]
    assert typed("image_folder", *words).transfer == Transfer(
        cache_after="stages.3.blocks.1", fit_after="stages.3.blocks.1"
    )
    found = typed("image_folder", "--pretrained=convnext_atto", "--transfer.fit-after=")
    assert found.transfer == Transfer()
    found = typed("image_folder", "--pretrained=convnext_atto", "--pretrained.source=file.pth")
    assert found.pretrained == Pretrained("file.pth", ("head.fc",), name="convnext_atto")
    same = typed("image_folder", "--pretrained=convnext_atto", "--model=convnext_atto")
    assert same == typed("image_folder", "--pretrained=convnext_atto")


def test_what_was_cached_still_is():
    found = typed("artworks_linear", "--pretrained=resnet18")
    assert found.transfer == Transfer(cache_after="avgpool", fit_after="avgpool")
    assert found.pretrained.fresh == ("fc",)


def test_none_is_from_scratch():
    default = lookup("artworks_finetuned").experiment()
    found = typed("artworks_finetuned", "--pretrained=none", "--model=resnet18")
    assert (found.pretrained, found.transfer) == (Pretrained(), Transfer())
    assert isinstance(found.model, ResNet) and found.data == default.data
    found.check()
    assert typed("digits_cnn", "--pretrained=none") == lookup("digits_cnn").experiment()


@pytest.mark.parametrize(
    ("experiment", "words", "message"),
    [
        (
            "image_folder",
            "--pretrained=convnext_tinny",
            "no weights are named 'convnext_tinny' (did you mean 'convnext_tiny'?)",
        ),
        ("image_folder", "--pretrained", "no weights are named ''"),
        ("image_folder", "--pretrained.name=lenet5", "no weights are named 'lenet5'"),
        ("digits_cnn", "--pretrained=resnet18", "images of digits_cnn have a fixed size"),
        ("filters", "--pretrained=none", "filters uses no weights"),
        (
            "image_folder",
            "--pretrained=resnet18 --model=resnet34",
            "--pretrained=resnet18 has the weights of resnet18, not of --model=resnet34",
        ),
        (
            "image_folder",
            "--pretrained=efficientnet_lite0 --model.variant=torch",
            "--model.variant is torch, but the weights efficientnet_lite0 were trained with tensor",
        ),
        ("image_folder", "--pretrained=resnet18 --model.pool=all", "unknown field --model.pool"),
    ],
)
def test_names_that_do_not_fit_are_refused(experiment, words, message):
    with pytest.raises(UsageError) as error:
        typed(experiment, *words.split()).check()
    assert message in str(error.value) and "\n" not in str(error.value)


def test_nothing_is_suggested_for_what_a_name_sets(tmp_path, monkeypatch):
    from PIL import Image

    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "data"))

    for path in (tmp_path / "pets" / kind for kind in ("cat", "dog")):
        path.mkdir(parents=True)
        for number in range(8):
            Image.new("RGB", (60, 90), (number, 99, 0)).save(path / f"{number}.png")
    words = [f"--data.path={tmp_path / 'pets'}", "--pretrained=convnext_atto"]
    found, said = with_suggestions(lookup("image_folder").experiment(), words)
    assert found.data.image_size == (224, 224) and found.model == NAMED["convnext_atto"].model
    for field in ("--data.image-size", "--data.fit", "--mean", "--model", "--pretrained"):
        assert field not in said
    assert "--batch-size" in said and "--transfer.cache-after=head.norm" in said


# Packages ----------------------------------------------------------------------------------------


@pytest.fixture
def package(tmp_path, monkeypatch) -> Path:
    """A folder of packages, with one that has a file of weights, and must not be imported."""
    site = tmp_path / "site"
    (site / "lite_model").mkdir(parents=True)
    (site / "lite_model" / "__init__.py").write_text("raise AssertionError('imported')")
    save_file({"fc.bias": np.ones(3, np.float32)}, site / "lite_model" / "w.safetensors")
    (site / "lite_model-0.1.0.dist-info").mkdir()
    metadata = "Metadata-Version: 2.1\nName: lite-model\nVersion: 0.1.0\n"
    (site / "lite_model-0.1.0.dist-info" / "METADATA").write_text(metadata)
    monkeypatch.syspath_prepend(site)
    return site / "lite_model" / "w.safetensors"


def sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def test_a_package_is_looked_up_and_not_imported(package):
    source = PackageFile("lite-model", "lite_model/w.safetensors", sha256(package))
    assert source.place == "installed"
    assert source.fetch() == (package, "lite-model", "0.1.0")
    assert "lite_model" not in sys.modules


def test_packages_that_are_absent_or_damaged(package):
    source = PackageFile("lite-model", "lite_model/w.safetensors", "0" * 64)
    with pytest.raises(UserError, match=r"w\.safetensors has the SHA-256 .*, not 0{64}: run `pip"):
        source.fetch()
    for file in ("absent_model/w.safetensors", "lite_model/absent.safetensors"):
        absent = dataclasses.replace(source, file=file)
        assert absent.place == "pip install -e '.[pretrained]'"
        with pytest.raises(UserError, match=r"lite-model, .* is not installed: run `pip"):
            absent.fetch()


# The hub -----------------------------------------------------------------------------------------

COMMIT = "c" * 40


class Hub:
    """What this project calls of the hub; files lie in its cache as the hub's client has them.

    `content` is what is downloaded, `sha256` what the hub says of it, and `error` what happens
    instead: at once, or, with `cut_off`, while downloading.
    """

    def __init__(self, cache: Path):
        self.cache, self.content = cache, b"weights"
        self.sha256 = hashlib.sha256(self.content).hexdigest()
        self.error: Exception | None = None
        self.cut_off = False
        self.downloads = 0

    def model_info(self, repository: str, *, revision: str | None, files_metadata: bool):
        assert files_metadata
        if self.error and not self.cut_off:
            raise self.error
        lfs = SimpleNamespace(sha256=self.sha256)
        files = [
            SimpleNamespace(rfilename="README.md", lfs=None),
            SimpleNamespace(rfilename="model.safetensors", lfs=lfs),
        ]
        return SimpleNamespace(sha=COMMIT, siblings=files)

    def hf_hub_download(self, repository: str, file: str, *, revision: str | None) -> str:
        if self.error:
            raise self.error
        folder = self.cache / f"models--{repository.replace('/', '--')}"
        path = folder / "snapshots" / (revision or COMMIT) / file
        if not path.exists():
            self.downloads += 1
            for below in (folder / "blobs", folder / "refs", path.parent):
                below.mkdir(parents=True, exist_ok=True)
            (folder / "refs" / "main").write_text(COMMIT)
            (folder / "blobs" / self.sha256).write_bytes(self.content)
            path.symlink_to(Path("../..") / "blobs" / self.sha256)
        return str(path)


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Hub:
    fake = Hub(tmp_path / "hub")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(fake.cache))
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: fake)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fake.hf_hub_download)
    return fake


def refusal(source: HubFile) -> str:
    with pytest.raises(UserError) as error:
        source.fetch()
    said = str(error.value)
    assert "\n" not in said and "https://" not in said and "--pretrained.source=FILE" in said
    return said


@pytest.mark.parametrize("revision", ["", "a" * 40])
def test_a_file_of_the_hub_is_downloaded_once(hub, revision):
    source = HubFile("timm/tiny", revision=revision, sha256=hub.sha256 if revision else "")
    assert source.place == "to be downloaded"
    path, repository, commit = source.fetch()
    assert path.read_bytes() == b"weights"
    assert (repository, commit) == ("timm/tiny", revision or COMMIT)
    assert source.place == "in the cache"
    hub.error = ConnectionError("offline")
    assert source.fetch() == (path, repository, commit)
    assert hub.downloads == 1


@pytest.mark.parametrize("whose", ["table", "hub"])
def test_a_file_with_another_checksum_is_not_used(hub, whose):
    wanted = hub.sha256
    source = HubFile("timm/tiny", sha256=wanted if whose == "table" else "")
    hub.content = b"other"
    said = refusal(source)
    assert f"not {wanted}, and was deleted: run again" in said and "model.safetensors" in said
    assert source.found() is None and not any(hub.cache.glob("*/blobs/*"))
    hub.content = b"weights"
    assert source.fetch().path.read_bytes() == b"weights"
    assert hub.downloads == 2


def test_a_file_that_is_damaged_later_is_not_used(hub):
    source = HubFile("timm/tiny", sha256=hub.sha256)
    path = source.fetch().path
    path.resolve().write_bytes(b"weight")
    assert "and was deleted" in refusal(source)
    assert source.fetch().path.read_bytes() == b"weights"


@pytest.mark.parametrize("cut_off", [False, True])
def test_a_file_that_cannot_be_downloaded(hub, cut_off):
    hub.error, hub.cut_off = OSError("lost https://huggingface.co/x\nafter 3 MB"), cut_off
    said = refusal(HubFile("timm/tiny", revision="a" * 40))
    assert "cannot download model.safetensors of timm/tiny: check the name and the network" in said
    assert f"`hf download timm/tiny model.safetensors --revision {'a' * 40}`" in said
    assert "(lost the hub after 3 MB)" in said
    assert "`hf download timm/tiny model.safetensors`" in refusal(HubFile("timm/tiny"))


def test_a_source_of_the_hub_is_checked_too_and_asked_for_the_newest(hub):
    hub.sha256 = "0" * 64
    with pytest.raises(UserError, match=f"not {'0' * 64}, and was deleted"):
        read_pretrained(Pretrained("hub:owner/tiny/model.safetensors"))
    hub.error = ValueError("a name that cannot be")
    for source in ("hub:owner/tiny/model.safetensors", "hub:owner/tiny/../w.safetensors"):
        with pytest.raises(UserError, match="cannot download"):
            read_pretrained(Pretrained(source))


# Runs --------------------------------------------------------------------------------------------


def resnet_file(folder: Path, **changes: np.ndarray) -> Path:
    """Weights of a small residual network for 7 classes, some of them changed."""
    from tests.test_pretrained import torch_arrays, variables_of

    arrays = torch_arrays(variables_of(ResNet((1, 1), num_classes=7), (1, 32, 32, 3)))
    save_file(arrays | changes, folder / "resnet.safetensors")
    return folder / "resnet.safetensors"


def own_images(model, pretrained: Pretrained) -> Training:
    data = ImageFolder(path="nowhere", image_size=(32, 32))
    return Training(data=data, model=model, pretrained=pretrained)


def test_weights_that_do_not_fit_are_refused_before_any_image_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(ImageFolder, "load", lambda self: pytest.fail("data was read"))
    monkeypatch.setattr(ImageFolder, "plan", lambda *_: pytest.fail("data was listed"))
    wide = {"layer1.0.conv2.weight": np.ones((64, 48, 3, 3), np.float32)}
    file = resnet_file(tmp_path, **wide, **{"extra.bias": np.ones(2, np.float32)})
    model = ResNet((1, 2), num_classes=9)
    with pytest.raises(UserError) as error:
        run(own_images(model, Pretrained(str(file), fresh=("fc",))), tmp_path / "run")
    said = str(error.value)
    assert "missing in the file: 10 (layer2.1/" in said
    assert (
        "of another shape: 1 (layer1.0/conv2/kernel: file (3, 3, 48, 64), model (3, 3, 64" in said
    )
    assert "missing in the model: 1 (extra/bias (2,))" in said
    assert "\n" not in said
    with pytest.raises(UserError, match="there is no weight file"):
        run(own_images(model, Pretrained("absent.pth")), tmp_path / "run")


def test_the_number_of_classes_is_no_misfit_before_it_is_known(tmp_path):
    weights = read_pretrained(Pretrained(str(resnet_file(tmp_path))))
    for fresh in ((), ("fc",)):
        pretrained = Pretrained("file", fresh=fresh)
        check_fits(ResNet((1, 1), num_classes=3), (32, 32, 3), pretrained, weights)
    del weights.arrays["fc", "kernel"]
    with pytest.raises(UserError, match=r"missing in the file: 1 \(fc/kernel \(128, classes\)\)"):
        check_fits(ResNet((1, 1)), (32, 32, 3), Pretrained("file"), weights)


def test_a_run_says_which_weights_it_started_from(hub, tmp_path, monkeypatch):
    first = {"Dense_0.weight": np.ones((8, 12), np.float32), "Dense_0.bias": np.ones(8, np.float32)}
    save_file(first, tmp_path / "tiny")
    hub.content = (tmp_path / "tiny").read_bytes()
    hub.sha256 = sha256(tmp_path / "tiny")
    row = NamedWeights("mlp", Family("Dense_1", "none"), HubFile("timm/tiny"), 0.1, 50.0, 1.0)
    monkeypatch.setitem(table.NAMED, "tiny", row)
    training = Training(
        data=Synthetic(train=16, validation=0, test=0, image_shape=(2, 2, 3), classes=(4,)),
        model=MLP(dense=(8,)),
        pretrained=Pretrained(name="tiny", fresh=("Dense_1",)),
        epochs=1,
        batch_size=8,
    )
    run(training, tmp_path / "run")
    record = folders.read_json(tmp_path / "run" / "run.json")["pretrained"]
    wanted = {"source": "tiny", "name": "tiny", "repository": "timm/tiny", "revision": COMMIT}
    assert {key: record[key] for key in wanted} == wanted
    assert record["sha256"] == hub.sha256
    assert set(record["loaded"]) == {"Dense_0/kernel", "Dense_0/bias"}
