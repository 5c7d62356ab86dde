"""What an experiment is, how it is written down, and the registry of all of them."""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import importlib
import json
import pkgutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self, TypeVar

import tyro

from cnn_research.core.errors import UsageError, UserError

C = TypeVar("C")


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
        """Raises `UsageError` for fields that contradict each other; looks at no data."""

    def test_sized(self) -> Self:
        """The same experiment, small enough for a test to run a few steps of it in seconds."""
        return self


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


def with_fields(config: Any, values: Mapping[str, Any]) -> Any:
    """The config with fields replaced, named by their paths (`optimizer.learning_rate`)."""
    for path, value in values.items():
        field, _, rest = path.partition(".")
        value = with_fields(getattr(config, field), {rest: value}) if rest else value
        config = dataclasses.replace(config, **{field: value})
    return config


# Configs as JSON ---------------------------------------------------------------------------------


def config_fields(config: Any) -> list[dataclasses.Field]:
    """The fields that configure a dataclass: all but those flax adds to every module."""
    return [
        field
        for field in dataclasses.fields(config)
        if field.init and not (field.name in ("parent", "name") and _is_module(config))
    ]


_CONFIG_CLASSES: dict[str, type] = {}


def register_config(kind: type[C]) -> type[C]:
    """Decorates a config class: saved configs name it by its `__name__`, wherever it is defined.

    Only registered classes can be named, so that a config from elsewhere cannot run code.

    Raises:
        ValueError: another class has that name.
    """
    known = _CONFIG_CLASSES.setdefault(kind.__name__, kind)
    if (known.__module__, known.__qualname__) != (kind.__module__, kind.__qualname__):
        raise ValueError(f"two config classes are named {kind.__name__}: {known} and {kind}")
    _CONFIG_CLASSES[kind.__name__] = kind
    return kind


def config_class(name: str) -> type:
    """The registered config class of that name.

    Raises:
        UserError: there is none.
    """
    if name not in _CONFIG_CLASSES:
        registry()  # imports every experiment, and with them what they are made of
    if name not in _CONFIG_CLASSES:
        raise UserError(
            f"the config names the class '{name}', which is not registered"
            f"{did_you_mean(name, list(_CONFIG_CLASSES))}: nothing of it was run"
        )
    return _CONFIG_CLASSES[name]


def to_dict(config: Any) -> Any:
    """A config as JSON values; each dataclass gives its registered name, to be read back by.

    Raises:
        TypeError: a value is of a type that configs do not hold, or a class is not registered.
    """
    if dataclasses.is_dataclass(config):
        kind = type(config)
        if _CONFIG_CLASSES.get(kind.__name__) is not kind:
            raise TypeError(
                f"{kind} is not a registered config class: decorate it with @register_config"
            )
        values = {f.name: to_dict(getattr(config, f.name)) for f in config_fields(config)}
        return {"class": kind.__name__, **values}
    if isinstance(config, tuple | list):
        return [to_dict(value) for value in config]
    if isinstance(config, str | int | float | bool) or config is None:
        return config
    raise TypeError(f"a config holds numbers, strings, tuples and dataclasses, not {config!r}")


def from_dict(values: Any) -> Any:
    """The config that `to_dict` wrote.

    Raises:
        UserError: a class or a field that this version of the code does not have.
    """
    if isinstance(values, list):
        return tuple(from_dict(value) for value in values)
    if not isinstance(values, dict):
        return values
    name = values.get("class")
    if not isinstance(name, str):
        raise UserError(f"the config has a part that names no class: {sorted(values)}")
    kind = config_class(name)
    fields = {key: from_dict(value) for key, value in values.items() if key != "class"}
    try:
        return kind(**fields)
    except TypeError as error:
        raise UserError(f"the config does not fit {name} of this version: {error}") from None


def canonical_json(config: Any) -> str:
    """One text per config: sorted keys, so that texts are equal where configs are."""
    return json.dumps(to_dict(config), indent=2, sort_keys=True) + "\n"


def config_hash(config: Any) -> str:
    """Eight hexadecimal digits that identify a config."""
    return hashlib.sha256(canonical_json(config).encode()).hexdigest()[:8]


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """Every leaf field by its path: `{"optimizer.learning_rate": 0.001, ...}`."""
    leaves: dict[str, Any] = {}
    for field in config_fields(config):
        value = getattr(config, field.name)
        path = f"{prefix}{field.name}"
        if dataclasses.is_dataclass(value):
            leaves |= flatten(value, f"{path}.")
        else:
            leaves[path] = value
    return leaves


def _is_module(config: Any) -> bool:
    kind = config if isinstance(config, type) else type(config)
    return any(base.__module__.startswith("flax.linen") for base in kind.__mro__)


# Registry ----------------------------------------------------------------------------------------


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
    """Every experiment of the package `experiments`, by name."""
    import experiments

    for module in pkgutil.iter_modules(experiments.__path__):
        importlib.import_module(f"experiments.{module.name}")
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


def did_you_mean(word: str, words: list[str]) -> str:
    """` (did you mean 'x'?)` with the nearest of `words`, or nothing."""
    near = difflib.get_close_matches(word, words, n=1, cutoff=0.6)
    return f" (did you mean '{near[0]}'?)" if near else ""
