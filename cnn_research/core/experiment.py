"""What an experiment is, and the registry of all of them."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar

import tyro

from cnn_research.core.config import did_you_mean, import_definitions
from cnn_research.core.errors import UsageError
from cnn_research.core.ranges import check_ranges


@dataclasses.dataclass(frozen=True)
class Result:
    """What a run ends with: its folder, the last step and the figures of its evaluation."""

    workdir: Path
    step: int
    figures: Mapping[str, Mapping[str, float]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment:
    """The base of every kind of experiment: a config, and the modes that it can be run in.

    Attributes:
        modes: per mode, `module:function`, called as `function(experiment, workdir)`, with what
            it is asked about as a third argument for `predict`. A string, so that reading a config
            does not import what runs it. The first is what is done where none is named.
        profiled: the modes whose function takes `profile=True`, and then traces train steps.
        replicated: per mode that several seeds at once can be run in, `module:function`, called
            as `function(experiment, workdir, replicas)`.
        resumable_fields: the fields that may differ between a run and its continuation.
    """

    modes: ClassVar[Mapping[str, str]] = {}
    profiled: ClassVar[tuple[str, ...]] = ()
    replicated: ClassVar[Mapping[str, str]] = {}
    resumable_fields: ClassVar[tuple[str, ...]] = ()

    name: Annotated[str, tyro.conf.Suppress] = ""
    """What it is registered as; empty for one made in Python."""

    def check(self) -> None:
        """Raises `UsageError` for fields out of range, or that contradict each other; looks at no
        data. A subclass that extends it calls it first."""
        check_ranges(self)


def run(
    experiment: Experiment,
    workdir: str | Path,
    mode: str | None = None,
    source: str | None = None,
    *,
    profile: bool = False,
    replicas: int | None = None,
) -> Result:
    """Runs an experiment in a folder; the command line and notebooks call the same function.

    Args:
        experiment: what is run.
        workdir: where.
        mode: one of the experiment's; None for the first.
        source: for the mode `predict`, the image, folder or pattern of files that it is asked
            about: `--input` on the command line.
        profile: trace a few train steps; changes nothing of the run.
        replicas: train so many seeds at once, in a folder below `workdir` each; None for one run.

    Raises:
        UsageError: the mode is none of this kind's, has no train steps to trace, or the fields
            contradict each other.
        UserError: the run failed for a reason that its user can mend.
    """
    mode = mode or next(iter(experiment.modes))
    if mode not in experiment.modes:
        raise UsageError(
            f"this experiment has no mode '{mode}'; it has {', '.join(experiment.modes)}"
        )
    if (mode == "predict") != (source is not None):
        raise UsageError("--mode=predict and --input=IMAGES are given together: either needs both")
    if profile and mode not in experiment.profiled:
        raise UsageError(
            f"--profile traces the steps of one training, and mode '{mode}' of this experiment is "
            "none: leave it out"
        )
    if replicas is not None and (replicas < 1 or mode not in experiment.replicated):
        raise UsageError(
            f"--replicas={replicas}: give a number above 0, and of a training; mode '{mode}' of "
            f"this experiment {'is one' if mode in experiment.replicated else 'is none'}"
        )
    experiment.check()
    modes = experiment.modes if replicas is None else experiment.replicated
    module, function = modes[mode].split(":")
    arguments = tuple(given for given in (source, replicas) if given is not None)
    options = {"profile": True} if profile else {}
    return getattr(importlib.import_module(module), function)(
        experiment, Path(workdir).absolute(), *arguments, **options
    )


@dataclasses.dataclass(frozen=True)
class Choice:
    """What an experiment chooses for one of its fields from its data, and why."""

    value: Any
    reason: str


@dataclasses.dataclass(frozen=True)
class Entry:
    """A registered experiment.

    Attributes:
        name: what `--experiment` takes.
        document: the document it implements, as `004`, or `-`.
        data: its data set, in a word or two.
        document_results: figures that the document gives, for reports to show beside ours.
        make: the decorated function.
        choices: what the experiment's data suggest for its fields, by their paths; None where the
            config says all.
    """

    name: str
    document: str
    data: str
    document_results: Mapping[str, float]
    make: Callable[[], Experiment]
    choices: Callable[[Any], Mapping[str, Choice]] | None = None

    def experiment(self) -> Experiment:
        """The experiment with its defaults."""
        return dataclasses.replace(self.make(), name=self.name)

    @property
    def summary(self) -> str:
        """The first line of the docstring."""
        return (self.make.__doc__ or "").strip().split("\n")[0]


_REGISTRY: dict[str, Entry] = {}


def register(
    *,
    document: str = "-",
    data: str,
    document_results: Mapping[str, float] | None = None,
    choices: Callable[[Any], Mapping[str, Choice]] | None = None,
) -> Callable[[Callable[[], Experiment]], Callable[[], Experiment]]:
    """Decorates a function that returns an `Experiment`; its name becomes the experiment's."""

    def decorate(make: Callable[[], Experiment]) -> Callable[[], Experiment]:
        name = make.__name__
        if name in _REGISTRY:
            raise ValueError(f"two experiments are named {name}")
        _REGISTRY[name] = Entry(name, document, data, document_results or {}, make, choices)
        return make

    return decorate


def registry() -> Mapping[str, Entry]:
    """Every registered experiment, by name."""
    import_definitions()
    return dict(sorted(_REGISTRY.items()))


def lookup(name: str) -> Entry:
    """The experiment of that name.

    Raises:
        UsageError: there is none; says which are near.
    """
    entries = registry()
    if name in entries:
        return entries[name]
    raise UsageError(
        f"no experiment is named '{name}'{did_you_mean(name, list(entries))}; "
        "`python launch.py --list` shows all"
    )
