"""`--mode=export`: a folder that needs JAX alone, and says what `--mode=predict` says."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import linen as nn
from PIL import Image
from safetensors.numpy import load_file

from cnn_research.cli.run import run
from cnn_research.core.distributed import data_mesh
from cnn_research.core.errors import UserError
from cnn_research.core.experiment import lookup
from cnn_research.data.images import decode, decode_input, grey
from cnn_research.data.sources.folder import ImageFolder
from cnn_research.data.sources.scikit_learn import Digits
from cnn_research.data.sources.synthetic import Synthetic
from cnn_research.inference.export import PLATFORMS, card, program
from cnn_research.inference.exported import open_export, write_sums
from cnn_research.inference.onnx import onnx_difference
from cnn_research.models.convnet import ConvNet
from cnn_research.models.mlp import MLP
from cnn_research.models.resnet9 import ResNet9
from cnn_research.tasks.multi_head import MultiHead
from cnn_research.tasks.regression import Regression
from cnn_research.train.config import Evaluation, Training
from cnn_research.train.state import TrainState, abstract_state
from cnn_research.train.trained import TrainedModel, bind_to_dataset
from cnn_research.train.transfer import Transfer
from tests.sizes import first_of_each_kind, scaled_down
from tests.test_images import P3, rgb_profile

pytestmark = pytest.mark.usefixtures("no_report")

ROOT = Path(__file__).resolve().parent.parent
DIGITS = Training(
    data=Digits(),
    model=ConvNet(features=(4,), padding=(1,), dense=(16,), batch_norm=True),
    epochs=1,
    batch_size=64,
    evaluation=Evaluation(batch_size=8, shift=1),
)


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """A trained run with its export, and a folder with five of its test images."""
    workdir = tmp_path_factory.mktemp("digits")
    run(DIGITS, workdir / "run")
    run(DIGITS, workdir / "run", "export")
    (workdir / "images").mkdir()
    for index, image in enumerate(Digits().load().splits["test"].images[:5]):
        Image.fromarray(image[..., 0]).save(workdir / "images" / f"{index}.png")
    return workdir


@pytest.mark.parametrize("batch", [1, 3, 7])
def test_outputs_are_those_of_the_run_bit_for_bit(digits, batch):
    images = Digits().load().splits["test"].images[:batch]
    expected = jax.jit(TrainedModel.load(digits / "run").forward())(images)
    outputs = open_export(digits / "run" / "export")(images)
    assert outputs.dtype == np.float32 and outputs.shape == (batch, 10)
    np.testing.assert_array_equal(outputs, expected)


def test_answers_are_the_predictions(digits):
    run(DIGITS, digits / "run", "predict", str(digits / "images"))
    lines = (digits / "run" / "predictions" / "predictions.jsonl").read_text().splitlines()
    network = open_export(digits / "run" / "export")
    for row in map(json.loads, lines):
        image = grey(decode(Path(row["file"]), network.image_shape[:2]))
        (answer,) = network.answers(network(image[None]))
        said = {each["label"]: each["probability"] for each in answer["label"]}
        assert next(iter(said)) == row["label"]["class"]
        assert dict(list(said.items())[:5]) == row["label"]["top"]
        assert len(said) == 10


def test_jax_alone_reads_it(digits):
    """What the model card shows, in a process that cannot import flax or this project."""
    folder = digits / "run" / "export"
    code = (folder / "README.md").read_text().split("```python\n")[1].split("```")[0]
    code = code.replace('"IMAGE"', repr(str(digits / "images" / "2.png")))
    (folder.parent / "ask.py").write_text(
        "import sys\nfor name in ('flax', 'cnn_research'): sys.modules[name] = None\n" + code
    )
    ended = subprocess.run(
        [sys.executable, "../ask.py"], cwd=folder, capture_output=True, text=True, check=True
    )
    network = open_export(folder)
    image = grey(decode(digits / "images" / "2.png", (8, 8)))[None]
    assert not {"flax", "optax", "tyro"} & imported_by_opening(folder)
    assert ended.stdout.split() == [
        "label",
        network.answers(network(image))[0]["label"][0]["label"],
    ]


@pytest.mark.parametrize(
    "fit", ["crop", *(pytest.param(fit, marks=pytest.mark.slow) for fit in ("stretch", "pad"))]
)
def test_a_tall_photograph_is_the_same_to_run_export_and_server(tmp_path, monkeypatch, fit):
    """Of another colour space and on its side, as cameras have them, and large."""
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "data"))
    root, exif = tmp_path / "photos", Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    for number in range(8):
        file = root / "ab"[number % 2] / f"{number}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (5, 12, 3), np.uint8)
        photograph = Image.fromarray(pixels).resize((120, 50))
        photograph.save(file, exif=exif, icc_profile=rgb_profile(P3))
    data = ImageFolder(str(root), (8, 8), fit, validation=0.0, test=0.25)
    training = Training(data=data, model=MLP(dense=(8,)), epochs=1, batch_size=4)
    for mode in ("train", "export"):
        run(training, tmp_path / "run", mode)
    run(training, tmp_path / "run", "predict", str(file))
    (line,) = (tmp_path / "run" / "predictions" / "predictions.jsonl").read_text().splitlines()
    network = open_export(tmp_path / "run" / "export")
    pixels = decode_input(file, network.image_shape, network.fit)
    trained_on = {
        str(name): image
        for split in data.load().splits.values()
        for name, image in zip(split.names, split.images, strict=True)
    }
    np.testing.assert_array_equal(pixels, decode(file, (8, 8), fit))
    np.testing.assert_array_equal(pixels, trained_on["b/7.jpg"])
    outputs = network(pixels[None])
    (answer,) = network.answers(outputs)
    said = {each["label"]: each["probability"] for each in answer["label"]}
    assert said == json.loads(line)["label"]["top"]
    code = (tmp_path / "run" / "export" / "README.md").read_text()
    code = code.split("```python\n")[1].split("```")[0].replace('"IMAGE"', repr(str(file)))
    names: dict = {}
    monkeypatch.chdir(tmp_path / "run" / "export")
    exec(code, names)
    np.testing.assert_array_equal(names["images"], pixels[None])
    np.testing.assert_array_equal(names["outputs"], outputs)
    pytest.importorskip("fastapi", reason="the extra [serve] is not installed")
    from cnn_research.inference.serve.app import decoded

    np.testing.assert_array_equal(decoded(file.read_bytes(), None, network), pixels)


def imported_by_opening(folder: Path) -> set[str]:
    code = (
        "import sys; from pathlib import Path; "
        "from cnn_research.inference.exported import open_export; "
        "open_export(Path(sys.argv[1])); print(*sys.modules)"
    )
    words = [sys.executable, "-c", code, str(folder)]
    ended = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True)
    return {name.split(".")[0] for name in ended.stdout.split()}


def test_what_the_folder_says(digits):
    folder = digits / "run" / "export"
    facts = open_export(folder).facts
    assert facts["input"]["shape"] == ["batch", 8, 8, 1]
    evaluation = json.loads((digits / "run" / "evaluation.json").read_text())
    assert facts["figures"]["test"] == evaluation["test"] and facts["step"] == evaluation["step"]
    assert (folder / "labels.txt").read_text().split() == [str(digit) for digit in range(10)]
    assert (folder / "config.json").read_text() == (digits / "run" / "config.json").read_text()
    state = TrainedModel.load(digits / "run").state
    saved = load_file(folder / "model.safetensors")
    assert len(saved) == len(jax.tree.leaves(state.variables()))
    np.testing.assert_array_equal(saved["params/Dense_0/kernel"], state.params["Dense_0"]["kernel"])
    for line in (folder / "SHA256SUMS").read_text().splitlines():
        digest, name = line.split("  ")
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest
    accuracy = f"{evaluation['test']['accuracy']:.4f}"
    assert accuracy in (folder / "README.md").read_text()


def test_what_cannot_be_opened(digits, tmp_path):
    with pytest.raises(UserError, match="contains no export"):
        open_export(digits / "run")
    copy = Path(shutil.copytree(digits / "run" / "export", tmp_path / "copy"))
    model = copy / "model.jaxexport"
    content = bytearray(model.read_bytes())
    content[len(content) // 2] ^= 1
    model.write_bytes(content)
    with pytest.raises(UserError, match=r"model\.jaxexport is damaged"):
        open_export(copy)
    model.unlink()
    with pytest.raises(UserError, match=r"model\.jaxexport is missing"):
        open_export(copy)
    (copy / "SHA256SUMS").write_text(f"{'0' * 64}  ../run.json\n")
    with pytest.raises(UserError, match="SHA256SUMS is damaged"):
        open_export(copy)
    with pytest.raises(ValueError, match="needs uint8 images"):
        open_export(digits / "run" / "export")(np.zeros((1, 9, 8, 1), np.uint8))
    with pytest.raises(UserError, match="is not a run folder"):
        run(DIGITS, tmp_path / "nothing", "export")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda facts: b"{", "JSONDecodeError"),
        (lambda facts: b"\xff", "UnicodeDecodeError"),
        (lambda facts: [facts], "TypeError"),
        (lambda facts: {"format": 2}, "KeyError: 'input'"),
        (lambda facts: facts | {"format": 1}, "it has format 1, but this version reads 2"),
        (lambda facts: facts | {"input": {}}, "KeyError: 'shape'"),
        (
            lambda facts: facts | {"input": {"shape": ["batch", 8, "8", 1]}},
            "shapes of images or outputs differ",
        ),
        (
            lambda facts: facts | {"input": {"shape": ["batch", 9, 8, 1]}},
            "shapes of images or outputs differ",
        ),
        (lambda facts: with_input(facts, fit="zoom"), "unknown fit 'zoom'"),
        (lambda facts: facts | {"outputs": 11}, "shapes of images or outputs differ"),
        (lambda facts: facts | {"heads": []}, "heads, experiment or step are missing"),
        (lambda facts: facts | {"heads": ["label"]}, "TypeError"),
        (lambda facts: facts | {"heads": [{}]}, "KeyError: 'name'"),
        (lambda facts: with_head(facts, kind="box"), "KeyError: 'box'"),
        (lambda facts: with_head(facts, kind=[]), "TypeError"),
        (lambda facts: with_head(facts, kind="number"), "KeyError"),
        (lambda facts: with_head(facts, kind="palette"), "ValueError"),
        (lambda facts: with_head(facts, classes=["one"]), "IndexError"),
        (lambda facts: with_head(facts, temperature=0), "ValueError: the temperature is 0"),
        (lambda facts: with_head(facts, kind="labels", thresholds=[0.5]), "IndexError"),
    ],
)
def test_facts_that_describe_no_network_are_refused_in_a_line(digits, tmp_path, change, said):
    """Checksums are right: whoever wrote the file wrote them, too."""
    copy = Path(shutil.copytree(digits / "run" / "export", tmp_path / "copy"))
    changed = change(json.loads((copy / "export.json").read_text()))
    content = changed if isinstance(changed, bytes) else json.dumps(changed).encode()
    (copy / "export.json").write_bytes(content)
    write_sums(copy)
    with pytest.raises(UserError, match=f"export.json does not describe .*{said}.*: export"):
        open_export(copy)


def test_numbers_that_json_lacks_are_read_as_none(digits, tmp_path):
    """The server passes the facts on, as JSON."""
    copy = Path(shutil.copytree(digits / "run" / "export", tmp_path / "copy"))
    facts = json.loads((copy / "export.json").read_text())
    (copy / "export.json").write_text(json.dumps(facts | {"figures": {"loss": float("nan")}}))
    write_sums(copy)
    assert open_export(copy).facts["figures"] == {"loss": None}


def with_input(facts: dict, **values) -> dict:
    return facts | {"input": facts["input"] | values}


def with_head(facts: dict, **values) -> dict:
    return facts | {"heads": [facts["heads"][0] | values]}


def test_a_program_that_calls_out_of_itself_is_not_opened(digits, tmp_path):
    """A custom call of a Python function, as a stranger would write it."""
    copy = Path(shutil.copytree(digits / "run" / "export", tmp_path / "copy"))

    def forward(images):
        call = jax.ffi.ffi_call("xla_ffi_python_cpu_callback", images, has_side_effect=True)
        return call(images, index=np.uint64(1234))

    unchecked = [jax.export.DisabledSafetyCheck.custom_call("xla_ffi_python_cpu_callback")]
    shape = jax.ShapeDtypeStruct((1, 8, 8, 1), np.uint8)
    written = jax.export.export(jax.jit(forward), disabled_checks=unchecked)(shape)
    (copy / "model.jaxexport").write_bytes(written.serialize())
    write_sums(copy)
    with pytest.raises(
        UserError, match=r"calls external functions \(xla_ffi_python_cpu_callback\)"
    ):
        open_export(copy)
    (copy / "model.jaxexport").write_bytes(b"none of JAX's")
    write_sums(copy)
    with pytest.raises(UserError, match="cannot be read by JAX"):
        open_export(copy)


@pytest.mark.slow
def test_every_head_and_numbers(tmp_path):
    heads = Synthetic(
        train=24, test=8, heads=("kind", "brand"), classes=(3, 4), image_shape=(8, 8, 3)
    )
    several = dataclasses.replace(
        DIGITS, data=heads, task=MultiHead(), evaluation=Evaluation(batch_size=8), batch_size=8
    )
    run(several, tmp_path / "heads")
    run(several, tmp_path / "heads", "export")
    network = open_export(tmp_path / "heads" / "export")
    assert [(head["name"], head["start"], head["stop"]) for head in network.heads] == [
        ("kind", 0, 3),
        ("brand", 3, 7),
    ]
    images = heads.load().splits["test"].images[:2]
    answers = network.answers(network(images))
    assert [len(answers[0][name]) for name in ("kind", "brand")] == [3, 4]
    assert len((tmp_path / "heads" / "export" / "labels_brand.txt").read_text().splitlines()) == 4

    numbers = Training(
        data=Synthetic(train=24, test=8, numbers=("x",), image_shape=(8, 8, 1)),
        model=MLP(dense=(8,)),
        task=Regression(head="x"),
        epochs=1,
        batch_size=8,
        selection=dataclasses.replace(Training.selection, metric="MAE"),
    )
    run(numbers, tmp_path / "numbers")
    run(numbers, tmp_path / "numbers", "export")
    network = open_export(tmp_path / "numbers" / "export")
    Image.fromarray(images[0, ..., 0]).save(tmp_path / "one.png")
    run(numbers, tmp_path / "numbers", "predict", str(tmp_path / "one.png"))
    row = json.loads((tmp_path / "numbers" / "predictions" / "predictions.jsonl").read_text())
    (answer,) = network.answers(network(images[:1, ..., :1]))
    assert answer == {"x": [{"value": row["x"]["number"]}]}


class FixedBatch(nn.Module):
    """Wants to know how many images there are."""

    @nn.compact
    def __call__(self, images, train=False):
        return images.reshape(len(images), -1)


def test_a_network_that_needs_the_number_of_images():
    state = TrainState(0, {}, {}, {}, {})
    found = TrainedModel(Path(), Training(data=None, model=FixedBatch()), state, (2, 2, 1), {})
    with pytest.raises(UserError, match="FixedBatch cannot be exported for any batch size"):
        program(found)


def test_onnx_runtime_says_the_same(tmp_path):
    """A network with shortcuts and with pools; `export` keeps no file that says otherwise."""
    for extra in ("jax2onnx", "onnxruntime"):
        pytest.importorskip(extra, reason="the extra `onnx` is not installed")
    photos = Synthetic(train=16, test=8, image_shape=(16, 16, 3))
    training = dataclasses.replace(
        DIGITS, data=photos, model=ResNet9(features=(8, 8, 8)), batch_size=8
    )
    run(training, tmp_path)
    run(training, tmp_path, "export")
    open_export(tmp_path / "export")
    found = TrainedModel.load(tmp_path)
    assert onnx_difference(found, tmp_path / "export" / "model.onnx", batch=3) < 1e-4


# The registry ------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", first_of_each_kind())
def test_every_kind_of_training_exports_for_any_batch(name):
    small = scaled_down(lookup(name).experiment())
    dataset = small.data.load()
    # Whole images are taken, not cached features.
    experiment = dataclasses.replace(bind_to_dataset(small, dataset), transfer=Transfer())
    like = abstract_state(experiment, dataset.image_shape, data_mesh())
    state = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), like)
    names = {head: tuple(names) for head, names in dataset.class_names.items()}
    found = TrainedModel(Path(), experiment, state, dataset.image_shape, names)
    exported = program(found)
    assert exported.platforms == PLATFORMS
    (outputs,) = exported.out_avals
    heads = experiment.fitted_task.output_spec(names)
    assert str(outputs.shape[0]) == "batch" and outputs.shape[1] == heads[-1]["stop"]
    assert outputs.dtype == np.float32
    facts = {"heads": heads, "experiment": name, "step": 0, "commit": ""}
    image = {"shape": ["batch", *dataset.image_shape], "channels": "RGB"}
    image |= {"fit": found.fit, "resize": ""}
    assert name in card({**facts, "figures": {}, "evaluation": {}, "input": image}, {}, onnx=False)
