"""Configs: frozen dataclasses, written as JSON, read back by registered names, and hashed."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import hashlib
import io
import itertools
import json
import warnings
from collections.abc import Collection, Mapping, Sequence
from typing import Any, TypeVar

from cnn_research.core.definitions import import_definitions, import_plugins, is_own
from cnn_research.core.errors import UsageError, UserError

C = TypeVar("C")

HELP = ("--help", "-h", "-help", "-?")
"""Flags that show help; `--help=PART` shows a part of the fields."""


def with_fields(config: Any, values: Mapping[str, Any]) -> Any:
    """Replace fields of a config by their paths, as in `flatten`: `optimizer.learning_rate`, or
    `callbacks.0.change` for a part in a tuple.

    Raises `UsageError` if there is no such field.
    """
    for path, value in values.items():
        name, _, rest = path.partition(".")
        parts = {field.name: getattr(config, field.name) for field in config_fields(config)}
        if isinstance(config, tuple):
            parts = {str(index): part for index, part in enumerate(config)}
        if name not in parts:
            flags = [part.replace("_", "-") for part in parts]
            near = nearest_field(name.replace("_", "-"), flags).replace("-", "_")
            raise UsageError(f"{type(config).__name__} has no field '{name}'{near}")
        changed = with_fields(parts[name], {rest: value}) if rest else value
        if isinstance(config, tuple):
            config = tuple((parts | {name: changed}).values())
        else:
            config = dataclasses.replace(config, **{name: changed})
    return config


def asks_for_help(word: str) -> bool:
    return word in HELP or word.startswith("--help=")


def parse_fields(
    default: C, words: list[str], command: str, description: str = "", flags: Sequence[str] = ()
) -> C:
    """Set fields from the command line; `--help` describes the fields and exits.

    Raises `UsageError` for an invalid value or an unknown field, with the nearest field or one of
    the command's own `flags`.
    """
    import tyro

    for word in filter(asks_for_help, words):
        from cnn_research.core.help import help_text

        part = word.partition("=")[2]
        print(help_text(default, command, description or type(default).__doc__ or "", part))
        raise SystemExit(0)
    fields = flatten(default).keys() - {"name"}
    for word in words:
        if word.startswith("--") and field_of(word, fields) is None:
            name = word.partition("=")[0].removeprefix("--").replace("_", "-")
            near = nearest_field(name, [*(f.replace("_", "-") for f in fields), *flags])
            raise UsageError(f"unknown field --{name}{near}; `{command} --help` shows all")
    box = io.StringIO()
    try:
        # A default that does not have its field's type is an error later, so tyro need not warn.
        with contextlib.redirect_stderr(box), warnings.catch_warnings(action="ignore"):
            return tyro.cli(type(default), default=default, args=words)
    except SystemExit as end:
        if not end.code:
            raise
    # Remove tyro's frame, also in ASCII, and the rule below the message.
    lines = [line.strip("│╭╮╰╯|+ ") for line in box.getvalue().splitlines()[1:]]
    begun = itertools.dropwhile(lambda line: not line.strip("─-"), lines)
    sentence = itertools.takewhile(lambda line: line.strip("─-"), begun)
    message = " ".join(" ".join(sentence).split()).rstrip(".")
    raise UsageError(f"{message}; --help shows all fields")


def field_of(word: str, fields: Collection[str]) -> str | None:
    """Return the path of the field that a word such as `--data.image-size=64` sets; None if it is
    not one of `fields`."""
    name = word.partition("=")[0].removeprefix("--").replace("-", "_")
    # Boolean fields are negated in their last part: --evaluation.no-mirror.
    return next((path for path in (name, name.replace("no_", "", 1)) if path in fields), None)


def config_fields(config: Any) -> list[dataclasses.Field]:
    """Return the fields of a config, without those that Flax adds to modules."""
    kind = config if isinstance(config, type) else type(config)
    if not dataclasses.is_dataclass(kind):
        return []
    added = ("parent", "name") if _is_module(kind) else ()
    return [f for f in dataclasses.fields(kind) if f.init and f.name not in added]


def _is_module(kind: type) -> bool:
    return any(base.__module__.startswith("flax.linen") for base in kind.__mro__)


_CONFIG_CLASSES: dict[str, type] = {}


def register_config(kind: type[C]) -> type[C]:
    """Register a config class under its `__name__`, by which saved configs refer to it.

    Configs can only refer to registered classes, so that an untrusted config cannot run code. If
    the same class is defined again, as in a notebook cell, it replaces the earlier one. Raises
    `UsageError` if it is not a frozen dataclass, or another class has its name.
    """
    if not is_own(kind.__module__):
        import_definitions()
    name, parameters = kind.__name__, vars(kind).get("__dataclass_params__")
    if not (parameters and (parameters.frozen or _is_module(kind))):
        raise UsageError(
            f"{name} is not a frozen dataclass: below @register_config, decorate it with "
            "@dataclasses.dataclass(frozen=True)"
        )
    known = _CONFIG_CLASSES.setdefault(name, kind)
    if not same_definition(known, kind):
        raise UsageError(
            f"a config class is already named {name}, in {known.__module__}: rename the one in "
            f"{kind.__module__}"
        )
    _CONFIG_CLASSES[name] = kind
    return kind


def same_definition(one: Any, other: Any) -> bool:
    """Return whether two classes or functions have the same module and qualified name."""
    return (one.__module__, one.__qualname__) == (other.__module__, other.__qualname__)


class UnknownClass(UserError):
    """A config names a class that is not registered."""


def config_class(name: str) -> type:
    """Return the registered config class of a name; raise `UnknownClass` if there is none."""
    for import_more in (import_definitions, import_plugins):
        if name not in _CONFIG_CLASSES:
            import_more()
    if name not in _CONFIG_CLASSES:
        raise UnknownClass(
            f"the config names the class '{name}', which is not registered"
            f"{did_you_mean(name, list(_CONFIG_CLASSES))}: nothing was run"
        )
    return _CONFIG_CLASSES[name]


def outside_modules(config: Any) -> set[str]:
    """Return the modules outside this project that define a config's classes."""
    values = config if isinstance(config, tuple) else ()
    parts = [*values, *(getattr(config, field.name) for field in config_fields(config))]
    modules: set[str] = set().union(*map(outside_modules, parts))
    outside = dataclasses.is_dataclass(config) and not is_own(type(config).__module__)
    return modules | {type(config).__module__} if outside else modules


