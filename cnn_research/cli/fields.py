"""Fields of an experiment as flags: `--optimizer.learning-rate=3e-4 --model=resnet9`."""

from __future__ import annotations

import argparse
import dataclasses
import math
import shlex
from typing import Any

from cnn_research.core.config import did_you_mean, field_of, flatten, parse_fields, with_fields
from cnn_research.core.errors import PROGRAM, UsageError
from cnn_research.core.experiment import BUDGET, Experiment, registry

LAUNCHER_FLAGS = (
    "import",
    "experiment",
    "workdir",
    "mode",
    "input",
    "neighbours",
    "dry-run",
    "profile",
    "replicas",
    "folds",
    "list",
)
"""Flags of `launch.py` itself, which are not names of fields."""
NAMING_FLAGS = ("model", "pretrained", "budget")
"""Flags that set several fields each."""


def with_overrides(default: Experiment, words: list[str]) -> Experiment:
    """Replace fields of the experiment as typed.

    `--budget` has no effect here, as it is for suggestions. Raises `UsageError` for an unknown
    field or an invalid value.
    """
    _, words = _budget_of(default, words)
    name, others = _name_of("pretrained", words)
    if name is not None:
        return _with_pretrained(default, name, others)
    return _parsed(*with_model(default, words))


def _parsed(default: Experiment, words: list[str]) -> Experiment:
    entry = registry().get(default.name)
    description = (entry.make.__doc__ if entry else None) or ""
    command = f"{PROGRAM} {default.name}"
    flags = (*LAUNCHER_FLAGS, *NAMING_FLAGS)
    return parse_fields(default, words, command, description, flags)


def _with_pretrained(default: Experiment, name: str, words: list[str]) -> Experiment:
    """Apply `--pretrained=NAME`, and replace fields as typed.

    Fields set by the weights may depend on typed ones. Raises `UsageError` for a network other than
    that of the weights, an unknown field or an invalid value.
    """
    from cnn_research.models.named_weights import NONE, named_weights
    from cnn_research.train.by_name import fields_of_weights, with_pretrained

    network, others = _name_of("model", words)
    if name == NONE:
        return _parsed(*with_model(with_pretrained(default, name), words))
    if network not in (None, named_weights(name).network):
        raise UsageError(
            f"--pretrained={name} has the weights of {named_weights(name).network}, not of "
            f"--model={network}: omit one of them"
        )
    experiment = _parsed(with_pretrained(default, name), others)
    typed = _named_fields(others, experiment) | {"model"}
    return with_fields(experiment, fields_of_weights(experiment, name, typed))


def _named_fields(words: list[str], experiment: Experiment) -> set[str]:
    """Return the paths of the fields that the words set."""
    fields = flatten(experiment)
    return {path for word in words if word.startswith("--") and (path := field_of(word, fields))}


def _budget_of(default: Experiment, words: list[str]) -> tuple[float, list[str]]:
    """Return the minutes of `--budget=MINUTES` and the other words.

    Raises `UsageError` for an invalid number, or if the experiment has no time budget.
    """
    text, others = _name_of("budget", words)
    if text is None:
        return BUDGET, words
    entry = registry().get(default.name)
    if entry is None or entry.suggest_fields is None:
        raise UsageError(f"{default.name} has no time budget: set --epochs instead of --budget")
    try:
        minutes = float(text)
    except ValueError:
        minutes = math.nan
    if not 0 < minutes < math.inf:
        raise UsageError(f"--budget is '{text}': must be a number of minutes above 0")
    return minutes, others


def _name_of(flag: str, words: list[str]) -> tuple[str | None, list[str]]:
    """Return the value of `--FLAG=NAME`, None without the flag, and the other words."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument(f"--{flag}", nargs="?", const="", dest="name")
    options, rest = parser.parse_known_args(words)
    return options.name, words if options.name is None else rest


def with_suggestions(default: Experiment, words: list[str]) -> tuple[Experiment, str]:
    """Replace fields as typed, and others by suggestions from the data.

    Suggestions may depend on typed fields. The returned text has one line per choice with its
    reason; it is empty if the experiment suggests nothing. Raises the errors of `with_overrides`
    and of the data.
    """
    experiment = with_overrides(default, words)
    suggest = registry()[default.name].suggest_fields
    if suggest is None:
        return experiment, ""
    minutes, words = _budget_of(default, words)
    name, words = _name_of("pretrained", words)
    network, words = _name_of("model", words)
    named = _named_fields(words, experiment) | ({"model"} if network else set())
    if name is not None:
        from cnn_research.train.by_name import fields_of_weights

        # Transfer fields and epochs are suggested for given weights, too.
        of_weights = fields_of_weights(default, name)
        named |= {path for path in of_weights if not path.startswith("transfer.")}
    from cnn_research import ops

    with ops.use_formulation(ops.PLAIN):  # needs no device, as networks are only traced
        suggestions = suggest(experiment, named, minutes)
    values = {path: suggestion.value for path, suggestion in suggestions.items()}
    experiment = _parsed(with_fields(experiment, values), words)
    reasons = {_as_typed(path, each.value): each.reason for path, each in suggestions.items()}
    width = max(map(len, reasons), default=0)
    lines = [f"  {typed:{width}}  {reason}" for typed, reason in reasons.items()]
    return experiment, "\n".join(["Chosen from the data (flags override it):", *lines])


def _as_typed(path: str, value: Any) -> str:
    """Format a field and its value as typed; for a part with fields, the name of its class."""
    flag = "--" + path.replace("_", "-")
    if dataclasses.is_dataclass(value):
        return f"{flag[2:]}: {type(value).__name__}"
    if isinstance(value, bool):
        before, _, last = flag.rpartition(".")
        return flag if value else f"{before}.no-{last}"
    if isinstance(value, tuple):
        return shlex.join([flag, *map(str, value)])
    return f"{flag}={value:g}" if isinstance(value, float) else f"{flag}={value}"


def with_model(default: Experiment, words: list[str]) -> tuple[Experiment, list[str]]:
    """Apply `--model=NAME`; return the experiment and the other words.

    Raises `UsageError` if there is no such network.
    """
    name, rest = _name_of("model", words)
    if name is None:
        return default, words
    if "model" not in {field.name for field in dataclasses.fields(default)}:
        raise UsageError(f"{default.name} has no network: --model does not apply")
    from cnn_research.models.registry import architectures

    models = architectures()
    if name not in models:
        raise UsageError(
            f"no network is named '{name}'{did_you_mean(name, list(models))}; "
            "`python -m cnn_research.models` shows all"
        )
    changes: dict[str, Any] = {"model": models[name].model}
    return dataclasses.replace(default, **changes), rest
