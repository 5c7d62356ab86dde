"""Experiments and their registry."""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar

import tyro

from cnn_research.core.config import did_you_mean, same_definition
from cnn_research.core.definitions import (
    DEFINITIONS,
    error_with_place,
    import_definitions,
    import_modules,
    import_plugins,
    is_own,
)
from cnn_research.core.errors import PROGRAM, UsageError
from cnn_research.core.ranges import check_ranges


@dataclasses.dataclass(frozen=True)
class Result:
    """The result of a run: its folder, the last step and the metrics of its evaluation."""

    workdir: Path
    step: int
    metrics: Mapping[str, Mapping[str, float]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment:
    """Base class of the configs of experiments, which `cli.run` runs in one of their modes."""

    resumable_fields: ClassVar[tuple[str, ...]] = ()
    """Fields that may change when a run is resumed."""

    name: Annotated[str, tyro.conf.Suppress] = ""
    """Name in the registry; empty for experiments created in Python."""

    def check(self) -> None:
        """Raise `UsageError` for invalid or contradictory fields, without loading data; overriding
        methods call it first."""
        check_ranges(self)


@dataclasses.dataclass(frozen=True)
class Suggestion:
    """A value derived from the data for a field, and the reason."""

    value: Any
    reason: str


class Choices:
    """Fields of an experiment that are chosen from its data, one after the other.

    Fields set by the user are not changed, and other choices may depend on them.
    """

    def __init__(self, experiment: Any, named: Collection[str]):
        """`named` has the paths of the fields set by the user."""
        self.experiment, self.named = experiment, named
        self.suggestions: dict[str, Suggestion] = {}

    def choose(self, path: str, value: Any, reason: str) -> Any:
        """Suggest a value for a field unless the user set it; return the field's value."""
        if path not in self.named:
            self.suggestions[path] = Suggestion(value, reason)
        return self.value(path)

    def value(self, path: str) -> Any:
        """Return the suggested or current value of a field."""
        if path in self.suggestions:
            return self.suggestions[path].value
        return operator.attrgetter(path)(self.experiment)


BUDGET = 10.0
"""Default of `--budget`: training time in minutes on two cores."""

SuggestFields = Callable[[Any, Collection[str], float], Mapping[str, Suggestion]]
"""Function of an experiment as typed, the paths of the fields set by the user, and a time budget in
minutes, which returns suggestions for other fields by path."""


@dataclasses.dataclass(frozen=True)
class Document:
    """A publication that experiments implement."""

    subject: str
    """Short name in tables and lists, such as `painters paper`."""
    citation: str
    """Author, title, place and year, for reports."""


@dataclasses.dataclass(frozen=True)
class Entry:
    """A registered experiment."""

    name: str
    document: Document | None
    """The document that it implements."""
    data: str
    """Short name of its data set."""
    document_results: Mapping[str, float]
    """Metrics given by the document, for comparison in reports."""
    make: Callable[[], Experiment]
    suggest_fields: SuggestFields | None = None
    """None for a complete config."""

    def experiment(self) -> Experiment:
        """Create the experiment; raise `UsageError` if its function fails."""
        try:
            return dataclasses.replace(self.make(), name=self.name)
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            raise UsageError(f"experiment {self.name} fails: {error_with_place(error)}") from error

    @property
    def summary(self) -> str:
        return (self.make.__doc__ or "").strip().split("\n")[0]


_REGISTRY: dict[str, Entry] = {}


def register(
    *,
    document: Document | None = None,
    data: str,
    document_results: Mapping[str, float] | None = None,
    suggest_fields: SuggestFields | None = None,
) -> Callable[[Callable[[], Experiment]], Callable[[], Experiment]]:
    """Decorate a function that returns an `Experiment` to register it under the function's name.

    If the same function is defined again, as in a notebook cell, it replaces the earlier one.
    Raises `UsageError` if another experiment has that name.
    """

    def decorate(make: Callable[[], Experiment]) -> Callable[[], Experiment]:
        if not is_own(make.__module__):
            import_definitions()
        name = make.__name__
        if name in _REGISTRY and not same_definition(_REGISTRY[name].make, make):
            raise UsageError(f"an experiment is already named {name}: rename the function")
        _REGISTRY[name] = Entry(name, document, data, document_results or {}, make, suggest_fields)
        return make

    return decorate


def registry() -> Mapping[str, Entry]:
    """Return all experiments by name: those of this project, plugins and imported modules."""
    import_modules(DEFINITIONS[0])
    import_plugins()
    return dict(sorted(_REGISTRY.items()))


def lookup(name: str) -> Entry:
    """Return the experiment of a name; raise `UsageError` with the nearest name if unknown."""
    entries = registry()
    if name in entries:
        return entries[name]
    raise UsageError(
        f"no experiment is named '{name}'{did_you_mean(name, list(entries))}; "
        f"`{PROGRAM} --list` shows all, and --import=FILE.py adds your own"
    )


def experiment(name: str) -> Experiment:
    """Return a registered experiment with its default fields; raises the errors of `lookup`."""
    return lookup(name).experiment()
