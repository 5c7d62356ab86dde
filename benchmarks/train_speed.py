"""Train steps a second, this library against PyTorch, on the same machine and the same layers.

    python -m benchmarks.train_speed --output results/train_speed.json

A step is forward, backward and the optimizer's update, in float32. For fashion_mnist_cnn,
products_t3 and palette_ss_cnn our side is what users run: the registered experiment's model, task
and optimizer in the runner's own step, which also draws its batch from the training split and
scales it (and cuts palette_ss_cnn's crops and counts their histograms); PyTorch gets one ready
batch. The other models exist here alone, and both sides train them on one fixed random batch.

Every contender is a process of its own, so that thread pools and allocators do not disturb each
other, and stays alive between turns. In a round each takes one turn of a few seconds while the
others sleep, so that a disturbance of the machine falls on all of them alike: ratios are taken
within rounds. PyTorch runs eagerly, with channels last, and compiled; its best is what counts.

Where steps are large, experiments keep memory that one step freed for the next
(`Training.keep_memory`, `ops.keep_freed_memory`), and so does our side here: for red1 and
resnet18, and for the experiments as they say. PyTorch runs as it comes. It would
gain from the same setting: its best mode with it is timed as well, against ours again, and stored
beside the comparison as `pytorch_with_kept_memory`.

The numbers are worth something on an idle machine only. Takes about ten minutes for all models;
needs PyTorch, which nothing else here does.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import functools
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

OURS = "jax"
THEIRS = ("eager", "channels_last", "compile")
THREADS = min(2, os.cpu_count() or 1)
TURN_SECONDS = 2.0
WARM_UP_STEPS = 3


@dataclasses.dataclass(frozen=True)
class Case:
    """What both sides train, besides the layers themselves."""

    batch: int
    image: tuple[int, int, int]
    classes: tuple[int, ...]
    """Of each head."""
    optimizer: Literal["adam", "momentum"]
    learning_rate: float
    keep_memory: bool
    shares: bool = False
    """Whether the targets are shares of the classes instead of one of them."""


CASES = {
    "fashion_mnist_cnn": Case(128, (28, 28, 1), (10,), "adam", 1e-3, keep_memory=False),
    "red1": Case(32, (244, 244, 3), (50,), "adam", 1e-4, keep_memory=True),
    "products_t3": Case(100, (224, 224, 3), (17, 42, 132), "adam", 1e-3, keep_memory=True),
    "palette_ss_cnn": Case(128, (37, 37, 3), (128,), "adam", 1e-2, keep_memory=True, shares=True),
    "resnet18": Case(64, (32, 32, 3), (10,), "momentum", 0.01, keep_memory=True),
}


EXPERIMENTS = ("fashion_mnist_cnn", "products_t3", "palette_ss_cnn")
"""The cases that are registered experiments."""


def runner_trainer(name: str) -> tuple[Callable[[Any, Any], tuple[Any, Any]], Any, Any]:
    """As `jax_trainer`, for a registered experiment: its model and optimizer, the runner's step."""
    import jax
    import jax.numpy as jnp

    from cnn_research.core.distributed import data_mesh, replicated
    from cnn_research.core.experiment import registry
    from cnn_research.data.sources import Synthetic
    from cnn_research.train.loop import Arrays, initial_state, make_steps
    from cnn_research.train.trained import bound

    case = CASES[name]
    experiment = registry()[name].experiment()
    if case.shares:
        dataset = clusters_of_noise(case)
    else:
        dataset = Synthetic(
            train=1024, image_shape=case.image, heads=experiment.task.heads, classes=case.classes
        ).load()
    experiment = dataclasses.replace(experiment, batch_size=case.batch)
    if experiment.keep_memory != case.keep_memory:
        raise RuntimeError(f"{name} has keep_memory={experiment.keep_memory}: mend CASES")
    mesh = data_mesh()
    train, experiment = dataset.splits["train"], bound(experiment, dataset)
    model = experiment.model
    optimizer = experiment.optimizer.build(1_000_000)
    arrays = Arrays(train.images, dict(train.labels), window=dataset.window)
    arrays, seeds = jax.device_put((arrays, (jnp.uint32(0),)), replicated(mesh))
    with jax.set_mesh(mesh):
        states = (initial_state(experiment, model, optimizer, dataset, mesh),)
    examples = len(train) * dataset.windows
    steps = make_steps(experiment, model, optimizer, examples, mesh)

    def step(states, arrays):
        with jax.set_mesh(mesh):
            states, metrics = steps(states, arrays, seeds, 1)
        return states, sum(metrics[loss] for loss in metrics if loss.split()[-1] == "loss")

    return step, states, arrays


def clusters_of_noise(case: Case) -> Any:
    """Photographs of noise, as large as real ones, with a random cluster for each pixel."""
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


