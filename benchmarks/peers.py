"""Training on a user's photographs in PyTorch and Keras 3: features, a linear head, last blocks.

Written as their users would. Imports nothing of this project but `torch_networks`, so that the
PyTorch part also runs in an environment with only PyTorch.
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.torch_networks import import_torchvision, lite_network

THREADS = min(2, os.cpu_count() or 1)
MODES = ("eager", "channels_last", "jit", "compile")
SIZE, RESIZED = 224, 256
"""Size of a network's input, and of the shorter side before the centre crop."""
BATCH = 32
PENALTIES = (1.0, 0.1, 0.01, 1e-3, 1e-4)
FOR_FEATURES = 0.5
"""Share of the time for features up to which mirror images are used, too."""
KEPT = 0.1
"""Share of the time in reserve."""
MOST_EPOCHS, FEWEST_EPOCHS = 10, 3
LEARNING_RATE = 1e-4
EPOCH = 1.5
"""Estimated time per image of training the last blocks, relative to that of its features."""

Files = Mapping[str, Sequence[tuple[str, int]]]
"""Path and class number of each image, by split."""


def read_files(file: str) -> tuple[Files, int]:
    """Read a list of files written by `own_images_peers`, and the number of classes."""
    files = json.loads(Path(file).read_text())
    return files, 1 + max(label for _, label in files["train"])


def versions(packages: Sequence[str]) -> dict[str, str]:
    """Versions of the installed packages."""
    from importlib import metadata

    return {package: metadata.version(package) for package in packages}


def both_views(seconds: float, images: int, minutes: float) -> bool:
    """Return whether there is time for mirror images, from the seconds per image."""
    return 2 * seconds * images < FOR_FEATURES * 60 * minutes


def seconds_an_image(run: Callable[[], object]) -> float:
    """Measure the seconds per image of a batch that is run for the second time."""
    run()
    started = time.perf_counter()
    run()
    return (time.perf_counter() - started) / BATCH


# PyTorch -----------------------------------------------------------------------------------------


