"""What a trained run says about anyone's images: `--mode=predict --input=FILE_OR_FOLDER_OR_GLOB`.

All that it takes is the run's folder. Only the nearest training images, where they are asked for,
need the data set.
"""

from __future__ import annotations

import csv
import dataclasses
import glob
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from cnn_research.core import run_folder as folders
from cnn_research.core.distributed import data_mesh, replicated
from cnn_research.core.errors import UsageError, UserError
from cnn_research.core.experiment import Result
from cnn_research.data.dataset import Dataset
from cnn_research.data.images import (
    ENDINGS,
    BadImage,
    decode,
    files_below,
    grey,
    is_named_as_image,
    padded,
    printable,
)
from cnn_research.models.layer_outputs import last_features
from cnn_research.report.markdown import markdown_table
from cnn_research.tasks.task import Answer
from cnn_research.train.config import Training
from cnn_research.train.evaluator import views_of
from cnn_research.train.trained import Trained, check_same_data, forward_of, open_trained

FOLDER = "predictions"
SHOWN = 24
"""Images in the picture of predictions."""


def predict_images(experiment: Training, workdir: Path, source: str) -> Result:
    """Answers for every image of `source`: on the terminal, and as files in `predictions/`.

    Args:
        experiment: the run's; of it, `evaluation` and where the images of its data set lie may
            differ from what was trained.
        workdir: the run's folder.
        source: an image, a folder of images, or a pattern such as 'photos/*.jpg'.

    Raises:
        UserError: there is no such run, or no image.
    """
    folders.check_same(experiment, workdir, ("data.path", "evaluation"))
    found = open_trained(workdir)
    found = dataclasses.replace(
        found,
        experiment=dataclasses.replace(
            found.experiment, data=experiment.data, evaluation=experiment.evaluation
        ),
    )
    files = image_files(source)
    neighbours = experiment.evaluation.neighbours
    with folders.claimed(workdir):
        nearest = Nearest(found, workdir) if neighbours else None
        said = tqdm(
            said_of(files, found, nearest.features_of if nearest else None),
            "predicting",
            total=len(files),
            unit=" images",
            disable=None,  # where nobody looks
        )
        answers: list[dict[str, Answer]] = []
        rows: list[dict[str, Any]] = []
        shown: list[np.ndarray] = []
        near: list[np.ndarray] = []
        with folders.whole_folder(workdir / FOLDER) as partial:
            with (partial / "predictions.jsonl").open("w", encoding="utf-8") as lines:
                for (file, image, outputs, features), stem in zip(said, stems(files), strict=True):
                    if isinstance(image, BadImage):
                        said.write(f"left out: {image}")
                        continue
                    (answer,) = found.experiment.fitted_task.answers(
                        outputs[None], found.class_names
                    )
                    row: dict[str, Any] = {"file": printable(file)}
                    row |= {head: each.values for head, each in answer.items()}
                    try:
                        found.experiment.fitted_task.write_files(partial / stem, file, answer)
                    except BadImage as error:
                        said.write(f"without a picture: {error}")
                    if nearest is not None:
                        places = nearest(features, neighbours)
                        row["nearest"] = nearest.describe(places)
                        near.append(places)
                    lines.write(json.dumps(row, ensure_ascii=False) + "\n")
                    rows.append(row)
                    answers.append(answer)
                    if len(shown) < SHOWN:
                        shown.append(image)
            if not rows:
                raise UserError(f"{source}: no image could be read")
            _write_table(partial / "predictions.csv", rows, answers)
            _write_picture(partial / "predictions.png", shown, rows, answers, nearest, near)
    heads = list(answers[0])
    cells = [
        [Path(row["file"]).name, *(_with_others(answer[head]) for head in heads)]
        for row, answer in zip(rows, answers, strict=True)
    ]
    print(markdown_table(["image", *heads], cells[:SHOWN]))
    if len(cells) > SHOWN:
        print(f"... and {len(cells) - SHOWN:,} more")
    print(f"{len(rows):,} images: {workdir / FOLDER / 'predictions.jsonl'}, .csv and .png")
    return Result(workdir, int(found.state.step), {})


