"""Train steps per second compared with PyTorch, on the same machine with the same layers.

    python -m benchmarks.train_speed --output results/train_speed.json

A step is forward, backward and the optimizer's update, in float32. Ours is what users run: the
registered experiment's model, task and optimizer in the runner's own step, which also draws and
scales its batch (and crops palette_ss_cnn's images and computes histograms); resnet18 is the
registered architecture. PyTorch gets one prepared batch.

In each round everyone has one turn of a few seconds while the others sleep; ratios are taken within
rounds. PyTorch runs eagerly, with channels last, and compiled; its best mode counts.

For large steps ours keeps freed memory for the next step, as training does (`core.memory`). PyTorch
has its default settings. As it would gain from this setting, too, its best mode with it is also
timed, against ours, and stored as `pytorch_with_kept_memory`.

Run it on an idle machine. Takes about ten minutes for all models; needs PyTorch.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib.metadata
import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any, Literal

from benchmarks.results import flag, measurement
from benchmarks.turns import Contender, ratios, rounds_of, spread

OURS = "jax"
THEIRS = ("eager", "channels_last", "compile")
THREADS = min(2, os.cpu_count() or 1)
WARM_UP_STEPS = 3


@dataclasses.dataclass(frozen=True)
class Case:
    """What both sides train, apart from the layers."""

    experiment: str
    """Experiment with the model, task and optimizer; or a registered architecture."""
    batch: int
    image: tuple[int, int, int]
    classes: tuple[int, ...]
    """Number of classes of each head."""
    optimizer: Literal["adam", "momentum"]
    learning_rate: float
    keep_memory: bool = True
    augmented: bool = True
    """Whether to use the experiment's augmentation."""
    shares: bool = False
    """Whether targets are shares of the classes instead of a single class."""


CASES = {
    "fashion_mnist_cnn": Case(
        "fashion_mnist_cnn", 128, (28, 28, 1), (10,), "adam", 1e-3, keep_memory=False
    ),
    "red1": Case("artworks_red1", 32, (244, 244, 3), (50,), "adam", 1e-4, augmented=False),
    "products_t3": Case("products_t3", 100, (224, 224, 3), (17, 42, 132), "adam", 1e-3),
    "palette_ss_cnn": Case("palette_ss_cnn", 128, (37, 37, 3), (128,), "adam", 1e-2, shares=True),
    "resnet18": Case("resnet18_small", 64, (32, 32, 3), (10,), "momentum", 0.01),
}


def jax_runner(name: str) -> tuple[Callable[[int], float], int]:
    """A function that runs n steps and returns the last loss, and the number of parameters."""
    import jax

    from benchmarks.steps import mean_loss, noise, steps_of
    from cnn_research.core.experiment import registry
    from cnn_research.data.augmentation.config import Augmentation
    from cnn_research.models.registry import architectures
    from cnn_research.train.config import Training
    from cnn_research.train.optimizers import Optimizer

    case = CASES[name]
    if case.experiment in architectures():
        experiment = Training(
            data=None,
            model=architectures()[case.experiment].model,
            optimizer=Optimizer(name="sgd", momentum=0.9, learning_rate=case.learning_rate),
        )
    else:
        experiment = registry()[case.experiment].experiment()  # type: ignore[assignment]
    heads = experiment.task.heads
    data = noise(case.image, *case.classes, train=1024, heads=heads)
    experiment = dataclasses.replace(experiment, batch_size=case.batch)
    if not case.augmented:
        experiment = dataclasses.replace(experiment, augmentation=Augmentation())
    steps = steps_of(experiment, dataset=clusters_of_noise(case) if case.shares else data.load())
    states = steps.states

    def run(count: int) -> float:
        nonlocal states
        for _ in range(count):
            states, metrics = steps(states)
        jax.block_until_ready(states)
        return mean_loss(metrics)

    return run, sum(leaf.size for leaf in jax.tree.leaves(states[0].params))


def clusters_of_noise(case: Case) -> Any:
    """Noise images, as large as photographs, with a random cluster per pixel."""
    import numpy as np

    from cnn_research.data.dataset import Dataset, Split

    random = np.random.default_rng(0)
    images = random.integers(0, 256, (16, 321, 481, 3), np.uint8)
    (clusters,) = case.classes
    labels = random.integers(0, clusters, images.shape[:3], np.uint8)
    names = tuple(f"#{cluster:06x}" for cluster in range(clusters))
    return Dataset(
        name="noise",
        splits={"train": Split(images, {"cluster": labels})},
        class_names={"cluster": names},
        provenance={},
        window=case.image[:2],
    )


