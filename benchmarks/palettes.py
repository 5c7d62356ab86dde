"""Palettes of held-out images: the networks' beside those of other methods.

    python -m benchmarks.palettes --photos=PHOTOS --palettes=PALETTES --output results/palettes.json

PHOTOS is the folder or archive that `palette_ss_cnn` was trained with: its test photographs, at 240
pixels, are what colours are compared with, pixel by pixel. PALETTES are images with palettes that
people made: each is asked of the run that did not see it, `runs/palette_people/fold-0` and so on,
which are trained first where they are missing. `runs/palette_benchmark` gets contact sheets of all
images with every method's palette. Needs `colorthief`.
"""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.results import ROOT, Measurement, arguments, row
from cnn_research.staged import SECOND

COLOURS = 10
LONGEST = 240
"""Of the sides that photographs are compared at, in pixels."""
STARTS = 10
DRAWS = 10
"""Palettes of random pixels for each image; their mean counts."""
RESAMPLES = 10_000
SHEET = 20
"""Images on a contact sheet."""
OURS, BEST, RANDOM = "network", "k-means in Lab", "random pixels"

Method = Callable[[np.ndarray], Sequence[np.ndarray]]
"""uint8 `[height, width, 3]` -> palettes, uint8 `[colours, 3]`; their errors are averaged."""


def main() -> int:
    parser = arguments(__doc__)
    parser.add_argument("--photos", type=Path, required=True, help="folder or archive")
    parser.add_argument("--palettes", type=Path, required=True, help="folder or archive")
    parser.add_argument("--run", type=Path, default=ROOT / "runs/palette", help="of `palette`")
    options = parser.parse_args()
    measurement = Measurement(
        "palettes",
        what="mean CIEDE2000 of palettes of ten colours: from the pixels of held-out photographs, "
        "and to palettes that people made",
        target="at most 1.10 times k-means'; nearer to people's than every other method",
    )
    folder = ROOT / "runs" / "palette_benchmark"
    folder.mkdir(parents=True, exist_ok=True)
    head = options.run / SECOND
    pixels = of_pixels(options.photos, head, folder)
    people = of_people(options.palettes, head, folder)
    speed = palettes_per_second(options.photos, options.run)
    ratio = pixels["ratio to k-means in Lab"]
    others = {name: value for name, value in people["mean"].items() if name != OURS}
    low, high = people["less than k-means in Lab"]["interval"]
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
            f"{people['mean'][OURS]:.2f}; {low:.2f} to {high:.2f} below k-means in Lab",
            people["mean"][OURS] < min(others.values()) and low > 0,
        ),
        row(
            "palettes of 481x321 photographs a second, whole command, after its start",
            ">= 20",
            f"{speed:.0f}",
            speed >= 20,
        ),
    ]
    figures = {"pixels": pixels, "people": people, "palettes per second": speed}
    return measurement.finish(rows, figures, options.output)


def _listed(means: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.2f}" for name, value in means.items() if name != OURS)


# Methods -----------------------------------------------------------------------------------------


def network(run: Path) -> Method:
    """The palettes of a trained network, of the image at the size that it takes."""
    from cnn_research.data.images import resized
    from cnn_research.evaluate import open_trained
    from cnn_research.predict import forward_of
    from cnn_research.tasks.palette_files import palette_of

    found = open_trained(run)
    forward, variables = forward_of(found), found.state.variables()
    size = found.image_shape[:2]

    def said(image: np.ndarray) -> list[np.ndarray]:
        outputs, _ = forward(variables, resized(image, size)[None])
        return [palette_of(np.asarray(outputs[0])).rgb]

    return said


def others() -> dict[str, Method]:
    """What designers use today, and what no palette may be worse than."""
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
        found = colorthief.ColorThief(file).get_palette(color_count=COLOURS, quality=1)
        return [np.array(found, np.uint8)]

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


def of_pixels(photos: Path, run: Path, folder: Path) -> dict[str, Any]:
    """Every method's error on the photographs that no network has seen."""
    from experiments.palette import SS_CNN

    splits = dataclasses.replace(SS_CNN.data.source, path=str(photos)).load().splits
    assert not set(splits["test"].names) & set(splits["train"].names), "held out"
    images = [_at_most(image, LONGEST) for image in splits["test"].images]
    methods = {OURS: network(run), **others()}
    palettes = {name: [method(image) for image in images] for name, method in methods.items()}
    errors = {
        name: [
            float(np.mean([pixel_error(image, palette) for palette in made]))
            for image, made in zip(images, found, strict=True)
        ]
        for name, found in palettes.items()
    }
    contact_sheets(images, palettes, folder, "pixels")
    means = {name: float(np.mean(values)) for name, values in errors.items()}
    return {
        "images": len(images),
        "mean": means,
        "ratio to k-means in Lab": means[OURS] / means[BEST],
        "of each image": errors,
    }


