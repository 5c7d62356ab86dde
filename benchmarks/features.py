"""Features of photographs per second on a CPU, compared with PyTorch.

    python -m benchmarks.features --torch timm_env/bin/python --output results/features.json

Both run MobileNetV1 and EfficientNet-Lite0 in float32 at 224 pixels. Ours does what a training with
cached features does: batches of uint8 images go through the jitted network, and all maps are
pooled. PyTorch computes only the means of the last map, of prepared float32 images; its best mode
and batch size count. The environment is that of `benchmarks.own_images_peers`, with timm. They take
turns, and ratios are taken within rounds. Run it on an idle machine; it takes about twenty minutes,
mostly for compilation.
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
    """Run a contender of `turns`: a feature cache whose batches are timed."""
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
    """Measure the milliseconds per image of all contenders in all rounds, and summarise them."""
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