def to_dict(config: Any, path: str = "") -> Any:
    """Convert a config to JSON values, with the registered names of dataclasses.

    Raises `UsageError` with the path of the field for values of other types.
    """
    where = f"--{path.replace('_', '-')}" if path else "the config"
    if dataclasses.is_dataclass(config):
        name = type(config).__name__
        if _CONFIG_CLASSES.get(name) is not type(config):
            raise UsageError(
                f"{where} is of the class {name}, which cannot be written to a run's folder: "
                "decorate it with @register_config"
            )
        fields = [field.name for field in config_fields(config)]
        values = {f: to_dict(getattr(config, f), f"{path}.{f}".lstrip(".")) for f in fields}
        return {"class": name, **values}
    if isinstance(config, tuple):
        return [to_dict(value, path) for value in config]
    if isinstance(config, str | int | float | bool) or config is None:
        return config
    raise UsageError(
        f"{where} is {config!r}, which cannot be written to a run's folder: a config may contain "
        "only numbers, strings, tuples and dataclasses"
    )


def from_dict(values: Any) -> Any:
    """Restore a config from `to_dict`; raise `UserError` if a class or field no longer exists."""
    if isinstance(values, list):
        return tuple(from_dict(value) for value in values)
    if not isinstance(values, dict):
        return values
    name = values.get("class")
    if not isinstance(name, str):
        raise UserError(f"a part of the config has no class: {sorted(values)}")
    kind = config_class(name)
    fields = {key: from_dict(value) for key, value in values.items() if key != "class"}
    try:
        return kind(**fields)
    except TypeError as error:
        raise UserError(f"the config does not fit this version of {name}: {error}") from None


def canonical_json(config: Any) -> str:
    """Convert a config to JSON with sorted keys; equal configs give equal texts."""
    return json.dumps(to_dict(config), indent=2, sort_keys=True) + "\n"


def config_hash(config: Any, default: Any = None) -> str:
    """Hash the fields that differ from `default` to eight hexadecimal digits.

    Fields that are added later with a default therefore do not change the hash. A config or part of
    another class than the default is compared with the defaults of its own class.
    """
    text = json.dumps(differences(config, default), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def differences(config: Any, default: Any) -> Any:
    """Return the fields that differ from `default`, by name, as JSON values."""
    if not dataclasses.is_dataclass(config):
        return to_dict(config)
    same = type(config) is type(default)
    changed: dict[str, Any] = {} if same else {"class": type(config).__name__}
    for field in config_fields(config):
        value = getattr(config, field.name)
        if same:
            before = getattr(default, field.name)
        elif field.default_factory is not dataclasses.MISSING:
            before = field.default_factory()
        else:
            before = field.default
        if value != before:
            changed[field.name] = differences(value, before)
    return changed


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """Return all leaf fields by path: `{"optimizer.learning_rate": 0.001, ...}`."""
    leaves: dict[str, Any] = {}
    for field in config_fields(config):
        value = getattr(config, field.name)
        path = f"{prefix}{field.name}"
        if dataclasses.is_dataclass(value):
            leaves |= flatten(value, f"{path}.")
        else:
            leaves[path] = value
            if isinstance(value, tuple):  # of parts with fields, such as callbacks
                for index, part in enumerate(value):
                    if dataclasses.is_dataclass(part):
                        leaves |= flatten(part, f"{path}.{index}.")
    return leaves


def did_you_mean(word: str, words: Sequence[str]) -> str:
    """Return ` (did you mean 'x'?)` with the nearest of `words`, or "" if none is near."""
    near = difflib.get_close_matches(word, words, n=1, cutoff=0.6)
    return f" (did you mean '{near[0]}'?)" if near else ""


def nearest_field(name: str, fields: Sequence[str]) -> str:
    """Like `did_you_mean`, for paths of fields; also finds the last part of a path alone, the start
    of it (`--epoch`), or its initials (`--lr`, `--optimizer.lr`)."""
    last = name.rpartition(".")[2]

    def means(field: str) -> bool:
        part = field.rpartition(".")[2]
        initials = "".join(word[:1] for word in part.split("-"))
        return part.startswith(last) if len(last) > 2 else initials == last

    # If several match, prefer paths with the same beginning, then short paths.
    start = name.removesuffix(last)
    meant = sorted(filter(means, fields), key=lambda f: (not f.startswith(start), len(f), f))
    return f" (did you mean '{meant[0]}'?)" if meant else did_you_mean(name, fields)