def of_people(palettes: Path, run: Path, folder: Path) -> dict[str, Any]:
    """Every method's difference to people's palettes, the network's from five folds."""
    from experiments.palette import palette_people

    data = palette_people().data
    everyone: list[tuple[np.ndarray, np.ndarray]] = []
    made: dict[str, list[Sequence[np.ndarray]]] = {OURS: [], **{name: [] for name in others()}}
    for fold in range(data.folds):
        workdir = ROOT / "runs" / "palette_people" / f"fold-{fold}"
        if not (workdir / "evaluation.json").exists():
            command = [
                *("launch.py", "--experiment=palette_people", f"--workdir={workdir}"),
                *(f"--data.path={palettes}", f"--data.fold={fold}"),
                f"--pretrained.source={run}",
            ]
            subprocess.run([sys.executable, *command], cwd=ROOT, check=True)
        test = dataclasses.replace(data, path=str(palettes), fold=fold).load().splits["test"]
        methods = {OURS: network(workdir), **others()}
        for image, person in zip(test.images, test.labels["palette"], strict=True):
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
    shown = {OURS: made[OURS], "person": [[person] for _, person in everyone]}
    shown |= {name: made[name] for name in made if name != OURS}
    contact_sheets([image for image, _ in everyone], shown, folder, "people")
    less = errors[BEST] - errors[OURS]
    rng = np.random.default_rng(0)
    resampled = less[rng.integers(0, len(less), (RESAMPLES, len(less)))].mean(axis=1)
    return {
        "images": len(everyone),
        "mean": {name: float(values.mean()) for name, values in errors.items()},
        "less than k-means in Lab": {
            "mean": float(less.mean()),
            "interval": [float(edge) for edge in np.percentile(resampled, [2.5, 97.5])],
        },
        "of each image": {name: values.tolist() for name, values in errors.items()},
    }


def pixel_error(image: np.ndarray, palette: np.ndarray) -> float:
    """The mean CIEDE2000 from each pixel to the nearest colour, by CIEDE2000."""
    import jax.numpy as jnp

    return float(_pixel_error()(jnp.asarray(image), jnp.asarray(_padded(palette))))


def palette_error(palette: np.ndarray, person: np.ndarray) -> float:
    """The minimum colour difference of two palettes, uint8 `[colours, 3]` each."""
    import jax.numpy as jnp

    from cnn_research.ops import colours, palettes

    first, second = (
        colours.srgb_to_lab(jnp.asarray(rgb, jnp.float32) / 255)[None] for rgb in (palette, person)
    )
    return float(palettes.between(first, second, jnp.ones((1, len(person)), bool))[0])


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
    """With its first colour again where it has fewer than ten: one shape, one compilation."""
    return np.concatenate([palette, np.repeat(palette[:1], max(0, COLOURS - len(palette)), axis=0)])


def _at_most(image: np.ndarray, longest: int) -> np.ndarray:
    from cnn_research.data.images import resized

    height, width = image.shape[:2]
    scale = longest / max(height, width)
    return resized(image, (round(height * scale), round(width * scale)))


def contact_sheets(
    images: Sequence[np.ndarray],
    palettes: Mapping[str, Sequence[Sequence[np.ndarray]]],
    folder: Path,
    name: str,
) -> None:
    """Writes `NAME-1.png` and so on: each image with every method's palette beside it."""
    from matplotlib.figure import Figure

    for sheet, start in enumerate(range(0, len(images), SHEET), 1):
        part = range(start, min(start + SHEET, len(images)))
        rows = -(-len(part) // 2)
        figure = Figure(figsize=(13, 1.5 * rows), dpi=110, layout="constrained")
        grid = figure.subplots(rows, 4, width_ratios=[1, 3, 1, 3], squeeze=False)
        for axes in grid.ravel():
            axes.set_axis_off()
        for index, (picture, strips) in zip(part, grid.reshape(-1, 2), strict=False):
            picture.imshow(images[index])
            for line, (method, found) in enumerate(palettes.items()):
                colours = found[index][0]
                colours = colours[np.argsort(colours @ [0.2126, 0.7152, 0.0722])]
                ends = np.linspace(0, 1, len(colours) + 1)
                strips.barh(
                    -line, ends[1:] - ends[:-1], left=ends[:-1], height=0.85, color=colours / 255
                )
                strips.text(-0.01, -line, method, ha="right", va="center", fontsize=7)
            strips.set_xlim(-0.25, 1)
        figure.savefig(folder / f"{name}-{sheet}.png")


def palettes_per_second(photos: Path, run: Path) -> float:
    """Of the whole command, pictures and files written, beyond what it takes for one image."""
    from cnn_research.data.images import files_below, opened

    with opened(photos) as folder, tempfile.TemporaryDirectory() as one:
        files = [file for file, _ in files_below(folder) if file.suffix.lower() == ".jpg"]
        (Path(one) / files[0].name).write_bytes(files[0].read_bytes())
        seconds = []
        for source in (Path(one), folder):
            command = [
                *("launch.py", "--experiment=palette", f"--workdir={run}", "--mode=predict"),
                f"--input={source}",
            ]
            started = time.monotonic()
            subprocess.run(
                [sys.executable, *command], cwd=ROOT, check=True, stdout=subprocess.DEVNULL
            )
            seconds.append(time.monotonic() - started)
    return (len(files) - 1) / (seconds[1] - seconds[0])


if __name__ == "__main__":
    sys.exit(main())