def jax_trainer(name: str) -> tuple[Callable[[Any, Any], tuple[Any, Any]], Any, Any]:
    """`(step, state, batch)`, where `step(state, batch)` gives the next state and the loss."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    import optax
    from flax import linen as nn

    from cnn_research import ops

    Conv = functools.partial(nn.Conv, conv_general_dilated=ops.conv_general_dilated)

    class Red1(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array, train: bool) -> jax.Array:
            for features in (32, 64, 128):
                x = ops.max_pool(nn.relu(Conv(features, (3, 3))(x)), 2)
            return nn.Dense(50)(x.reshape(x.shape[0], -1))

    class ResNet18(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array, train: bool) -> jax.Array:
            norm = functools.partial(nn.BatchNorm, use_running_average=not train, momentum=0.9)
            conv = functools.partial(Conv, use_bias=False, padding=1)
            x = nn.relu(norm()(conv(64, (3, 3))(x)))
            for features, first_stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
                for stride in (first_stride, 1):
                    shortcut = x
                    if stride != 1 or x.shape[-1] != features:
                        shortcut = norm()(conv(features, (1, 1), stride, padding=0)(x))
                    y = nn.relu(norm()(conv(features, (3, 3), stride)(x)))
                    y = norm()(conv(features, (3, 3))(y))
                    x = nn.relu(y + shortcut)
            return nn.Dense(10)(x.mean((1, 2)))

    case = CASES[name]
    model = {"red1": Red1, "resnet18": ResNet18}[name]()
    if case.optimizer == "adam":
        optimizer = optax.adam(case.learning_rate)
    else:
        optimizer = optax.sgd(case.learning_rate, momentum=0.9)

    random = np.random.default_rng(0)
    batch = {
        "image": jnp.asarray(random.normal(size=(case.batch, *case.image)), jnp.float32),
        "label": jnp.asarray(random.integers(case.classes[0], size=case.batch)),
    }
    variables = jax.jit(functools.partial(model.init, train=False))(
        jax.random.key(0), batch["image"]
    )
    params, model_state = variables["params"], variables.get("batch_stats", {})
    state = (params, model_state, optimizer.init(params), jnp.zeros((), jnp.int32))

    @functools.partial(jax.jit, donate_argnums=0)
    def step(state, batch):
        params, model_state, optimizer_state, count = state
        key = jax.random.fold_in(jax.random.key(1), count)

        def loss_of(params):
            logits, updated = model.apply(
                {"params": params, "batch_stats": model_state},
                batch["image"],
                train=True,
                rngs={"dropout": key},
                mutable=["batch_stats"],
            )
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
            return losses.mean(), updated.get("batch_stats", {})

        (loss, model_state), gradient = jax.value_and_grad(loss_of, has_aux=True)(params)
        updates, optimizer_state = optimizer.update(gradient, optimizer_state, params)
        params = optax.apply_updates(params, updates)
        return (params, model_state, optimizer_state, count + 1), loss

    return step, state, batch


def jax_runner(name: str) -> tuple[Callable[[int], float], int]:
    """A function that runs n steps and returns the last loss, and the number of parameters."""
    import jax

    if name in EXPERIMENTS:
        step, state, batch = runner_trainer(name)
        params = state[0].params
    else:
        step, state, batch = jax_trainer(name)
        params = state[0]
    parameters = sum(leaf.size for leaf in jax.tree.leaves(params))

    def run(steps: int) -> float:
        nonlocal state
        for _ in range(steps):
            state, loss = step(state, batch)
        jax.block_until_ready(state)
        # The runner's metrics are (sum, count) pairs.
        return float(loss) if loss.ndim == 0 else float(loss[-1, 0, 0] / loss[-1, 0, 1])

    return run, parameters


def torch_runner(name: str, mode: str) -> tuple[Callable[[int], float], int]:
    """As `jax_runner`, for PyTorch: `mode` is one of `THEIRS`."""
    import torch
    from torch import nn
    from torch.nn import functional as F

    torch.set_num_threads(THREADS)
    torch.manual_seed(0)

    def fashion_mnist_cnn() -> nn.Module:
        def block(inputs: int, features: int, padding: int) -> list[nn.Module]:
            conv = nn.Conv2d(inputs, features, 3, padding=padding)
            return [conv, nn.BatchNorm2d(features), nn.ReLU(), nn.MaxPool2d(2)]

        head = [nn.Linear(864, 600), nn.Dropout(0.4), nn.Linear(600, 100), nn.Dropout(0.4)]
        return nn.Sequential(
            *block(1, 12, 1), *block(12, 24, 0), nn.Flatten(), *head, nn.Linear(100, 10)
        )

    def red1() -> nn.Module:
        layers: list[nn.Module] = []
        for inputs, features in ((3, 32), (32, 64), (64, 128)):
            conv = nn.Conv2d(inputs, features, 3, padding=1)
            layers += [conv, nn.ReLU(), nn.MaxPool2d(2)]
        return nn.Sequential(*layers, nn.Flatten(), nn.Linear(115_200, 50))

    def products_t3() -> nn.Module:
        layers: list[nn.Module] = []
        for inputs, features in ((3, 16), (16, 32), (32, 64), (64, 128)):
            conv = nn.Conv2d(inputs, features, 3, padding=1)
            layers += [conv, nn.BatchNorm2d(features), nn.ReLU(), nn.MaxPool2d(2)]
        head = [nn.Linear(25_088, 128), nn.ReLU(), nn.Linear(128, sum(case.classes))]
        return nn.Sequential(*layers, nn.Flatten(), *head)

    def palette_ss_cnn() -> nn.Module:
        def block(inputs: int, features: int, stride: int) -> list[nn.Module]:
            conv = nn.Conv2d(inputs, features, 3, stride, padding=1)
            return [conv, nn.ReLU(), nn.MaxPool2d(2, ceil_mode=True)]

        norm = functools.partial(nn.LocalResponseNorm, 5, alpha=1e-4, beta=0.75, k=2.0)
        layers = [*block(3, 32, 1), norm(), *block(32, 96, 1), norm(), *block(96, 96, 2)]
        return nn.Sequential(*layers, nn.Flatten(), nn.Linear(864, 128))

    class Block(nn.Module):
        def __init__(self, inputs: int, features: int, stride: int) -> None:
            super().__init__()
            self.conv1 = nn.Conv2d(inputs, features, 3, stride, padding=1, bias=False)
            self.norm1 = nn.BatchNorm2d(features)
            self.conv2 = nn.Conv2d(features, features, 3, padding=1, bias=False)
            self.norm2 = nn.BatchNorm2d(features)
            self.shortcut: nn.Module = nn.Identity()
            if stride != 1 or inputs != features:
                conv = nn.Conv2d(inputs, features, 1, stride, bias=False)
                self.shortcut = nn.Sequential(conv, nn.BatchNorm2d(features))

        def forward(self, x):
            y = F.relu(self.norm1(self.conv1(x)))
            return F.relu(self.norm2(self.conv2(y)) + self.shortcut(x))

    def resnet18() -> nn.Module:
        stem = [nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64), nn.ReLU()]
        blocks, inputs = [], 64
        for features, first_stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
            for stride in (first_stride, 1):
                blocks.append(Block(inputs, features, stride))
                inputs = features
        pool = [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
        return nn.Sequential(*stem, *blocks, *pool, nn.Linear(512, 10))

    case = CASES[name]
    makers = (fashion_mnist_cnn, red1, products_t3, palette_ss_cnn, resnet18)
    model = {maker.__name__: maker for maker in makers}[name]().train()
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
    if case.optimizer == "adam":
        optimizer = torch.optim.Adam(model.parameters(), case.learning_rate, fused=True)
    else:
        optimizer = torch.optim.SGD(
            model.parameters(),
            case.learning_rate,
            momentum=0.9,
            fused=True,
        )
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
    """The life of a contender: get ready, then answer each number of steps with a time."""
    if keep_memory:
        from cnn_research import ops

        ops.keep_freed_memory()
    if contender == OURS:
        run, parameters = jax_runner(name)
    else:
        run, parameters = torch_runner(name, contender)
    run(WARM_UP_STEPS)
    print(json.dumps({"parameters": parameters}), flush=True)
    for line in sys.stdin:
        steps = int(line)
        start = time.perf_counter()
        loss = run(steps)
        seconds = time.perf_counter() - start
        print(json.dumps({"seconds": seconds / steps, "loss": loss}), flush=True)


class Contender:
    """A child process that trains when it is told to, and sleeps in between."""

    def __init__(self, model: str, name: str, keep_memory: bool) -> None:
        self.name = name
        command = [sys.executable, "-m", "benchmarks.train_speed"]
        self._process = subprocess.Popen(
            [*command, "--models", model, "--contender", name, *["--keep-memory"] * keep_memory],
            env=os.environ | {"OMP_NUM_THREADS": str(THREADS), "JAX_PLATFORMS": "cpu"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.parameters = self._answer()["parameters"]
        self._steps = 1
        self._steps = max(1, round(TURN_SECONDS / self.turn()))

    def _answer(self) -> dict[str, Any]:
        # Compilers may write to standard output too; an answer is a JSON object.
        for line in self._process.stdout:
            if line.startswith("{"):
                return json.loads(line)
        raise RuntimeError(f"{self.name} ended with exit code {self._process.wait()}")

    def turn(self) -> float:
        """Seconds a step, over one turn."""
        self._process.stdin.write(f"{self._steps}\n")
        self._process.stdin.flush()
        return self._answer()["seconds"]

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait()


def spread(values: list[float]) -> dict[str, Any]:
    """Milliseconds of every round, and what they come to."""
    return {
        "median": statistics.median(values),
        "min": min(values),
        "max": max(values),
        "rounds": values,
    }


def times_as_fast(theirs: list[float], ours: list[float]) -> dict[str, float]:
    """The ratio of the medians, and the least and the largest ratio within a round."""
    within_rounds = [their / our for their, our in zip(theirs, ours, strict=True)]
    return {
        "median": statistics.median(theirs) / statistics.median(ours),
        "min": min(within_rounds),
        "max": max(within_rounds),
    }


def with_kept_memory(model: str, mode: str, ours: Contender, rounds: int) -> dict[str, Any]:
    """PyTorch's best mode with the malloc settings of ours, each in turn."""
    theirs = Contender(model, mode, keep_memory=True)
    try:
        turns = [(1e3 * theirs.turn(), 1e3 * ours.turn()) for _ in range(rounds)]
    finally:
        theirs.close()
    their_times, our_times = ([turn[i] for turn in turns] for i in (0, 1))
    return {
        "mode": mode,
        "milliseconds_a_step": {mode: spread(their_times), OURS: spread(our_times)},
        "times_as_fast": times_as_fast(their_times, our_times),
    }