def _with_others(answer: Answer) -> str:
    return f"{answer.text}, {answer.others}" if answer.others else answer.text


def image_files(source: str) -> list[Path]:
    """The image files that `source` names.

    Raises:
        UsageError: nothing is named.
        UserError: there is nothing of that name, or no image among it.
    """
    if not source:
        raise UsageError("--mode=predict needs --input: an image, a folder, or a pattern of files")
    try:
        path = Path(source).expanduser()
    except RuntimeError:
        user = source.partition("/")[0]
        raise UserError(
            f"--input={source}: no home folder of {user} is known; write the whole path"
        ) from None
    if path.exists() and not path.is_dir():
        return [path]
    if not path.is_dir():
        # Whoever names files by a pattern means all of them: `decode` says which are no images.
        files = [Path(file) for file in sorted(glob.glob(str(path), recursive=True))]
        matches = [file for file in files if file.is_file()]
        if not matches:
            raise UserError(f"--input={source}: there is no such file or folder")
        return matches
    files = [file for file, _ in files_below(path)]
    images = [file for file in files if is_named_as_image(file) and file.is_file()]
    others = len(files) - len(images)
    if not images:
        raise UserError(
            f"--input={source}: no image there among {others} files (looked for "
            f"{', '.join(ENDINGS)} and the like); a pattern, as '{source.rstrip('/')}/*', takes "
            "any file"
        )
    if others:
        print(f"{others:,} other files in {printable(source)} are passed over.")
    return images


def stems(files: Sequence[Path]) -> Iterator[str]:
    """For each file a name of its own for what is written about it: its own, numbered if taken."""
    taken: Counter[str] = Counter()
    for file in files:
        # Names are at most 255 bytes, and an ending follows.
        name = printable(file.name).encode()[:200].decode("utf-8", "ignore")
        taken[name] += 1
        yield name if taken[name] == 1 else f"{name}-{taken[name]}"


def said_of(
    files: Sequence[Path], found: Trained, features_of: Any
) -> Iterator[tuple[Path, np.ndarray | BadImage, np.ndarray, np.ndarray]]:
    """Per file: the image as the network takes it, its outputs, and its features.

    A file that is no image comes with the reason in place of the image.

    Args:
        files: of images.
        found: the network.
        features_of: from `features_of`; None leaves features out, and gives the outputs again.
    """
    forward = jax.jit(forward_of(found))
    size = found.experiment.evaluation.batch_size
    height, width, channels = found.image_shape
    for start in range(0, len(files), size):
        part = files[start : start + size]
        images: list[np.ndarray | BadImage] = []
        for file in part:
            try:
                image = decode(file, (height, width))
            except BadImage as error:
                images.append(error)
                continue
            images.append(image if channels == 3 else grey(image))
        good = [image for image in images if not isinstance(image, BadImage)]
        outputs = features = np.zeros((len(part), 1), np.float32)
        if good:
            # One size of batch, or the next power of two for few images: few compilations.
            batch = padded(np.stack(good), min(size, 1 << (len(good) - 1).bit_length()))
            outputs = features = np.asarray(forward(batch))
            if features_of is not None:
                features = np.asarray(features_of(found.state.variables(), batch))
        place = 0
        for file, decoded in zip(part, images, strict=True):
            yield file, decoded, outputs[place], features[place]
            place += not isinstance(decoded, BadImage)


def features_of(found: Trained) -> Any:
    """The jitted `(variables, uint8 images) -> features` of the images as they are.

    They are those of `last_features`.
    """

    def features(variables, images):
        view = views_of(images, found.experiment)[0]
        return last_features(found.experiment.model, variables, view)[1]

    return jax.jit(features, out_shardings=replicated(data_mesh()))