def torch_network(name: str) -> Any:
    """Make a PyTorch network that outputs features `[batch, numbers]`, in inference mode."""
    import torch

    if name == "mobilenet_v1":
        import_torchvision()
        import timm  # type: ignore[import-not-found]

        return timm.create_model("mobilenetv1_100", num_classes=0).eval()

    class Features(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = lite_network(name.replace("_", "-"))[0]

        def forward(self, images):
            return self.network.extract_features(images).mean((2, 3))

    return Features().eval()


def in_mode(module: Any, mode: str, batch: int = BATCH, size: int = SIZE) -> Callable[[Any], Any]:
    """Return a function that computes features of `[batch, 3, size, size]` in one of `MODES`."""
    import torch

    layout = torch.contiguous_format if mode == "eager" else torch.channels_last
    ready = module.to(memory_format=layout)
    if mode == "compile":
        ready = torch.compile(ready)
    if mode == "jit":
        example = torch.zeros(batch, 3, size, size).to(memory_format=layout)
        with torch.no_grad():
            ready = torch.jit.optimize_for_inference(torch.jit.trace(ready, example))

    def features(images: Any) -> Any:
        with torch.inference_mode():
            return ready(images.to(memory_format=layout))

    return features


def contend(name: str, mode: str, batch: int) -> None:
    """Run a contender of `turns` in PyTorch, whose steps are images."""
    import torch

    torch.set_num_threads(THREADS)
    features = in_mode(torch_network(name), mode, batch)
    images = torch.randn(batch, 3, SIZE, SIZE)
    answer(lambda: features(images), batch)


def answer(run: Callable[[], object], batch: int) -> None:
    """Warm up; for each number of images read, in whole batches, print the seconds per image."""
    for _ in range(3):
        run()
    print(json.dumps({"batch": batch}), flush=True)
    for line in sys.stdin:
        batches = math.ceil(int(line) / batch)
        started = time.perf_counter()
        for _ in range(batches):
            run()
        seconds = (time.perf_counter() - started) / (batches * batch)
        print(json.dumps({"seconds": seconds}), flush=True)


def _loader(files: Sequence[tuple[str, int]], changes: Sequence[Any], shuffle: bool = False) -> Any:
    import torch
    from PIL import Image
    from torchvision.transforms import v2  # type: ignore[import-not-found]

    # (pixel - 127) / 128, as EfficientNet-Lite's weights were trained.
    last = [v2.PILToTensor(), v2.ToDtype(torch.float32), v2.Normalize([127.0] * 3, [128.0] * 3)]
    transform = v2.Compose([*changes, *last])

    class Images(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return len(files)

        def __getitem__(self, index: int) -> tuple[Any, int]:
            path, label = files[index]
            with Image.open(path) as image:
                return transform(image.convert("RGB")), label

    return torch.utils.data.DataLoader(
        Images(), batch_size=BATCH, shuffle=shuffle, num_workers=THREADS
    )


def torch_trained(file: str, name: str, mode: str, minutes: float) -> dict[str, Any]:
    """Test accuracy of a head on features, and of the last blocks trained after it."""
    import torch

    import_torchvision()
    from torchvision.transforms import v2

    started = time.monotonic()
    torch.manual_seed(0)
    torch.set_num_threads(THREADS)
    files, classes = read_files(file)
    network = torch_network(name)
    forward = in_mode(network, mode)
    example = torch.zeros(BATCH, 3, SIZE, SIZE)
    each = seconds_an_image(lambda: forward(example))
    images = sum(map(len, files.values()))
    mirror = both_views(each, images, minutes)
    whole = [v2.Resize(RESIZED, v2.InterpolationMode.BICUBIC), v2.CenterCrop(SIZE)]
    loaders = {split: _loader(chosen, whole) for split, chosen in files.items()}
    computing = time.monotonic()
    features, labels = {}, {}
    for split, loader in loaders.items():
        views, numbers = [], []
        for pixels, number in loader:
            seen = [pixels, pixels.flip(3)][: 1 + mirror]
            views.append(torch.stack([forward(view).clone() for view in seen], 1))
            numbers.append(number)
        features[split], labels[split] = torch.cat(views), torch.cat(numbers)
    # Time per image in one view, including decoding.
    each = (time.monotonic() - computing) / (images * (1 + mirror))
    head, penalty = _torch_head(features, labels, classes)
    found = {
        "versions": versions(["torch", "torchvision", "efficientnet-lite-pytorch"]),
        "views": 1 + mirror,
        "penalty": penalty,
        "head": _torch_scores(head, features["test"], labels["test"])[0],
        "head_minutes": (time.monotonic() - started) / 60,
        "epochs": 0,
    }
    left = (1 - KEPT) * 60 * minutes - (time.monotonic() - started)
    validated = len(files["validation"]) + len(files["test"]) / MOST_EPOCHS
    epochs = int(left / (each * (EPOCH * len(files["train"]) + (1 + mirror) * validated)))
    if epochs >= FEWEST_EPOCHS:
        epochs = min(epochs, MOST_EPOCHS)
        changes = [v2.RandomResizedCrop(SIZE, (0.5, 1.0)), v2.RandomHorizontalFlip()]
        train = _loader(files["train"], changes, shuffle=True)
        tuned = _torch_tuned(network, head, train, loaders, epochs, 1 + mirror)
        return found | {"epochs": epochs, **tuned}
    return found | {"accuracy": found["head"]}


def _torch_head(features: Any, labels: Any, classes: int) -> tuple[Any, float]:
    """Fit a linear layer to features `[images, views, numbers]`, without normalising them."""
    import torch
    from torch.nn import functional as F

    views = features["train"].shape[1]
    train = features["train"].flatten(0, 1).clone()
    mean, std = train.mean(0), train.std(0) + 1e-6
    inputs, answers = (train - mean) / std, labels["train"].repeat_interleave(views)
    layer = torch.nn.Linear(train.shape[1], classes)
    torch.nn.init.zeros_(layer.weight)
    best, least, chosen = torch.nn.Linear(train.shape[1], classes), math.inf, PENALTIES[0]
    for penalty in PENALTIES:  # each starts from the previous optimum
        optimizer = torch.optim.LBFGS(
            layer.parameters(), max_iter=100, line_search_fn="strong_wolfe"
        )

        def loss(optimizer=optimizer, penalty=penalty):
            optimizer.zero_grad()
            value = F.cross_entropy(layer(inputs), answers)
            value = value + penalty / 2 * layer.weight.square().sum()
            value.backward()
            return value

        optimizer.step(loss)
        plain = torch.nn.Linear(train.shape[1], classes)
        with torch.no_grad():
            plain.weight.copy_(layer.weight / std)
            plain.bias.copy_(layer.bias - plain.weight @ mean)
        validation = _torch_scores(plain, features["validation"], labels["validation"])[1]
        if validation < least:
            best, least, chosen = plain, validation, penalty
    return best, chosen


def _torch_scores(head: Any, features: Any, labels: Any) -> tuple[float, float]:
    """Accuracy and loss of the mean probabilities over views."""
    import torch

    with torch.inference_mode():
        shares = head(features).softmax(2).mean(1)
        right = (shares.argmax(1) == labels).float().mean()
        return right.item(), torch.nn.functional.nll_loss(shares.log(), labels).item()


def _torch_tuned(
    network: Any, head: Any, train: Any, loaders: Mapping[str, Any], epochs: int, views: int
) -> dict[str, Any]:
    """Train the last block and convolution with the head; report the best validation epoch."""
    import copy

    import torch

    lite = network.network
    network.to(memory_format=torch.channels_last).requires_grad_(False)
    parts = torch.nn.ModuleList([lite._blocks[-1], lite._conv_head, head])
    for part in parts:
        part.requires_grad_(True)
    optimizer = torch.optim.AdamW(parts.parameters(), LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, LEARNING_RATE, total_steps=epochs * len(train)
    )

    def scores(split: str) -> tuple[float, float]:
        seen, labels = [], []
        with torch.inference_mode():
            for images, numbers in loaders[split]:
                mirrored = [images, images.flip(3)][:views]
                seen.append(torch.stack([network(view) for view in mirrored], 1))
                labels.append(numbers)
        return _torch_scores(head, torch.cat(seen), torch.cat(labels))

    least, best = scores("validation")[1], copy.deepcopy(parts.state_dict())
    for _ in range(epochs):
        for images, labels in train:  # in eval mode, which keeps the weights' statistics
            optimizer.zero_grad()
            features = network(images.to(memory_format=torch.channels_last))
            torch.nn.functional.cross_entropy(head(features), labels).backward()
            optimizer.step()
            schedule.step()
        loss = scores("validation")[1]
        if loss < least:
            least, best = loss, copy.deepcopy(parts.state_dict())
    parts.load_state_dict(best)
    return {"accuracy": scores("test")[0]}


# Keras -------------------------------------------------------------------------------------------


def keras_mobilenet(weights: str) -> Any:
    """Make Keras' MobileNet up to the last layer of the .npz file, with means of its maps."""
    import keras

    model = keras.applications.MobileNet(
        weights=None, include_top=False, input_shape=(SIZE, SIZE, 3)
    )
    last = model.get_layer("conv_dw_13_relu").output
    model = keras.Model(model.input, keras.layers.GlobalAveragePooling2D()(last))
    with np.load(weights) as arrays:
        for layer in model.layers:
            if layer.weights:
                layer.set_weights([arrays[_key(layer, weight)] for weight in layer.weights])
    return model


def _key(layer: Any, weight: Any) -> str:
    depthwise = "_dw_" in layer.name and weight.name == "kernel"
    return f"{layer.name}__{'depthwise_kernel' if depthwise else weight.name}"


def keras_trained(file: str, weights: str, minutes: float) -> dict[str, Any]:
    """Test accuracy of a linear layer on the features of Keras' MobileNet."""
    import keras

    keras.utils.set_random_seed(0)
    files, classes = read_files(file)
    network = keras_mobilenet(weights)
    example = np.zeros((BATCH, SIZE, SIZE, 3), np.float32)
    each = seconds_an_image(lambda: network.predict(example, BATCH, verbose=0))
    mirror = both_views(each, sum(map(len, files.values())), minutes)

    class Images(keras.utils.PyDataset):
        def __init__(self, paths: Sequence[str], mirrored: bool) -> None:
            super().__init__(workers=THREADS)
            self.paths, self.mirrored = paths, mirrored

        def __len__(self) -> int:
            return math.ceil(len(self.paths) / BATCH)

        def __getitem__(self, index: int) -> tuple[np.ndarray]:
            found = []
            for path in self.paths[BATCH * index : BATCH * (index + 1)]:
                image = keras.utils.load_img(
                    path,
                    target_size=(SIZE, SIZE),
                    interpolation="bilinear",
                    keep_aspect_ratio=True,
                )
                found.append(keras.utils.img_to_array(image))
            pixels = keras.applications.mobilenet.preprocess_input(np.stack(found))
            return (pixels[:, :, ::-1] if self.mirrored else pixels,)

    features, labels = {}, {}
    for split, chosen in files.items():
        paths, numbers = zip(*chosen, strict=True)
        views = [Images(paths, mirrored) for mirrored in (False, True)[: 1 + mirror]]
        features[split] = np.stack([network.predict(view, verbose=0) for view in views], 1)
        labels[split] = np.array(numbers)
    found = {"versions": versions(["keras", "jax"]), "views": 1 + mirror}
    return found | _keras_head(features, labels, classes)


def _keras_head(features: Any, labels: Any, classes: int) -> dict[str, Any]:
    import keras

    views = features["train"].shape[1]
    inputs = features["train"].reshape(-1, features["train"].shape[2])
    answers = np.repeat(labels["train"], views)
    normalisation = keras.layers.Normalization()
    normalisation.adapt(inputs)

    def shares(model: Any, split: str) -> np.ndarray:
        return np.mean(
            [model.predict(view, verbose=0) for view in features[split].swapaxes(0, 1)], axis=0
        )

    found: dict[str, Any] = {}
    least = math.inf
    for penalty in PENALTIES:
        dense = keras.layers.Dense(
            classes, "softmax", kernel_regularizer=keras.regularizers.L2(penalty / 2)
        )
        model = keras.Sequential([keras.Input(inputs.shape[1:]), normalisation, dense])
        model.compile(keras.optimizers.Adam(1e-3), "sparse_categorical_crossentropy")
        validation = features["validation"]
        model.fit(
            inputs,
            answers,
            batch_size=256,
            epochs=100,
            verbose=0,
            validation_data=(
                validation.reshape(-1, validation.shape[2]),
                np.repeat(labels["validation"], views),
            ),
            callbacks=[keras.callbacks.EarlyStopping(patience=5, restore_best_weights=True)],
        )
        seen = shares(model, "validation")[np.arange(len(validation)), labels["validation"]]
        loss = float(-np.log(seen + 1e-12).mean())
        if loss < least:
            least = loss
            right = shares(model, "test").argmax(1) == labels["test"]
            found = {"penalty": penalty, "accuracy": float(right.mean())}
    return found