def torch_model(name: str) -> Any:
    """Make a PyTorch module with the same layers, in training mode."""
    from torch import nn
    from torch.nn import functional as F

    def conv(inputs: int, features: int, stride: int = 1, padding: int = 1, bias: bool = True):
        return nn.Conv2d(inputs, features, 3, stride, padding, bias=bias)

    def block(inputs: int, features: int, padding: int = 1, norm: bool = True) -> list[nn.Module]:
        norms = [nn.BatchNorm2d(features)] if norm else []
        return [conv(inputs, features, padding=padding), *norms, nn.ReLU(), nn.MaxPool2d(2)]

    def fashion_mnist_cnn() -> list[nn.Module]:
        head = [nn.Linear(864, 600), nn.Dropout(0.4), nn.Linear(600, 100), nn.Dropout(0.4)]
        return [*block(1, 12), *block(12, 24, padding=0), nn.Flatten(), *head, nn.Linear(100, 10)]

    def red1() -> list[nn.Module]:
        pairs = ((3, 32), (32, 64), (64, 128))
        layers = [layer for pair in pairs for layer in block(*pair, norm=False)]
        return [*layers, nn.Flatten(), nn.Dropout(0.4), nn.Linear(115_200, 50)]

    def products_t3() -> list[nn.Module]:
        pairs = ((3, 16), (16, 32), (32, 64), (64, 128))
        layers = [layer for pair in pairs for layer in block(*pair)]
        outputs = sum(CASES[name].classes)
        return [*layers, nn.Flatten(), nn.Linear(25_088, 128), nn.ReLU(), nn.Linear(128, outputs)]

    def palette_ss_cnn() -> list[nn.Module]:
        norm = functools.partial(nn.LocalResponseNorm, 5, alpha=1e-4, beta=0.75, k=2.0)
        layers = [conv(3, 32), nn.ReLU(), nn.MaxPool2d(2, ceil_mode=True), norm()]
        layers += [conv(32, 96), nn.ReLU(), nn.MaxPool2d(2, ceil_mode=True), norm()]
        layers += [conv(96, 96, stride=2), nn.ReLU(), nn.MaxPool2d(2, ceil_mode=True)]
        return [*layers, nn.Flatten(), nn.Linear(864, 128)]

    class Residual(nn.Module):
        def __init__(self, inputs: int, features: int, stride: int) -> None:
            super().__init__()
            self.layers = nn.Sequential(
                *(conv(inputs, features, stride, bias=False), nn.BatchNorm2d(features), nn.ReLU()),
                *(conv(features, features, bias=False), nn.BatchNorm2d(features)),
            )
            self.shortcut: nn.Module = nn.Identity()
            if stride != 1 or inputs != features:
                narrow = nn.Conv2d(inputs, features, 1, stride, bias=False)
                self.shortcut = nn.Sequential(narrow, nn.BatchNorm2d(features))

        def forward(self, x):
            return F.relu(self.layers(x) + self.shortcut(x))

    def resnet18() -> list[nn.Module]:
        layers, inputs = [conv(3, 64, bias=False), nn.BatchNorm2d(64), nn.ReLU()], 64
        for features, first_stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
            for stride in (first_stride, 1):
                layers.append(Residual(inputs, features, stride))
                inputs = features
        return [*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 10)]

    makers = (fashion_mnist_cnn, red1, products_t3, palette_ss_cnn, resnet18)
    layers = {maker.__name__: maker for maker in makers}[name]()
    return nn.Sequential(*layers).train()


