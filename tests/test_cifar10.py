"""CIFAR-10 from its official archives and from image files, and the lecture's exercise."""

from __future__ import annotations

import functools
import hashlib
import http.server
import importlib.util
import io
import os
import pickle
import struct
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from cnn_research.core.config import to_dict
from cnn_research.core.errors import UsageError, UserError
from cnn_research.core.experiment import lookup, registry
from cnn_research.data.__main__ import main
from cnn_research.data.prepare import cifar10, fashion_mnist
from cnn_research.data.sources.official import Cifar10
from cnn_research.experiments.cifar10 import EXERCISE

BATCHES = [f"data_batch_{number}" for number in range(1, 6)] + ["test_batch"]
PER_BATCH = 4


class Python2Pickler(pickle._Pickler):
    """Writes texts and bytes alike as Python 2 did, which the official batches come from."""

    dispatch = dict(pickle._Pickler.dispatch)

    def save_text(self, value: str | bytes) -> None:
        content = value.encode() if isinstance(value, str) else value
        self.write(pickle.BINSTRING + struct.pack("<i", len(content)) + content)
        self.memoize(value)

    dispatch[str] = dispatch[bytes] = save_text


def pickled(value: object) -> bytes:
    buffer = io.BytesIO()
    Python2Pickler(buffer, protocol=2).dump(value)
    return buffer.getvalue().replace(b"numpy._core.multiarray", b"numpy.core.multiarray")


