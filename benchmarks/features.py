"""Features of photographs a second on processor cores, this project against PyTorch.

    python -m benchmarks.features --torch timm_env/bin/python --output results/features.json

Both have MobileNetV1 and EfficientNet-Lite0, float32, at 224 pixels. Ours is what a training does
that computes features once: batches of uint8 images through the jitted network, and what is pooled
of every map, beside the last one. PyTorch gives the means of the last map, of float32 images that
are ready; its best mode and batch is what counts. The environment is that of
`benchmarks.own_images_peers`, with timm. They take turns: ratios are taken within rounds. Takes
about twenty minutes, most of it for compiling; the numbers are worth something on an idle machine.
"""

from __future__ import annotations

import contextlib
import sys
from typing import Any

from benchmarks.peers import MODES, SIZE, THREADS, answer, versions
from benchmarks.results import flag, in_process, measurement, row
from benchmarks.turns import Contender, ratios, rounds_of, spread

OURS = "ours"
NETWORKS = ("mobilenet_v1", "efficientnet_lite0")


def contend_with_ours(name: str) -> None:
    """The life of a contender: a feature cache that is asked how long a batch takes it."""
    import jax
    import numpy as np

    from cnn_research.data.dataset import Split
    from cnn_research.models.mobilenet import MobileNetV1
    from cnn_research.models.named_weights import NAMED
    from cnn_research.train.evaluator import Scaling
    from cnn_research.train.feature_cache import BATCH, FeatureCache

    weights = NAMED.get(name)
    model = weights.model if weights else MobileNetV1(pool="all", standardise=True)
    layer = weights.family.layer if weights else "pool"
    images = np.random.default_rng(0).integers(0, 256, (BATCH, SIZE, SIZE, 3), np.uint8)
    blank = np.zeros((1, SIZE, SIZE, 3), np.float32)
    cache = FeatureCache(
        model,
        jax.jit(model.init)(jax.random.key(0), blank),
        layer,
        {"train": Split(images, {})},
        Scaling((0.5,), (0.5,)),
        mirror=False,
        frozen=lambda path: True,
        of="noise",
    )
    answer(cache.seconds, BATCH)


def measure(name: str, options: Any) -> dict[str, Any]:
    """Milliseconds an image of every contender in every round, and what follows from them."""
    environment = {"OMP_NUM_THREADS": str(THREADS)}
    with contextlib.ExitStack() as stack:

        def started(code: str, interpreter: str) -> Contender:
            found = Contender("-c", code, environment=environment, interpreter=interpreter)
            stack.callback(found.close)
            return found

        code = f"from benchmarks.features import contend_with_ours; contend_with_ours({name!r})"
        contenders = {OURS: started(code, sys.executable)}
        for mode in options.modes:
            for batch in options.batches:
                code = f"from benchmarks.peers import contend; contend{(name, mode, batch)}"
                contenders[f"{mode}, batches of {batch}"] = started(code, options.torch)
        times = rounds_of(contenders, options.rounds)
    found = {each: spread(values) for each, values in times.items()}
    best = min((each for each in found if each != OURS), key=lambda each: found[each]["median"])
    return {
        "milliseconds_an_image": found,
        "best_of_pytorch": best,
        "times_as_fast": ratios(times[best], times[OURS]),
    }


@measurement(
    flag("--torch", default=sys.executable, help="the Python of PyTorch's environment"),
    flag("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS)),
    flag("--modes", nargs="+", choices=MODES, default=list(MODES)),
    flag("--batches", nargs="+", type=int, default=[1, 8, 32]),
    flag("--rounds", type=int, default=5),
    what="features of photographs a second, against PyTorch's fastest mode",
    target="as measured",
)
def main(options):
    figures: dict[str, Any] = {"threads": THREADS, "networks": {}}
    figures["pytorch"] = in_process(versions, ["torch", "timm"], interpreter=options.torch)
    rows = []
    for name in options.networks:
        figures["networks"][name] = found = measure(name, options)
        images = {each: 1e3 / t["median"] for each, t in found["milliseconds_an_image"].items()}
        best, ratio = found["best_of_pytorch"], found["times_as_fast"]
        measured = (
            f"{images[OURS]:.0f} images a second, PyTorch {images[best]:.0f} ({best}): "
            f"{ratio['median']:.2f} times as fast, {ratio['min']:.2f} to {ratio['max']:.2f} "
            "within a round"
        )
        print(f"{name}: {measured}", flush=True)
        rows.append(row(f"features of {name} at {SIZE} pixels", "as measured", measured, True))
    return rows, figures


if __name__ == "__main__":
    sys.exit(main())
