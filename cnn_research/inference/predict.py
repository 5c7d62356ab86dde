"""Predict any images: `--mode=predict --input=FILE_OR_FOLDER_OR_GLOB`.

Only the run folder is needed, except for the nearest training images, which need the data set.
"""

from __future__ import annotations

import dataclasses
import glob
import json
import textwrap
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from cnn_research.core import run_folder as folders
from cnn_research.core.distributed import is_first_process, wait_for_all
from cnn_research.core.errors import UsageError, UserError
from cnn_research.core.experiment import Result
from cnn_research.core.progress import Tally
from cnn_research.core.terminal import show
from cnn_research.data.dataset import Dataset
from cnn_research.data.images import (
    ENDINGS,
    BadImage,
    decode_input,
    is_named_as_image,
    printable,
)
from cnn_research.data.prepare.files import files_below
from cnn_research.ops.batching import apply_in_batches
from cnn_research.report.markdown import markdown_table
from cnn_research.report.names import in_picture, numbers_of, shortened
from cnn_research.report.plots import GREY, VERBATIM, blank_grid, show_image
from cnn_research.tasks.decode import Answer, answers_of
from cnn_research.train.config import Training
from cnn_research.train.trained import TrainedModel

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FOLDER = "predictions"
SHOWN = 24


def predict_images(
    experiment: Training, workdir: Path, source: str, *, neighbours: int = 0
) -> Result:
    """Predict all images of `source`; print the predictions, and write them to `predictions/`.

    `source` is an image, a folder of images, or a pattern such as 'photos/*.jpg'. `neighbours` is
    the number of nearest training images to show beside each. `evaluation` and the path of the
    data set may differ from the training's. Raises `UserError` if there is no such run, or no
    image.
    """
    folders.check_same(experiment, workdir, ("data.path", "evaluation"))
    model = TrainedModel.load(workdir, experiment)
    files = image_files(source)
    with folders.locked(workdir), folders.atomic_directory(workdir / FOLDER) as partial:
        nearest = Nearest(model, neighbours) if neighbours else None
        predictions = _write_each(files, model, nearest, partial)
        if not predictions:
            raise UserError(f"{source}: no image could be read")
        _write_table(partial / "predictions.csv", predictions)
        numbers = numbers_of(model.class_names)
        figure = predictions_plot(predictions[:SHOWN], nearest, numbers)
        figure.savefig(partial / "predictions.png")
    heads = list(predictions[0].answers)
    cells = [
        [Path(each.file).name, *(_with_others(each.answers[head]) for head in heads)]
        for each in predictions[:SHOWN]
    ]
    show(markdown_table(["image", *heads], cells))
    if len(predictions) > SHOWN:
        print(f"... and {len(predictions) - SHOWN:,} more")
    if numbers:
        named = ", ".join(f"{number} for {name}" for name, number in numbers.items())
        print(f"In predictions.png, numbers replace names: {named}.")
    print(f"{len(predictions):,} images: {workdir / FOLDER / 'predictions.jsonl'}, .csv and .png")
    return Result(workdir, int(model.state.step), {})


@dataclasses.dataclass(frozen=True)
class Prediction:
    """The prediction for one image."""

    file: str
    """The image's path, printable."""
    answers: Mapping[str, Answer]
    image: np.ndarray | None
    """The network's input, uint8 `[height, width, channels]`; None after the first images, which
    are drawn."""
    nearest: np.ndarray
    """Indices of the nearest training images; empty if they were not requested."""


def _write_each(
    files: Sequence[Path], model: TrainedModel, nearest: Nearest | None, folder: Path
) -> list[Prediction]:
    """Predict each image, and write its line of predictions.jsonl and its own files."""
    task, heads = model.experiment.fitted_task, model.heads
    predictions: list[Prediction] = []
    outputs_of_files = outputs_of(files, model, features=nearest is not None)
    with (
        (folder / "predictions.jsonl").open("w", encoding="utf-8") as lines,
        Tally("predicting images", len(files)) as tally,
    ):
        for (file, image, arrays), stem in zip(outputs_of_files, stems(files), strict=True):
            tally.advance()
            if isinstance(image, BadImage):
                tally.say(f"skipped: {image}")
                continue
            outputs, *features = arrays
            (answers,) = answers_of(heads, outputs[None])
            try:
                task.write_files(folder / stem, file, answers)
            except BadImage as error:
                tally.say(f"without a picture: {error}")
            row: dict[str, Any] = {"file": printable(file)}
            row |= {key_of(head): answer.values for head, answer in answers.items()}
            near = np.empty(0, int)
            if nearest is not None:
                near = nearest(*features)
                row["nearest"] = nearest.describe(near)
            lines.write(json.dumps(row, ensure_ascii=False) + "\n")
            shown = image if len(predictions) < SHOWN else None
            predictions.append(Prediction(row["file"], answers, shown, near))
    return predictions