def measure(model: str, rounds: int) -> dict[str, Any]:
    """Milliseconds a step of every contender in every round, and what follows from them."""
    case = CASES[model]
    contenders = [
        Contender(model, name, keep_memory=case.keep_memory and name == OURS)
        for name in (OURS, *THEIRS)
    ]
    try:
        counts = {contender.name: contender.parameters for contender in contenders}
        if len(set(counts.values())) > 1:
            raise RuntimeError(f"{model} is not the same model everywhere: {counts} parameters")
        times: dict[str, list[float]] = {contender.name: [] for contender in contenders}
        for turn in range(rounds):
            # Nobody always runs after the same neighbour.
            for contender in contenders[turn % 4 :] + contenders[: turn % 4]:
                times[contender.name].append(1e3 * contender.turn())
        best = min(THEIRS, key=lambda name: statistics.median(times[name]))
        kept = None
        if case.keep_memory:
            kept = with_kept_memory(model, best, contenders[0], rounds)
    finally:
        for contender in contenders:
            contender.close()
    result = {
        "case": dataclasses.asdict(case) | {"parameters": counts[OURS]},
        "milliseconds_a_step": {name: spread(values) for name, values in times.items()},
        "best_of_pytorch": best,
        "times_as_fast": times_as_fast(times[best], times[OURS]),
    }
    # Without it, the settings are the same on both sides already.
    return result | ({"pytorch_with_kept_memory": kept} if kept else {})