def archive(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


@pytest.fixture
def batches() -> dict[str, tuple[np.ndarray, list[int]]]:
    """Per batch, pixels as the files hold them, uint8 `[examples, 3072]`, and labels."""
    random = np.random.default_rng(0)
    return {
        name: (
            random.integers(0, 256, (PER_BATCH, 3072), dtype=np.uint8),
            [(PER_BATCH * number + index) % 10 for index in range(PER_BATCH)],
        )
        for number, name in enumerate(BATCHES)
    }


@pytest.fixture
def archives(batches, tmp_path, monkeypatch) -> dict[str, Path]:
    """Both archives, small, in the layout of the official ones, and known as official."""
    order = [*BATCHES[1:], BATCHES[0]]  # as in the real ones, not the order in which they count
    binary = {
        f"cifar-10-batches-bin/{name}.bin": b"".join(
            bytes([label]) + row.tobytes() for row, label in zip(*batches[name], strict=True)
        )
        for name in order
    }
    python = {
        f"cifar-10-batches-py/{name}": pickled(
            {"data": batches[name][0], "labels": batches[name][1], "batch_label": name}
        )
        for name in order
    }
    folder = tmp_path / "official"
    folder.mkdir()
    made = {
        cifar10.BINARY: archive(
            folder / cifar10.BINARY, {"cifar-10-batches-bin/readme.html": b"", **binary}
        ),
        cifar10.PYTHON: archive(
            folder / cifar10.PYTHON, {"cifar-10-batches-py/batches.meta": b"?", **python}
        ),
    }
    known = {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in made.items()}
    monkeypatch.setattr(cifar10, "SHA256", known)
    return made


@pytest.fixture(autouse=True)
def data_dir(tmp_path, monkeypatch) -> Path:
    """Prepared data go to a folder of this test alone."""
    folder = tmp_path / "prepared"
    monkeypatch.setenv("TFDS_DATA_DIR", str(folder))
    return folder


def image_files(root: Path, classes: tuple[str, ...] = cifar10.CLASSES) -> Path:
    random = np.random.default_rng(0)
    for split, count in (("train", 4), ("test", 1)):
        for name in classes:
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = random.integers(0, 256, (32, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{number:04}.png")
    return root


# The official archives ---------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [cifar10.BINARY, cifar10.PYTHON])
def test_an_archive_is_read_in_the_order_of_its_batches(kind, archives, batches):
    found = cifar10.read(archives[kind])
    for split, names in (("train", BATCHES[:5]), ("test", BATCHES[5:])):
        images, labels = found[split]
        assert images.dtype == np.uint8 and images.shape == (PER_BATCH * len(names), 32, 32, 3)
        assert labels.tolist() == [label for name in names for label in batches[name][1]]
        for index, image in enumerate(images):
            row = batches[names[index // PER_BATCH]][0][index % PER_BATCH]
            red, green, blue = row.reshape(3, 32, 32)  # as the format's own page describes it
            np.testing.assert_array_equal(image, np.stack([red, green, blue], axis=-1))


@pytest.mark.parametrize("kind", [cifar10.BINARY, cifar10.PYTHON])
def test_command_prepares_an_archive(kind, archives, capsys):
    assert main(["prepare", "cifar10", f"--source={archives[kind]}", "--validation=0.2"]) is None
    said = capsys.readouterr().out
    assert "train 16, validation 4, test 4; 32x32x3; label: 10 classes" in said
    assert "data=Cifar10(validation=0.2)" in said
    dataset = Cifar10(validation=0.0).load()
    images, labels = cifar10.read(archives[kind])["train"]
    np.testing.assert_array_equal(dataset.splits["train"].images, images)
    np.testing.assert_array_equal(dataset.splits["train"].labels["label"], labels)
    assert dataset.name == "cifar10" and dataset.class_names["label"] == cifar10.CLASSES
    assert dataset.provenance["sha256"] == {kind: cifar10.SHA256[kind]}
    assert "the official data" in dataset.provenance["source"]
    main(["prepare", "cifar10", f"--source={archives[kind]}"])
    assert "already prepared" in capsys.readouterr().out


def test_an_archive_is_known_by_its_content_and_found_in_a_folder(archives):
    renamed = archives[cifar10.BINARY].rename(archives[cifar10.BINARY].with_name("mine.tgz"))
    assert cifar10.find(renamed) == renamed
    assert cifar10.find(renamed.parent) == archives[cifar10.PYTHON]


def test_damaged_archive_is_named_and_leaves_nothing(archives, data_dir):
    path = archives[cifar10.PYTHON]
    content = bytearray(path.read_bytes())
    content[1000] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=rf"{cifar10.PYTHON} is not an official file"):
        main(["prepare", "cifar10", f"--source={path}"])
    path.unlink()
    archives[cifar10.BINARY].unlink()
    (path.parent / "cifar-10-batches-py").mkdir()
    (path.parent / "cifar-10-batches-py" / "data_batch_1").write_bytes(b"")
    with pytest.raises(UserError, match=r"contains unpacked batches.* pass the archive itself"):
        main(["prepare", "cifar10", f"--source={path.parent}"])
    assert not data_dir.exists()


def test_official_checksums_are_those_that_others_publish():
    from tensorflow_datasets.core.download import checksums

    known = checksums.get_all_url_infos()[cifar10.HOMEPAGE + cifar10.BINARY]
    assert known.checksum == cifar10.SHA256[cifar10.BINARY]
    keras = importlib.util.find_spec("keras")
    if keras is None:
        pytest.skip("Keras is not installed, which has the other checksum")
    page = Path(keras.origin).parent / "src" / "datasets" / "cifar10.py"
    assert cifar10.SHA256[cifar10.PYTHON] in page.read_text()


def test_official_checksums_of_fashion_mnist_are_those_that_others_publish():
    from tensorflow_datasets.core.download import checksums

    known = checksums.get_all_url_infos()
    for name, digest in fashion_mnist.SHA256.items():
        assert known[fashion_mnist.ADDRESS + name].checksum == digest


def test_files_of_fashion_mnist_are_downloaded(tmp_path, monkeypatch):
    files = {name: name.encode() for name in fashion_mnist.SHA256}
    here, mirror = tmp_path / "here", tmp_path / "mirror"
    here.mkdir()
    mirror.mkdir()
    for name, content in files.items():
        (mirror / name).write_bytes(content)
    known = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    monkeypatch.setattr(fashion_mnist, "SHA256", known)
    monkeypatch.setattr(fashion_mnist, "ADDRESS", f"{mirror.as_uri()}/")
    fashion_mnist.gather(here, None)
    assert {file.name: file.read_bytes() for file in here.iterdir()} == files
    (mirror / name).unlink()
    with pytest.raises(UserError, match=r"cannot download Fashion-MNIST .*--source=FOLDER"):
        fashion_mnist.gather(here, None)


# Downloading -------------------------------------------------------------------------------------


@pytest.fixture
def mirror(archives) -> Iterator[str]:
    """The address of a server that has both archives."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    handler = functools.partial(Quiet, directory=str(archives[cifar10.BINARY].parent))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_a_mirror_serves_either_archive(mirror, archives, data_dir):
    main(["prepare", "cifar10", f"--source={mirror}/{cifar10.PYTHON}"])
    assert list(Cifar10().load().provenance["sha256"]) == [cifar10.PYTHON]
    assert [path.name for path in data_dir.rglob("*.tar.gz")] == [cifar10.PYTHON]


def test_a_mirror_with_another_file_or_none_is_an_error(mirror, archives, data_dir):
    content = archives[cifar10.BINARY].read_bytes()
    archives[cifar10.BINARY].write_bytes(content[: len(content) // 2])
    for name, message in (
        (cifar10.BINARY, f"{cifar10.BINARY} is not an official file"),
        ("absent", "cannot download CIFAR-10 from .*404.*--source=FILE"),
    ):
        with pytest.raises(UserError, match=message):
            main(["prepare", "cifar10", f"--source={mirror}/{name}"])
    with pytest.raises(UserError, match=r"cannot download CIFAR-10 from http://127.0.0.1:9/x"):
        main(["prepare", "cifar10", "--source=http://127.0.0.1:9/x"])
    assert not [path for path in data_dir.rglob("*") if path.is_file() and path.suffix != ".lock"]


# Image files -------------------------------------------------------------------------------------


def test_image_files_are_a_data_set_of_another_name(tmp_path, capsys):
    root = image_files(tmp_path / "cifar10_jpeg")
    main(["prepare", "cifar10", f"--source={root}", "--validation=0.25"])
    assert f"data=Cifar10(path='{root}', validation=0.25)" in capsys.readouterr().out
    dataset = Cifar10(path=str(root), validation=0.25).load()
    assert dataset.name == "cifar10, image files of cifar10_jpeg"
    assert "the image files of cifar10_jpeg" in dataset.provenance["source"]
    assert dataset.provenance["path"] == "cifar10_jpeg"  # no folder of this machine
    assert {name: len(part) for name, part in dataset.splits.items()} == {
        "train": 30, "validation": 10, "test": 10,
    }  # fmt: skip


def test_image_files_are_found_from_any_folder(tmp_path, monkeypatch, data_dir):
    root = image_files(tmp_path / "cifar10_jpeg")
    Cifar10(path=str(root)).load()
    for folder in (tmp_path, root):
        monkeypatch.chdir(folder)
        Cifar10(path=os.path.relpath(root)).load()
    assert len(list(data_dir.rglob("index.json"))) == 1


def test_image_files_of_other_classes_are_refused(tmp_path):
    root = image_files(tmp_path / "fruit", ("apple", "pear"))
    with pytest.raises(UserError, match=r"fruit has other classes than CIFAR-10's"):
        Cifar10(path=str(root), validation=0.0).load()


def test_what_is_not_prepared_says_both_ways():
    with pytest.raises(UserError, match=r"not prepared .* prepare cifar10 .*--data.path"):
        Cifar10().load()


# The exercise ------------------------------------------------------------------------------------


def test_the_exercise_has_the_tutorials_layers():
    images = np.zeros((1, 32, 32, 3), np.float32)
    params = jax.eval_shape(EXERCISE.init, jax.random.key(0), images)["params"]
    counts = [sum(leaf.size for leaf in jax.tree.leaves(layer)) for layer in params.values()]
    # As the tutorial's model.summary() prints them.
    assert counts == [896, 18_496, 36_928, 65_600, 650]
    assert sum(counts) == 122_570


def test_a_network_without_an_entry_per_convolution_is_a_usage_error():
    for wrong in ({"padding": (0, 0)}, {"pool": (True, False)}, {"features": (32,)}):
        with pytest.raises(UsageError, match="must have one entry per convolution"):
            jax.eval_shape(
                EXERCISE.clone(**wrong).init, jax.random.key(0), np.zeros((1, 32, 32, 3))
            )


SERIES = [name for name in registry() if name.startswith("cifar10_exercise_")]


@pytest.mark.parametrize("name", SERIES)
def test_each_experiment_of_the_series_is_one_change(name):
    base, changed = (to_dict(lookup(n).experiment()) for n in ("cifar10_exercise", name))
    parts = [part for part in base if part != "name" and base[part] != changed[part]]
    assert len(parts) == 1


def test_the_series_is_long_enough():
    assert len(SERIES) >= 10
