"""The end of a run: its evaluation on all splits, and its report."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging

from cnn_research.core import run_folder as folders
from cnn_research.core.config import to_dict
from cnn_research.core.distributed import data_mesh
from cnn_research.core.experiment import Result
from cnn_research.core.metrics import direction_of
from cnn_research.core.metrics_log import by_epoch, read_metrics
from cnn_research.core.terminal import show
from cnn_research.data.dataset import MISSING, Dataset, Split
from cnn_research.report.page import Predictions, write_report
from cnn_research.report.pictures import Shown
from cnn_research.report.tensorboard import chosen, rows_of, show_points, show_report
from cnn_research.report.writers import MetricsWriter
from cnn_research.tasks.decode import answers_of, calibrated
from cnn_research.train.config import Training
from cnn_research.train.evaluator import Evaluator
from cnn_research.train.state import TrainState
from cnn_research.train.trained import TrainedModel, check_run, model_and_splits
from cnn_research.train.transfer import Transfer


def evaluate(experiment: Training, workdir: Path) -> Result:
    """Evaluate the run in a folder, and rewrite its report.

    Raises `UserError` if the folder is not a run folder, or has no valid checkpoint.
    """
    check_run(workdir)
    with folders.locked(workdir):
        # Other data could contain training images, as could another split of the same data. The
        # path may differ, as `load_data` compares the content.
        free = ("data.path", "evaluation", "selection.report", "callbacks", "loggers")
        folders.check_same(experiment, workdir, free)
        for logger in experiment.loggers:
            logger.check_installed()
        model = TrainedModel.load(workdir, experiment)
        dataset = model.load_data()
        shown, experiment = experiment, model.experiment
        if experiment.evaluates_images:
            experiment = dataclasses.replace(experiment, transfer=Transfer())
        network, splits = model_and_splits(experiment, model.state, dataset)
        evaluator = Evaluator(experiment, network, data_mesh())
        last = max((row["step"] for row in read_metrics(workdir)), default=0)
        writes = jax.process_index() == 0
        with MetricsWriter(
            workdir, restored_step=last, loggers=shown.loggers, config=shown, enabled=writes
        ) as writer:
            return report(experiment, workdir, dataset, splits, model.state, evaluator, writer)


def report(
    experiment: Training,
    workdir: Path,
    dataset: Dataset,
    splits: Mapping[str, Split],
    state: TrainState,
    evaluator: Evaluator,
    writer: MetricsWriter,
) -> Result:
    """Evaluate a state on all `splits` except training; write evaluation.json and the report."""
    step, task = int(state.step), experiment.fitted_task
    evaluated = [name for name in folders.EVALUATED if name in splits]
    if not evaluated:
        logging.warning("no report: all images are training images, so no split can be evaluated")
        return Result(workdir, step, {})
    predictions, outputs, means = {}, {}, {}
    for name in evaluated:
        sums, outputs[name] = evaluator(state.variables(), splits[name]) or ({}, np.empty(0))
        means[name] = task.means(sums)
        predictions[name] = task.predictions(dataset, name, outputs[name], means[name])
    calibration = calibrate(predictions)
    metrics = {name: task.combine_metrics(predictions[name]) for name in evaluated}
    for name, values in metrics.items():  # custom tasks may have additional metrics
        values |= {m: means[name][m] for m in task.metrics if m not in values}
    # Show validation, by which checkpoints are selected, only if there is no other split.
    shown = [name for name in evaluated if name != "validation"] or evaluated
    # The projector's points: features and predictions of some images.
    places = chosen(splits[shown[0]])
    features = evaluator.features(state.variables(), splits[shown[0]].take(places))
    heads = calibrated(task.output_spec(dataset.class_names), calibration)
    answers = answers_of(heads, outputs[shown[0]][places])
    texts = [{head: answer.text for head, answer in image.items()} for image in answers]
    points = dataset.splits[shown[0]].take(places)
    # All processes take part in the evaluation; only the first writes.
    if jax.process_index() != 0:
        return Result(workdir, step, metrics)
    write_evaluation(experiment, workdir, step, {"calibration": calibration, **metrics})
    page = write_report(
        workdir,
        title=experiment.name or "Training",
        metrics={name: metrics[name] for name in shown},
        predictions={name: predictions[name] for name in shown},
        shown={name: _shown(dataset, name) for name in shown},
        history=read_metrics(workdir),
        directions=task.directions,
        params=state.params,
        unlabelled=_unlabelled(dataset, task.heads),
    )
    if writer.events:
        show_report(writer.events, page, {name: predictions[name] for name in shown}, step)
        rows = rows_of(dataset, points, texts)
        show_points(writer.events, features, rows, points.images, step)
    results = {f"{s}/{name}": metrics[s][name] for s in evaluated for name in task.metrics}
    writer.report(page, results)
    for name in shown:
        print(f"Result on the {name} split, step {step:,}:")
        show(task.text(predictions[name]))
    print(f"Report: {page}\nTensorBoard: tensorboard --logdir {shlex.quote(str(workdir.parent))}")
    return Result(workdir, step, metrics)


def calibrate(predictions: dict[str, dict[str, Predictions]]) -> dict[str, dict[str, Any]]:
    """Fit the calibration of each head to the validation split, and add it to the predictions of
    all splits; return it, empty without validation split or anything to fit."""
    fitted = {head: each.calibration() for head, each in predictions.get("validation", {}).items()}
    for heads in predictions.values():
        heads |= {h: dataclasses.replace(each, **fitted.get(h, {})) for h, each in heads.items()}
    return {head: values for head, values in fitted.items() if values}


def _shown(dataset: Dataset, name: str) -> Shown:
    """Return the images of a split with their names and groups, if any."""
    split, folder = dataset.splits[name], dataset.provenance.get("folder")
    # The folder is "" if the names are full paths.
    home = None if folder is None else Path(folder).absolute()
    return Shown(split.images, split.names, home, split.groups)


def _unlabelled(dataset: Dataset, heads: Sequence[str]) -> dict[str, int]:
    """Count the images without a label by head and split; omit zeros."""
    counts = {}
    for head in heads:
        for name, split in dataset.splits.items():
            labels = split.labels.get(head)
            if labels is not None and labels.ndim == 1:
                missing = labels == MISSING if head in dataset.class_names else np.isnan(labels)
                counts[f"{head}, {name}"] = int(missing.sum())
    return {what: count for what, count in counts.items() if count}


def write_evaluation(
    experiment: Training, workdir: Path, step: int, metrics: Mapping[str, Any]
) -> None:
    """Write evaluation.json: metrics and their origin.

    `metrics` has the metrics of each split, and the `calibration` fitted to validation. In the
    file, `config` has the fields that `--mode=evaluate` may replace, and `training` the metrics of
    the training examples in the epoch that ends at `step`.
    """
    task = experiment.fitted_task
    epochs = by_epoch([row for row in read_metrics(workdir) if row["step"] <= step])
    training = epochs[-1]["train"] if epochs else {}
    folders.write_json(
        workdir / folders.EVALUATION,
        {
            "step": step,
            "config": {
                "evaluation": to_dict(experiment.evaluation),
                "selection": to_dict(experiment.selection),
            },
            "metric_directions": dict(task.directions),
            "training": {
                name: value for name, value in training.items() if direction_of(name, task.metrics)
            },
            **metrics,
        },
    )
