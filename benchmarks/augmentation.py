"""What augmentation adds to the train step of the painters paper's network Red 1, change by change.

    python -m benchmarks.augmentation --output results/augmentation.json

Each round has one turn of every augmentation and of none, so that disturbances affect all alike;
the cost is the median over rounds of the difference to that round's plain step. The augmentation on
its own, without a train step, is timed, too. Run it on an idle machine; it takes some minutes on
two cores.
"""

from __future__ import annotations

import dataclasses
import statistics
import sys
import time

from benchmarks.results import flag, measurement, row

TARGET = 0.05
BATCH = 32
PLAIN, SIX = "none", "the painters paper's six, one of them each"


def augmentations():
    """The changes by name; `PLAIN` is none."""
    from cnn_research.data.augmentation.config import Augmentation

    six = Augmentation(
        mirror=True, flip=True, rotation=20, zoom=(0.8, 1.2), left=0.2, right=0.2, choose="one"
    )
    return {
        PLAIN: Augmentation(),
        SIX: six,
        "the six, all of them at once": dataclasses.replace(six, choose="all"),
        "mirror": Augmentation(mirror=True),
        "flip": Augmentation(flip=True),
        "shift": Augmentation(shift=24),
        "crop": Augmentation(crop=(0.08, 1.0)),
        **{
            f"rotation, {fill}": Augmentation(rotation=20, fill=fill)
            for fill in ("black", "edge", "reflect")
        },
        "zoom": Augmentation(zoom=(0.8, 1.2)),
        "left and right": Augmentation(left=0.2, right=0.2),
        "brightness": Augmentation(brightness=0.4),
        "contrast": Augmentation(contrast=0.4),
        "saturation": Augmentation(saturation=0.4),
        "cutout": Augmentation(cutout=80),
        "erasing, noise": Augmentation(erasing=0.5, erase_fill="noise"),
        "RandAugment": Augmentation(rand_augment=2),
        "mixup": Augmentation(mixup=0.2),
        "CutMix": Augmentation(cutmix=1.0),
    }


@measurement(
    flag("--rounds", type=int, default=9),
    flag("--steps", type=int, default=2, help="in a turn"),
    flag("--side", type=int, default=244, help="height and width of the images"),
    flag("--only", nargs="*", default=[], help="names of augmentations"),
    what="the cost of augmentation",
    target="<= 5 %",
)
def main(options):
    import jax
    import jax.numpy as jnp

    from benchmarks.steps import noise, steps_of
    from cnn_research.core import memory
    from cnn_research.core.random import example_keys, stream_key
    from cnn_research.models.convnet import ConvNet
    from cnn_research.train.config import Training
    from cnn_research.train.optimizers import Optimizer

    memory.use_one_arena()
    memory.keep_freed_memory()
    shape = (options.side, options.side, 3)
    experiment = Training(
        data=noise(shape, 50, train=2 * BATCH),
        model=ConvNet(features=(32, 64, 128), padding=(1, 1, 1), batch_norm=False, dense=()),
        optimizer=Optimizer(name="adam", learning_rate=1e-4),
        batch_size=BATCH,
    )
    dataset = experiment.data.load()
    images = jnp.asarray(dataset.splits["train"].images[:BATCH])
    epochs = jnp.zeros(BATCH, jnp.uint32)
    keys = example_keys(stream_key(0, "augmentation"), epochs, jnp.arange(BATCH))
    steps, changes = {}, {}
    for name, how in augmentations().items():
        if options.only and name not in (PLAIN, SIX, *options.only):
            continue
        trained = dataclasses.replace(experiment, augmentation=how)
        steps[name] = steps_of(trained, dataset=dataset)
        changes[name] = jax.jit(
            lambda keys, images, how=how: (
                how.mixed(keys, how(keys, images), how(keys, images[::-1]))
                if how.mixes
                else how(keys, images)
            )
        )
    times: dict[str, list[float]] = {name: [] for name in steps}
    alone: dict[str, list[float]] = {name: [] for name in steps if name != PLAIN}
    states = steps[PLAIN].states
    for turn in range(options.rounds + 1):
        for name in steps:
            # All train the same state in turns, as its values do not affect the time.
            started = time.perf_counter()
            for _ in range(options.steps):
                states, _ = steps[name](states)
            jax.block_until_ready(states)
            seconds = time.perf_counter() - started
            if turn:  # the first is for compiling
                times[name].append(1e3 * seconds / options.steps)
            if name == PLAIN:
                continue
            started = time.perf_counter()
            jax.block_until_ready(changes[name](keys, images))
            if turn:
                alone[name].append(1e3 * (time.perf_counter() - started))

    plain = statistics.median(times[PLAIN])
    added = {
        name: statistics.median(with_it - base for with_it, base in zip(times[name], times[PLAIN]))
        for name in alone
    }
    single = {name: statistics.median(values) for name, values in alone.items()}
    for name, value in added.items():
        print(f"{name}: {value:+.1f} ms ({value / plain:+.1%}); alone {single[name]:.1f} ms")
    figures = {
        "batch": BATCH,
        "image": shape,
        "plain_step_milliseconds": plain,
        "milliseconds_added": added,
        "share_of_the_plain_step": {name: value / plain for name, value in added.items()},
        "milliseconds_alone": single,
        "rounds": {"step": times, "alone": alone},
    }
    share = added[SIX] / plain
    rows = [
        row(
            "cost of the painters paper's six augmentations in the train step of its network "
            f"Red 1, {options.side}x{options.side}x3, {BATCH} images",
            "at most 5 %",
            f"{100 * share:.1f} % ({added[SIX]:.0f} of {plain:.0f} ms)",
            share <= TARGET,
        )
    ]
    return rows, figures


if __name__ == "__main__":
    sys.exit(main())