def torch_runner(name: str, mode: str) -> tuple[Callable[[int], float], int]:
    """Do the same as `jax_runner` for PyTorch; `mode` is one of `THEIRS`."""
    import torch
    from torch.nn import functional as F

    torch.set_num_threads(THREADS)
    torch.manual_seed(0)
    case, model = CASES[name], torch_model(name)
    height, width, channels = case.image
    images = torch.randn(case.batch, channels, height, width)
    labels = [torch.randint(classes, (case.batch,)) for classes in case.classes]
    if case.shares:
        labels = [torch.rand(case.batch, classes) for classes in case.classes]
        labels = [shares / shares.sum(dim=1, keepdim=True) for shares in labels]
    if mode == "channels_last":
        model = model.to(memory_format=torch.channels_last)
        images = images.to(memory_format=torch.channels_last)
    # The fused update is PyTorch's fastest one.
    rule = torch.optim.Adam if case.optimizer == "adam" else torch.optim.SGD
    momentum = {} if case.optimizer == "adam" else {"momentum": 0.9}
    optimizer = rule(model.parameters(), case.learning_rate, fused=True, **momentum)
    forward = torch.compile(model) if mode == "compile" else model

    def run(steps: int) -> float:
        for _ in range(steps):
            optimizer.zero_grad(set_to_none=True)
            heads = forward(images).split(case.classes, dim=1)
            loss = sum(F.cross_entropy(*pair) for pair in zip(heads, labels, strict=True))
            loss.backward()
            optimizer.step()
        return loss.item()

    return run, sum(parameter.numel() for parameter in model.parameters())


def contend(name: str, contender: str, keep_memory: bool) -> None:
    """Run a contender of `turns`: get ready, then time each number of steps read."""
    if keep_memory:
        from cnn_research.core import memory

        memory.use_one_arena()
        memory.keep_freed_memory()
    run, parameters = jax_runner(name) if contender == OURS else torch_runner(name, contender)
    run(WARM_UP_STEPS)
    print(json.dumps({"parameters": parameters}), flush=True)
    for line in sys.stdin:
        start = time.perf_counter()
        loss = run(int(line))
        seconds = (time.perf_counter() - start) / int(line)
        print(json.dumps({"seconds": seconds, "loss": loss}), flush=True)


def contender(stack: contextlib.ExitStack, model: str, name: str, keep_memory: bool) -> Contender:
    """Run `contend` in its own process."""
    code = (
        f"from benchmarks.train_speed import contend; contend({model!r}, {name!r}, {keep_memory})"
    )
    found = Contender("-c", code, environment={"OMP_NUM_THREADS": str(THREADS)})
    stack.callback(found.close)
    return found


def measure(model: str, rounds: int) -> dict[str, Any]:
    """Measure the milliseconds per step of all contenders in all rounds, and summarise them."""
    case = CASES[model]
    with contextlib.ExitStack() as stack:
        contenders = {name: contender(stack, model, name, name == OURS) for name in (OURS, *THEIRS)}
        counts = {each.ready["parameters"] for each in contenders.values()}
        if len(counts) > 1:
            raise RuntimeError(f"{model} is not the same network everywhere: {counts} parameters")
        times = rounds_of(contenders, rounds)
        best = min(THEIRS, key=lambda name: spread(times[name])["median"])
        kept = {}
        if case.keep_memory:
            pair = {best: contender(stack, model, best, True), OURS: contenders[OURS]}
            kept = {"pytorch_with_kept_memory": compared(rounds_of(pair, rounds), best)}
    parameters = {"parameters": counts.pop()}
    return {"case": dataclasses.asdict(case) | parameters, **compared(times, best), **kept}


def compared(times: dict[str, list[float]], best: str) -> dict[str, Any]:
    """Summarise the times of all rounds, and the ratio of PyTorch's best mode to ours."""
    return {
        "milliseconds_a_step": {name: spread(found) for name, found in times.items()},
        "best_of_pytorch": best,
        "times_as_fast": ratios(times[best], times[OURS]),
    }


@measurement(
    flag("--models", nargs="+", choices=CASES, default=list(CASES)),
    flag("--rounds", type=int, default=5),
    what="milliseconds a train step, against PyTorch's fastest mode",
    target="none",
)
def main(options):
    figures: dict[str, Any] = {"torch": importlib.metadata.version("torch"), "threads": THREADS}
    figures["models"] = {}
    for model in options.models:
        figures["models"][model] = found = measure(model, options.rounds)
        ratio = found["times_as_fast"]
        print(f"{model}: {found['milliseconds_a_step'][OURS]['median']:.1f} ms a step, "
              f"{ratio['median']:.2f} times as fast as PyTorch ({found['best_of_pytorch']}); "
              f"{ratio['min']:.2f} to {ratio['max']:.2f} within a round", flush=True)  # fmt: skip
    return [], figures


if __name__ == "__main__":
    sys.exit(main())