class Nearest:
    """The training images whose features are nearest to those of an image.

    The features of the training split are computed once for each state of a run, and kept in its
    folder.

    Args:
        found: the trained network.
        workdir: the run's folder.

    Raises:
        UsageError: the data set has changed since it was trained on.
        UserError: it is not there.
    """

    def __init__(self, found: Trained, workdir: Path):
        try:
            self.dataset: Dataset = found.experiment.data.load()
            check_same_data(workdir, self.dataset)
        except UserError as error:
            raise type(error)(
                f"{error}; --evaluation.neighbours=0 answers without the nearest training images"
            ) from error
        self._found = found
        self.features_of = features_of(found)
        file = workdir / f"training_features-{int(found.state.step)}.npy"
        if not file.exists():
            self._compute(file)
        self._features = np.load(file, mmap_mode="r")

    def __call__(self, features: np.ndarray, count: int) -> np.ndarray:
        """The places of the nearest training images, int `[count]`, the nearest first."""
        return np.argsort(-(self._features @ features), kind="stable")[:count]

    def describe(self, places: np.ndarray) -> list[dict[str, Any]]:
        """The training images at these places as JSON values: name and labels."""
        split = self.dataset.splits["train"]
        return [
            {
                "file": "" if split.names is None else str(split.names[place]),
                **{head: self._label(head, int(place)) for head in split.labels},
            }
            for place in places
        ]

    def image(self, place: int) -> np.ndarray:
        """uint8 `[height, width, channels]`."""
        return self.dataset.splits["train"].images[place]

    def title(self, place: int) -> str:
        """What the image is, by the heads that the run has learned."""
        heads = self._found.experiment.task.heads
        return "\n".join(str(self._label(head, place) or "unknown") for head in heads)

    def _label(self, head: str, place: int) -> Any:
        return self.dataset.label(self.dataset.splits["train"], head, place)

    def _compute(self, file: Path) -> None:
        images = self.dataset.splits["train"].images
        print(f"Computing the features of {len(images):,} training images, once.")
        variables = self._found.state.variables()
        size = min(self._found.experiment.evaluation.batch_size, len(images))
        parts = []
        for start in range(0, len(images), size):
            part = np.asarray(images[start : start + size])
            features = self.features_of(variables, padded(part, size))
            parts.append(np.asarray(features)[: len(part)])
        partial = file.with_suffix(".partial")
        with partial.open("wb") as written:
            np.save(written, np.concatenate(parts))
        partial.rename(file)


def _write_table(
    file: Path, rows: Sequence[Mapping[str, Any]], answers: Sequence[Mapping[str, Answer]]
) -> None:
    heads = list(answers[0])
    columns = [f"{head} {name}".strip() for head in heads for name in answers[0][head].columns]
    with file.open("w", encoding="utf-8", newline="") as text:
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["file", *columns])
        for row, answer in zip(rows, answers, strict=True):
            values = [value for head in heads for value in answer[head].columns.values()]
            writer.writerow([row["file"], *values])


def _write_picture(
    file: Path,
    images: Sequence[np.ndarray],
    rows: Sequence[Mapping[str, Any]],
    answers: Sequence[Mapping[str, Answer]],
    nearest: Nearest | None,
    near: Sequence[np.ndarray],
) -> None:
    from cnn_research.report import plots as figures

    titles = ["\n".join(answer.text for answer in found.values()) for found in answers]
    neighbours: list[list[tuple[np.ndarray, str]]] = []
    if nearest is not None:
        neighbours = [
            [(nearest.image(place), nearest.title(place)) for place in places.tolist()]
            for places in near[: len(images)]
        ]
    names = [Path(row["file"]).name for row in rows]
    figures.predictions(images, names[: len(images)], titles[: len(images)], neighbours).savefig(
        file
    )
