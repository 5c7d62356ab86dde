"""What augmentation adds to the train step of document 002's network Red 1, change by change.

    python -m benchmarks.augmentation --output results/augmentation.json

Each round takes one turn of every augmentation and of none, so that a disturbance of the machine
falls on all of them alike: what is added is the median over rounds of the difference to that
round's plain step. The augmentation compiled alone, without a train step, is timed too. The numbers
are worth something on an idle machine only; takes some minutes on two cores.
"""

from __future__ import annotations

import dataclasses
import statistics
import sys
import time

from benchmarks.results import Measurement, arguments, row

TARGET = 0.05
PLAIN, SIX = "none", "document 002's six, one of them each"


def main() -> int:
    parser = arguments(__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=2, help="in a turn")
    parser.add_argument("--side", type=int, default=244, help="height and width of the images")
    parser.add_argument("--only", nargs="*", default=[], help="names of augmentations")
    options = parser.parse_args()
    measurement = Measurement("augmentation", what="the cost of augmentation", target="<= 5 %")

    import jax
    import jax.numpy as jnp

    from cnn_research import ops
    from cnn_research.core.distributed import data_mesh, replicated
    from cnn_research.core.random import example_keys, stream_key
    from cnn_research.data.augmentation.config import Augmentation
    from cnn_research.data.sources import Synthetic
    from cnn_research.models import ConvNet
    from cnn_research.train.config import Training
    from cnn_research.train.loop import Arrays, initial_state, make_steps
    from cnn_research.train.optimizers import Optimizer

    six = Augmentation(
        mirror=True, flip=True, rotation=20, zoom=(0.8, 1.2), left=0.2, right=0.2, choose="one"
    )
    augmentations = {
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
    if options.only:
        augmentations = {
            name: how for name, how in augmentations.items() if name in (PLAIN, SIX, *options.only)
        }
    batch, shape = 32, (options.side, options.side, 3)
    experiment = Training(
        data=Synthetic(train=2 * batch, image_shape=shape, classes=(50,)),
        model=ConvNet(features=(32, 64, 128), padding=(1, 1, 1), batch_norm=False, dense=()),
        optimizer=Optimizer(name="adam", learning_rate=1e-4),
        batch_size=batch,
        keep_memory=True,
    )
    ops.keep_freed_memory()
    dataset = experiment.data.load()
    train, mesh = dataset.splits["train"], data_mesh()
    model = experiment.task.bind(experiment.model, dataset)
    optimizer = experiment.optimizer.build(1000)
    times: dict[str, list[float]] = {name: [] for name in augmentations}
    alone: dict[str, list[float]] = {name: [] for name in augmentations if name != PLAIN}

    with jax.set_mesh(mesh):
        states = (initial_state(experiment, model, optimizer, dataset, mesh),)
        arrays = Arrays(train.images, dict(train.labels))
        arrays = jax.device_put(arrays, replicated(mesh))
        seeds = jax.device_put((jnp.uint32(0),), replicated(mesh))
        images = jnp.asarray(train.images[:batch])
        epochs = jnp.zeros(batch, jnp.uint32)
        keys = example_keys(stream_key(0, "augmentation"), epochs, jnp.arange(batch))
        steps, changes = {}, {}
        for name, how in augmentations.items():
            trained = dataclasses.replace(experiment, augmentation=how)
            steps[name] = make_steps(trained, model, optimizer, len(train), mesh)
            changes[name] = jax.jit(
                lambda keys, images, how=how: (
                    how.mixed(keys, how(keys, images), how(keys, images[::-1]))
                    if how.mixes
                    else how(keys, images)
                )
            )
        for turn in range(options.rounds + 1):
            for name in augmentations:
                # All train one state in turns: what it holds takes no time.
                started = time.perf_counter()
                for _ in range(options.steps):
                    states, _ = steps[name](states, arrays, seeds, 1)
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
    figures = {
        "batch": batch,
        "image": shape,
        "plain_step_milliseconds": plain,
        "milliseconds_added": added,
        "share_of_the_plain_step": {name: value / plain for name, value in added.items()},
        "milliseconds_alone": {name: statistics.median(values) for name, values in alone.items()},
        "rounds": {"step": times, "alone": alone},
    }
    for name, value in added.items():
        single = figures["milliseconds_alone"][name]
        print(f"{name}: {value:+.1f} ms ({value / plain:+.1%}); alone {single:.1f} ms")
    share = added[SIX] / plain
    rows = [
        row(
            "what document 002's six augmentations add to the train step of its network Red 1, "
            f"{options.side}x{options.side}x3, {batch} images",
            "at most 5 %",
            f"{100 * share:.1f} % ({added[SIX]:.0f} of {plain:.0f} ms)",
            share <= TARGET,
        )
    ]
    return measurement.finish(rows, figures, options.output)


if __name__ == "__main__":
    sys.exit(main())