def key_of(head: str) -> str:
    """Name of a head's column, which must differ from `file` and `nearest`."""
    return f"{head} (answer)" if head in ("file", "nearest") else head


def _with_others(answer: Answer) -> str:
    return f"{answer.text}, {answer.others}" if answer.others else answer.text


def image_files(source: str) -> list[Path]:
    """List the image files of `source`.

    Raises:
        UsageError: `source` is empty.
        UserError: it does not exist, or contains no image.
    """
    if not source:
        raise UsageError(
            "--mode=predict needs --input=IMAGES, an image, a folder or a file pattern"
        )
    try:
        path = Path(source).expanduser()
    except RuntimeError:
        user = source.partition("/")[0]
        raise UserError(
            f"--input={source}: the home folder of {user} is unknown; use the full path"
        ) from None
    if not path.is_dir():
        # A pattern selects all its files; `decode` reports those that are not images.
        matches = [path] if path.exists() else _matching(path)
        files = sorted(file for file in matches if file == path or file.is_file())
        if not files:
            raise UserError(f"--input={source}: no such file or folder")
        return files
    files = files_below(path)
    images = [file for file in files if is_named_as_image(file) and file.is_file()]
    others = len(files) - len(images)
    if not images:
        raise UserError(
            f"--input={source}: none of the {others} files has the extension of an image "
            f"({', '.join(ENDINGS)} and others); a pattern such as '{source.rstrip('/')}/*' "
            "selects any file"
        )
    if others:
        plural = "s that are not images" if others > 1 else " that is not an image"
        print(f"Skipped {others:,} file{plural} in {printable(source)}.")
    return images


def _matching(pattern: Path) -> list[Path]:
    """List the paths that match a pattern.

    Existing folders, such as `my [new] photos`, and brackets in names of existing files are taken
    literally.
    """
    folder, *rest = pattern.parents[-1], *pattern.parts[len(pattern.anchor) > 0 :]
    while len(rest) > 1 and (folder / rest[0]).is_dir():
        folder /= rest.pop(0)
    inner = "/".join(rest)
    for each in (inner.replace("[", "[[]"), inner):
        if names := glob.glob(each, root_dir=folder, recursive=True):
            break
    return [folder / name for name in names]


def stems(files: Sequence[Path]) -> Iterator[str]:
    """Yield for each file a unique stem for its outputs: its name, numbered if repeated."""
    uses: Counter[str] = Counter()
    for file in files:
        # Names have at most 255 bytes, including an extension.
        name = printable(file.name).encode()[:200].decode("utf-8", "ignore")
        number = uses[name.lower()] = uses[name.lower()] + 1  # ignoring case, like macOS
        yield name if number == 1 else f"{name}-{number}"


def outputs_of(
    files: Sequence[Path], model: TrainedModel, *, features: bool = False
) -> Iterator[tuple[Path, np.ndarray | BadImage, tuple[np.ndarray, ...]]]:
    """Yield each file with the network's input and a tuple of its outputs.

    With `features` the tuple also has its features. For a file that is not an image, the error
    replaces the input, and the tuple is empty.
    """
    functions: list[Callable[..., jax.Array]] = [jax.jit(model.forward())]
    functions += [model.features()] if features else []
    most = model.experiment.evaluation.batch_size
    for start in range(0, len(files), most):
        part = files[start : start + most]
        images = [_decoded(file, model) for file in part]
        good = [image for image in images if not isinstance(image, BadImage)]
        results: Iterator[tuple[np.ndarray, ...]] = iter(())
        if good:
            # A single batch size, or the next power of two for few images, to compile rarely.
            size = min(most, 1 << (len(good) - 1).bit_length())
            arrays = apply_in_batches(lambda x: [f(x) for f in functions], np.stack(good), size)
            results = zip(*arrays, strict=True)
        for file, image in zip(part, images, strict=True):
            yield file, image, () if isinstance(image, BadImage) else next(results)


