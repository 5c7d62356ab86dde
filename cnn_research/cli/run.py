"""Runs an experiment in one of its modes, from a table of modes by kind of experiment."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from cnn_research.core.config import did_you_mean, to_dict
from cnn_research.core.errors import UsageError
from cnn_research.core.experiment import Experiment, Result


@dataclasses.dataclass(frozen=True)
class Mode:
    """The functions of a mode, as `"module:function"`, so that reading a config or `--help` does
    not import training code."""

    function: str
    """Called as `function(experiment, workdir)`."""
    options: tuple[str, ...] = ()
    """`input` for a required third argument; the keywords `profile` and `neighbours`."""
    several: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Functions for several trainings by option (`replicas`, `folds`), called as
    `function(experiment, workdir, count)`."""

    def takes(self, option: str) -> bool:
        return option in self.options or option in self.several


MODES: dict[str, Mapping[str, Mode]] = {
    "Training": {
        "train": Mode(
            "cnn_research.train.loop:train",
            options=("profile",),
            several={
                "replicas": "cnn_research.workflows.replicas:train",
                "folds": "cnn_research.workflows.folds:train",
            },
        ),
        "dry-run": Mode(
            "cnn_research.train.dry_run:dry_run",
            several={
                "replicas": "cnn_research.workflows.replicas:dry_run",
                "folds": "cnn_research.workflows.folds:dry_run",
            },
        ),
        "evaluate": Mode("cnn_research.train.finish:evaluate"),
        "predict": Mode(
            "cnn_research.inference.predict:predict_images", options=("input", "neighbours")
        ),
        "export": Mode("cnn_research.inference.export:export_run"),
    },
    "TwoStage": {
        "train": Mode("cnn_research.workflows.two_stage:train"),
        "dry-run": Mode("cnn_research.workflows.two_stage:dry_run"),
        "evaluate": Mode("cnn_research.workflows.two_stage:evaluate"),
        "predict": Mode(
            "cnn_research.workflows.two_stage:predict", options=("input", "neighbours")
        ),
        "export": Mode("cnn_research.workflows.two_stage:export"),
    },
    "Purification": {
        "run": Mode("cnn_research.workflows.palette.purification:purify"),
        "dry-run": Mode("cnn_research.workflows.palette.purification:dry_run"),
        "predict": Mode(
            "cnn_research.workflows.palette.colour_naming:name_pixels", options=("input",)
        ),
        "export": Mode("cnn_research.workflows.palette.purification:export"),
    },
    "PoolingStudy": {
        "run": Mode("cnn_research.workflows.pooling_study:compare"),
        "dry-run": Mode("cnn_research.workflows.pooling_study:dry_run"),
    },
    "Filters": {"draw": Mode("cnn_research.workflows.galleries.filters:draw")},
    "PoolingPyramid": {"draw": Mode("cnn_research.workflows.galleries.pooling:draw")},
    "Augmentations": {"draw": Mode("cnn_research.workflows.galleries.augmentations:draw")},
    "Features": {"draw": Mode("cnn_research.workflows.galleries.features:draw")},
}
"""Modes of each kind of experiment by class name; the first mode is the default.

Subclasses have the modes of their base class. Add other kinds where their class is defined:
`MODES["MyKind"] = {"draw": Mode("my_package.my_module:draw")}`.
"""


def modes_of(experiment: Experiment) -> Mapping[str, Mode]:
    """Return the modes of an experiment's kind; empty if there are none."""
    names = (kind.__name__ for kind in type(experiment).__mro__)
    return next((MODES[name] for name in names if name in MODES), {})


def bind_mode(
    experiment: Experiment,
    mode: str | None = None,
    source: str | None = None,
    *,
    replicas: int | None = None,
    folds: int | None = None,
    **options: Any,
) -> Callable[[Path], Result]:
    """Check everything that does not need data; return a function that runs the experiment in a
    folder.

    Arguments and errors are those of `run`; nothing is imported before the function is called.
    """
    options = {option: value for option, value in options.items() if value}
    modes = modes_of(experiment)
    if not modes:
        raise UsageError(f"{type(experiment).__name__} has no modes: add it to `cli.run.MODES`")
    name = next(iter(modes)) if mode is None else mode
    kind = experiment.name or type(experiment).__name__
    if name not in modes:
        raise UsageError(
            f"{kind} has no mode '{name}'{did_you_mean(name, list(modes))}: "
            f"give --mode={'|'.join(modes)}"
        )
    chosen = modes[name]
    if chosen.takes("input") and source is None:
        raise UsageError(f"--mode={name} needs --input=IMAGES: a file, a folder or a pattern")
    several = {"replicas": replicas, "folds": folds}
    given = {"input": source, **several, **options}
    for option in [option for option, value in given.items() if value is not None]:
        if not chosen.takes(option):
            takers = "|".join(key for key, each in modes.items() if each.takes(option))
            where = f"--mode={takers}" if takers else "other kinds of experiments"
            raise UsageError(f"--{option} works only with {where}; got --mode={name}")
        fewest = {"neighbours": 1, "replicas": 1, "folds": 2}.get(option)
        if fewest and given[option] < fewest:
            raise UsageError(f"--{option} is {given[option]}: must be {fewest} or more")
    counts = {option: count for option, count in several.items() if count is not None}
    if len(counts) > 1:
        raise UsageError("--replicas and --folds exclude each other: give one of the two")
    experiment.check()
    to_dict(experiment)  # raises an error if the config cannot be saved
    arguments = (*(() if source is None else (source,)), *counts.values())

    def call(workdir: Path) -> Result:
        path = next((chosen.several[option] for option in counts), chosen.function)
        module, _, function = path.partition(":")
        called = getattr(importlib.import_module(module), function)
        from cnn_research.core.distributed import device_errors  # JAX

        with device_errors():
            return called(experiment, workdir.absolute(), *arguments, **options)

    return call


def run(
    experiment: Experiment,
    workdir: str | Path,
    mode: str | None = None,
    source: str | None = None,
    *,
    neighbours: int = 0,
    profile: bool = False,
    replicas: int | None = None,
    folds: int | None = None,
) -> Result:
    """Run an experiment in a folder; the command line and notebooks call the same function.

    Args:
        mode: one of `modes_of(experiment)`; None for the first.
        source: image, folder or pattern of files for modes with images; `--input` on the command
            line.
        neighbours: number of nearest training images to show with each prediction.
        profile: trace a few train steps, without changing the run.
        replicas: number of seeds to train at once, each in a subfolder of `workdir`; None for one
            run.
        folds: number of folds, each the test split of a training in a subfolder of `workdir`; None
            for one run.

    Raises:
        UsageError: if the experiment has no such mode, the mode does not accept an option, or
            fields contradict each other.
        UserError: if the run fails for a reason that the user can correct.
    """
    call = bind_mode(
        experiment,
        mode,
        source,
        neighbours=neighbours,
        profile=profile,
        replicas=replicas,
        folds=folds,
    )
    return call(Path(workdir))
