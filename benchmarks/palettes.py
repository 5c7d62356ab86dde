"""Palettes of held-out images by the networks and by other methods.

    python launch.py --experiment=palette --workdir=runs/palette \\
        --pretraining.data.source.path=PHOTOS --training.data.path=IMAGES
    python launch.py --experiment=palette_covering --workdir=runs/palette_covering \\
        --data.path=IMAGES
    python -m benchmarks.palettes --palettes=PALETTES --output results/palettes.json

Colours are compared pixel by pixel, at 240 pixels, with the test photographs of the run's first
training, which neither of its trainings has used. PALETTES is the folder or archive of images with
palettes made by people: each is predicted by the run that was not trained on it,
`runs/palette_people/fold-0` and so on, which are trained first if they are missing. Needs
`colorthief`.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import shutil
import statistics
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.results import ROOT, flag, launch, measurement, python, row
from cnn_research.core import run_folder as folders
from cnn_research.core.errors import UserError
from cnn_research.workflows.palette.colour_naming import small
from cnn_research.workflows.two_stage import FIRST, SECOND

COLOURS = 10
LONGEST = 240
"""Longer side, in pixels, at which photographs are compared."""
STARTS = 10
DRAWS = 10
"""Palettes of random pixels per image, whose errors are averaged."""
RESAMPLES = 10_000
TIMES = 3
"""Number of speed measurements."""
OURS, BEST, RANDOM = "network", "k-means in Lab", "random pixels"

Method = Callable[[np.ndarray], Sequence[np.ndarray]]
"""uint8 `[height, width, 3]` -> palettes, uint8 `[colours, 3]`; their errors are averaged."""


@measurement(
    flag("--palettes", type=Path, required=True, help="folder or archive"),
    flag("--run", type=Path, default=ROOT / "runs/palette", help="of `palette`"),
    flag("--covering", type=Path, default=ROOT / "runs/palette_covering", help="of it"),
    what="mean CIEDE2000 of palettes of ten colours: from the pixels of held-out photographs, "
    "and to palettes that people made",
    target="at most 1.10 times k-means'; nearer to people's than every other method",
)
def main(options):
    if importlib.util.find_spec("colorthief") is None:
        raise SystemExit("colorthief is missing: `pip install colorthief`")
    pixels = of_pixels(options.run)
    people = of_people(options.palettes, options.covering)
    speeds = palettes_per_second(options.run)
    speed = statistics.median(speeds)
    ratio = pixels["ratio to k-means in Lab"]
    nearest = min(people["less than"], key=lambda name: people["less than"][name]["interval"][0])
    low, high = people["less than"][nearest]["interval"]
    first = folders.read_json(options.run / FIRST / folders.EVALUATION)["test"]
    rows = [
        row(
            f"colour error of a palette, {pixels['images']} held-out photographs, CIEDE2000: "
            f"network; {_listed(pixels['mean'])}",
            "<= 1.10 times k-means in Lab; below median cut and ColorThief",
            f"{pixels['mean'][OURS]:.2f}, {ratio:.3f} times",
            ratio <= 1.10
            and pixels["mean"][OURS] < min(pixels["mean"][n] for n in ("median cut", "ColorThief")),
        ),
        row(
            f"difference to palettes that people made, {people['images']} images, 5-fold, "
            f"CIEDE2000: network; {_listed(people['mean'])}",
            "below every other, 95 % of resamples",
            f"{people['mean'][OURS]:.2f}; {low:.2f} to {high:.2f} below {nearest}",
            low > 0,
        ),
        row(
            "SS-CNN, histograms of held-out crops: share of the gap closed from the mean "
            f"histogram's cross-entropy, {first['loss of the mean histogram']:.3f}, to the "
            f"entropy, {first['entropy']:.3f}",
            ">= 0.9",
            f"{first['gap closed']:.3f}",
            first["gap closed"] >= 0.9,
        ),
        row(
            "palettes per second for photographs of 481x321, after the start of the command",
            ">= 20",
            f"{speed:.0f}",
            speed >= 20,
        ),
    ]
    figures = {
        "pixels": pixels,
        "people": people,
        "palettes per second": speeds,
        "histograms": first,
    }
    return rows, figures


def _listed(means: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.2f}" for name, value in means.items() if name != OURS)


# Methods -----------------------------------------------------------------------------------------


def network(run: Path) -> Method:
    """Palettes predicted by a trained network, from the image at its input size."""
    import jax

    from cnn_research.data.images import resized
    from cnn_research.ops.colours import lab_to_srgb
    from cnn_research.train.trained import TrainedModel

    model = TrainedModel.load(run)
    forward = jax.jit(model.forward())
    size = model.image_shape[:2]

    def said(image: np.ndarray) -> list[np.ndarray]:
        outputs = forward(resized(image, size)[None])
        return [_bytes(lab_to_srgb(outputs[0].reshape(-1, 4)[:, :3]))]

    return said


def others() -> dict[str, Method]:
    """Methods that designers use today, and baselines."""
    import io

    import colorthief
    import jax
    import jax.numpy as jnp

    from cnn_research.ops import colours, kmeans

    def clustered(image: np.ndarray, in_lab: bool) -> list[np.ndarray]:
        rgb = jnp.asarray(image.reshape(-1, 3), jnp.float32) / 255
        points = colours.srgb_to_lab(rgb) if in_lab else rgb
        found = kmeans.kmeans(points, COLOURS, jax.random.key(0), starts=STARTS).centroids
        return [_bytes(colours.lab_to_srgb(found) if in_lab else found)]

    def median_cut(image: np.ndarray) -> list[np.ndarray]:
        quantised = Image.fromarray(image).quantize(COLOURS, method=Image.Quantize.MEDIANCUT)
        return [np.array(quantised.getpalette()[: 3 * COLOURS], np.uint8).reshape(-1, 3)]

    def thief(image: np.ndarray) -> list[np.ndarray]:
        file = io.BytesIO()
        Image.fromarray(image).save(file, "png")
        # It usually returns one colour fewer than requested.
        found = colorthief.ColorThief(file).get_palette(color_count=COLOURS + 1, quality=1)
        return [np.array(found[:COLOURS], np.uint8)]

    def random(image: np.ndarray) -> list[np.ndarray]:
        rng = np.random.default_rng(0)
        flat = image.reshape(-1, 3)
        return [flat[rng.choice(len(flat), COLOURS, replace=False)] for _ in range(DRAWS)]

    return {
        BEST: lambda image: clustered(image, True),
        "k-means in RGB": lambda image: clustered(image, False),
        "median cut": median_cut,
        "ColorThief": thief,
        RANDOM: random,
    }


def _bytes(rgb: Any) -> np.ndarray:
    return np.rint(np.asarray(rgb) * 255).astype(np.uint8)


# The two comparisons -----------------------------------------------------------------------------


def of_pixels(run: Path) -> dict[str, Any]:
    """Errors of all methods on photographs that no network was trained on.

    Raises:
        UserError: a network was trained on one of them.
    """
    first, second = (folders.saved_config(run / stage) for stage in (FIRST, SECOND))
    held_out = first.data.source.load().splits["test"]
    trained_on = {
        Path(str(name)).name
        for data in (first.data.source, second.data)
        for split in ("train", "validation")
        for name in data.load().splits[split].names
    }
    seen = sorted({Path(str(name)).name for name in held_out.names} & trained_on)
    if seen:
        raise UserError(f"{len(seen)} test photographs were trained on, the first {seen[0]}")
    images = [small(image, LONGEST) for image in held_out.images]
    methods = {OURS: network(run / SECOND), **others()}
    palettes = {name: [method(image) for image in images] for name, method in methods.items()}
    errors = {
        name: [
            float(np.mean([pixel_error(image, palette) for palette in made]))
            for image, made in zip(images, found, strict=True)
        ]
        for name, found in palettes.items()
    }
    means = {name: float(np.mean(values)) for name, values in errors.items()}
    return {
        "images": len(images),
        "mean": means,
        "ratio to k-means in Lab": means[OURS] / means[BEST],
        "of each image": errors,
    }


def of_people(palettes: Path, run: Path) -> dict[str, Any]:
    """Differences of all methods to people's palettes; the network's are from five folds."""
    from cnn_research.data.images import ENDINGS, decode, printable
    from cnn_research.data.prepare.files import files_below, opened
    from cnn_research.experiments.palette import palette_people
    from cnn_research.train.trained import weights_of_run

    data, start = palette_people().data, weights_of_run(run)
    with opened(palettes) as unpacked:
        files = [file for file in files_below(unpacked) if file.suffix.lower() in ENDINGS]
        whole = {printable(file.name): small(decode(file, None), LONGEST) for file in files}
    everyone: list[tuple[np.ndarray, np.ndarray]] = []
    made: dict[str, list[Sequence[np.ndarray]]] = {OURS: [], **{name: [] for name in others()}}
    for fold in range(data.folds):
        workdir = ROOT / "runs" / "palette_people" / f"fold-{fold}"
        # A complete run is not trained again; one with another config is an error.
        words = (f"--data.path={palettes}", f"--data.fold={fold}", f"--pretrained.source={run}")
        launch("palette_people", workdir, *words)
        began = folders.read_json(workdir / folders.RUN)["pretrained"]["sha256"]
        if began != start.sha256:
            raise UserError(f"{workdir} started from other weights than those of {run}: delete it")
        test = dataclasses.replace(data, path=str(palettes), fold=fold).load().splits["test"]
        methods = {OURS: network(workdir), **others()}
        for name, person in zip(test.names, test.labels["palette"], strict=True):
            image = whole[Path(str(name)).name]
            everyone.append((image, _bytes(person[~np.isnan(person[:, 0])])))
            for name, method in methods.items():
                made[name].append(method(image))
    errors = {
        name: np.array(
            [
                np.mean([palette_error(palette, person) for palette in found])
                for found, (_, person) in zip(of_method, everyone, strict=True)
            ]
        )
        for name, of_method in made.items()
    }
    rng = np.random.default_rng(0)
    drawn = rng.integers(0, len(everyone), (RESAMPLES, len(everyone)))
    less = {name: values - errors[OURS] for name, values in errors.items() if name != OURS}
    return {
        "images": len(everyone),
        "mean": {name: float(values.mean()) for name, values in errors.items()},
        "less than": {
            name: {
                "mean": float(values.mean()),
                "interval": np.percentile(values[drawn].mean(axis=1), [2.5, 97.5]).tolist(),
            }
            for name, values in less.items()
        },
        "of each image": {name: values.tolist() for name, values in errors.items()},
    }


def pixel_error(image: np.ndarray, palette: np.ndarray) -> float:
    """Mean CIEDE2000 difference of each pixel to the nearest colour by CIEDE2000."""
    import jax.numpy as jnp

    return float(_pixel_error()(jnp.asarray(image), jnp.asarray(_padded(palette))))


def palette_error(palette: np.ndarray, person: np.ndarray) -> float:
    """Minimum colour difference of two palettes, uint8 `[colours, 3]` each."""
    import jax.numpy as jnp

    from cnn_research.ops import colours, palettes

    first, second = (
        colours.srgb_to_lab(jnp.asarray(rgb, jnp.float32) / 255)[None] for rgb in (palette, person)
    )
    return float(palettes.between(first, second, jnp.ones((1, len(person)), bool))[0])


@functools.cache
def _pixel_error() -> Callable[[Any, Any], Any]:
    import jax
    import jax.numpy as jnp

    from cnn_research.ops import colours

    @jax.jit
    def error(image, palette):
        pixels = colours.srgb_to_lab(image.reshape(-1, 3).astype(jnp.float32) / 255)
        centres = colours.srgb_to_lab(palette.astype(jnp.float32) / 255)
        return colours.ciede2000(pixels[:, None], centres[None]).min(axis=1).mean()

    return error


def _padded(palette: np.ndarray) -> np.ndarray:
    """Repeat the first colour up to ten, so that there is one shape and one compilation."""
    return np.concatenate([palette, np.repeat(palette[:1], max(0, COLOURS - len(palette)), axis=0)])


def palettes_per_second(run: Path) -> list[float]:
    """Speed of the whole command, including written files, without its start."""
    from cnn_research.data.prepare.files import files_below, opened

    photos = Path(folders.saved_config(run / FIRST).data.source.path)
    with opened(photos) as folder, tempfile.TemporaryDirectory() as scratch:
        files = [file for file in files_below(folder) if file.suffix.lower() == ".jpg"]
        copy = Path(scratch) / "run"
        shutil.copytree(run, copy)

        def seconds(source: Path) -> float:
            words = (f"--workdir={copy}", "--mode=predict", f"--input={source}")
            return python("launch.py", *words)[0]

        pairs = [(seconds(files[0]), seconds(folder)) for _ in range(TIMES)]
    return [(len(files) - 1) / (many - one) for one, many in pairs]


if __name__ == "__main__":
    sys.exit(main())