def _decoded(file: Path, model: TrainedModel) -> np.ndarray | BadImage:
    try:
        opaque = model.experiment.task.counts_colours
        return decode_input(file, model.image_shape, model.fit, opaque=opaque)
    except BadImage as error:
        return error


class Nearest:
    """Finds the `count` training images whose features are nearest to those of an image.

    The features of the training split are computed once per checkpoint and stored in the run
    folder.

    Raises:
        UsageError: the data set has changed since the training.
        UserError: it does not exist.
    """

    def __init__(self, model: TrainedModel, count: int):
        try:
            self.dataset: Dataset = model.load_data()
        except UserError as error:
            raise type(error)(
                f"{error}; omit --neighbours to predict without the nearest training images"
            ) from error
        self._heads, self._count = model.experiment.task.heads, count
        self._split = self.dataset.splits["train"]
        file = model.workdir / f"training_features-{int(model.state.step)}.npy"
        if not file.exists():
            print(f"Computing the features of {len(self._split):,} training images (once).")
            size = min(model.experiment.evaluation.batch_size, len(self._split))
            features = apply_in_batches(model.features(), self._split.images, size)
            if is_first_process():
                partial = file.with_suffix(".partial")
                with partial.open("wb") as stream:
                    np.save(stream, features)
                partial.rename(file)
        wait_for_all(file.name)
        self._features = np.load(file, mmap_mode="r")

    def __call__(self, features: np.ndarray) -> np.ndarray:
        """Return the indices of the nearest training images, int `[count]`, nearest first."""
        return np.argsort(-(self._features @ features), kind="stable")[: self._count]

    def describe(self, indices: np.ndarray) -> list[dict[str, Any]]:
        """Describe training images as JSON values: name and labels."""
        names = self._split.names
        return [
            {
                "file": "" if names is None else str(names[index]),
                **{key_of(head): self._label(head, int(index)) for head in self._split.labels},
            }
            for index in indices
        ]

    def titled(self, index: int) -> tuple[np.ndarray, str]:
        """Return a training image, and its labels in the run's heads."""
        labels = (str(self._label(head, index) or "unknown") for head in self._heads)
        return self._split.images[index], "\n".join(labels)

    def _label(self, head: str, index: int) -> Any:
        return self.dataset.label(self._split, head, index)


def _write_table(file: Path, predictions: Sequence[Prediction]) -> None:
    import pandas

    rows: list[dict[str, Any]] = []
    for each in predictions:
        rows.append({"file": each.file})
        for head, answer in each.answers.items():
            rows[-1] |= {f"{key_of(head)} {name}".strip(): x for name, x in answer.columns.items()}
    pandas.DataFrame(rows).to_csv(file, index=False, lineterminator="\n")


def predictions_plot(
    predictions: Sequence[Prediction], nearest: Nearest | None, numbers: Mapping[str, str]
) -> Figure:
    """Draw rows of an image, its prediction (one line per head), and nearest training images.

    `numbers` replace class names, as in `numbers_of`.
    """
    titles = []
    for each in predictions:
        texts = [in_picture(answer.text, numbers) for answer in each.answers.values()]
        wrapped = [line for text in texts for line in textwrap.wrap(text, 24)]
        titles.append("\n".join([in_picture(shortened(Path(each.file).name, 22)), *wrapped]))
    lines = max(title.count("\n") + 1 for title in titles)
    columns = min(6, len(predictions)) if nearest is None else 1 + len(predictions[0].nearest)
    rows = -(-len(predictions) // columns) if nearest is None else len(predictions)
    size = (1.8 * columns, (1.7 + 0.14 * lines) * rows)
    figure, grid = blank_grid(rows, columns, size, padding=0.08)
    places = grid.ravel() if nearest is None else grid[:, 0]
    for axes, each, title in zip(places, predictions, titles, strict=False):
        assert each.image is not None, "the first images are kept"
        show_image(axes, each.image)
        axes.set_title(title, fontsize=7.5, linespacing=1.3, fontweight="bold", **VERBATIM)
    if nearest is not None:
        for row, each in zip(grid, predictions, strict=True):
            for axes, index in zip(row[1:], each.nearest, strict=True):
                image, title = nearest.titled(int(index))
                show_image(axes, image)
                axes.set_title(
                    in_picture(title, numbers), fontsize=7, linespacing=1.3, color=GREY, **VERBATIM
                )
    return figure
