"""Experiments, and the registry of all of them."""

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
    """The base of every kind of experiment: a config, which `cli.run` runs in one of its modes."""

    resumable_fields: ClassVar[tuple[str, ...]] = ()
    """The fields that may change when a run is resumed."""

    name: Annotated[str, tyro.conf.Suppress] = ""
    """The name it is registered under; empty for one made in Python."""

    def check(self) -> None:
        """Raise `UsageError` for invalid or contradictory fields, without data; subclasses call it
        first."""
        check_ranges(self)


@dataclasses.dataclass(frozen=True)
class Suggestion:
    """A value that an experiment derives from its data for one of its fields, and the reason."""

    value: Any
    reason: str


class Choices:
    """Fields of an experiment that are chosen from its data, one after the other.

    A field that the user has named stays, and choices made after it depend on it.
    """

    def __init__(self, experiment: Any, named: Collection[str]):
        """`named` has the paths of the fields that the user has set in the experiment."""
        self.experiment, self.named = experiment, named
        self.suggestions: dict[str, Suggestion] = {}

    def choose(self, path: str, value: Any, reason: str) -> Any:
        """Suggest a value for a field, unless it is named; return the value that the field has."""
        if path not in self.named:
            self.suggestions[path] = Suggestion(value, reason)
        return self.value(path)

    def value(self, path: str) -> Any:
        """The value that a field has, or that is suggested for it."""
        if path in self.suggestions:
            return self.suggestions[path].value
        return operator.attrgetter(path)(self.experiment)


BUDGET = 10.0
"""Default of `--budget`: minutes of training on two cores."""

SuggestFields = Callable[[Any, Collection[str], float], Mapping[str, Suggestion]]
"""From an experiment as typed, the paths of the fields that were named, and the minutes that it may
take, to suggestions from its data for other fields, by path."""


@dataclasses.dataclass(frozen=True)
class Document:
    """A publication that experiments implement."""

    subject: str
    """What tables and lists call it, as `painters paper`."""
    citation: str
    """Author, title, place and year, for reports."""


@dataclasses.dataclass(frozen=True)
class Entry:
    """A registered experiment."""

    name: str
    document: Document | None
    """The document that it implements."""
    data: str
    """Its data set, in a word or two."""
    document_results: Mapping[str, float]
    """Metrics that the document gives, for reports to show beside ours."""
    make: Callable[[], Experiment]
    suggest_fields: SuggestFields | None = None
    """None for a complete config."""

    def experiment(self) -> Experiment:
        """Make the experiment; a `UsageError` with the error of a function that fails."""
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
    """Decorate a function that returns an `Experiment`; its name becomes the experiment's.

    Defined again, as in a cell of a notebook, it replaces the one of before; a `UsageError` if
    another experiment has that name.
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
    """Every experiment by its name: this project's, those of plugins, and what was imported."""
    import_modules(DEFINITIONS[0])
    import_plugins()
    return dict(sorted(_REGISTRY.items()))


def lookup(name: str) -> Entry:
    """The experiment of that name; a `UsageError` with the nearest name if there is none."""
    entries = registry()
    if name in entries:
        return entries[name]
    raise UsageError(
        f"no experiment is named '{name}'{did_you_mean(name, list(entries))}; "
        f"`{PROGRAM} --list` shows all, and --import=FILE.py adds your own"
    )


def experiment(name: str) -> Experiment:
    """The registered experiment of that name, with its default fields; errors as of `lookup`."""
    return lookup(name).experiment()