def describe(model: str, result: dict[str, Any]) -> str:
    """A table for people."""
    lines = [f"{model}: {result['case']['parameters']:,} parameters"]
    for name, figures in result["milliseconds_a_step"].items():
        median, least, most = (figures[key] for key in ("median", "min", "max"))
        lines.append(f"  {name:14} {median:8.2f} ms a step ({least:.2f} to {most:.2f})")
    ratio = result["times_as_fast"]
    lines.append(
        f"  {ratio['median']:.2f} times as fast as PyTorch ({result['best_of_pytorch']}); "
        f"{ratio['min']:.2f} to {ratio['max']:.2f} within a round"
    )
    if "pytorch_with_kept_memory" in result:
        ratio = result["pytorch_with_kept_memory"]["times_as_fast"]
        lines.append(
            f"  {ratio['median']:.2f} times where PyTorch keeps memory too; "
            f"{ratio['min']:.2f} to {ratio['max']:.2f} within a round"
        )
    return "\n".join(lines)


def surroundings() -> dict[str, Any]:
    """The machine and the versions, without which times mean nothing."""
    names = [platform.processor()]
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=40"], capture_output=True, text=True
    )
    return {
        "command": ["python", "-m", "benchmarks.train_speed", *sys.argv[1:]],
        "commit": commit.stdout.strip(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": {"cpu": next(iter(names), ""), "cores": os.cpu_count(), "threads": THREADS},
        "versions": {"python": platform.python_version()}
        | {name: importlib.metadata.version(name) for name in ("jax", "flax", "optax", "torch")},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--contender", choices=(OURS, *THEIRS), help=argparse.SUPPRESS)
    parser.add_argument("--keep-memory", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.contender:
        contend(arguments.models[0], arguments.contender, arguments.keep_memory)
        return
    if arguments.rounds < 1:
        parser.error("--rounds must be at least 1")
    report = surroundings() | {"models": {}}
    for model in arguments.models:
        report["models"][model] = measure(model, arguments.rounds)
        print(describe(model, report["models"][model]), flush=True)
    if arguments.output:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
